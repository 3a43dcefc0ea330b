"""Walks over the detections and truths of each image, compiled to machine code at the first call.

Numba is imported with this file, so import it inside functions only. No pairs are laid out in memory, so that images
with many boxes cost time alone. Rows are those of a ``DetectionSet``; ``starts`` (N + 1,) has the first row of each of
N images, and the number of rows at its end.
"""

from __future__ import annotations

import numpy as np

from lightning_modules.metrics.boxes import Bools, Floats
from lightning_modules.metrics.compiling import jit
from lightning_modules.metrics.rows import Ints


@jit
def overlap(box: Floats, truth: Floats, crowd: bool) -> float:
    """Intersection over union of one pair, to the last bit what ``box_iou`` gives.

    Args:
        box: (4,) xyxy.
        truth: (4,) xyxy.
        crowd: Whether the intersection is divided by the area of the box alone.

    Returns:
        Between 0 and 1.
    """
    left, top = max(box[0], truth[0]), max(box[1], truth[1])
    right, bottom = min(box[2], truth[2]), min(box[3], truth[3])
    if not (right > left) & (bottom > top):  # most pairs
        return 0.0
    shared = (right - left) * (bottom - top)
    area = (box[2] - box[0]) * (box[3] - box[1])
    other = (truth[2] - truth[0]) * (truth[3] - truth[1])
    union = area if crowd else area + other - shared
    return shared / union if union > 0 else 0.0


@jit
def match(
    by_score: Ints,
    image: Ints,
    scores: Floats,
    starts: Ints,
    boxes: Floats,
    labels: Ints,
    truth_starts: Ints,
    truth_boxes: Floats,
    truth_labels: Ints,
    truth_ignored: Bools,
    num_classes: int,
    thresholds: Floats,
    max_detections: int,
    truth: Ints,
    ignored: Bools,
) -> None:
    """Give each detection its truth, one image after the other, as ``match_detections`` says.

    Args:
        by_score: (D,) all detections, the best scored first, ties in any order.
        image: (D,).
        scores: (D,).
        starts: (N + 1,) of the detections.
        boxes: (D, 4).
        labels: (D,).
        truth_starts: (N + 1,) of the truths.
        truth_boxes: (M, 4).
        truth_labels: (M,).
        truth_ignored: (M,).
        num_classes: Number of classes.
        thresholds: (K,) IoUs.
        max_detections: Detections of an image and class that count.
        truth: (K, D), -1 everywhere; set to the row of the matched truth.
        ignored: (K, D), True everywhere; cleared for true and false positives.
    """
    order, place = np.empty(len(by_score), np.int64), starts.copy()
    for detection in by_score:  # image after image, in each the best scored first
        i, at = image[detection], place[image[detection]]
        while at > starts[i] and scores[order[at - 1]] == scores[detection] and order[at - 1] > detection:
            order[at] = order[at - 1]  # ties as given
            at -= 1
        order[at] = detection
        place[i] += 1

    lowest, taken = thresholds.min(), np.zeros((len(thresholds), len(truth_ignored)), np.bool_)
    near, overlaps = np.empty(len(truth_ignored), np.int64), np.empty(len(truth_ignored))  # of one detection
    counts = np.zeros(num_classes, np.int64)  # of one image
    for i in range(len(starts) - 1):
        for detection in order[starts[i] : starts[i + 1]]:
            counts[labels[detection]] += 1
            if counts[labels[detection]] > max_detections:
                continue
            number = 0
            for row in range(truth_starts[i], truth_starts[i + 1]):
                if truth_labels[row] == labels[detection]:
                    near[number] = row
                    overlaps[number] = overlap(boxes[detection], truth_boxes[row], truth_ignored[row])
                    number += overlaps[number] >= lowest
            for k in range(len(thresholds)):
                best, choice = thresholds[k], -1
                widest, absorber = thresholds[k], -1
                for j in range(number):
                    row = near[j]
                    if truth_ignored[row]:
                        if overlaps[j] >= widest:
                            widest, absorber = overlaps[j], row
                    elif overlaps[j] >= best and not taken[k, row]:
                        best, choice = overlaps[j], row
                if choice >= 0:
                    taken[k, choice] = True
                truth[k, detection] = choice if choice >= 0 else absorber
                ignored[k, detection] = choice < 0 and absorber >= 0
        for detection in order[starts[i] : starts[i + 1]]:
            counts[labels[detection]] = 0


@jit
def best_overlaps(
    false: Ints,
    image: Ints,
    boxes: Floats,
    labels: Ints,
    truth_starts: Ints,
    truth_boxes: Floats,
    truth_labels: Ints,
    truth_ignored: Bools,
    found: Bools,
    best: Floats,
    choice: Ints,
) -> None:
    """Find the highest overlaps above 0 of false positives with truths that are not ignored, and whose they are.

    Args:
        false: (F,) rows of false positives.
        image: (D,).
        boxes: (D, 4).
        labels: (D,).
        truth_starts: (N + 1,) of the truths.
        truth_boxes: (M, 4).
        truth_labels: (M,).
        truth_ignored: (M,).
        found: (M,) truths that are matched.
        best: (4, F), overwritten by the highest overlap with the detection's class, with other classes, with matched
            truths of its class, and with any truth.
        choice: (4, F), overwritten by the first truth that has it, -1 without one and for that with any truth.
    """
    for f in range(len(false)):
        detection = false[f]
        box, label = boxes[detection], labels[detection]
        own, own_truth, other, other_truth, taken, taken_truth = 0.0, -1, 0.0, -1, 0.0, -1
        for row in range(truth_starts[image[detection]], truth_starts[image[detection] + 1]):
            if truth_ignored[row]:
                continue
            iou = overlap(box, truth_boxes[row], False)
            if truth_labels[row] != label:
                if iou > other:
                    other, other_truth = iou, row
            else:
                if iou > own:
                    own, own_truth = iou, row
                if iou > taken and found[row]:
                    taken, taken_truth = iou, row
        best[0, f], best[1, f], best[2, f], best[3, f] = own, other, taken, max(own, other)
        choice[0, f], choice[1, f], choice[2, f], choice[3, f] = own_truth, other_truth, taken_truth, -1
