"""Hard negatives: which errors a detector makes with confidence, and how much more often their images be drawn."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_modules.detection.records import (
    HardNegative,
    HardNegatives,
    check_labels,
    error_records,
    flatten_images,
    overlooked_score,
)
from lightning_modules.detection.report import Report, make_report, save_report
from lightning_modules.detection.weights import check_ratio, ema, hardest_losses, hardness_weights
from lightning_modules.metrics.boxes import Floats
from lightning_modules.metrics.detection_curves import class_means
from lightning_modules.metrics.detection_matching import DetectionSet, image_starts
from lightning_modules.metrics.rows import Ints
from lightning_modules.metrics.tide import DUPLICATE, MISSED, TYPES, TideErrors, tide_errors, tide_gains

__all__ = [
    "HardNegative",
    "HardNegativeMiner",
    "HardNegatives",
    "ema",
    "hardest_losses",
    "hardness_weights",
    "overlooked_score",
]

Strategy = Literal["confidence_based", "iou_based", "loss_based", "tide"]
NEAR = 0.1  # an IoU this close to the threshold is a doubtful one
NOTHING = 0.2  # up to this share of the IoU threshold a detection sees background: TIDE's 0.1 at 0.5


class HardNegativeMiner:
    """Finds the errors that a detector makes with confidence, image by image, and sums them up in a report.

    Predictions below the confidence threshold are counted and set aside. The others are matched to the truths one to
    one (``match_flat``, without COCO's limit of 100, which would call a crowded picture's objects missed; what an
    ignored or crowd truth absorbs is no error), and what finds nothing gets its type of error (``tide_errors``). A
    strategy weighs the errors; those with a weight are the hard negatives:

    - ``confidence_based``: all but duplicates, by confidence; a missed truth, which had confidence 0, by 1.
    - ``iou_based``: false positives whose IoU lies within 0.1 of the threshold.
    - ``tide``: all, by the share of their type's gain in average precision (``tide_gains`` of all predictions).
    - ``loss_based``: all in the images with the highest losses, of which there are half of ``hard_negative_ratio``, so
      that they are drawn more often than others. The images weigh their loss, even without an error.

    The last two compare images with each other: give them all images in one call. For another strategy override
    ``weigh``. Mine on the training images, in evaluation mode: a validation image is none to draw in training.

    Args:
        confidence_threshold: Confidence from which on a prediction counts; one, or one of each class.
        iou_threshold: IoU from which on it finds a truth, between 0 and 1.
        hard_negative_ratio: Share of hard images among those that are to be drawn, at least 0 and below 1
            (``weights``).
        save_samples: Whether ``generate_report`` also writes hard negatives, report and images to ``output_dir``.
        output_dir: Folder, made when needed.
        strategy: One of the above.

    Raises:
        ValueError: An unknown strategy or an argument outside its range.

    >>> miner = HardNegativeMiner()
    >>> prediction = {"boxes": [[0, 0, 4, 4], [8, 8, 9, 9]], "scores": [0.9, 0.8], "labels": [0, 0]}
    >>> (found,) = miner.find_hard_negatives(prediction, {"boxes": [[0, 0, 4, 4]], "labels": [0]})
    >>> found.type, found.prediction_index, miner.generate_report()["metrics"]["precision"]
    ('background', 1, 0.5)
    """

    def __init__(
        self,
        confidence_threshold: float | Sequence[float] = 0.5,
        iou_threshold: float = 0.5,
        hard_negative_ratio: float = 0.3,
        save_samples: bool = False,
        output_dir: str | os.PathLike[str] = "hard_negatives",
        strategy: Strategy = "confidence_based",
    ) -> None:
        if strategy not in get_args(Strategy):
            known = ", ".join(map(repr, get_args(Strategy)))
            raise ValueError(f"strategy is {strategy!r}; it must be one of {known}. For your own, override weigh().")
        if not 0 < iou_threshold < 1:
            raise ValueError(f"iou_threshold is {iou_threshold}; give an IoU between 0 and 1, as 0.5.")
        self.confidence_threshold: Floats = np.asarray(confidence_threshold, dtype=np.float64)
        if self.confidence_threshold.ndim > 1 or not np.isfinite(self.confidence_threshold).all():
            raise ValueError(f"confidence_threshold is {confidence_threshold}; give a number, or one for each class.")
        check_ratio(hard_negative_ratio)
        self.iou_threshold, self.hard_negative_ratio = iou_threshold, hard_negative_ratio
        self.save_samples, self.output_dir, self.strategy = save_samples, Path(output_dir), strategy
        self.reset()

    def reset(self) -> None:
        """Forget all images, as before another round."""
        self._parts: list[HardNegatives] = []
        self.counts: Counter[str] = Counter()
        self.hardness: dict[int, float] = {}  # of each image, by its index

    @property
    def hard_negatives(self) -> HardNegatives:
        """All hard negatives since the last ``reset``, in the order in which they were mined."""
        if len(self._parts) != 1:
            self._parts = [HardNegatives.joined(self._parts)]
        return self._parts[0]

    def find_hard_negatives(
        self,
        predictions: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        ground_truth: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        image_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        losses: Tensor | Sequence[float] | None = None,
    ) -> HardNegatives:
        """Mine one image or several, and keep what was found for the report.

        Args:
            predictions: Of one image, or a list of such: ``boxes`` (n, 4) xyxy, ``scores`` (n,), ``labels`` (n,).
            ground_truth: As many: ``boxes`` (m, 4), ``labels`` (m,), if any are ``ignore`` (m,), and ``index``, the
                position in the dataset; without it images are numbered in the order in which they come.
            image_path: File of each image, the ``image_id`` of its hard negatives.
            losses: (images,) own loss of each image, for ``loss_based``. A batch's mean, or a sum divided by the
                batch's number of boxes, as detectors of the DETR family give, says nothing about one image.

        Returns:
            The hard negatives, image after image: a sequence of ``HardNegative``, held as columns.

        Raises:
            ValueError: Malformed images, as with unequal lengths, boxes inside out, scores that are not finite or
                labels that are no class; unequal numbers of images, paths and losses.
        """
        found, truths = ([one] if isinstance(one, Mapping) else list(one) for one in (predictions, ground_truth))
        paths: Any = [image_path] if isinstance(image_path, str | os.PathLike) else image_path
        names = [None if path is None else os.fspath(path) for path in paths or [None] * len(truths)]
        if len(names) != len(truths):
            raise ValueError(f"There are {len(truths)} images and {len(names)} image paths; give one an image.")
        index = [int(truth.get("index", len(self.hardness) + i)) for i, truth in enumerate(truths)]
        return self.mine(flatten_images(found, truths, names), index, names, losses)

    def mine(
        self,
        data: DetectionSet,
        index: Sequence[int] | Ints,
        names: Sequence[str | None],
        losses: Tensor | Sequence[float] | None = None,
    ) -> HardNegatives:
        """``find_hard_negatives`` of N images that are flattened already, as a metric collects them.

        Args:
            data: Predictions and truths.
            index: (N,) position of each image in the dataset.
            names: (N,) ``image_id`` of its hard negatives.
            losses: (N,) see ``find_hard_negatives``.

        Returns:
            The hard negatives, image after image.

        Raises:
            ValueError: Labels that are no class; unequal numbers of images, indices, names and losses.
        """
        images, places = data.num_images, np.asarray(index, dtype=np.int64)
        if not len(places) == len(names) == images:
            raise ValueError(
                f"There are {images} images, {len(places)} indices and {len(names)} names; give one an image."
            )
        num_classes = self._num_classes(data)
        check_labels(data, num_classes, names)
        hardness = self._hardest(losses, images)

        confident = data.scores >= np.broadcast_to(self.confidence_threshold, num_classes)[data.labels]
        kept = np.flatnonzero(confident)
        rows = {name: getattr(data, name).take(kept, axis=0) for name in ("image", "boxes", "scores", "labels")}
        errors = self._errors(data._replace(**rows), num_classes)
        records, place = error_records(errors, kept, image_starts(data.image, images), places, names)
        weights = np.asarray(self.weigh(records, data) if losses is None else hardness[place], dtype=np.float64)
        if losses is None:
            trusted = weights * ~records.suspected_label_error
            hardness = np.bincount(place, trusted, minlength=images).astype(np.float64)  # integers without any record
        self.hardness.update(zip(places.tolist(), hardness.tolist(), strict=True))
        hard = records.take(np.flatnonzero(weights > 0))
        self._parts.append(hard)
        truths = int((~data.truth_ignored).sum())
        self._count(records, len(confident), len(confident) - len(kept), int(errors.found.sum()), truths)
        return hard

    def weigh(self, errors: HardNegatives, data: DetectionSet) -> Sequence[float] | Floats:
        """How hard each error is; override it for a strategy of your own.

        Args:
            errors: All errors of a call (R): a sequence of ``HardNegative`` to iterate, or columns to compute with.
            data: Predictions and truths of that call, those below the confidence threshold too.

        Returns:
            (R,) weights, 0 = no hard negative. An image's hardness is the sum of those that are no suspected label
            errors.
        """
        if self.strategy == "confidence_based":
            sure = np.where(errors.kind == DUPLICATE, 0.0, errors.confidence.clip(0))  # a similarity may lie below 0
            return np.where(errors.kind == MISSED, 1.0, sure)
        if self.strategy == "iou_based":
            return (errors.kind != MISSED) & (np.abs(errors.iou - self.iou_threshold) <= NEAR)
        gains = tide_gains(self._errors(data, self._num_classes(data)))
        number = np.bincount(errors.kind, minlength=len(TYPES))
        gain = np.array([max(0.0, float(class_means(gains[name]))) for name in TYPES])  # 0 where it is not a number
        return (gain / np.maximum(number, 1))[errors.kind]

    def generate_report(self) -> Report:
        """Sum up all images since the last ``reset``; with ``save_samples`` also write it and the hard negatives.

        Returns:
            ``statistics``: ``total_predictions``, ``hard_negatives``, ``false_positives``, ``false_negatives``,
            ``true_positives``, ``below_threshold``, ``ignored`` (absorbed by ignored truths),
            ``suspected_label_errors`` (of the hard negatives; they weigh nothing) and ``types``, the number of errors
            of each. ``metrics``: ``precision``, ``recall``, ``f1_score`` and ``hard_negative_rate``, hard negatives by
            predictions; NaN where nothing is to be divided.
        """
        report = make_report(self.counts, self.hard_negatives)
        if self.save_samples:
            save_report(report, self.hard_negatives, self.output_dir)
        return report

    def weights(self, num_images: int, cap: float = 10.0) -> Tensor:
        """Weights of all images of the dataset from what was mined; see ``hardness_weights``.

        Args:
            num_images: Images of the dataset (N); those that were not mined are easy.
            cap: See ``hardness_weights``.

        Returns:
            (N,) float64.
        """
        return hardness_weights(self.image_hardness(num_images), self.hard_negative_ratio, cap)

    def image_hardness(self, num_images: int) -> Tensor:
        """Hardness of each image of the dataset.

        Args:
            num_images: Images of the dataset (N).

        Returns:
            (N,) float64, 0 for images without hard negatives and for those that were not mined.

        Raises:
            ValueError: An image was mined whose index is not below ``num_images``.
        """
        hardness = torch.zeros(num_images, dtype=torch.float64)
        index = torch.tensor(list(self.hardness), dtype=torch.int64)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < num_images:
            raise ValueError(
                f"Image {int(index.max())} was mined, but the dataset has {num_images}. `index` of the ground truth "
                "must be the position in the training set."
            )
        hardness[index] = torch.tensor(list(self.hardness.values()), dtype=torch.float64)
        return hardness

    def _count(self, errors: HardNegatives, total: int, below: int, hits: int, truths: int) -> None:
        types = np.bincount(errors.kind, minlength=len(TYPES)).tolist()
        false = len(errors) - types[MISSED]
        self.counts.update(total_predictions=total, below_threshold=below, ignored=total - below - hits - false)
        self.counts.update(true_positives=hits, false_positives=false, false_negatives=truths - hits)
        self.counts.update(dict(zip(TYPES, types, strict=True)))

    def _errors(self, data: DetectionSet, num_classes: int) -> TideErrors:
        """The errors among all predictions, however many an image has."""
        return tide_errors(
            data, num_classes, self.iou_threshold, NOTHING * self.iou_threshold, max(1, len(data.scores))
        )

    def _num_classes(self, data: DetectionSet) -> int:
        """One for each threshold, else up to the highest label."""
        highest = max((int(labels.max()) for labels in (data.labels, data.truth_labels) if len(labels)), default=0)
        return len(self.confidence_threshold) if self.confidence_threshold.ndim else max(highest, 0) + 1

    def _hardest(self, losses: Tensor | Sequence[float] | None, images: int) -> Floats:
        """Hardness of each image by its loss: 0 but for the hardest."""
        if (losses is None) == (self.strategy == "loss_based"):
            raise ValueError(f"losses are for strategy 'loss_based', which needs them; strategy is {self.strategy!r}.")
        if losses is None:
            return np.zeros(images)
        values = np.asarray(torch.as_tensor(losses).detach().cpu(), dtype=np.float64)
        if values.shape != (images,):
            raise ValueError(f"losses have shape {values.shape} and there are {images} images; give each its own loss.")
        return hardest_losses(values, self.hard_negative_ratio / 2)
