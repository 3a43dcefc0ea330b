"""Which detection finds which object: COCO's greedy matching of a whole data set, at several IoU thresholds at once.

Average precision, its intervals, error types and hard-negative mining all read the same ``Matches``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.boxes import Bools, Floats
from lightning_modules.metrics.rows import Ints

THRESHOLDS = (0.05, 0.1, 0.2, 0.5)  # heatmap boxes are coarse, so the low ones are of interest
MAX_DETECTIONS = 100  # COCO's


class DetectionSet(NamedTuple):
    """Detections (D) and truths (M) of all images, image after image in the order in which they were given."""

    num_images: int
    image: Ints  # (D,)
    boxes: Floats  # (D, 4) xyxy
    scores: Floats  # (D,)
    labels: Ints  # (D,)
    truth_image: Ints  # (M,)
    truth_boxes: Floats  # (M, 4) xyxy
    truth_labels: Ints  # (M,)
    truth_ignored: Bools  # (M,)


class Matches(NamedTuple):
    """What became of D detections at K thresholds; rows of detections and truths are those of the ``DetectionSet``.

    A true positive has a ``truth`` and is not ignored, a false positive has none (-1) and is not ignored. Ignored are
    detections that an ignored truth absorbed (``truth`` names it) and those beyond ``max_detections`` (-1).
    """

    num_images: int
    num_classes: int
    thresholds: Floats  # (K,)
    image: Ints  # (D,)
    labels: Ints  # (D,)
    scores: Floats  # (D,)
    truth: Ints  # (K, D) row of the matched truth, -1 without
    ignored: Bools  # (K, D)
    truth_image: Ints  # (M,)
    truth_labels: Ints  # (M,)
    truth_ignored: Bools  # (M,)

    def truths(self) -> Ints:
        """Number of truths that are not ignored of each image and class: (images, classes)."""
        counted = ~self.truth_ignored
        groups = self.truth_image[counted] * self.num_classes + self.truth_labels[counted]
        counts = np.bincount(groups, minlength=self.num_images * self.num_classes)
        return counts.reshape(self.num_images, self.num_classes)


def match_detections(
    predictions: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    num_classes: int,
    thresholds: Sequence[float] = THRESHOLDS,
    max_detections: int = MAX_DETECTIONS,
) -> Matches:
    """Match the detections of each image and class to its truths, one to one, as COCO does.

    In descending order of score (ties: as given) each detection takes the free truth of its class with the highest IoU
    of at least the threshold (ties: the last). One that finds none may be absorbed by an ignored truth, which any
    number of detections can share and whose IoU is taken as that of a COCO crowd (``box_iou``).

    Args:
        predictions: One mapping an image: ``boxes`` (n, 4) xyxy, ``scores`` (n,), ``labels`` (n,) from 0.
        targets: One mapping an image: ``boxes`` (m, 4), ``labels`` (m,) and, if any are, ``ignore`` (m,) of 0 and 1.
        num_classes: Number of classes.
        thresholds: IoU thresholds, above 0 and at most 1.
        max_detections: Detections of an image and class that count; the best scored do.

    Returns:
        The matches; their rows are those of ``flatten_detections``.

    Raises:
        ValueError: Malformed images (``flatten_detections``), a label that is no class, or unsuitable thresholds.

    Reference:
        Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and its ``cocoeval.py``.

    >>> boxes = [[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]]
    >>> predictions = [{"boxes": boxes, "scores": [0.5, 0.9], "labels": [0, 0]}]
    >>> targets = [{"boxes": boxes[:1], "labels": [0]}]
    >>> match_detections(predictions, targets, num_classes=1, thresholds=[0.5, 0.6]).truth
    array([[-1,  0],
           [ 0, -1]])
    """
    return match_flat(flatten_detections(predictions, targets), num_classes, thresholds, max_detections)


def match_flat(
    data: DetectionSet,
    num_classes: int,
    thresholds: Sequence[float] = THRESHOLDS,
    max_detections: int = MAX_DETECTIONS,
) -> Matches:
    """``match_detections`` of images that are flattened already.

    Args:
        data: Of ``flatten_detections``.
        num_classes: Number of classes.
        thresholds: IoU thresholds, above 0 and at most 1.
        max_detections: Detections of an image and class that count.

    Returns:
        The matches, in the rows of ``data``.

    Raises:
        ValueError: See ``match_detections``.
    """
    ious = check_thresholds(thresholds)
    if max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}; at least one detection must count. COCO uses 100.")
    for name, labels in (("prediction", data.labels), ("target", data.truth_labels)):
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"A {name} has label {labels.min() if labels.min() < 0 else labels.max()}, but num_classes is "
                f"{num_classes}: labels go from 0 to {num_classes - 1}."
            )
    from lightning_modules.metrics.detection_kernels import match

    truth = np.full((len(ious), len(data.scores)), -1)
    ignored = np.ones(truth.shape, dtype=bool)
    match(
        np.argsort(-data.scores),
        data.image,
        np.ascontiguousarray(data.scores),  # a column of a table would be compiled once more
        image_starts(data.image, data.num_images),
        np.ascontiguousarray(data.boxes),
        data.labels,
        image_starts(data.truth_image, data.num_images),
        np.ascontiguousarray(data.truth_boxes),
        data.truth_labels,
        data.truth_ignored,
        num_classes,
        np.minimum(ious, 1 - 1e-10),
        max_detections,
        truth,
        ignored,
    )
    return Matches(
        data.num_images,
        num_classes,
        ious,
        data.image,
        data.labels,
        data.scores,
        truth,
        ignored,
        data.truth_image,
        data.truth_labels,
        data.truth_ignored,
    )


def image_starts(image: Ints, num_images: int) -> Ints:
    """First row of each image.

    Args:
        image: (D,) image of each row, ascending.
        num_images: Number of images (N).

    Returns:
        (N + 1,), D at its end.

    Raises:
        ValueError: Images that do not ascend, below 0 or not below N.

    >>> image_starts(np.array([0, 0, 2]), num_images=3)
    array([0, 2, 2, 3])
    """
    if len(image) and not (image[0] >= 0 and image[-1] < num_images and (image[1:] >= image[:-1]).all()):
        raise ValueError(
            f"The rows of a detection set do not lie image after image, from 0 to {num_images - 1}. Sort them, "
            "or let flatten_detections lay them out."
        )
    return np.searchsorted(image, np.arange(num_images + 1))


def check_thresholds(thresholds: Sequence[float]) -> Floats:
    """IoU thresholds as an array.

    Args:
        thresholds: Above 0 and at most 1.

    Returns:
        (K,) float64.

    Raises:
        ValueError: None, or one outside.
    """
    ious = np.asarray(thresholds, dtype=np.float64).reshape(-1)
    if len(ious) == 0 or not ((ious > 0) & (ious <= 1)).all():
        raise ValueError(f"thresholds are {list(thresholds)}; give IoUs above 0 and at most 1, as 0.5.")
    return ious


def flatten_detections(predictions: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> DetectionSet:
    """Lay the detections and truths of all images one after the other.

    Args:
        predictions: See ``match_detections``; tensors, arrays or lists.
        targets: See ``match_detections``.

    Returns:
        The arrays.

    Raises:
        ValueError: Unequal numbers of images, a missing entry, lengths that differ within an image, a box that is not
            finite or ends before it begins, or a score that is not finite.

    >>> nothing = {"boxes": [], "scores": [], "labels": []}
    >>> data = flatten_detections([nothing], [{"boxes": [[0, 0, 1, 1]], "labels": [2]}])
    >>> data.num_images, data.boxes.shape, data.truth_labels
    (1, (0, 4), array([2]))
    """
    if len(predictions) != len(targets):
        raise ValueError(f"There are predictions of {len(predictions)} images and targets of {len(targets)}.")
    image, (boxes, scores, labels) = _joined("predictions", predictions, ("boxes", "scores", "labels"))
    truth_image, (truth_boxes, truth_labels, ignore) = _joined("targets", targets, ("boxes", "labels", "ignore"))
    return DetectionSet(
        len(predictions),
        image,
        _checked("prediction", boxes.reshape(-1, 4)),
        _checked("prediction's score", scores),
        labels.astype(np.int64),
        truth_image,
        _checked("target", truth_boxes.reshape(-1, 4)),
        truth_labels.astype(np.int64),
        ignore.astype(bool),
    )


def _joined(name: str, images: Sequence[Mapping[str, Any]], entries: tuple[str, ...]) -> tuple[Ints, list[Floats]]:
    """Image of each row, and each entry of all images as one float64 array; without ``ignore`` it is 0."""
    for number, given in enumerate(images):
        for entry in entries:
            if entry not in given and entry != "ignore":
                raise ValueError(f"{name}[{number}] has no {entry!r}; it needs {', '.join(entries)}.")
    sizes = [_tensor(given["labels"]).numel() for given in images]
    zeros = cache(torch.zeros)  # one of each length
    columns = [
        [_tensor(given[entry]) if entry in given else zeros(n) for given, n in zip(images, sizes, strict=True)]
        for entry in entries
    ]
    columns[0] = [boxes if boxes.numel() else boxes.reshape(0, 4) for boxes in columns[0]]
    shapes = zip(*([part.shape for part in column] for column in columns), strict=True)
    rows = [(n,) for n in sizes]
    right = zip([(n, 4) for n in sizes], *[rows] * (len(entries) - 1), strict=True)
    for number, (given_shapes, right_shapes) in enumerate(zip(shapes, right, strict=True)):
        if given_shapes != right_shapes:
            text = ", ".join(f"{entry} {tuple(shape)}" for entry, shape in zip(entries, given_shapes, strict=True))
            raise ValueError(f"{name}[{number}]: {text} do not belong together; boxes are (n, 4), the others (n,).")
    image = np.repeat(np.arange(len(images)), np.asarray(sizes, dtype=np.int64))
    return image, [_concatenated(column) for column in columns]


def _concatenated(parts: list[Tensor]) -> Floats:
    """All parts as float64, in steps: with a large result torch wakes its threads for each part, which takes longer."""
    steps = [torch.cat(parts[start : start + 32]) for start in range(0, len(parts), 32)] or [torch.zeros(0)]
    return np.concatenate([step.detach().double().cpu().numpy() for step in steps])


def _tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.as_tensor(values)


def _checked(name: str, values: Floats) -> Floats:
    """Boxes (N, 4) or scores (N,), all finite, and boxes not inside out."""
    if not np.isfinite(values).all():
        raise ValueError(f"A {name} is not finite. Remove it, or find where the model first gives NaN or infinity.")
    if values.ndim == 2 and (values[:, :2] > values[:, 2:]).any():
        wrong = values[(values[:, :2] > values[:, 2:]).any(axis=1)][0]
        raise ValueError(f"The box {wrong.tolist()} of a {name} ends before it begins; give x1, y1, x2, y2.")
    return values
