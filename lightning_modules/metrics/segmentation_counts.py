"""What segmentation scores are computed from: pixels of each pair of true and predicted class, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.metrics.boxes import Floats
from lightning_modules.metrics.rows import Ints

DENSE_KEYS = 2**20  # so many are counted in a table, more by sorting


class ClassPixels(NamedTuple):
    """Pixels of each class: rightly labelled, true, predicted."""

    both: Ints  # (C,)
    true: Ints  # (C,)
    predicted: Ints  # (C,)

    @property
    def union(self) -> Ints:
        """(C,) pixels that are of the class or were labelled so."""
        union: Ints = self.true + self.predicted - self.both
        return union


@dataclass(frozen=True)
class SegmentationCounts:
    """The sparse confusion matrix of each of N images, pixels near to boundaries apart.

    Args:
        num_images: N.
        num_classes: C.
        image: (n,) image of each entry.
        true: (n,) true class.
        predicted: (n,) predicted class.
        edges: (n,) 2 for pixels in the boundary region of the target, plus 1 for those in that of the prediction.
        pixels: (n,) number of such pixels, above 0; ignored ones are not counted.
    """

    num_images: int
    num_classes: int
    image: Ints
    true: Ints
    predicted: Ints
    edges: Ints
    pixels: Ints

    def confusion(self) -> Ints:
        """The confusion matrix of all images, (C, C) int64: row = true class, column = predicted class."""
        cells = self.true * self.num_classes + self.predicted
        return sums_by_place(cells, self.pixels, self.num_classes**2).reshape(self.num_classes, self.num_classes)

    def classes(self) -> ClassPixels:
        """Pixels of each class in all images."""
        everywhere = np.ones(len(self.pixels), bool)
        return self._classes(everywhere, everywhere)

    def boundaries(self) -> ClassPixels:
        """Pixels of each class in the boundary regions of all images."""
        return self._classes(self.edges >= 2, self.edges % 2 == 1)

    def _classes(self, of_target: NDArray[np.bool_], of_prediction: NDArray[np.bool_]) -> ClassPixels:
        right = of_target & of_prediction & (self.true == self.predicted)
        chosen = ((self.true, right), (self.true, of_target), (self.predicted, of_prediction))
        return ClassPixels(*(sums_by_place(c[rows], self.pixels[rows], self.num_classes) for c, rows in chosen))


def sums_by_place(places: Ints, values: Ints, length: int) -> Ints:
    """Sums of integers that belong to one place.

    Args:
        places: (n,) from 0.
        values: (n,) integers.
        length: Number of places.

    Returns:
        (length,) int64.

    >>> sums_by_place(np.array([2, 0, 2]), np.array([5, 1, 6]), 3)
    array([ 1,  0, 11])
    """
    sums = np.zeros(length, np.int64)  # np.bincount would sum in float64
    np.add.at(sums, places, values)
    return sums


def count_keys(keys: Tensor, bound: int) -> Tensor:
    """How often each number below a bound occurs.

    Args:
        keys: Integers from 0, of any shape; those from ``bound`` on do not count.
        bound: Number of keys that count.

    Returns:
        (n, 2) int64 rows key and count, above 0; keys ascending.

    >>> count_keys(torch.tensor([[4, 1], [7, 4]]), bound=6).tolist()
    [[1, 1], [4, 2]]
    """
    if bound > DENSE_KEYS:
        found, counts = keys.unique(return_counts=True)
    else:
        dense = torch.bincount(keys.flatten(), minlength=bound)
        found = dense.nonzero().flatten()
        counts = dense[found]
    return torch.stack([found, counts], dim=1)[found < bound]


def intersection_over_union(pixels: ClassPixels) -> Floats:
    """IoU of each class: pixels of both divided by those of either.

    Args:
        pixels: Of all images together.

    Returns:
        (C,) float64; NaN for a class that is neither true nor predicted anywhere. One that is predicted alone has 0.

    >>> intersection_over_union(ClassPixels(np.array([2, 0, 0]), np.array([3, 0, 0]), np.array([3, 1, 0])))
    array([0.5, 0. , nan])
    """
    return _ratio(pixels.both, pixels.union)


def dice(pixels: ClassPixels) -> Floats:
    """Dice of each class, its F1: twice the pixels of both divided by the sum of true and predicted ones.

    Args:
        pixels: Of all images together.

    Returns:
        (C,) float64; NaN as in ``intersection_over_union``.
    """
    return _ratio(2 * pixels.both, pixels.true + pixels.predicted)


def segmentation_scores(pixels: ClassPixels) -> dict[str, float]:
    """Scores of pixels and means over classes.

    Args:
        pixels: Of all images together.

    Returns:
        ``miou`` and ``mdice``, means over the classes that are true or predicted anywhere; ``pixel_accuracy``;
        ``fwiou``, the mean of IoUs weighted by true pixels; ``classes_scored``. NaN without a pixel.

    Reference:
        Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 5.

    >>> segmentation_scores(ClassPixels(np.array([2, 1]), np.array([2, 2]), np.array([3, 1])))["pixel_accuracy"]
    0.75
    """
    iou = intersection_over_union(pixels)
    total = int(pixels.true.sum())
    scored = ~np.isnan(iou)
    return {
        "miou": mean_over_classes(iou),
        "mdice": mean_over_classes(dice(pixels)),
        "pixel_accuracy": int(pixels.both.sum()) / total if total else float("nan"),
        "fwiou": float((iou[scored] * pixels.true[scored]).sum() / total) if total else float("nan"),
        "classes_scored": float(scored.sum()),
    }


def mean_over_classes(values: Floats) -> float:
    """Mean of (C,) values without the NaN ones; NaN if there is no other."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else float("nan")


def _ratio(above: Ints, below: Ints) -> Floats:
    return np.where(below > 0, above / np.maximum(below, 1), np.nan)
