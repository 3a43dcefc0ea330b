"""The trainable network as a whole: fusion, hash layer, classifier; and how its output is scored."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

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
        """
        logits, relaxed = self(image, text)
        if relaxed is None:
            return {"soft": logits.float().sigmoid()}, None
        codes = (relaxed >= 0).to(torch.int8) * 2 - 1
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


def check_settings(
    bits: int | None,
    head: Head,
    neighbours: int,
    weights: dict[str, float],
    unfreeze_blocks: int,
    rates: tuple[float, float, float],
) -> None:
    """Refuse settings that do not fit together.

    Args:
        bits: Length of the code; None = no hash layer.
        head: The classifier.
        neighbours: K of the KNN head, and of the votes between random codes that others are compared with.
        weights: Weight of each loss term.
        unfreeze_blocks: Tower blocks that are trained.
        rates: Learning rate of the new layers, of the towers, and the lowest.

    Raises:
        ValueError: Names the setting and the cure.
    """
    if bits is not None and bits < 1:
        raise ValueError(f"bits is {bits}; a code needs at least 1 bit, and null leaves the hash layer out.")
    if head == "knn" and bits is None:
        raise ValueError("head knn compares binary codes; set bits, for example to 64.")
    if neighbours < 1:
        raise ValueError(f"knn_neighbours is {neighbours}; at least 1 neighbour must vote. Set it to 20, for example.")
    if weights["alignment"] and not unfreeze_blocks:
        raise ValueError(
            f"alignment_weight is {weights['alignment']}, but with frozen towers (unfreeze_blocks 0) the cosine of "
            "image and text direction is a constant: the term has no gradient and only shifts the loss. Set it to 0, "
            "or set unfreeze_blocks and data.init_args.live: true."
        )
    if negative := [name for name, weight in weights.items() if weight < 0]:
        raise ValueError(f"{negative[0]}_weight is {weights[negative[0]]}; a loss weight must not be negative.")
    if unfreeze_blocks < 0:
        raise ValueError(f"unfreeze_blocks is {unfreeze_blocks}; it counts blocks from the last, 0 = none.")
    lr, tower_lr, min_lr = rates
    if lr <= 0 or tower_lr <= 0 or not 0 <= min_lr <= lr:
        raise ValueError(f"lr is {lr}, tower_lr {tower_lr}, min_lr {min_lr}; above 0 and 0 <= min_lr <= lr are needed.")


def check_neighbours(neighbours: int, items: int) -> None:
    """Refuse a K for which the training items are too few, as none of them votes for itself.

    Raises:
        ValueError: Names the largest K.
    """
    if neighbours >= items:
        raise ValueError(
            f"knn_neighbours is {neighbours}; each of {items} training items needs that many others to vote. Lower "
            f"knn_neighbours to at most {items - 1}."
        )
