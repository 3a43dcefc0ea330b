"""Networks of cross-modal hashing: the fusion of both modalities and the hash head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.metrics.hamming import check_codes


class FusionEncoder(nn.Module):
    """Transformer over the concatenation of an item's image and text feature, split again afterwards.

    Each item is a sequence of its own, of length one, in training and in evaluation: a code never depends on the
    other items of the batch. Over one key the attention weights are 1, so the number of heads changes nothing in the
    output; it is lowered to the largest that divides the width.

    Args:
        image_dim: Width of the image features.
        text_dim: Width of the text features.
        heads: Attention heads.
        layers: Transformer layers.
        feedforward: Width of the feed-forward part.
        dropout: Dropout rate inside the layers.

    Reference:
        Xia et al., When CLIP meets cross-modal hashing retrieval: A new strong baseline, Information Fusion 2023.

    Example:
        >>> import torch
        >>> encoder = FusionEncoder(image_dim=6, text_dim=4, feedforward=8).eval()
        >>> image, text = encoder(torch.randn(3, 6), torch.randn(3, 4))
        >>> image.shape, text.shape
        (torch.Size([3, 6]), torch.Size([3, 4]))
    """

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        heads: int = 4,
        layers: int = 2,
        feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dims = (image_dim, text_dim)
        width = image_dim + text_dim
        layer = nn.TransformerEncoderLayer(width, math.gcd(heads, width), feedforward, dropout)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Fused features.

        Args:
            image: Shape ``(B, image_dim)``.
            text: Shape ``(B, text_dim)``.

        Returns:
            The two parts, ``(B, image_dim)`` and ``(B, text_dim)``, of a vector of unit length.
        """
        joined = torch.cat([image, text], dim=1)[None]  # (1, B, Di + Dt): one token for each item
        fused = F.normalize(self.encoder(joined)[0], dim=1)  # (B, Di + Dt)
        fused_image, fused_text = fused.split(self.dims, dim=1)
        return fused_image, fused_text


class HashHead(nn.Module):
    """Two-layer perceptron that ends in tanh(scale * x); the sign of its output is the binary code.

    Args:
        in_dim: Width of the features; they are L2-normalised first.
        bits: Length of the code, at least 1.
        hidden: Width of the hidden layer.
        dropout: Dropout rate after it.

    Reference:
        Head: Xia et al., Information Fusion 2023. Scaled tanh: Cao et al., HashNet, ICCV 2017, section 3.3.

    Example:
        >>> import torch
        >>> head = HashHead(in_dim=6, bits=16, hidden=8)
        >>> head.set_scale(10.0)
        >>> codes = head(torch.randn(3, 6))
        >>> codes.shape, bool(codes.abs().max() <= 1)
        (torch.Size([3, 16]), True)
    """

    scale: Tensor

    def __init__(self, in_dim: int, bits: int, hidden: int = 4096, dropout: float = 0.3) -> None:
        super().__init__()
        if bits < 1:
            raise ValueError(f"bits is {bits}; a code needs at least 1 bit.")
        self.hidden = nn.Linear(in_dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, bits)
        # a buffer, so that a checkpoint holds the sharpness that its weights were trained with
        self.register_buffer("scale", torch.tensor(1.0))

    def set_scale(self, value: float) -> None:
        """Set the sharpness of tanh(scale * x)."""
        self.scale.fill_(value)

    def forward(self, features: Tensor) -> Tensor:
        """Relaxed codes in (-1, 1).

        Args:
            features: Shape ``(B, in_dim)``.

        Returns:
            Shape ``(B, bits)``.
        """
        hidden = self.dropout(F.relu(self.hidden(F.normalize(features, dim=1))))
        return torch.tanh(self.scale * self.output(hidden))


def binary_codes(codes: Tensor) -> Tensor:
    """Signs of relaxed codes ``(B, bits)`` as int8, +1 for zero.

    Raises:
        ValueError: A value is NaN or infinite, as those of a model that has diverged.

    Example:
        >>> import torch
        >>> binary_codes(torch.tensor([[-0.2, 0.0, 0.7]])).tolist()
        [[-1, 1, 1]]
    """
    return (check_codes(codes) >= 0).to(torch.int8) * 2 - 1
