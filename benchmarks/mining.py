"""Mining of hard negatives against the double loop over predictions and truths that a user would write.

python benchmarks/mining.py [--small]
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from table import print_table, write_section

from lightning_modules.detection.mining import HardNegative, HardNegativeMiner

CLASSES = 20
LOOP, COLUMNS, TUPLES = "double loop", "HardNegativeMiner, columns", "HardNegativeMiner, each record as a tuple"
Images = list[dict[str, torch.Tensor]]
Rows = list[dict[str, Any]]


def world(images: int, predictions: int, truths: int) -> tuple[Images, Images]:
    """Confident predictions and truths: every other prediction is a moved truth, sometimes of another class."""
    rng = np.random.default_rng(0)
    found, targets = [], []
    for _ in range(images):
        corners = rng.uniform(0, 700, (truths, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 150, (truths, 2))], axis=1)
        labels = rng.integers(0, CLASSES, truths)
        corners = rng.uniform(0, 700, (predictions, 2))
        guesses = np.concatenate([corners, corners + rng.uniform(20, 150, (predictions, 2))], axis=1)
        classes = rng.integers(0, CLASSES, predictions)
        copied = rng.integers(0, truths, predictions // 2)
        guesses[: len(copied)] = boxes[copied] + rng.uniform(-9, 9, (len(copied), 4))
        classes[: len(copied)] = np.where(rng.uniform(size=len(copied)) < 0.8, labels[copied], classes[: len(copied)])
        found.append({"boxes": guesses, "scores": rng.uniform(0.5, 1, predictions), "labels": classes})
        targets.append({"boxes": boxes, "labels": labels})
    return tuple([{k: torch.from_numpy(v) for k, v in one.items()} for one in each] for each in (found, targets))


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def mined_by_loops(
    predictions: Images, truths: Images, confident: float = 0.5, positive: float = 0.5, background: float = 0.1
) -> list[HardNegative]:
    """All errors but duplicates, as strategy ``confidence_based`` lists them, without ignored truths."""
    records = []
    for image, (prediction, target) in enumerate(zip(predictions, truths, strict=True)):
        boxes, scores, classes = (prediction[name].tolist() for name in ("boxes", "scores", "labels"))
        truth_boxes, labels = target["boxes"].tolist(), target["labels"].tolist()
        rows = [row for row in range(len(scores)) if scores[row] >= confident]
        overlaps = {row: [overlap(boxes[row], box) for box in truth_boxes] for row in rows}
        matched: dict[int, int] = {}
        for row in sorted(rows, key=lambda row: -scores[row]):
            best, choice = positive, -1
            for truth, iou in enumerate(overlaps[row]):
                if labels[truth] == classes[row] and truth not in matched and iou >= best:
                    best, choice = iou, truth
            if choice >= 0:
                matched[choice] = row
        hits, reachable = set(matched.values()), set()
        for row in rows:
            if row in hits:
                continue
            own, own_truth, other, other_truth, duplicate = 0.0, -1, 0.0, -1, False
            for truth, iou in enumerate(overlaps[row]):
                if labels[truth] != classes[row] and iou > other:
                    other, other_truth = iou, truth
                if labels[truth] == classes[row] and iou > own:
                    own, own_truth = iou, truth
                duplicate |= labels[truth] == classes[row] and truth in matched and iou >= positive
            kind, truth, iou = "both", other_truth, other
            if background <= own < positive:
                kind, truth, iou = "localisation", own_truth, own
            elif other >= positive:
                kind = "class"
            elif duplicate:
                continue
            elif max(own, other) <= background:
                kind, truth, iou = "background", -1, max(own, other)
            if kind in ("localisation", "class"):
                reachable.add(truth)
            place, label = (truth, labels[truth]) if truth >= 0 else (None, None)
            suspected = kind == "background" and scores[row] * (1 - iou) >= 0.9
            records.append(
                HardNegative(image, None, kind, row, place, iou, scores[row], classes[row], label, suspected)
            )
        for truth, label in enumerate(labels):
            if truth not in matched and truth not in reachable:
                records.append(HardNegative(image, None, "missed", None, truth, 0.0, 0.0, label, label, False))
    return records


def main(arguments: list[str] | None = None) -> Rows:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of the table.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="60 images; prints only")
    options = parser.parse_args(arguments)
    images, predictions, truths, rounds = (60, 20, 6, 3) if options.small else (1000, 50, 10, 7)
    found, targets = world(images, predictions, truths)
    calls = {
        LOOP: mined_by_loops,
        COLUMNS: lambda found, targets: HardNegativeMiner().find_hard_negatives(found, targets),
        TUPLES: lambda found, targets: list(HardNegativeMiner().find_hard_negatives(found, targets)),
    }
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):  # in turns, so that a busy moment does not favour one of them
        results = []
        for name, call in calls.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            results.append(call(found, targets))
            if turn:  # the first compiles and loads
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
        assert results[0] == list(results[1]) == results[2], "the records differ"
    rows = [
        {
            "route": name,
            "seconds (median)": median(wall[name]),
            f"x {LOOP}": _ratio(wall[LOOP], wall[name]),
            "CPU seconds": median(cpu[name]),
            f"x {LOOP}, CPU": _ratio(cpu[LOOP], cpu[name]),
            "hard negatives": len(results[0]),
            "turns": rounds,
        }
        for name in calls
    ]
    title = f"Hard negatives: {images} images of {predictions} predictions and {truths} truths (aim: 20 x)"
    if options.small:
        print_table(f"{title} (small)", rows)
    else:
        write_section(title, "python benchmarks/mining.py", rows)
    return rows


def _ratio(loop: list[float], taken: list[float]) -> float:
    return round(median(a / b for a, b in zip(loop, taken, strict=True)), 1)


if __name__ == "__main__":
    main()
