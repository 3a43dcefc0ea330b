"""Networks of multi-label hashing: the fusion of both embeddings, the hash layer, the classifier."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

EPSILON = 1e-6


def decompose(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Split vectors into direction and logarithm of the length.

    A zero vector has the direction zero and the logarithm log(1e-6), both with finite gradients. Computed in float32
    also under autocast: in half precision the squares of ordinary embeddings overflow.

    Args:
        embeddings: Shape ``(B, D)``, not normalised.

    Returns:
        ``v / (|v| + 1e-6)``, ``(B, D)``, and ``log(|v| + 1e-6)``, ``(B, 1)``, float32 (float64 for float64).

    Example:
        >>> import torch
        >>> direction, log_magnitude = decompose(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> [round(value, 4) for value in direction[0].tolist()], direction[1].tolist()
        ([0.6, 0.8], [0.0, 0.0])
        >>> [round(value, 2) for value in log_magnitude[:, 0].tolist()]
        [1.61, -13.82]
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        length = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True) + EPSILON  # (B, 1)
        return embeddings / length, length.log()


def _layers(in_dim: int, hidden: int, width: int, dropout: float) -> nn.Sequential:
    """The two layers that both fusions end in."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, width),
        nn.ReLU(),
        nn.Dropout(dropout),
    )


def _fit_type(features: Tensor, layers: nn.Module) -> Tensor:
    """Features in the type of the weights, which are in half precision themselves in some runs."""
    return features.to(next(layers.parameters()).dtype)


class HadamardFusion(nn.Module):
    """Fusion of the directions, of their product, element by element, and of the log magnitudes of both embeddings.

    Args:
        image_dim: Width D of the image embeddings.
        text_dim: Width of the text embeddings, the same D.
        hidden: Width of the first layer.
        width: Width of the fused features.
        dropout: Dropout rate after both layers.

    Raises:
        ValueError: ``image_dim`` and ``text_dim`` differ, so that there is no product.

    Example:
        >>> import torch
        >>> fusion = HadamardFusion(image_dim=6, text_dim=6, hidden=8, width=4)
        >>> fusion(torch.randn(3, 6), torch.randn(3, 6)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self, image_dim: int, text_dim: int, hidden: int = 1024, width: int = 512, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if image_dim != text_dim:
            raise ValueError(
                f"image_dim is {image_dim} and text_dim is {text_dim}; the product of the Hadamard fusion needs equal "
                "widths. Set fusion: concat, which takes any."
            )
        self.width = width
        self.layers = _layers(3 * image_dim + 2, hidden, width, dropout)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Fused features.

        Args:
            image: Shape ``(B, D)``, not normalised.
            text: Shape ``(B, D)``, not normalised.

        Returns:
            Shape ``(B, width)``, not negative.
        """
        image_direction, image_magnitude = decompose(image)
        text_direction, text_magnitude = decompose(text)
        product = image_direction * text_direction
        joined = torch.cat([image_direction, text_direction, product, image_magnitude, text_magnitude], dim=1)
        return self.layers(_fit_type(joined, self.layers))  # (B, 3 D + 2) -> (B, width)


class ConcatFusion(nn.Module):
    """Fusion of both embeddings as they are, side by side; the control of :class:`HadamardFusion`.

    Args:
        image_dim: Width of the image embeddings.
        text_dim: Width of the text embeddings.
        hidden: Width of the first layer.
        width: Width of the fused features.
        dropout: Dropout rate after both layers.

    Example:
        >>> import torch
        >>> fusion = ConcatFusion(image_dim=6, text_dim=5, hidden=8, width=4)
        >>> fusion(torch.randn(3, 6), torch.randn(3, 5)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self, image_dim: int, text_dim: int, hidden: int = 1024, width: int = 512, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = _layers(image_dim + text_dim, hidden, width, dropout)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Fused features.

        Args:
            image: Shape ``(B, image_dim)``.
            text: Shape ``(B, text_dim)``.

        Returns:
            Shape ``(B, width)``, not negative.
        """
        joined = torch.cat([image, text], dim=1)
        return self.layers(_fit_type(joined, self.layers))  # (B, Di + Dt) -> (B, width)


class HashLayer(nn.Module):
    """A linear layer that ends in tanh(scale * x); the sign of its output is the binary code.

    Args:
        in_dim: Width of the features.
        bits: Length of the code, at least 1.

    Raises:
        ValueError: ``bits`` is below 1.

    Reference:
        Scaled tanh: Cao et al., HashNet: Deep Learning to Hash by Continuation, ICCV 2017, section 3.3.

    Example:
        >>> import torch
        >>> layer = HashLayer(in_dim=6, bits=16)
        >>> layer.set_scale(10.0)
        >>> codes = layer(torch.randn(3, 6))
        >>> codes.shape, bool(codes.abs().max() <= 1)
        (torch.Size([3, 16]), True)
    """

    scale: Tensor

    def __init__(self, in_dim: int, bits: int) -> None:
        super().__init__()
        if bits < 1:
            raise ValueError(f"bits is {bits}; a code needs at least 1 bit.")
        self.bits = bits
        self.output = nn.Linear(in_dim, bits)
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
        return torch.tanh(self.scale * self.output(features))


def classifier_head(
    kind: Literal["linear", "mlp"], in_dim: int, num_classes: int, hidden: int = 512, dropout: float = 0.1
) -> nn.Module:
    """The classifier over codes or fused features.

    Args:
        kind: ``linear``, or ``mlp`` with one hidden layer.
        in_dim: Bits of the code, or width of the features.
        num_classes: Number of classes C.
        hidden: Width of that layer.
        dropout: Dropout rate after it.

    Returns:
        A module from ``(B, in_dim)`` to logits ``(B, C)``.

    Raises:
        ValueError: Unknown ``kind``, or no class.

    Example:
        >>> [sum(p.numel() for p in classifier_head(kind, 64, 80).parameters()) for kind in ("linear", "mlp")]
        [5200, 74320]
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a classifier needs at least 1 class.")
    if kind == "linear":
        return nn.Linear(in_dim, num_classes)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes))
    raise ValueError(f"The classifier is {kind!r}; known are 'linear' and 'mlp'.")
