"""How well an image-text model knows the classes, where they are, and which caption belongs to which image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Area under the precision-recall steps of one ranking; equal scores count as one step.

    Args:
        scores: ``(N,)``.
        relevant: ``(N,)``, 0 or 1, at least one of them 1.

    Example:
        >>> average_precision(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 1]))
        0.8333333333333333
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(relevant.cpu().numpy(), scores.float().cpu().numpy()))


def presence_average_precision(similarity: Tensor, labels: Tensor) -> list[float]:
    """Average precision of each class over images, from zero-shot similarities.

    Args:
        similarity: ``(N, C)``, image against class phrase.
        labels: ``(N, C)``, 0 or 1.

    Returns:
        ``C`` values, NaN for a class that no image holds; the prior ``labels.mean(0)`` is what chance scores.
    """
    return [
        average_precision(similarity[:, c], labels[:, c]) if labels[:, c].any() else float("nan")
        for c in range(labels.shape[1])
    ]


def pixel_average_precision(similarity: Tensor, semantic: Tensor) -> Tensor:
    """Average precision over the pixels of an image, for each class that the image holds.

    Args:
        similarity: ``(N, P, C)``, patch against class phrase, ``P`` a square number.
        semantic: ``(N, S, S)``, 0 for the ground and ``1 + c`` where class ``c`` is visible.

    Returns:
        One row ``(class, average precision, share of the pixels)`` for each pair of image and class present.
    """
    count, patches, classes = similarity.shape
    side = round(patches**0.5)
    maps = similarity.transpose(1, 2).reshape(count, classes, side, side)
    maps = F.interpolate(maps.float(), size=semantic.shape[-2:], mode="bilinear", align_corners=False)
    rows = []
    for image, truth in zip(maps, semantic, strict=True):
        for value in truth.unique().tolist():
            if value:
                inside = truth == value
                score = average_precision(image[value - 1].flatten(), inside.flatten())
                rows.append((value - 1, score, inside.float().mean().item()))
    return torch.tensor(rows)


def recall_at_1(image: Tensor, text: Tensor) -> float:
    """Share of the images whose own caption is the nearest of all, ``(N, D)`` unit vectors each.

    Example:
        >>> recall_at_1(torch.eye(5), torch.eye(5))
        1.0
    """
    nearest = (image @ text.T).argmax(1)
    return (nearest == torch.arange(len(image), device=nearest.device)).float().mean().item()
