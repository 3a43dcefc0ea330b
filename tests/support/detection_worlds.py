"""Random images with detections, and COCO's matching and average precision as plain loops over Python floats."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch


def world(images=12, classes=3, seed=0, ignored=0.0, levels=None, grid=False, most=8):
    """Predictions near the targets or anywhere; ``levels``: scores with ties; ``grid``: whole boxes, IoUs that tie.

    The first image has no prediction, the second no target; the last class has no target, class 0 is frequent.
    """
    g = torch.Generator().manual_seed(seed)

    def boxes(n):
        corners = torch.rand(n, 2, generator=g) * 20
        found = torch.cat([corners, corners + 1 + torch.rand(n, 2, generator=g) * 15], dim=1)
        return (found / 4).round() * 4 + torch.tensor([0.0, 0, 4, 4]) if grid else found

    def labels(n, count):
        return (torch.rand(n, generator=g) ** 2 * count).long()

    predictions, targets = [], []
    for image in range(images):
        m = 0 if image == 1 else int(torch.randint(0, most // 2 + 1, (1,), generator=g))
        n = 0 if image == 0 else int(torch.randint(0, most + 1, (1,), generator=g))
        truth = {"boxes": boxes(m), "labels": labels(m, max(1, classes - 1))}
        truth["ignore"] = (torch.rand(m, generator=g) < ignored).long()
        found = {"boxes": boxes(n), "scores": torch.rand(n, generator=g), "labels": labels(n, classes)}
        for row in range(n if m else 0):
            if torch.rand(1, generator=g) < 0.6:  # a copy of a target, moved a little
                copied = int(torch.randint(0, m, (1,), generator=g))
                moved = 0 if grid else torch.rand(4, generator=g) * 2
                found["boxes"][row], found["labels"][row] = truth["boxes"][copied] + moved, truth["labels"][copied]
        found["boxes"][:, 2:] = found["boxes"][:, 2:].maximum(found["boxes"][:, :2] + 0.5)
        if levels:
            found["scores"] = (found["scores"] * levels).round() / levels
        predictions.append(found)
        targets.append(truth)
    return predictions, targets


def iou(box, truth, crowd):
    width = min(box[2], truth[2]) - max(box[0], truth[0])
    height = min(box[3], truth[3]) - max(box[1], truth[1])
    if width <= 0 or height <= 0:
        return 0.0
    area, other = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, truth))
    return width * height / (area if crowd else area + other - width * height)


def naive_matches(predictions, targets, threshold, max_detections=100):
    """For each image and detection (truth of this image or -1, ignored)."""
    result = []
    for found, truth in zip(predictions, targets, strict=True):
        boxes, labels = found["boxes"].tolist(), found["labels"].tolist()
        truths, crowd = truth["boxes"].tolist(), truth["ignore"].tolist()
        outcome, taken, counted = [(-1, True)] * len(boxes), set(), {}
        for row in sorted(range(len(boxes)), key=lambda i: -float(found["scores"][i])):
            counted[labels[row]] = counted.get(labels[row], 0) + 1
            if counted[labels[row]] > max_detections:
                continue
            overlaps = [
                (iou(boxes[row], truths[t], crowd[t]), t)
                for t in range(len(truths))
                if truth["labels"][t] == labels[row] and (crowd[t] or t not in taken)
            ]
            good = [pair for pair in overlaps if pair[0] >= threshold]
            best = max((p for p in good if not crowd[p[1]]), default=max(good, default=(0, -1)))[1]
            taken.add(best)
            outcome[row] = (best, best >= 0 and bool(crowd[best]))
        result.append(outcome)
    return result


def naive_average_precision(predictions, targets, threshold, label, interpolation="coco101", max_detections=100):
    """Average precision and recall of one class."""
    total = sum(int(((t["labels"] == label) & (t["ignore"] == 0)).sum()) for t in targets)
    ranked = []
    for found, outcome in zip(predictions, naive_matches(predictions, targets, threshold, max_detections), strict=True):
        for row, (truth, ignored) in enumerate(outcome):
            if found["labels"][row] == label and not ignored:
                ranked.append((-float(found["scores"][row]), truth >= 0))
    ranked.sort(key=lambda pair: pair[0])
    if total == 0:
        return math.nan, math.nan
    hits, curve = 0, []
    for rank, (_, hit) in enumerate(ranked, start=1):
        hits += hit
        curve.append((hits / total, hits / rank))
    highest = lambda recall: max((p for r, p in curve if r >= recall), default=0.0)  # noqa: E731
    if interpolation == "area":
        steps = sorted({r for r, _ in curve} | {0.0})
        value = sum((b - a) * highest(b) for a, b in pairwise(steps))
    else:
        points = np.linspace(
            0, 1, 101 if interpolation == "coco101" else 11
        )  # as in cocoeval.py; 0.3 lies above 3 / 10
        value = sum(highest(point) for point in points) / len(points)
    return value, hits / total
