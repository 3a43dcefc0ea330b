"""Why average precision is lost: TIDE's six types of error, and what each of them costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lightning_modules.metrics.boxes import Bools, Floats
from lightning_modules.metrics.detection import DetectionScores
from lightning_modules.metrics.detection_curves import Interpolation, average_precisions, class_means
from lightning_modules.metrics.detection_matching import MAX_DETECTIONS, DetectionSet, Matches, image_starts, match_flat
from lightning_modules.metrics.rows import Ints

TYPES = ("localisation", "class", "both", "duplicate", "background", "missed")
LOCALISATION, CLASS, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)


class TideErrors(NamedTuple):
    """The errors among D detections and M truths, in the rows of the ``DetectionSet``."""

    matches: Matches  # at the one threshold
    kind: Ints  # (D,) place in TYPES of a false positive, -1 if it is none
    truth: Ints  # (D,) row of the truth that it is about; -1 for background and for what is no false positive
    iou: Floats  # (D,) overlap with that truth, of background the highest one with any truth; 0 if no false positive
    corrected: Bools  # (D,) corrected, it would find its truth; all other errors of that truth would be removed
    found: Bools  # (M,) matched by a true positive
    missed: Bools  # (M,) neither matched nor within reach of a correction

    def per_class(self) -> Ints:
        """Number of errors of each type and class, (6, C): the class of the detection, of a missed truth its own."""
        return self._counts(self.matches.labels, self.matches.truth_labels, self.matches.num_classes)

    def per_image(self) -> Ints:
        """Number of errors of each type and image, (6, images)."""
        return self._counts(self.matches.image, self.matches.truth_image, self.matches.num_images)

    def _counts(self, of_detections: Ints, of_truths: Ints, number: int) -> Ints:
        false = self.kind >= 0
        groups = np.concatenate(
            [self.kind[false] * number + of_detections[false], MISSED * number + of_truths[self.missed]]
        )
        return np.bincount(groups, minlength=len(TYPES) * number).reshape(len(TYPES), number)


def tide_errors(
    data: DetectionSet,
    num_classes: int,
    positive: float = 0.5,
    background: float = 0.1,
    max_detections: int = MAX_DETECTIONS,
) -> TideErrors:
    """Give each false positive the first type that fits, and find the truths that no correction could reach.

    With IoUs of truths that are not ignored, a false positive is

    1. ``localisation``: the highest IoU with its class lies in [background, positive),
    2. ``class``: the highest IoU with other classes is at least ``positive``,
    3. ``duplicate``: the IoU with a truth of its class that is matched already is at least ``positive``,
    4. ``background``: the highest IoU with any truth is at most ``background``,
    5. ``both``: none of these; it overlaps an object of another class, and not well enough.

    ``missed`` is a truth that is not matched and that no localisation or class error is about. Of several such errors
    about one truth only the best scored could be corrected (ties: the first).

    It differs from the published tool (tidecv 1.0.1) in four places: detections that ignored truths absorb are no
    errors; the matching is COCO's (limit of detections for each image and class; ties of IoU take the last truth); an
    IoU of exactly ``positive`` finds the truth, so it is no localisation error; and see ``tide_gains`` for the classes.

    Args:
        data: Of ``flatten_detections``.
        num_classes: Number of classes C.
        positive: IoU from which on a detection finds a truth.
        background: IoU up to which a detection sees nothing.
        max_detections: Detections of an image and class that count.

    Returns:
        The errors.

    Raises:
        ValueError: Not ``0 < background < positive < 1``, or see ``match_detections``.

    Reference:
        Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, section 2.2.

    >>> from lightning_modules.metrics.detection_matching import flatten_detections
    >>> found = {"boxes": [[0, 0, 4, 1], [7, 7, 9, 9]], "scores": [0.9, 0.8], "labels": [0, 0]}
    >>> truth = {"boxes": [[0, 0, 4, 4], [20, 20, 24, 24]], "labels": [0, 0]}
    >>> errors = tide_errors(flatten_detections([found], [truth]), num_classes=1)
    >>> [TYPES[kind] for kind in errors.kind], errors.missed
    (['localisation', 'background'], array([False,  True]))
    """
    if not 0 < background < positive < 1:
        raise ValueError(
            f"background is {background} and positive {positive}; give IoUs with 0 < background < positive < 1, as "
            "0.1 and 0.5."
        )
    from lightning_modules.metrics.detection_kernels import best_overlaps

    matches = match_flat(data, num_classes, [positive], max_detections)
    hit = (matches.truth[0] >= 0) & ~matches.ignored[0]
    found = np.zeros(len(data.truth_labels), dtype=bool)
    found[matches.truth[0, hit]] = True

    false = np.flatnonzero(~hit & ~matches.ignored[0])
    best, choice = np.empty((4, len(false))), np.empty((4, len(false)), dtype=np.int64)
    best_overlaps(
        false,
        data.image,
        np.ascontiguousarray(data.boxes),  # columns of a table would be compiled once more
        data.labels,
        image_starts(data.truth_image, data.num_images),
        np.ascontiguousarray(data.truth_boxes),
        data.truth_labels,
        data.truth_ignored,
        found,
        best,
        choice,
    )
    own, other, taken, highest = best
    cases = [(own >= background) & (own < positive), other >= positive, taken >= positive, highest <= background]
    number = np.select(cases, [LOCALISATION, CLASS, DUPLICATE, BACKGROUND], BOTH)
    which = np.array([0, 1, 1, 2, 3])[number], np.arange(len(false))  # row of ``best`` of each of TYPES
    kind, truth, iou = np.full(len(hit), -1), np.full(len(hit), -1), np.zeros(len(hit))
    kind[false], truth[false], iou[false] = number, choice[which], best[which]

    about = np.flatnonzero(((kind == LOCALISATION) | (kind == CLASS)) & ~np.append(found, True)[truth])
    about = about[np.argsort(-data.scores[about], kind="stable")]
    reachable, first = np.unique(truth[about], return_index=True)
    corrected, missed = np.zeros(len(hit), dtype=bool), ~data.truth_ignored & ~found
    corrected[about[first]] = True
    missed[reachable] = False
    return TideErrors(matches, kind, truth, iou, corrected, found, missed)


def tide_gains(errors: TideErrors, interpolation: Interpolation = "coco101") -> dict[str, Floats]:
    """What average precision each class would gain if an oracle fixed one type of error and left all others.

    Localisation and class errors become true positives, class errors in the class of the truth; those whose truth is
    matched, or goes to a better scored error, are removed, as are all duplicates, background and ``both``. Missed
    truths leave the count. ``false_positive`` removes all false positives, ``false_negative`` all truths that are not
    matched. The gains do not add up to what is lacking: fixing one type changes what another costs.

    A class without truths has no average precision and does not count; the published tool counts it as 0 where it has
    detections. A class of which no truth is left gains 0, as there.

    Args:
        errors: Of ``tide_errors``.
        interpolation: See ``average_precisions``.

    Returns:
        Each of ``TYPES``, ``false_positive`` and ``false_negative`` -> (C,), NaN for a class without truths.
        ``class_means`` is the gain in mean average precision.

    Raises:
        ValueError: Unknown ``interpolation``.

    Reference:
        Bolya et al., 2020, section 2.3.

    >>> from lightning_modules.metrics.detection_matching import flatten_detections
    >>> found = {"boxes": [[0, 0, 4, 1], [7, 7, 9, 9]], "scores": [0.9, 0.8], "labels": [0, 0]}
    >>> truth = {"boxes": [[0, 0, 4, 4], [20, 20, 24, 24]], "labels": [0, 0]}
    >>> gains = tide_gains(tide_errors(flatten_detections([found], [truth]), num_classes=1), "area")
    >>> gains["localisation"], gains["background"], gains["false_negative"]
    (array([0.5]), array([0.]), array([0.]))
    """
    matches, kind = errors.matches, errors.kind
    moved = np.append(matches.truth_labels, -1)[errors.truth]
    fixed = {}
    for number, name in enumerate(TYPES[:MISSED]):
        right = errors.corrected & (kind == number)
        fixed[name] = matches._replace(
            labels=np.where(right, moved, matches.labels),
            truth=np.where(right, errors.truth, matches.truth),
            ignored=matches.ignored | (kind == number) & ~right,
        )
    fixed["missed"] = matches._replace(truth_ignored=matches.truth_ignored | errors.missed)
    fixed["false_positive"] = matches._replace(ignored=matches.ignored | (kind >= 0))
    fixed["false_negative"] = matches._replace(truth_ignored=~errors.found)
    before = average_precisions(matches, interpolation)[0]
    after = {name: average_precisions(other, interpolation)[0] for name, other in fixed.items()}
    return {name: np.where(np.isnan(value), before * 0, value - before) for name, value in after.items()}


class TIDE(DetectionScores):
    """Number and cost of each type of error, beside average precision at the same IoU.

    ``compute()`` adds to the scores of ``DetectionScores`` the gains ``dap_localisation``, ``dap_class``, ``dap_both``,
    ``dap_duplicate``, ``dap_background``, ``dap_missed``, ``dap_false_positive`` and ``dap_false_negative``, means over
    the classes with truths, and the counts ``num_localisation``, ..., ``num_missed``.

    Args:
        num_classes: Number of classes.
        positive: IoU from which on a detection finds a truth, a whole percent.
        background: IoU up to which a detection sees nothing.
        max_detections: Detections of an image and class that count.
        interpolation: See ``average_precisions``.
        kwargs: Of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``num_classes`` below 1; unsuitable IoUs when it computes.

    >>> import torch
    >>> metric = TIDE(num_classes=1)
    >>> found = {"boxes": [[0, 0, 2, 2]], "scores": [0.9], "labels": [0]}
    >>> metric.update([found], [{"boxes": [[0, 0, 2, 5]], "labels": [0]}], torch.tensor([7]))
    >>> scores = metric.compute()
    >>> scores["ap_50"], scores["dap_localisation"], scores["num_localisation"]
    (0.0, 1.0, 1.0)
    """

    def __init__(
        self,
        num_classes: int,
        positive: float = 0.5,
        background: float = 0.1,
        max_detections: int = MAX_DETECTIONS,
        interpolation: Interpolation = "coco101",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, (positive,), max_detections, interpolation, **kwargs)
        self.positive, self.background = positive, background

    @property
    def convention(self) -> str:
        """What the values mean, in one line."""
        return (
            f"{super().convention}; TIDE: found from IoU {self.positive} on, background up to {self.background}, dAP = "
            "gain when one type is fixed"
        )

    def errors(self) -> TideErrors:
        """Errors of all collected images, in the order of their index (``collected``); every process must call it.

        Returns:
            The errors.

        Raises:
            ValueError: See ``collected`` and ``tide_errors``.
        """
        data, _ = self.collected()
        return tide_errors(data, self.num_classes, self.positive, self.background, self.max_detections)

    def per_class(self) -> dict[str, Floats]:
        """Scores, gains and counts of each class; every process must call it.

        Returns:
            Name -> (C,); scores and gains are NaN for a class without truths.

        Raises:
            ValueError: See ``errors``.
        """
        errors = self.errors()
        gains = {f"dap_{name}": row for name, row in tide_gains(errors, self.interpolation).items()}
        counts = {f"num_{name}": row.astype(float) for name, row in zip(TYPES, errors.per_class(), strict=True)}
        return {**super().per_class(), **gains, **counts}

    def compute(self) -> dict[str, float]:
        """Scores, gains and counts of all collected images; the class lists them.

        Returns:
            Name -> value; scores and gains are NaN when no image has a truth.

        Raises:
            ValueError: See ``errors``.
        """
        rows = self.per_class()
        gains = {name: float(class_means(row)) for name, row in rows.items() if name.startswith("dap_")}
        counts = {name: float(row.sum()) for name, row in rows.items() if name.startswith("num_")}
        return {**super().compute(), **gains, **counts}
