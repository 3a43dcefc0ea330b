"""Scores of semantic segmentation, as a metric that is exact over any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.boxes import Floats
from lightning_modules.metrics.rows import RowMetric, ragged_rows
from lightning_modules.metrics.segmentation_boundary import RATIO, boundary_distance, boundary_region
from lightning_modules.metrics.segmentation_counts import (
    SegmentationCounts,
    count_keys,
    dice,
    intersection_over_union,
    mean_over_classes,
    segmentation_scores,
    sums_by_place,
)

MAX_CLASSES = 23_170  # so that the number of a pair of classes, with two bits more, fits 31 bits


class SegmentationScores(RowMetric):
    """Mean IoU, Dice, pixel accuracy, frequency-weighted IoU and boundary IoU of label maps.

    ``compute()`` gives the scores of ``segmentation_scores``, ``boundary_miou``, the same mean over pixels near to
    boundaries, and the counts ``num_images`` and ``num_pixels``. Pixels are summed over all images before they are
    divided, as all benchmarks do. Each image counts once over all processes.

    Each image keeps its confusion matrix sparsely, 8 bytes for each pair of classes that occurs, once to four times as
    pixels near to boundaries are counted apart: some kB, where a dense matrix of 171 classes has 229 kB.

    Args:
        num_classes: Number of classes C.
        ignore_index: Label of pixels that do not count.
        boundary_ratio: Width of boundary regions as a share of the diagonal; None = no boundary IoU.
        kwargs: Of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``num_classes`` out of range, ``ignore_index`` is a class, or ``boundary_ratio`` is not above 0.

    Reference:
        Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021.

    >>> metric = SegmentationScores(num_classes=2)
    >>> metric.update([torch.tensor([[0, 1, 1]])], [torch.tensor([[0, 0, 255]])], torch.tensor([7]))
    >>> metric.compute()["miou"], metric.per_class()["iou"].tolist()
    (0.25, [0.5, 0.0])
    """

    higher_is_better = True
    cells: list[Tensor]  # (n, 2) int32: 4 * (true class * C + predicted class) + edges, pixels
    images: list[Tensor]  # (N, 2) int64: dataset index, rows of ``cells``

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        boundary_ratio: float | None = RATIO,
        **kwargs: Any,
    ) -> None:
        super().__init__({"cells": (2, torch.int32), "images": (2, torch.int64)}, **kwargs)
        if not 1 <= num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes is {num_classes}; it must lie between 1 and {MAX_CLASSES}.")
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ignore_index is {ignore_index}, which is one of {num_classes} classes. Give a number outside, as -1, "
                "and to the data set the same."
            )
        if boundary_ratio is not None and not boundary_ratio > 0:
            raise ValueError(f"boundary_ratio is {boundary_ratio}; it must lie above 0, as {RATIO} does, or be None.")
        self.num_classes, self.ignore_index, self.boundary_ratio = num_classes, ignore_index, boundary_ratio

    @property
    def convention(self) -> str:
        """What the values mean, in one line."""
        boundary = f"; boundary regions {self.boundary_ratio:.1%} of the diagonal" if self.boundary_ratio else ""
        return (
            f"IoU: pixels summed over images, then divided; label {self.ignore_index} ignored; means over the classes "
            f"that are true or predicted anywhere{boundary}"
        )

    def update(self, predictions: Sequence[Tensor] | Tensor, targets: Sequence[Tensor] | Tensor, index: Tensor) -> None:
        """Add images.

        Args:
            predictions: B label maps (H, W) of any size, as a list or stacked; classes from 0, also where the target is
                ignored.
            targets: B label maps of the same sizes; classes from 0 and ``ignore_index``.
            index: (B,) position of each image in its dataset.

        Raises:
            ValueError: Unequal numbers or sizes, a label map that is not of integers, or a label that is no class.
        """
        numbers = torch.as_tensor(index).flatten().tolist()
        if not len(predictions) == len(targets) == len(numbers):
            raise ValueError(
                f"There are {len(predictions)} predictions, {len(targets)} targets and {len(numbers)} indices; give "
                "one of each an image."
            )
        counted = [self._count(*image) for image in zip(predictions, targets, numbers, strict=True)]
        for number, cells in zip(numbers, counted, strict=True):
            self.cells.append(cells)
            self.images.append(torch.tensor([[number, len(cells)]], device=self.device))

    def _count(self, prediction: Tensor, target: Tensor, number: int) -> Tensor:
        """Rows of ``cells`` of one image."""
        if prediction.ndim != 2 or prediction.shape != target.shape:
            raise ValueError(
                f"Image {number}: the prediction is {tuple(prediction.shape)} and the target {tuple(target.shape)}; "
                "both must be (H, W) in the size of the label map. Resize logits to it, not label maps."
            )
        for name, labels in (("prediction", prediction), ("target", target)):
            if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
                raise ValueError(f"Image {number}: the {name} is {labels.dtype}, not class indices. Take the argmax.")
        classes = self.num_classes
        prediction, target = prediction.detach().long(), target.detach().to(prediction.device).long()
        ignored = target == self.ignore_index
        target = target.masked_fill(ignored, 0)
        for name, labels in (("prediction", prediction), ("target", target)):
            low, high = (int(end) for end in labels.aminmax()) if labels.numel() else (0, 0)
            if low < 0 or high >= classes:
                raise ValueError(
                    f"Image {number}: the {name} holds {low if low < 0 else high}, but classes are 0 to {classes - 1}"
                    f"{f' and {self.ignore_index} is ignored' if name == 'target' else ''}. Check num_classes and "
                    "ignore_index."
                )
        target.masked_fill_(ignored, classes)
        keys = 4 * (target * classes + prediction)
        if self.boundary_ratio is not None:
            distance = boundary_distance(target.shape[0], target.shape[1], self.boundary_ratio)
            seen = prediction.masked_fill(ignored, classes)  # so that a prediction that agrees has the same boundary
            keys += 2 * boundary_region(target, distance) + boundary_region(seen, distance)
        return count_keys(keys, 4 * classes**2).to(self.device, torch.int32)  # ignored pixels have larger keys

    def collected(self) -> tuple[SegmentationCounts, Tensor]:
        """The images of all processes, each once, in the order of their index; every process must call it.

        Returns:
            Their pixels, and the (N,) int64 dataset index of each image.

        Raises:
            ValueError: No image was seen, or one index carries two targets.
        """
        cells, images = self.gathered()
        if len(images) == 0:
            raise ValueError(
                "The metric has seen no image: call update(predictions, targets, index) for each batch before "
                "compute(), and check that the split is not empty."
            )
        keys, pixels = cells.astype(np.int64).T
        true, predicted = np.divmod(keys // 4, self.num_classes)
        order = images[:, 0].argsort(kind="stable")
        _, place = np.unique(images[order, 0], return_index=True)
        first, repeats = order[place], np.delete(order, place)
        sizes = images[:, 1]
        starts = sizes.cumsum() - sizes
        for repeat in repeats.tolist():  # of a sampler that pads the last batch
            original = first[np.searchsorted(images[first, 0], images[repeat, 0])]
            rows = [slice(starts[image], starts[image] + sizes[image]) for image in (original, repeat)]
            given, again = (sums_by_place(true[r], pixels[r], self.num_classes) for r in rows)
            if not np.array_equal(given, again):
                raise ValueError(
                    f"Two images with different targets share index {images[repeat, 0]}. `index` must be the position "
                    "in the dataset, not in the batch."
                )
        chosen = ragged_rows(starts[first], sizes[first])
        image = np.repeat(np.arange(len(first)), sizes[first])
        columns = (column[chosen] for column in (true, predicted, keys % 4, pixels))
        counts = SegmentationCounts(len(first), self.num_classes, image, *columns)
        return counts, torch.from_numpy(images[first, 0])

    def per_class(self) -> dict[str, Floats]:
        """Scores of each class; every process must call it.

        Returns:
            ``iou``, ``dice``, ``boundary_iou`` if wanted, and ``true_pixels`` -> (C,); NaN for a class that is neither
            true nor predicted.

        Raises:
            ValueError: See ``collected``.
        """
        counts, _ = self.collected()
        pixels = counts.classes()
        scores = {"iou": intersection_over_union(pixels), "dice": dice(pixels)}
        if self.boundary_ratio is not None:
            scores["boundary_iou"] = intersection_over_union(counts.boundaries())
        return {**scores, "true_pixels": pixels.true.astype(np.float64)}

    def compute(self) -> dict[str, float]:
        """Scores of all collected images; the class lists them.

        Returns:
            Name -> value; NaN when no pixel counts.

        Raises:
            ValueError: See ``collected``.
        """
        counts, _ = self.collected()
        scores = segmentation_scores(counts.classes())
        if self.boundary_ratio is not None:
            scores["boundary_miou"] = mean_over_classes(intersection_over_union(counts.boundaries()))
        return {**scores, "num_images": float(counts.num_images), "num_pixels": float(counts.pixels.sum())}
