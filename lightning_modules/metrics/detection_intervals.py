"""Bootstrap intervals of mean average precision of detections, images being drawn with replacement.

A redraw is a weight of each image: how often it was drawn. Matching happens within an image, so that of all images
serves every redraw.

A detection that is drawn twice stands above itself, which lifts the average precision of a redraw where truths are few.
So the redraws of each class are shifted until their mean is the class's value, as in ``multilabel_intervals``.
In simulations of 50 to 200 images the centred 95 % interval held the expected value of such a test set in 89 to 94 % of
the cases, missing it equally often on both sides. It speaks of test sets of this size: with few truths, average
precision itself lies above that of many images, because interpolation takes the highest precision.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_modules.metrics.boxes import Floats
from lightning_modules.metrics.detection_curves import (
    Interpolation,
    average_precisions,
    class_means,
    weighted_average_precisions,
)
from lightning_modules.metrics.detection_matching import Matches

DRAWS_AT_ONCE = 2**22  # drawn images that are held in memory


class Interval(NamedTuple):
    """A value at each of K thresholds, with the ends of its interval."""

    value: Floats  # (K,)
    low: Floats  # (K,)
    high: Floats  # (K,)


def bootstrap_average_precision(
    matches: Matches,
    num_redraws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    interpolation: Interpolation = "coco101",
) -> Interval:
    """Mean average precision at each threshold with its centred percentile bootstrap interval over images.

    With few images of a class the interval is narrower than it should be, since no redraw holds an image that the data
    lacks.

    Args:
        matches: Of ``match_detections``.
        num_redraws: Number of redraws; a class of which one holds no truth counts there with its value.
        confidence: Coverage, between 0 and 1.
        seed: Seed of the draws.
        interpolation: See ``average_precisions``.

    Returns:
        Values and ends; NaN when no class has a truth.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1, ``num_redraws`` below 1, no image, or an unknown
            ``interpolation``.

    Reference:
        Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979.

    >>> from lightning_modules.metrics.detection_matching import match_detections
    >>> box, far = [0, 0, 2, 2], [4, 4, 6, 6]
    >>> found = [{"boxes": [box if i % 3 else far], "scores": [0.9 - i / 50], "labels": [0]} for i in range(40)]
    >>> matches = match_detections(found, [{"boxes": [box], "labels": [0]}] * 40, num_classes=1, thresholds=[0.5])
    >>> value, low, high = bootstrap_average_precision(matches, num_redraws=100)
    >>> bool(low < value < high)
    True
    """
    redrawn = _redrawn(matches, num_redraws, confidence, seed, interpolation)
    low, high = _ends(redrawn, confidence).clip(0, 1)
    return Interval(class_means(average_precisions(matches, interpolation)), low, high)


def average_precision_difference(
    a: Matches,
    b: Matches,
    num_redraws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    interpolation: Interpolation = "coco101",
) -> Interval:
    """Mean average precision of ``a`` minus that of ``b`` on the same images, with its bootstrap interval.

    Both are scored on the same redraws, so what makes an image hard for both cancels. An interval that lies on one side
    of 0 speaks for a difference on such images; it says nothing about other training runs of the two detectors.

    Args:
        a: Matches of one detector.
        b: Matches of the other, of the same images and truths.
        num_redraws: Number of redraws.
        confidence: Coverage, between 0 and 1.
        seed: Seed of the draws.
        interpolation: See ``average_precisions``.

    Returns:
        Differences and ends; NaN when no class has a truth.

    Raises:
        ValueError: The two differ in thresholds, images or truths, or see ``bootstrap_average_precision``.
    """
    for name, one, other in (
        ("thresholds", a.thresholds, b.thresholds),
        ("truths of each image and class", a.truths(), b.truths()),
    ):
        if not np.array_equal(one, other):
            raise ValueError(f"The two detectors differ in their {name}; match both against the same images.")
    first, second = (_redrawn(matches, num_redraws, confidence, seed, interpolation) for matches in (a, b))
    values = [class_means(average_precisions(matches, interpolation)) for matches in (a, b)]
    return Interval(values[0] - values[1], *_ends(first - second, confidence))


def _redrawn(matches: Matches, num_redraws: int, confidence: float, seed: int, interpolation: Interpolation) -> Floats:
    """Mean average precision of each redraw, each class centred on its value: (redraws, K)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95 does.")
    if num_redraws < 1:
        raise ValueError(f"num_redraws is {num_redraws}; an interval needs at least one redraw, better 200 or more.")
    n = matches.num_images
    if n == 0:
        raise ValueError("There is no image to draw.")
    rng = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // n)
    parts = []
    for start in range(0, num_redraws, step):
        drawn = [rng.integers(0, n, n, dtype=np.int32) for _ in range(min(step, num_redraws - start))]
        weights = np.stack([np.bincount(images, minlength=n) for images in drawn])
        parts.append(weighted_average_precisions(matches, weights, interpolation))
    return class_means(_centred(np.concatenate(parts), average_precisions(matches, interpolation)))


def _centred(redrawn: Floats, values: Floats) -> Floats:
    """Redraws (S, K, C) shifted so that their mean is the value (K, C); one without truths of a class has its value."""
    counted = ~np.isnan(redrawn)
    mean = np.where(counted, redrawn, 0).sum(axis=0) / np.maximum(counted.sum(axis=0), 1)
    return np.where(counted, redrawn + (values - mean), values)


def _ends(redrawn: Floats, confidence: float) -> Floats:
    """Quantiles of (S, K): (2, K)."""
    ends: Floats = np.quantile(redrawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return ends
