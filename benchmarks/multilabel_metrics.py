"""All multi-label scores of a prediction shaped like COCO's training part, against scikit-learn called score by score.

python benchmarks/multilabel_metrics.py [--small]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from retrieval import resident
from table import print_table, write_section
from torch import Tensor

from lightning_modules.metrics import (
    average_precision_intervals,
    fit_thresholds,
    multilabel_scores,
    paired_difference,
)

MIB = 2**20
CLASSES = 80
KINDS = ("sigmoid", "votes of 20")


def make(n: int, kind: str) -> tuple[Tensor, Tensor]:
    """Labels about as frequent as COCO's (2.9 an item, 54 % to 0.16 %), and probabilities that follow them.

    ``sigmoid`` hardly ever ties. ``votes of 20`` are shares of twenty neighbours: 21 values, most of them 0.
    """
    g = torch.Generator().manual_seed(0)
    frequency = torch.cat([torch.tensor([0.54]), torch.logspace(-0.89, -2.8, CLASSES - 1)])
    labels = torch.rand(n, CLASSES, generator=g) < frequency
    logits = torch.logit(frequency) + 3.5 * labels + torch.randn(n, CLASSES, generator=g)
    probabilities = torch.sigmoid(logits)
    if kind != "sigmoid":
        probabilities = torch.binomial(torch.tensor(20.0).expand(n, CLASSES), probabilities, generator=g) / 20
    return probabilities, labels


def sklearn_calls(probabilities: Tensor, labels: Tensor) -> dict[str, Callable[[], dict[str, float]]]:
    """One function a group of scores; scikit-learn's macro means need no care: no class is without positives here."""
    from sklearn import metrics as sk

    p, y = probabilities.numpy(), labels.numpy()
    hard = p >= 0.5
    wide = p.astype(np.float64)  # scikit-learn adds up the error in the type it gets: float32 is 6e-6 off
    rates = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}
    return {
        "mAP (3)": lambda: {
            f"map_{how}": sk.average_precision_score(y, p, average=how) for how in ("macro", "micro", "weighted")
        },
        "AUROC (2)": lambda: {f"auroc_{how}": sk.roc_auc_score(y, p, average=how) for how in ("macro", "micro")},
        "F1, precision, recall (6)": lambda: {
            f"{name}_{how}": score(y, hard, average=how, zero_division=0)
            for name, score in rates.items()
            for how in ("macro", "micro")
        },
        "coverage, ranking loss, LRAP": lambda: {
            "coverage_error": sk.coverage_error(y, p),
            "ranking_loss": sk.label_ranking_loss(y, p),
            "lrap": sk.label_ranking_average_precision_score(y, p),
        },
        "Hamming loss, exact match, MAE": lambda: {
            "hamming_loss": sk.hamming_loss(y, hard),
            "exact_match": sk.accuracy_score(y, hard),
            "mae": sk.mean_absolute_error(y, wide),
        },
    }


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and its value."""
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def scores(n: int, kind: str) -> list[dict[str, Any]]:
    """Rows of all scores: scikit-learn by groups, and in turns with them ours in one call (median).

    In turns, so that a busy moment does not favour one of them.
    """
    data = make(n, kind)
    rows, total, wanted, ours_seconds = [], 0.0, {}, []
    for name, call in sklearn_calls(*data).items():
        seconds, found = timed(lambda: multilabel_scores(*data))
        ours_seconds.append(seconds)
        seconds, values = timed(call)
        rows.append((f"scikit-learn, {name}", seconds, values))
        total += seconds
        wanted |= values
    assert set(found) - set(wanted) == {"classes_scored"}
    ours = median(ours_seconds)
    rows += [("scikit-learn, all 18", total, wanted), ("ours, all 18 in one call", ours, wanted)]
    return [
        {
            "what": f"{kind}: {name}",
            "seconds": seconds,
            "x ours": f"{seconds / ours:.1f}",
            "largest difference": f"{max(abs(found[key] - value) for key, value in values.items()):.0e}",
        }
        for name, seconds, values in rows
    ]


def others(n: int, n_paired: int) -> list[dict[str, Any]]:
    """Rows of what else the evaluation of a run computes, and of the memory of the scores."""
    rows = []
    for kind in KINDS:
        data = make(n, kind)
        a, labels = make(n_paired, kind)
        b = (a + 0.1).clamp(max=1)
        extra, seconds = memory(n, kind)
        calls: dict[str, Callable[[], Any]] = {
            f"thresholds of best F1, {n:,} items": lambda: fit_thresholds(*data),  # noqa: B023
            f"intervals of AP, {n:,} items, 200 redraws": lambda: average_precision_intervals(*data),  # noqa: B023
            f"paired difference, {n_paired:,} items, 1000 redraws": lambda: paired_difference(a, b, labels),  # noqa: B023
        }
        rows += [{"what": f"{kind}: {name}", "seconds": timed(call)[0], "MiB": "-"} for name, call in calls.items()]
        rows.append({"what": f"{kind}: all scores, memory beyond the data", "seconds": seconds, "MiB": round(extra)})
    return rows


def memory(n: int, kind: str) -> tuple[float, float]:
    """Rise of a fresh process's memory during the first call in MiB, and its seconds."""
    command = [sys.executable, __file__, "--memory", str(n), kind]
    extra, seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(extra), float(seconds)


def measure_memory(n: int, kind: str) -> None:
    """Print what ``memory`` returns."""
    data = make(n, kind)
    multilabel_scores(*make(100, kind))  # libraries load their parts and threads at the first call
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds, _ = timed(lambda: multilabel_scores(*data))
    done.set()
    watcher.join()
    print((max(peak, resident()) - before) / MIB, seconds)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of both tables.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="2,000 items; prints only")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory:
        measure_memory(int(options.memory[0]), options.memory[1])
        return []
    n, n_paired = (2000, 500) if options.small else (118_287, 5000)
    sections = {
        f"Multi-label scores at {n:,} x {CLASSES} (aim: below 20 s)": [
            row for kind in KINDS for row in scores(n, kind)
        ],
        "Multi-label scores: thresholds, intervals, memory": others(n, n_paired),
    }
    for title, rows in sections.items():
        if options.small:
            print_table(f"{title} (small)", rows)
        else:
            write_section(title, "python benchmarks/multilabel_metrics.py", rows)
    return [row for rows in sections.values() for row in rows]


if __name__ == "__main__":
    main()
