"""The trainable network as a whole: fusion, hash layer, classifier; and how its output is scored."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.metrics.hamming import check_codes
from lightning_modules.multilabel.knn import KnnVotes
from lightning_modules.multilabel.networks import ConcatFusion, HadamardFusion, HashLayer, classifier_head

Fusion = Literal["hadamard", "concat"]
Head = Literal["linear", "mlp", "knn"]


class HashClassifier(nn.Module):
    """Labels of an image with its caption, through a binary code of both.

    Args:
        image_dim: Width of the image embeddings.
        text_dim: Width of the text embeddings.
        num_classes: Number of labels C.
        bits: Length of the code; None = no hash layer.
        fusion: ``hadamard`` or ``concat``.
        head: ``linear``, ``mlp``, or ``knn``, which is learnt through a linear classifier and scored by votes.
        hidden: Width of the fusion's hidden layer.
        width: Width of the fused feature.
        dropout: Dropout rate of the fusion.

    Example:
        >>> import torch
        >>> model = HashClassifier(image_dim=6, text_dim=6, num_classes=3, bits=8).eval()
        >>> logits, codes = model(torch.randn(2, 6), torch.randn(2, 6))
        >>> logits.shape, codes.shape
        (torch.Size([2, 3]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        num_classes: int,
        bits: int | None = 64,
        fusion: Fusion = "hadamard",
        head: Head = "linear",
        hidden: int = 1024,
        width: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.head = head
        build = HadamardFusion if fusion == "hadamard" else ConcatFusion
        self.fusion = build(image_dim, text_dim, hidden, width, dropout)
        self.hash_layer = HashLayer(width, bits) if bits else None
        self.classifier = classifier_head("mlp" if head == "mlp" else "linear", bits or width, num_classes)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits and relaxed codes.

        Args:
            image: Embeddings ``(B, image_dim)``.
            text: Embeddings ``(B, text_dim)``.

        Returns:
            Logits ``(B, C)``; codes ``(B, bits)`` in (-1, 1), None without hash layer.
        """
        fused = self.fusion(image, text)
        codes = self.hash_layer(fused) if self.hash_layer is not None else None
        return self.classifier(fused if codes is None else codes), codes

    def scored(self, image: Tensor, text: Tensor, votes: KnnVotes | None) -> tuple[dict[str, Tensor], Tensor | None]:
        """What the model says of items.

        Args:
            image: Embeddings ``(B, image_dim)``.
            text: Embeddings ``(B, text_dim)``.
            votes: The gallery of the KNN head; without it that head gives codes alone.

        Returns:
            Class probabilities ``(B, C)`` by way of scoring: ``soft`` on relaxed codes, ``binary`` on their signs.
            Binary codes int8 ``(B, bits)``, None without hash layer.

        Raises:
            ValueError: The codes are not finite: the model has diverged.
        """
        logits, relaxed = self(image, text)
        if relaxed is None:
            return {"soft": logits.float().sigmoid()}, None
        codes = (check_codes(relaxed, "relaxed codes") >= 0).to(torch.int8) * 2 - 1
        if self.head == "knn":
            return {"binary": votes.probabilities(codes)} if votes else {}, codes
        binary = self.classifier(codes.to(relaxed.dtype))
        return {"soft": logits.float().sigmoid(), "binary": binary.float().sigmoid()}, codes


def scorings(bits: int | None, head: Head) -> tuple[str, ...]:
    """The ways in which such a model is scored, the one to select by first.

    Example:
        >>> scorings(64, "linear"), scorings(None, "linear"), scorings(64, "knn")
        (('soft', 'binary'), ('soft',), ('binary',))
    """
    if not bits:
        return ("soft",)
    return ("binary",) if head == "knn" else ("soft", "binary")
