"""Scores of detections, as a metric that is exact over any number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.boxes import Floats
from lightning_modules.metrics.detection_curves import Interpolation, average_precisions, class_means, recalls
from lightning_modules.metrics.detection_matching import (
    MAX_DETECTIONS,
    THRESHOLDS,
    DetectionSet,
    Matches,
    check_thresholds,
    flatten_detections,
    match_flat,
)
from lightning_modules.metrics.rows import RowMetric, ragged_rows

__all__ = ["DetectionScores", "average_precisions", "class_means", "recalls"]


class DetectionScores(RowMetric):
    """Average precision and recall at several IoU thresholds, by COCO's matching and 101 recall points.

    ``compute()`` gives ``ap_05``, ``recall_05``, ... (the thresholds in percent), means over the classes with truths,
    and the counts ``classes_scored``, ``num_images`` and ``num_truths``.

    The values are those of torchmetrics' ``MeanAveragePrecision(backend="faster_coco_eval")`` when that is given COCO's
    recall points, ``rec_thresholds=numpy.linspace(0, 1, 101).tolist()``: its own are rounded to float32, some of them
    upwards, past the recall that they stand for. Here the matching itself is at hand (``matches()``), which intervals,
    error types and mining need, each image counts once over all processes, and it is many times faster.

    Args:
        num_classes: Number of classes.
        thresholds: IoU thresholds, above 0 and at most 1, whole percents.
        max_detections: Detections of an image and class that count; the best scored do.
        interpolation: See ``average_precisions``.
        kwargs: Of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``num_classes`` below 1, or unsuitable thresholds.

    >>> metric = DetectionScores(num_classes=1, thresholds=(0.2, 0.5))
    >>> found = {"boxes": [[0, 0, 2, 2]], "scores": [0.9], "labels": [0]}
    >>> truth = {"boxes": [[0, 0, 2, 5]], "labels": [0]}
    >>> metric.update([found], [truth], torch.tensor([7]))
    >>> metric.compute()["ap_20"], metric.compute()["ap_50"]
    (1.0, 0.0)
    """

    higher_is_better = True
    # (D, 6) box, score, label; (M, 6) box, label, ignore; (N, 3) dataset index, detections and truths of the image
    detections: list[Tensor]
    truths: list[Tensor]
    images: list[Tensor]

    def __init__(
        self,
        num_classes: int,
        thresholds: Sequence[float] = THRESHOLDS,
        max_detections: int = MAX_DETECTIONS,
        interpolation: Interpolation = "coco101",
        **kwargs: Any,
    ) -> None:
        rows = {"detections": (6, torch.float32), "truths": (6, torch.float32), "images": (3, torch.int64)}
        super().__init__(rows, **kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; there must be at least one class.")
        self.names = [f"{round(100 * threshold):02d}" for threshold in check_thresholds(thresholds)]
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"thresholds {list(thresholds)} fall together in whole percents, which name the scores.")
        self.num_classes, self.thresholds = num_classes, tuple(thresholds)
        self.max_detections, self.interpolation = max_detections, interpolation

    @property
    def convention(self) -> str:
        """What the values mean, in one line."""
        return (
            f"AP: {self.interpolation}, COCO's greedy matching, at most {self.max_detections} detections an image and "
            "class, ignored truths absorb detections by the share of the detection that lies on them, as COCO's crowds "
            "do; means over the classes with truths"
        )

    def update(
        self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]], index: Tensor
    ) -> None:
        """Add images.

        Args:
            predictions: One mapping an image: ``boxes`` (n, 4) xyxy, ``scores`` (n,), ``labels`` (n,) from 0; kept in
                float32.
            targets: One mapping an image: ``boxes`` (m, 4), ``labels`` (m,) and, if any are, ``ignore`` (m,).
            index: (B,) position of each image in its dataset.

        Raises:
            ValueError: Malformed images (``flatten_detections``) or another number of indices.
        """
        data = flatten_detections(predictions, targets)
        index = torch.as_tensor(index).long().flatten().cpu()
        if len(index) != data.num_images:
            raise ValueError(f"There are {data.num_images} images and {len(index)} indices; give one an image.")
        self.detections.append(self._kept(data.boxes, data.scores, data.labels))
        self.truths.append(self._kept(data.truth_boxes, data.truth_labels, data.truth_ignored))
        sizes = [np.bincount(image, minlength=data.num_images) for image in (data.image, data.truth_image)]
        self.images.append(torch.stack([index, *map(torch.from_numpy, sizes)], dim=1).to(self.device))

    def _kept(self, *columns: Any) -> Tensor:
        return torch.from_numpy(np.column_stack(columns)).to(self.device, torch.float32)

    def collected(self) -> tuple[DetectionSet, Tensor]:
        """The images of all processes, each once, in the order of their index; every process must call it.

        Returns:
            Detections and truths, and the (N,) int64 dataset index of each image.

        Raises:
            ValueError: No image was seen, or one index carries two sets of truths.
        """
        detections, truths, images = self.gathered()
        if len(images) == 0:
            raise ValueError(
                "The metric has seen no image: call update(predictions, targets, index) for each batch before "
                "compute(), and check that the split is not empty."
            )
        order = images[:, 0].argsort(kind="stable")
        _, place = np.unique(images[order, 0], return_index=True)
        first, repeats = order[place], np.delete(order, place)
        originals = first[np.searchsorted(images[first, 0], images[repeats, 0])]
        starts, sizes = images[:, 1:].cumsum(axis=0) - images[:, 1:], images[:, 1:]
        for one, other in zip(originals, repeats, strict=True):
            given, again = (truths[starts[image, 1] :][: sizes[image, 1]] for image in (one, other))
            if not np.array_equal(given, again):
                raise ValueError(
                    f"Two images with different targets share index {images[one, 0]}. `index` must be the position in "
                    "the dataset, not in the batch."
                )
        found, truth = (
            rows[ragged_rows(starts[first, column], sizes[first, column])].astype(np.float64)
            for column, rows in enumerate((detections, truths))
        )
        image, truth_image = (np.repeat(np.arange(len(first)), sizes[first, column]) for column in range(2))
        data = DetectionSet(
            len(first),
            image,
            found[:, :4],
            found[:, 4],
            found[:, 5].astype(np.int64),
            truth_image,
            truth[:, :4],
            truth[:, 4].astype(np.int64),
            truth[:, 5].astype(bool),
        )
        return data, torch.from_numpy(images[first, 0])

    def matches(self) -> Matches:
        """Matches of all collected images, in the order of their index; every process must call it.

        Returns:
            The matches.

        Raises:
            ValueError: See ``collected``, or a label that is no class.
        """
        return match_flat(self.collected()[0], self.num_classes, self.thresholds, self.max_detections)

    def per_class(self) -> dict[str, Floats]:
        """Average precision and recall of each class; every process must call it.

        Returns:
            ``ap_05``, ``recall_05``, ... -> (C,), NaN for a class without truths.

        Raises:
            ValueError: See ``matches``.
        """
        return self._named(self.matches())

    def compute(self) -> dict[str, float]:
        """Scores of all collected images; the class lists them.

        Returns:
            Name -> value; NaN when no image has a truth.

        Raises:
            ValueError: See ``matches``.
        """
        matches = self.matches()
        counts = matches.truths().sum(axis=0)
        return {
            **{name: float(class_means(values)) for name, values in self._named(matches).items()},
            "classes_scored": float((counts > 0).sum()),
            "num_images": float(matches.num_images),
            "num_truths": float(counts.sum()),
        }

    def _named(self, matches: Matches) -> dict[str, Floats]:
        values = {"ap": average_precisions(matches, self.interpolation), "recall": recalls(matches)}
        return {
            f"{score}_{name}": row for score, rows in values.items() for name, row in zip(self.names, rows, strict=True)
        }
