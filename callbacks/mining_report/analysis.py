"""The numbers of the report: average precision, what each type of error costs it, and all of it by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from callbacks.mining_report.mined import Columns, MiningRound, suspects
from lightning_modules.detection.mining import NOTHING
from lightning_modules.metrics.boxes import Bools, Floats
from lightning_modules.metrics.detection_curves import average_precisions, class_means
from lightning_modules.metrics.detection_intervals import Interval, bootstrap_average_precision
from lightning_modules.metrics.detection_matching import MAX_DETECTIONS, DetectionSet, match_flat
from lightning_modules.metrics.tide import TYPES, TideErrors, tide_errors, tide_gains

REDRAWS = 1000  # bootstrap redraws of the images
SHUFFLES = 5  # random orders that the floor is the mean of
LISTED = 100  # suspected label errors in report.json; the CSV has all


class Analysis(NamedTuple):
    """What all predictions of a round come to, whatever their confidence."""

    errors: TideErrors
    gains: Mapping[str, Floats]  # TYPES, false_positive, false_negative -> (C,) dAP at the IoU threshold
    ap: Floats  # (C,) at the IoU threshold of mining
    ap_50: Floats  # (C,)
    interval: Interval  # of the mean of ap_50, over images
    floor: float  # mean of ap_50 of the same boxes with their confidences shuffled
    rates: Mapping[str, tuple[float, float]]  # precision, recall, f1_score -> ends of the interval over images


def analyse(mined: MiningRound) -> Analysis:
    """Match all predictions, and find what their errors cost.

    Args:
        mined: The round; reads ``data``, ``class_names`` and ``settings["iou_threshold"]``.
    """
    data, number, iou = mined.data, len(mined.class_names), float(mined.settings["iou_threshold"])
    errors = tide_errors(data, number, iou, NOTHING * iou)
    matches = match_flat(data, number, [0.5])
    return Analysis(
        errors,
        tide_gains(errors),
        average_precisions(errors.matches)[0],
        average_precisions(matches)[0],
        bootstrap_average_precision(matches, REDRAWS),
        shuffled_precision(data, number),
        rate_intervals(tide_errors(data, number, iou, NOTHING * iou, max(1, len(data.scores))), confident(mined)),
    )


def confident(mined: MiningRound) -> Bools:
    """(D,) whether predictions reach the confidence threshold, that of their class where each has its own."""
    limits = np.asarray(mined.settings["confidence_threshold"], np.float64)
    return mined.data.scores >= np.broadcast_to(limits, len(mined.class_names))[mined.data.labels]


def rate_intervals(errors: TideErrors, chosen: Bools) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals of precision, recall and F1, images being drawn with replacement.

    Args:
        errors: Of all predictions, as the miner matches them without a limit of detections; matching is greedy by
            confidence, so less confident ones change nothing.
        chosen: (D,) the predictions that count.

    Returns:
        ``precision``, ``recall``, ``f1_score`` -> lower and upper end; NaN where nothing is to be divided.
    """
    matches, images = errors.matches, errors.matches.num_images
    hits = (matches.truth[0] >= 0) & ~matches.ignored[0] & chosen
    false, counted = chosen & (errors.kind >= 0), ~matches.truth_ignored
    rows = (matches.image[hits], matches.image[false], matches.truth_image[counted])
    counts = np.stack([np.bincount(row, minlength=images) for row in rows], axis=1)  # (images, 3)
    rng, step = np.random.default_rng(0), max(1, 2**22 // images)  # some million draws at a time keep memory small
    drawn = [
        rng.multinomial(images, np.full(images, 1 / images), min(step, REDRAWS - done)) @ counts
        for done in range(0, REDRAWS, step)
    ]
    found, wrong, truths = np.concatenate(drawn).T.astype(np.float64)
    parts = {
        "precision": (found, found + wrong),
        "recall": (found, truths),
        "f1_score": (2 * found, found + wrong + truths),
    }
    ends = {}
    for name, (part, whole) in parts.items():
        some = whole > 0
        values = part[some] / whole[some] if some.any() else np.full(1, np.nan)
        low, high = np.quantile(values, [0.025, 0.975]).tolist()
        ends[name] = (low, high)
    return ends


def shuffled_precision(data: DetectionSet, num_classes: int) -> float:
    """Mean AP at IoU 0.5 when confidence says nothing: that of the same boxes in random orders.

    Args:
        data: Predictions and truths.
        num_classes: Number of classes.

    Returns:
        Mean over some shuffles; NaN without a truth.
    """
    rng = np.random.default_rng(0)
    orders = [data._replace(scores=rng.permutation(data.scores)) for _ in range(SHUFFLES)]
    return float(np.mean([class_means(average_precisions(match_flat(one, num_classes, [0.5]))[0]) for one in orders]))


def summary_of(mined: MiningRound, found: Analysis) -> dict[str, float]:
    """The round in flat numbers, for loggers.

    Args:
        mined: The round.
        found: Its analysis.

    Returns:
        ``ap_50`` with its ends and floor, ``ap``, ``dap_<type>`` and ``num_<type>`` (of all predictions), and the
        miner's own ``statistics`` and ``metrics`` but for their ``types``.
    """
    counts = found.errors.per_class().sum(axis=1).tolist()
    own = {**mined.report["statistics"], **mined.report["metrics"]}
    return {
        "ap_50": float(found.interval.value[0]),
        "ap_50_low": float(found.interval.low[0]),
        "ap_50_high": float(found.interval.high[0]),
        "ap_50_shuffled": found.floor,
        "ap": float(class_means(found.ap)),
        **{f"dap_{name}": float(class_means(gain)) for name, gain in found.gains.items()},
        **{f"num_{name}": float(count) for name, count in zip(TYPES, counts, strict=True)},
        **{name: float(value) for name, value in own.items() if name != "types"},
    }


def class_rows(mined: MiningRound, found: Analysis, table: Columns) -> list[dict[str, Any]]:
    """Numbers of each class; an error belongs to the predicted class, a missed truth to its own.

    Args:
        mined: The round.
        found: Its analysis.
        table: Of ``mined_table``.

    Returns:
        C dicts: ``name``, ``truths`` that count, ``predictions``, ``ap_50`` and ``ap``, the number of
        ``hard_negatives`` and ``suspected_label_errors``, and ``types`` with ``hard_negatives``, ``errors`` (of all
        predictions) and ``gain`` of each.
    """
    number, data = len(mined.class_names), mined.data
    labels = np.array(table["label"], np.int64)
    kinds = np.array([TYPES.index(name) for name in table["type"]], np.int64)
    mine = np.bincount(kinds * number + labels, minlength=len(TYPES) * number).reshape(len(TYPES), number)
    suspected = np.bincount(labels[np.array(table["suspected_label_error"], bool)], minlength=number)
    truths = np.bincount(data.truth_labels[~data.truth_ignored], minlength=number)
    predictions, errors = np.bincount(data.labels, minlength=number), found.errors.per_class()
    return [
        {
            "name": mined.class_names[c],
            "truths": int(truths[c]),
            "predictions": int(predictions[c]),
            "ap_50": float(found.ap_50[c]),
            "ap": float(found.ap[c]),
            "hard_negatives": int(mine[:, c].sum()),
            "suspected_label_errors": int(suspected[c]),
            "types": {
                name: {
                    "hard_negatives": int(mine[kind, c]),
                    "errors": int(errors[kind, c]),
                    "gain": float(found.gains[name][c]),
                }
                for kind, name in enumerate(TYPES)
            },
        }
        for c in range(number)
    ]


def report_of(mined: MiningRound, found: Analysis, table: Columns) -> dict[str, Any]:
    """What ``report.json`` holds: the miner's report, and the analysis of all predictions beside it.

    Args:
        mined: The round.
        found: Its analysis.
        table: Of ``mined_table``.

    Returns:
        Values of JSON; None stands for what cannot be divided or has no truth.
    """
    counts, gains = found.errors.per_class().sum(axis=1).tolist(), found.gains
    candidates = suspects(table)
    rows = [dict(zip(candidates, row, strict=True)) for row in zip(*candidates.values(), strict=True)]
    return _plain(
        {
            **mined.report,
            "metrics_interval": {name: list(ends) for name, ends in found.rates.items()},
            "title": mined.title,
            "settings": dict(mined.settings),
            "n": sizes(mined),
            "ap_50": found.interval.value[0],
            "ap_50_interval": [found.interval.low[0], found.interval.high[0]],
            "ap_50_shuffled": found.floor,
            "tide": {
                "ap": class_means(found.ap),
                "types": {
                    name: {"errors": count, "gain": class_means(gains[name])}
                    for name, count in zip(TYPES, counts, strict=True)
                },
                **{name: {"gain": class_means(gains[name])} for name in ("false_positive", "false_negative")},
            },
            "classes": class_rows(mined, found, table),
            "label_error_candidates": rows[:LISTED],
            "conventions": conventions(mined),
        }
    )


def sizes(mined: MiningRound) -> dict[str, int]:
    """How many images, truths that count, ignored truths, predictions and classes with truths there are."""
    data = mined.data
    counted = data.truth_labels[~data.truth_ignored]
    return {
        "images": data.num_images,
        "truths": len(counted),
        "ignored_truths": int(data.truth_ignored.sum()),
        "predictions": len(data.scores),
        "classes_with_truths": len(np.unique(counted)),
        "classes": len(mined.class_names),
    }


def conventions(mined: MiningRound) -> dict[str, str]:
    """What the numbers mean, by subject."""
    iou = float(mined.settings["iou_threshold"])
    return {
        "matching": (
            f"COCO's, greedy by confidence and one to one within image and class, at IoU {iou:g}; ignored truths and "
            "crowds absorb predictions by the share of the prediction that lies on them. For AP, dAP and the errors of "
            f"all predictions at most {MAX_DETECTIONS} of an image and class count; hard negatives and rates have no "
            "such limit."
        ),
        "hard negatives": (
            "Errors of predictions from the confidence threshold on, and truths that those leave missed, as far as the "
            "strategy gives them a weight."
        ),
        "rates": f"Intervals: 95 %, bootstrap over images, {REDRAWS} redraws.",
        "types": (
            f"localisation: IoU {NOTHING * iou:g} to {iou:g} with its class; class: at least {iou:g} with another "
            f"class; duplicate: of a truth that is found already; background: at most {NOTHING * iou:g} with any "
            "truth; both: of another class and off place; missed: a truth that no other error is about."
        ),
        "AP": (
            "101 recall points, mean over the classes with truths, of all predictions. Interval: 95 %, bootstrap over "
            f"images, {REDRAWS} redraws, centred. Shuffled: the same boxes with their confidences permuted, mean of "
            f"{SHUFFLES}; what AP is when confidence says nothing."
        ),
        "dAP": (
            f"AP at IoU {iou:g} that would be gained if one type of error were fixed and all else left (TIDE), of all "
            "predictions. The gains do not add up to what is lacking. A class without truths has none."
        ),
        "suspected label errors": (
            "Background errors with confidence * (1 - IoU) of at least 0.9: an object that nobody annotated, or a sure "
            "mistake. They count as hard negatives, but make no image hard."
        ),
    }


def _plain(value: Any) -> Any:
    """A value as JSON takes it: numbers of Python, None for NaN."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
