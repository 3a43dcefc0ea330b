"""Is a class more similar inside its boxes than outside? The patch-grid diagnosis, for each image and class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

COVERED = 0.5  # share of a patch inside the boxes of a class from which on it counts as inside
COLUMNS = ("image", "class", "inside", "outside", "gap", "auroc", "patches_inside")


def box_coverage(boxes: Tensor, size: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """Share of each patch that lies inside boxes.

    Args:
        boxes: ``(n, 4)`` xyxy in pixels of the picture.
        size: Height and width of the picture.
        grid: Rows and columns of patches.

    Returns:
        ``(rows, columns)`` in 0..1, exact where boxes do not overlap within a patch, else at most the sum.

    Example:
        >>> box_coverage(torch.tensor([[0.0, 0.0, 6.0, 4.0]]), (8, 8), (2, 2)).tolist()
        [[1.0, 0.5], [0.0, 0.0]]
    """
    shares = []
    for axis, (extent, count) in enumerate(((size[1], grid[1]), (size[0], grid[0]))):  # x, then y
        edges = torch.linspace(0, float(extent), count + 1, dtype=torch.float64)
        low, high = boxes[:, axis, None].double(), boxes[:, axis + 2, None].double()
        overlap = torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])
        shares.append(overlap.clamp(min=0) * count / float(extent))  # (n, count)
    return torch.einsum("ny,nx->yx", shares[1], shares[0]).clamp(max=1).float()


def class_coverage(
    boxes: Tensor, labels: Tensor, num_classes: int, size: Sequence[int], grid: tuple[int, int]
) -> Tensor:
    """:func:`box_coverage` of each class: boxes ``(n, 4)`` with labels ``(n,)`` to ``(K, rows, columns)``."""
    found = torch.zeros(num_classes, *grid)
    for label in labels.unique().tolist():
        found[label] = box_coverage(boxes[labels == label], size, grid)
    return found


def batch_coverage(batch: Mapping[str, Any], num_classes: int, grid: tuple[int, int]) -> Tensor:
    """:func:`class_coverage` of B images, without what the data marks to be ignored: that is background here.

    Args:
        batch: With B ``boxes``, ``box_labels`` and ``ignore``, and ``size`` ``(B, 2)``.
        num_classes: Number of classes K.
        grid: Rows and columns of patches.

    Returns:
        ``(B, K, rows, columns)`` on the CPU.
    """
    columns = zip(*(batch[name] for name in ("boxes", "box_labels", "ignore", "size")), strict=True)
    return torch.stack(
        [
            class_coverage(boxes[~ignore].cpu(), labels[~ignore].cpu(), num_classes, size.tolist(), grid)
            for boxes, labels, ignore, size in columns
        ]
    )


def area_under_roc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive scores above a negative, ties counting half; NaN without one of either.

    Args:
        scores: ``(N,)``.
        positive: ``(N,)`` bool.

    Example:
        >>> area_under_roc(torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([False, True, False, True]))
        0.875
    """
    high, low = scores[positive].double(), scores[~positive].double()
    if not len(high) or not len(low):
        return float("nan")
    ordered = low.sort().values
    below = torch.searchsorted(ordered, high, right=False) + torch.searchsorted(ordered, high, right=True)
    return float(below.double().mean() / (2 * len(low)))


def diagnose(maps: Tensor, coverage: Tensor, index: int) -> Tensor:
    """What an image says about each of its classes.

    Args:
        maps: Raw similarities on the patch grid, ``(K, rows, columns)``.
        coverage: Share of each patch inside the boxes of each class, the same shape.
        index: The image.

    Returns:
        Rows of :data:`COLUMNS` in float64, one for each class with patches inside and outside: mean similarity inside
        and outside, their difference, the area under the ROC curve over patches, and how many patches are inside.
    """
    rows = []
    for label in coverage.flatten(1).amax(1).gt(0).nonzero()[:, 0].tolist():
        values, inside = maps[label].flatten().double(), coverage[label].flatten() >= COVERED
        if not inside.any():  # smaller than half a patch: its best patch stands for it
            inside = coverage[label].flatten() == coverage[label].max()
        if inside.all():
            continue
        means = float(values[inside].mean()), float(values[~inside].mean())
        rows.append([index, label, *means, means[0] - means[1], area_under_roc(values, inside), float(inside.sum())])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(COLUMNS))


def gap_summary(rows: Tensor, num_redraws: int = 1000, seed: int = 0) -> dict[str, float]:
    """Mean gap and AUROC over pairs of image and class, with intervals over images.

    Args:
        rows: As :func:`diagnose` makes them, of all images.
        num_redraws: Bootstrap samples of images.
        seed: Their seed.

    Returns:
        ``gap``, ``gap_low``, ``gap_high`` (95 %), ``gap_positive`` (share of positive gaps), ``patch_auroc``,
        ``inside`` and ``outside`` (mean similarities); empty without rows.
    """
    if not len(rows):
        return {}
    _, image = rows[:, 0].unique(return_inverse=True)
    sums = torch.zeros(int(image.max()) + 1, 2, dtype=torch.float64)
    sums.index_add_(0, image, torch.stack([rows[:, 4], torch.ones(len(rows), dtype=torch.float64)], 1))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(sums), (num_redraws, len(sums)), generator=generator)
    totals = sums[drawn].sum(1)  # (redraws, 2)
    low, high = torch.quantile(totals[:, 0] / totals[:, 1], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {
        "gap": float(rows[:, 4].mean()),
        "gap_low": low,
        "gap_high": high,
        "gap_positive": float((rows[:, 4] > 0).double().mean()),
        "patch_auroc": float(rows[:, 5].nanmean()),
        "inside": float(rows[:, 2].mean()),
        "outside": float(rows[:, 3].mean()),
    }


def gaps_by_class(rows: Tensor, num_classes: int) -> Tensor:
    """Mean gap of each class over its images, ``(K,)``; NaN for a class without one."""
    sums = torch.zeros(num_classes, 2, dtype=torch.float64)
    ones = torch.ones(len(rows), dtype=torch.float64)
    sums.index_add_(0, rows[:, 1].long(), torch.stack([rows[:, 4], ones], 1))
    return sums[:, 0] / sums[:, 1]
