"""Retrieval measures over Hamming rankings against the loop that a user would write.

python benchmarks/retrieval.py [--small]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from table import print_table, write_section
from torch import Tensor

from lightning_modules.metrics import HammingIndex, hamming_mean_average_precision

MIB = 2**20
TIES: tuple[Literal["expected", "stable"], ...] = ("expected", "stable")
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


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Time of one call in seconds, and its value."""
    start = time.perf_counter()
    value = float(call())
    return time.perf_counter() - start, value


def speed(n_query: int, n_database: int, bits: int, rounds: int) -> list[dict[str, Any]]:
    """Times of the loop and of ours on the same codes, in turns, so that a busy moment does not favour one of them."""
    data = make(n_query, n_database, bits, classes=24)
    index = HammingIndex(bits)
    index.add(data[1], [str(i) for i in range(n_database)])
    loops: dict[str, Callable[[], Any]] = {
        "argsort": lambda: numpy_loop(data),
        "argsort, int64 labels": lambda: numpy_loop(data, labels=np.int64),
        "stable argsort": lambda: numpy_loop(data, kind="stable"),
        "stable argsort, int64 labels": lambda: numpy_loop(data, kind="stable", labels=np.int64),
    }
    ours: dict[str, Callable[[], Any]] = {
        "mAP@all, ties expected": lambda: hamming_mean_average_precision(*data),
        "mAP@all, ties stable": lambda: hamming_mean_average_precision(*data, ties="stable"),
        "mAP@50, ties stable": lambda: hamming_mean_average_precision(*data, top_k=50, ties="stable"),
        "HammingIndex, top 50 (FAISS)": lambda: bool(index.search(data[0], 50)),
    }
    if torch.cuda.is_available():
        on_gpu = tuple(part.cuda() for part in data)
        ours["mAP@all, ties expected, GPU"] = lambda: hamming_mean_average_precision(*on_gpu)
        ours["mAP@all, ties stable, GPU"] = lambda: hamming_mean_average_precision(*on_gpu, ties="stable")
    calls = loops | ours
    values = {name: float(call()) for name, call in calls.items()}  # the first call compiles, loads and starts threads
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(timed(call)[0])
    stable = values["stable argsort"]
    expected = dict.fromkeys(ours, stable) | {"mAP@50, ties stable": numpy_loop(data, 50, kind="stable")}
    rows = []
    for name in calls:
        ranks = "FAISS" not in name  # a search has neither a value nor the work of the loop
        compared = name in ours and ranks
        ratios = {
            f"x {loop}": round(median(np.divide(seconds[loop], seconds[name])), 1) if compared else "-"
            for loop in loops
        }
        rows.append(
            {
                "what": name if name in ours else f"numpy loop, {name}",
                "seconds (median)": round(median(seconds[name]), 4),
                "value": f"{values[name]:.8f}" if ranks else "-",
                **ratios,
                "difference to the stable loop": f"{values[name] - expected[name]:+.1e}" if compared else "-",
                "rounds": rounds,
            }
        )
    return rows


def first_calls() -> list[dict[str, Any]]:
    """Seconds of the first call of a process, with and without compiled code on disk."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        for cache in ("empty", "filled"):
            printed = run_self("--first", environment=environment)
            rows += [
                {"what": f"{what}, cache of compiled code {cache}", "seconds": round(float(number), 3)}
                for what, number in zip(("ties expected", "ties stable"), printed, strict=True)
            ]
    return rows


def measure_first_calls() -> None:
    """Print the seconds of the first calls in this process, one after the other."""
    data = make(10, 100, 64, classes=24)
    print(*(timed(lambda ties=ties: hamming_mean_average_precision(*data, ties=ties))[0] for ties in TIES))


def run_self(*arguments: Any, environment: dict[str, str] | None = None) -> list[str]:
    """Words that this script prints in a fresh process."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


def memory(n_query: int, n_database: int, bits: int, ties: str) -> dict[str, Any]:
    """Peak memory beyond the inputs, of a fresh process, and its time."""
    extra, seconds = map(float, run_self("--memory", n_query, n_database, bits, ties))
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
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.first:
        measure_first_calls()
        return []
    if options.memory:
        measure_memory(*(int(number) for number in options.memory[:3]), options.memory[3])
        return []
    sizes = (100, 2000, 64) if options.small else (2000, 18_015, 64)
    times = speed(*sizes, rounds=2 if options.small else 9)
    sizes = (50, 5000, 64) if options.small else (5000, 117_218, 64)
    peaks = [memory(*sizes, ties) for ties in (TIES[:1] if options.small else TIES)]
    command = "python benchmarks/retrieval.py"
    sections = {"Retrieval: speed at 2000 x 18,015 x 64 bits": times, "Retrieval: memory": peaks}
    if not options.small:
        sections["Retrieval: first call of a process"] = first_calls()
    for title, rows in sections.items():
        if options.small:
            print_table(f"{title} (small)", rows)
        else:
            write_section(title, command, rows)
    return times + peaks


if __name__ == "__main__":
    main()
