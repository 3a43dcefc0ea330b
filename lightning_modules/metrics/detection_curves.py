"""Average precision and recall of matched detections, each image with a weight: 1, or how often a bootstrap drew it."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_modules.metrics.boxes import Floats
from lightning_modules.metrics.compiling import compiled
from lightning_modules.metrics.detection_matching import Matches
from lightning_modules.metrics.rows import Ints

Interpolation = Literal["coco101", "area", "voc07"]
POINTS = {"coco101": np.linspace(0, 1, 101), "area": np.zeros(0), "voc07": np.linspace(0, 1, 11)}


def average_precisions(matches: Matches, interpolation: Interpolation = "coco101") -> Floats:
    """Average precision at each threshold and of each class.

    Precision at a recall is the highest one at this or any higher recall. Detections with equal scores count in the
    order of the images, as in COCO.

    Args:
        matches: Of ``match_detections``.
        interpolation: ``coco101`` is the mean precision at the recalls 0, 0.01, ..., 1; ``voc07`` at 0, 0.1, ..., 1;
            ``area`` is the area under the curve (PASCAL VOC since 2010).

    Returns:
        (K, C); NaN for a class without truths. ``np.nanmean(..., axis=1)`` is the mean average precision.

    Raises:
        ValueError: Unknown ``interpolation``.

    Reference:
        Lin et al., "Microsoft COCO: Common Objects in Context", 2014; Everingham et al., "The PASCAL Visual Object
        Classes Challenge", 2010, section 4.2.

    >>> from lightning_modules.metrics.detection_matching import match_detections
    >>> found = {"boxes": [[0, 0, 2, 2], [4, 4, 6, 6]], "scores": [0.9, 0.8], "labels": [0, 0]}
    >>> truth = {"boxes": [[0, 0, 2, 2], [7, 7, 9, 9]], "labels": [0, 0]}
    >>> matches = match_detections([found], [truth], num_classes=2, thresholds=[0.5])
    >>> average_precisions(matches, "area")
    array([[0.5, nan]])
    """
    return weighted_average_precisions(matches, np.ones((1, matches.num_images), dtype=np.int64), interpolation)[0]


def recalls(matches: Matches) -> Floats:
    """Share of the truths that are found at each threshold, by class.

    Args:
        matches: Of ``match_detections``.

    Returns:
        (K, C); NaN for a class without truths.
    """
    total = matches.truths().sum(axis=0)
    hits = (matches.truth >= 0) & ~matches.ignored
    found = np.stack([np.bincount(matches.labels[row], minlength=matches.num_classes) for row in hits])
    return np.where(total > 0, found / np.maximum(total, 1), np.nan)


def class_means(values: Floats) -> Floats:
    """Mean over the classes that have a value: (..., C) -> (...,); NaN where none has one.

    Args:
        values: (..., C), NaN = the class does not count.

    Returns:
        (...,).

    >>> class_means(np.array([[0.5, np.nan, 1.0], [np.nan] * 3]))
    array([0.75,  nan])
    """
    counted = ~np.isnan(values)
    number = counted.sum(axis=-1)
    return np.where(number > 0, np.where(counted, values, 0).sum(axis=-1) / np.maximum(number, 1), np.nan)


def weighted_average_precisions(matches: Matches, weights: Ints, interpolation: Interpolation = "coco101") -> Floats:
    """Average precision of data sets in which each image stands as often as its weight says.

    Args:
        matches: Of ``match_detections``.
        weights: (S, images) whole numbers, 0 = the image is left out.
        interpolation: See ``average_precisions``.

    Returns:
        (S, K, C); NaN where a class has no truth.

    Raises:
        ValueError: Unknown ``interpolation``.
    """
    if interpolation not in get_args(Interpolation):
        known = ", ".join(map(repr, get_args(Interpolation)))
        raise ValueError(f"interpolation is {interpolation!r}; it must be one of {known}.")
    order = np.lexsort((-matches.scores, matches.labels))  # stable: ties in the order of the images
    ends = np.searchsorted(matches.labels[order], np.arange(matches.num_classes + 1))
    outcome = np.where(matches.ignored, -1, matches.truth >= 0).astype(np.int8)[:, order]
    positives = np.rint(weights.astype(np.float64) @ matches.truths()).astype(np.int64)  # a float product is a fast one
    result = np.full((len(weights), len(outcome), matches.num_classes), np.nan)
    _walk(weights.astype(np.int64), matches.image[order], outcome, ends, positives, POINTS[interpolation], result)
    return result


@compiled
def _walk(
    weights: Ints,
    image: Ints,
    outcome: NDArray[np.int8],
    ends: Ints,
    positives: Ints,
    points: Floats,
    result: Floats,
) -> None:
    """Fill ``result`` (S, K, C); ``outcome`` (K, D) is 1 for a true positive, 0 for a false one, -1 if ignored."""
    precision, recall = np.empty(len(image)), np.empty(len(image))
    for s in range(len(weights)):
        for k in range(len(outcome)):
            for c in range(len(ends) - 1):
                if positives[s, c] == 0:
                    continue
                hits, ranked, n = 0, 0, 0
                for d in range(ends[c], ends[c + 1]):
                    weight = weights[s, image[d]]
                    ranked += weight * (outcome[k, d] >= 0)
                    if outcome[k, d] == 1 and weight > 0:
                        hits += weight
                        precision[n] = hits / ranked
                        recall[n] = hits / positives[s, c]
                        n += 1
                point, best, total = len(points) - 1, 0.0, 0.0
                for i in range(n - 1, -1, -1):
                    while point >= 0 and points[point] > recall[i]:  # recalls that are not reached: precision 0
                        point -= 1
                    best = max(best, precision[i])
                    before = recall[i - 1] if i > 0 else -1.0
                    if len(points) == 0:
                        total += best * (recall[i] - max(before, 0.0))
                    while point >= 0 and points[point] > before:
                        total += best
                        point -= 1
                result[s, k, c] = total / max(len(points), 1)
