"""Which detection finds which object: COCO's greedy matching of a whole data set, at several IoU thresholds at once.

Average precision, its intervals, error types and hard-negative mining all read the same ``Matches``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.boxes import Bools, Floats, box_iou
from lightning_modules.metrics.compiling import compiled
from lightning_modules.metrics.rows import Ints, ragged_rows

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
    group, truth_group = (
        image * num_classes + labels
        for image, labels in ((data.image, data.labels), (data.truth_image, data.truth_labels))
    )
    order = np.lexsort((-data.scores, group))  # stable: ties as given
    truth_order = np.lexsort((data.truth_ignored, truth_group))  # ignored truths last, as the walk needs
    group, truth_group = group[order], truth_group[truth_order]
    counted = np.arange(len(group)) - np.searchsorted(group, group) < max_detections
    order, group = order[counted], group[counted]
    first = np.searchsorted(truth_group, group)
    sizes = np.searchsorted(truth_group, group, "right") - first

    rows, columns = np.repeat(order, sizes), truth_order[ragged_rows(first, sizes)]  # (P,) pairs of a group
    overlaps = box_iou(data.boxes[rows], data.truth_boxes[columns], data.truth_ignored[columns])
    found = np.full((len(ious), len(order)), -1)
    _match(first, sizes, overlaps, data.truth_ignored[truth_order], np.minimum(ious, 1 - 1e-10), found)

    truth = np.full((len(ious), len(data.scores)), -1)
    ignored = np.ones(truth.shape, dtype=bool)
    matched = found >= 0
    names = np.append(truth_order, -1)[found]  # -1 stays -1
    truth[:, order] = names
    ignored[:, order] = matched & np.append(data.truth_ignored, False)[names]
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


@compiled
def _match(first: Ints, sizes: Ints, overlaps: Floats, ignored: Bools, thresholds: Floats, found: Ints) -> None:
    """Give each detection its truth, in the order of the walk; a truth belongs to one group, so groups need no mark."""
    for k in range(len(thresholds)):
        taken = np.zeros(len(ignored), np.bool_)
        pair = 0
        for detection in range(len(first)):
            best, choice = thresholds[k], -1
            for truth in range(first[detection], first[detection] + sizes[detection]):
                overlap = overlaps[pair]
                pair += 1
                if ignored[truth] and choice >= 0 and not ignored[choice]:
                    continue
                if overlap >= best and (ignored[truth] or not taken[truth]):
                    best, choice = overlap, truth
            if choice >= 0:
                taken[choice] = True
            found[k, detection] = choice


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
    marked = [{"ignore": torch.zeros(len(target.get("labels", ()))), **target} for target in targets]
    truth_image, (truth_boxes, truth_labels, ignore) = _joined("targets", marked, ("boxes", "labels", "ignore"))
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
    """Image of each row, and each entry of all images as one float64 array."""
    columns: list[list[Tensor]] = [[] for _ in entries]
    sizes = np.zeros(len(images), dtype=np.int64)
    for number, given in enumerate(images):
        missing = [entry for entry in entries if entry not in given]
        if missing:
            raise ValueError(f"{name}[{number}] has no {missing[0]!r}; it needs {', '.join(entries)}.")
        parts = [torch.as_tensor(given[entry]) for entry in entries]
        n = sizes[number] = len(given["labels"])
        if parts[0].numel() == 0:
            parts[0] = parts[0].reshape(0, 4)
        if [tuple(part.shape) for part in parts] != [(n, 4), *[(n,)] * (len(entries) - 1)]:
            shapes = ", ".join(f"{entry} {tuple(part.shape)}" for entry, part in zip(entries, parts, strict=True))
            raise ValueError(f"{name}[{number}]: {shapes} do not belong together; boxes are (n, 4), the others (n,).")
        for column, part in zip(columns, parts, strict=True):
            column.append(part.flatten())
    joined = [torch.cat(column) if column else torch.zeros(0) for column in columns]
    return np.repeat(np.arange(len(images)), sizes), [column.detach().double().cpu().numpy() for column in joined]


def _checked(name: str, values: Floats) -> Floats:
    """Boxes (N, 4) or scores (N,), all finite, and boxes not inside out."""
    if not np.isfinite(values).all():
        raise ValueError(f"A {name} is not finite. Remove it, or find where the model first gives NaN or infinity.")
    if values.ndim == 2 and (values[:, :2] > values[:, 2:]).any():
        wrong = values[(values[:, :2] > values[:, 2:]).any(axis=1)][0]
        raise ValueError(f"The box {wrong.tolist()} of a {name} ends before it begins; give x1, y1, x2, y2.")
    return values
