"""What a trained detector scores on a part: COCO's average precision, what each type of error costs, and a floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_modules.metrics.detection_curves import average_precisions, class_means, recalls
from lightning_modules.metrics.detection_intervals import bootstrap_average_precision
from lightning_modules.metrics.detection_matching import DetectionSet, match_flat
from lightning_modules.metrics.tide import TYPES, tide_errors, tide_gains

IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # COCO's
HEADLINE = ("/ap", "ap_50", "ap_75", "recall_50", *(f"dap_{name}" for name in TYPES))
MEANING = (
    "dap: what fixing one type of error of TIDE (found from IoU .5 on, background up to .1) would add to ap_50; floor: "
    "the same boxes, each image's handed to the next"
)
Table = tuple[list[str], list[list[Any]]]


def shuffled(data: DetectionSet) -> DetectionSet:
    """The same detections, each image's handed to the next one (the last one's to the first); one image keeps its own.

    What they still score comes from where objects of a class usually lie and how large they are, not from the picture.

    Args:
        data: Detections and truths.

    Returns:
        The same truths, other detections.
    """
    moved = (data.image + 1) % max(data.num_images, 1)
    order = np.argsort(moved, kind="stable")
    return data._replace(
        image=moved[order], boxes=data.boxes[order], scores=data.scores[order], labels=data.labels[order]
    )


def coco_scores(data: DetectionSet, num_classes: int) -> dict[str, float]:
    """Average precision and recall as COCO gives them, over the classes with truths.

    Args:
        data: Detections and truths.
        num_classes: Number of classes.

    Returns:
        ``ap`` (mean over the IoUs .50, .55, ... .95), ``ap_50``, ``ap_75`` and ``recall_50``.
    """
    matches = match_flat(data, num_classes, IOUS)
    ap = class_means(average_precisions(matches))  # (10,)
    recall = class_means(recalls(matches))
    return {"ap": float(ap.mean()), "ap_50": float(ap[0]), "ap_75": float(ap[5]), "recall_50": float(recall[0])}


def full_scores(data: DetectionSet, num_classes: int) -> dict[str, float]:
    """Everything that a test reports.

    Args:
        data: Detections and truths.
        num_classes: Number of classes.

    Returns:
        ``coco_scores``; ``ap_50_low`` and ``ap_50_high``, a 95 % interval over images; ``random_ap``, ``random_ap_50``,
        ... of the detections ``shuffled`` over the images; ``dap_<type>``, what fixing one type of error would add to
        ``ap_50``, and the two others of ``tide_gains``; and ``num_<type>``, how many there are.
    """
    scores = coco_scores(data, num_classes)
    interval = bootstrap_average_precision(match_flat(data, num_classes, IOUS[:1]))
    floors = {f"random_{name}": value for name, value in coco_scores(shuffled(data), num_classes).items()}
    errors = tide_errors(data, num_classes)
    gains = {f"dap_{name}": float(class_means(gain)) for name, gain in tide_gains(errors).items()}
    counts = dict(zip((f"num_{name}" for name in TYPES), errors.per_class().sum(axis=1).astype(float), strict=True))
    ends = {"ap_50_low": float(interval.low[0]), "ap_50_high": float(interval.high[0])}
    return {**scores, **ends, **floors, **gains, **counts}


def class_rows(data: DetectionSet, names: Sequence[str]) -> Table:
    """The scores and errors of each class, as a heading and rows.

    Args:
        data: Detections and truths.
        names: C class names.

    Returns:
        Columns ``class``, ``boxes``, ``ap``, ``ap_50``, ``ap_75``, ``recall_50``, ``dap_<type>`` and ``num_<type>``.
    """
    matches, errors = match_flat(data, len(names), IOUS), tide_errors(data, len(names))
    ap, boxes = average_precisions(matches), matches.truths().sum(axis=0)
    columns = {"ap": ap.mean(axis=0), "ap_50": ap[0], "ap_75": ap[5], "recall_50": recalls(matches)[0]}
    gains = tide_gains(errors)
    columns |= {f"dap_{name}": gains[name] for name in TYPES}
    columns |= {f"num_{name}": row for name, row in zip(TYPES, errors.per_class(), strict=True)}
    rows = [[name, int(boxes[k]), *(v[k].item() for v in columns.values())] for k, name in enumerate(names)]
    return ["class", "boxes", *columns], rows
