"""Retrieval measures over Hamming rankings against the loop that a user would write.

python benchmarks/retrieval.py [--small]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import print_table, write_section
from torch import Tensor

from lightning_modules.metrics import HammingIndex, hamming_mean_average_precision

MIB = 2**20
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def make(n_query: int, n_database: int, bits: int, classes: int) -> Data:
    """Codes that follow the labels a little, and labels of which a few percent are set."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(classes, bits, generator=generator)
    labels = [torch.rand(n, classes, generator=generator) < 3 / classes for n in (n_query, n_database)]
    codes = [
        (part.float() @ directions + 2 * torch.randn(len(part), bits, generator=generator)).sign() for part in labels
    ]
    return codes[0], codes[1], labels[0].float(), labels[1].float()


def numpy_loop(data: Data, top_k: int | None = None, kind: Any = None, labels: Any = np.float32) -> float:
    """Mean average precision query by query, with one argsort each; published files hold int64 labels."""
    query_codes, database_codes = (part.numpy() for part in data[:2])
    query_labels, database_labels = (part.numpy().astype(labels) for part in data[2:])
    total = 0.0
    for code, label in zip(query_codes, query_labels, strict=True):
        relevant = database_labels @ label > 0
        distances = 0.5 * (database_codes.shape[1] - database_codes @ code)
        ranked = relevant[np.argsort(distances, kind=kind)][:top_k]
        ranks = np.flatnonzero(ranked) + 1
        if len(ranks):
            total += np.mean(np.arange(1, len(ranks) + 1) / ranks)
    return total / len(query_codes)


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Best time of some calls in seconds, and the value."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = float(call())
        times.append(time.perf_counter() - start)
    return min(times), value


def speed(n_query: int, n_database: int, bits: int, repeats: int) -> list[dict[str, Any]]:
    """Times of the loop and of ours on the same codes."""
    data = make(n_query, n_database, bits, classes=24)
    forms = {
        "argsort": {},
        "argsort, int64 labels": {"labels": np.int64},
        "stable argsort": {"kind": "stable"},
        "stable argsort, int64 labels": {"kind": "stable", "labels": np.int64},
    }
    loops = {name: timed(lambda form=form: numpy_loop(data, **form), 2) for name, form in forms.items()}
    first_50 = timed(lambda: numpy_loop(data, 50, kind="stable"), 2)
    calls: dict[str, Callable[[], Any]] = {
        "mAP@all, ties expected": lambda: hamming_mean_average_precision(*data),
        "mAP@all, ties stable": lambda: hamming_mean_average_precision(*data, ties="stable"),
        "mAP@50, ties stable": lambda: hamming_mean_average_precision(*data, top_k=50, ties="stable"),
    }
    ours = {name: timed(call, repeats) for name, call in calls.items()}
    rows = [row(f"numpy loop, {name}", *loop) for name, loop in loops.items()]
    stable = loops["stable argsort"][1]
    for (name, (seconds, value)), expected in zip(ours.items(), (stable, stable, first_50[1]), strict=True):
        rows.append(row(name, seconds, value, {name: loop[0] for name, loop in loops.items()}, expected))
    if torch.cuda.is_available():
        on_gpu = tuple(part.cuda() for part in data)
        rows.append(row("mAP@all, ties expected, GPU", *timed(lambda: hamming_mean_average_precision(*on_gpu), 5)))
    index = HammingIndex(bits)
    index.add(data[1], [str(i) for i in range(n_database)])
    seconds, _ = timed(lambda: bool(index.search(data[0], 50)), repeats)
    rows.append({**row("HammingIndex, top 50 (FAISS)", seconds, 0.0), "value": "-"})
    return rows


def row(
    name: str,
    seconds: float,
    value: float,
    slower: dict[str, float] | None = None,
    expected: float | None = None,
) -> dict[str, Any]:
    """One line of the table; the ratios are against the forms of the loop over all ranks."""
    names = ("argsort", "argsort, int64 labels", "stable argsort", "stable argsort, int64 labels")
    return {
        "what": name,
        "seconds": round(seconds, 4),
        "value": f"{value:.8f}",
        **{f"x {form}": "-" if slower is None else round(slower[form] / seconds, 1) for form in names},
        "difference to the stable loop": "-" if expected is None else f"{value - expected:+.1e}",
    }


def memory(n_query: int, n_database: int, bits: int, ties: str) -> dict[str, Any]:
    """Peak memory beyond the inputs, of a fresh process, and its time."""
    command = [sys.executable, __file__, "--memory", str(n_query), str(n_database), str(bits), ties]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    extra, seconds = float(printed[0]), float(printed[1])
    return {
        "what": f"mAP@all, ties {ties}, {n_query} x {n_database:,} x {bits} bits",
        "seconds": round(seconds, 3),
        "extra memory (MiB)": round(extra / MIB, 1),
        "all distances at once (MiB)": round(8 * n_query * n_database / MIB),
    }


def measure_memory(n_query: int, n_database: int, bits: int, ties: Any) -> None:
    """Print the largest rise of this process's memory during one call in bytes, and its seconds."""
    data = make(n_query, n_database, bits, classes=80)
    small = make(300, 8000, bits, classes=80)
    hamming_mean_average_precision(*small, ties=ties)  # libraries load their parts and threads at the first call
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    hamming_mean_average_precision(*data, ties=ties)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(max(peak, resident()) - before, seconds)


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of the tables.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few seconds; prints only")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory:
        measure_memory(*(int(number) for number in options.memory[:3]), options.memory[3])
        return []
    sizes = (100, 2000, 64) if options.small else (2000, 18_015, 64)
    times = speed(*sizes, repeats=2 if options.small else 7)
    sizes = (50, 5000, 64) if options.small else (5000, 117_218, 64)
    peaks = [memory(*sizes, ties) for ties in (("expected",) if options.small else ("expected", "stable"))]
    command = "python benchmarks/retrieval.py"
    sections = {"Retrieval: speed at 2000 x 18,015 x 64 bits": times, "Retrieval: memory": peaks}
    for title, rows in sections.items():
        if options.small:
            print_table(f"{title} (small)", rows)
        else:
            write_section(title, command, rows)
    return times + peaks


if __name__ == "__main__":
    main()
