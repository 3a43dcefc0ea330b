"""Errors of a detector as records that point back to the image, the prediction and the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from lightning_modules.metrics.boxes import Bools, Floats
from lightning_modules.metrics.detection_matching import DetectionSet, flatten_detections, image_starts
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


@dataclass(frozen=True, eq=False)
class HardNegatives(Sequence[HardNegative]):
    """R errors of a detector, held as columns: a sequence that makes a ``HardNegative`` only when one is looked at.

    It equals a list of the same records. A slice of it is held as columns too.

    Args:
        image_index: (R,) position in the dataset.
        image_id: (R,) strings or None, as objects.
        kind: (R,) place of the type in ``lightning_modules.metrics.tide.TYPES``.
        prediction_index: (R,) -1 for missed.
        truth_index: (R,) -1 for background.
        iou: (R,).
        confidence: (R,).
        label: (R,).
        truth_label: (R,) -1 for background.
        suspected_label_error: (R,).

    >>> nothing = HardNegatives.joined([])
    >>> len(nothing), nothing == [], list(nothing.columns())[:3]
    (0, True, ['image_index', 'image_id', 'type'])
    """

    image_index: Ints
    image_id: NDArray[np.object_]
    kind: Ints
    prediction_index: Ints
    truth_index: Ints
    iou: Floats
    confidence: Floats
    label: Ints
    truth_label: Ints
    suspected_label_error: Bools

    @classmethod
    def joined(cls, parts: Sequence[HardNegatives]) -> HardNegatives:
        """Lay records one after the other.

        Args:
            parts: Any number.

        Returns:
            All of them.
        """
        if parts:
            return cls(*map(np.concatenate, zip(*(part._arrays() for part in parts), strict=True)))
        number, real = np.zeros(0, np.int64), np.zeros(0)
        names, no = np.zeros(0, np.object_), np.zeros(0, np.bool_)
        return cls(number, names, number, number, number, real, real, number, number, no)

    def take(self, rows: Ints | Bools | slice) -> HardNegatives:
        """Some of the records.

        Args:
            rows: Their places, (R,) whether each is taken, or a slice.

        Returns:
            Those, as columns.
        """
        return HardNegatives(*(column[rows] for column in self._arrays()))

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns under the names of ``HardNegative``, as for a table or a Parquet file.

        Returns:
            Name -> (R,); ``type`` and ``image_id`` are objects, and -1 stands where an index or label is None.
        """
        arrays = dict(zip(HardNegative._fields, self._arrays(), strict=True))
        return {**arrays, "type": np.array(TYPES, dtype=np.object_)[self.kind]}

    def __len__(self) -> int:
        return len(self.kind)

    def __iter__(self) -> Iterator[HardNegative]:
        columns = {name: column.tolist() for name, column in self.columns().items()}
        for name in ("prediction_index", "truth_index"):
            columns[name] = [None if row < 0 else row for row in columns[name]]
        known = zip(columns["truth_label"], columns["truth_index"], strict=True)
        columns["truth_label"] = [None if row is None else label for label, row in known]
        make = partial(tuple.__new__, HardNegative)  # as HardNegative._make, in a third of the time
        return map(make, zip(*columns.values(), strict=True))

    @overload
    def __getitem__(self, place: int) -> HardNegative: ...
    @overload
    def __getitem__(self, place: slice) -> HardNegatives: ...
    def __getitem__(self, place: int | slice) -> HardNegative | HardNegatives:
        if isinstance(place, slice):
            return self.take(place)
        return next(iter(self.take(np.array([range(len(self))[place]]))))  # the range refuses what lies outside

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def _arrays(self) -> list[NDArray[Any]]:
        return [getattr(self, field.name) for field in fields(self)]


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
    errors: TideErrors, rows: Ints, starts: Ints, index: Ints, names: Sequence[str | None]
) -> tuple[HardNegatives, Ints]:
    """List false positives and missed truths, image after image, the false positives of an image first.

    Args:
        errors: Of N images.
        rows: (D,) row of each of its detections among all predictions.
        starts: (N + 1,) row of the first prediction of each image.
        index: (N,) position of each image in the dataset.
        names: (N,) name of each image.

    Returns:
        R records, and (R,) the place of the image of each.
    """
    matches, false, missed = errors.matches, np.flatnonzero(errors.kind >= 0), np.flatnonzero(errors.missed)
    truth_starts = image_starts(matches.truth_image, matches.num_images)
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
    records = HardNegatives(
        image_index=index[place],
        image_id=np.array(names, dtype=np.object_)[place],
        kind=kind,
        prediction_index=np.where(prediction >= 0, prediction - starts[place], -1),
        truth_index=np.where(truth >= 0, truth - truth_starts[place], -1),
        iou=iou,
        confidence=confidence,
        label=label,
        truth_label=np.append(matches.truth_labels, -1)[truth],  # -1 stays -1
        suspected_label_error=(kind == BACKGROUND) & (overlooked_score(confidence, iou) >= OVERLOOKED),
    )
    return records, place


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
