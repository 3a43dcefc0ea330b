"""Errors of a detector as records that point back to the image, the prediction and the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lightning_modules.metrics.boxes import Bools, Floats
from lightning_modules.metrics.detection_matching import DetectionSet, flatten_detections
from lightning_modules.metrics.rows import Ints
from lightning_modules.metrics.tide import BACKGROUND, MISSED, TYPES, TideErrors

OVERLOOKED = 0.9  # overlooked_score from which on a background error may be an object without annotation


class HardNegative(NamedTuple):
    """An error of a detector; indices are rows of the image's predictions and truths as they were given."""

    image_index: int
    image_id: str | None
    type: str  # of lightning_modules.metrics.tide.TYPES
    prediction_index: int | None  # None: missed
    truth_index: int | None  # None: background
    iou: float  # with that truth; of background the highest one with any truth; 0 for missed
    confidence: float  # 0 for missed
    label: int  # for missed that of the truth
    truth_label: int | None
    suspected_label_error: bool


def overlooked_score(confidence: Floats, iou: Floats) -> Floats:
    """How much a background error looks like an object that nobody annotated: ``confidence * (1 - iou)``.

    A detection that is sure of itself where no truth lies is either wrong, or right and the annotation is missing. The
    score is this suite's own; it tells which boxes to look at, not which of the two is so.

    Args:
        confidence: (n,) of background errors, in 0..1.
        iou: (n,) highest IoU with any truth.

    Returns:
        (n,).

    >>> overlooked_score(np.array([0.95, 0.95, 0.5]), np.array([0.0, 0.1, 0.0])).round(3)
    array([0.95 , 0.855, 0.5  ])
    """
    return confidence * (1 - iou)


def error_records(
    errors: TideErrors, rows: Ints, starts: Ints, index: Sequence[int], names: Sequence[str | None]
) -> tuple[list[HardNegative], Ints]:
    """List false positives and missed truths, image after image, the false positives of an image first.

    Args:
        errors: Of N images.
        rows: (D,) row of each of its detections among all predictions.
        starts: (N,) row of the first prediction of each image.
        index: (N,) position of each image in the dataset.
        names: (N,) name of each image.

    Returns:
        R records, and (R,) the place of the image of each.
    """
    matches, false, missed = errors.matches, np.flatnonzero(errors.kind >= 0), np.flatnonzero(errors.missed)
    truth_starts = np.searchsorted(matches.truth_image, np.arange(matches.num_images))
    place = np.concatenate([matches.image[false], matches.truth_image[missed]])
    order = np.argsort(place, kind="stable")
    place = place[order]

    kind, prediction, truth, label = (
        np.concatenate(pair)[order]
        for pair in (
            (errors.kind[false], np.full(len(missed), MISSED)),
            (rows[false], np.full(len(missed), -1)),
            (errors.truth[false], missed),
            (matches.labels[false], matches.truth_labels[missed]),
        )
    )
    iou, confidence = (
        np.concatenate([values[false], np.zeros(len(missed))])[order] for values in (errors.iou, matches.scores)
    )
    suspected = (kind == BACKGROUND) & (overlooked_score(confidence, iou) >= OVERLOOKED)
    images = place.tolist()
    columns = (
        [index[image] for image in images],
        [names[image] for image in images],
        [TYPES[number] for number in kind.tolist()],
        _or_none(prediction - starts[place], prediction >= 0),
        _or_none(truth - truth_starts[place], truth >= 0),
        iou.tolist(),
        confidence.tolist(),
        label.tolist(),
        _or_none(np.append(matches.truth_labels, -1)[truth], truth >= 0),
        suspected.tolist(),
    )
    make = partial(tuple.__new__, HardNegative)  # as HardNegative._make, in a third of the time
    return list(map(make, zip(*columns, strict=True))), place


def _or_none(values: Ints, known: Bools) -> list[int | None]:
    """Values, None where they are not known."""
    return [value if there else None for value, there in zip(values.tolist(), known.tolist(), strict=True)]


def flatten_images(
    predictions: Sequence[Mapping[str, Any]], truths: Sequence[Mapping[str, Any]], names: Sequence[str | None]
) -> DetectionSet:
    """``flatten_detections``, naming the image that is malformed.

    Args:
        predictions: One mapping an image.
        truths: One mapping an image.
        names: (N,) name of each image.

    Returns:
        The arrays.

    Raises:
        ValueError: See ``flatten_detections``.
    """
    try:
        return flatten_detections(predictions, truths)
    except ValueError:
        for image, (found, truth) in enumerate(zip(predictions, truths, strict=False)):
            try:
                flatten_detections([found], [truth])
            except ValueError as error:
                raise ValueError(f"In {_called(image, names)}: {error}") from None
        raise


def check_labels(data: DetectionSet, num_classes: int, names: Sequence[str | None]) -> None:
    """Refuse labels that are no class.

    Args:
        data: Predictions and truths.
        num_classes: Number of classes.
        names: (N,) name of each image.

    Raises:
        ValueError: A label below 0 or not below ``num_classes``.
    """
    for what, images, labels in (
        ("prediction", data.image, data.labels),
        ("truth", data.truth_image, data.truth_labels),
    ):
        for row in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
            raise ValueError(
                f"A {what} of {_called(int(images[row]), names)} has label {labels[row]}; labels go from 0 to "
                f"{num_classes - 1}. A list of confidence thresholds has one for each class."
            )


def _called(image: int, names: Sequence[str | None]) -> str:
    """An image in messages: its place in the call, and its name."""
    return f"image {image}" + (f" ({names[image]})" if names[image] is not None else "")
