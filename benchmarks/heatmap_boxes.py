"""Boxes of thresholded similarity maps against the loop over scipy that a user would write.

python benchmarks/heatmap_boxes.py [--small]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from table import print_table, write_section
from torch import Tensor

from lightning_modules.heatmap.boxes import component_boxes, upsample
from lightning_modules.heatmap.controls import random_maps
from lightning_modules.heatmap.thresholds import map_thresholds

CLASSES, GRID, PERCENT = 20, 28, 75
LOOP = "scipy loop"
Rows = list[dict[str, Any]]


def scipy_loop(maps: Tensor, thresholds: Tensor) -> np.ndarray:
    """x1, y1, x2, y2, maximum and mean of the components of one map after another, (n, 6) float64."""
    rows = []
    for image, threshold in zip(maps.numpy(), thresholds.numpy(), strict=True):
        labels, count = ndimage.label(image >= threshold, np.ones((3, 3)))
        index = np.arange(1, count + 1)
        maxima, means = ndimage.maximum(image, labels, index), ndimage.mean(image, labels, index)
        for (ys, xs), largest, mean in zip(ndimage.find_objects(labels), maxima, means, strict=True):
            rows.append((xs.start, ys.start, xs.stop, ys.stop, largest, mean))
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def ours(maps: Tensor, thresholds: Tensor) -> np.ndarray:
    """The same by component_boxes."""
    found = component_boxes(maps, thresholds)
    return torch.cat([found.boxes, found.maxima[:, None], found.means[:, None]], dim=1).numpy()


@contextmanager
def threads(number: int) -> Any:
    """Torch's number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compared(images: list[Tensor], calls: dict[str, tuple[Callable[..., Any], int]], rounds: int) -> Rows:
    """A row a call: seconds an image (median over images and rounds), and how many times as long the loop takes.

    The calls take turns on each image, so that a busy moment does not favour one of them; a ratio is the median of
    those of single turns. The CPU seconds of all threads together do not count the time that other processes take.

    Args:
        images: What a call gets.
        calls: Name -> call and its number of threads; the first is the loop.
        rounds: Passes over the images.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    components = 0
    for turn in range(rounds + 1):
        for image in images:
            found = []
            for name, (call, number) in calls.items():
                with threads(number):
                    start, start_cpu = time.perf_counter(), time.process_time()
                    found.append(call(image))
                    if turn:  # the first compiles and loads
                        wall[name].append(time.perf_counter() - start)
                        cpu[name].append(time.process_time() - start_cpu)
            for other in found[1:]:
                np.testing.assert_array_equal(other[:, :5], found[0][:, :5])
                np.testing.assert_allclose(other[:, 5], found[0][:, 5], rtol=1e-6)
            components += len(found[0])
    return [
        {
            "route": name,
            "seconds an image": median(wall[name]),
            "x scipy loop": _ratio(wall[LOOP], wall[name]),
            "CPU seconds": median(cpu[name]),
            "x scipy loop, CPU": _ratio(cpu[LOOP], cpu[name]),
            "components an image": round(components / (rounds + 1) / len(images)),
            "turns": len(wall[name]),
        }
        for name in calls
    ]


def _ratio(loop: list[float], taken: list[float]) -> float:
    return round(median(a / b for a, b in zip(loop, taken, strict=True)), 1)


def section(images: list[Tensor], rounds: int) -> Rows:
    """Rows of components alone: thresholds are at hand.

    Args:
        images: (K, H, W) each.
        rounds: Passes over the images.
    """
    limits = {id(image): map_thresholds(image, "quantile", PERCENT) for image in images}
    calls = {
        LOOP: (lambda image: scipy_loop(image, limits[id(image)]), 1),
        "component_boxes, 1 thread": (lambda image: ours(image, limits[id(image)]), 1),
        "component_boxes, 2 threads": (lambda image: ours(image, limits[id(image)]), 2),
    }
    return compared(images, calls, rounds)


def whole_way(grids: list[Tensor], size: int, rounds: int) -> Rows:
    """Rows of the way from the token grid to the boxes: upsampling, threshold, components.

    Args:
        grids: (K, h, w) each.
        size: Height and width of the picture.
        rounds: Passes over the images.
    """

    def user(grid: Tensor) -> np.ndarray:
        maps = upsample(grid[None], (size, size))[0]
        # float64, or the rounded threshold is a pixel and the mask another
        limits = np.stack([np.percentile(image.astype(np.float64), PERCENT) for image in maps.numpy()])
        return scipy_loop(maps, torch.from_numpy(limits))

    def suite(grid: Tensor) -> np.ndarray:
        maps = upsample(grid[None], (size, size))[0]
        return ours(maps, map_thresholds(maps, "quantile", PERCENT))

    calls = {LOOP: (user, 1), "the suite, 1 thread": (suite, 1), "the suite, 2 threads": (suite, 2)}
    return compared(grids, calls, rounds)


def main(arguments: list[str] | None = None) -> Rows:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of all tables.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one image of 160 x 160; prints only")
    options = parser.parse_args(arguments)
    size, count, rounds = (160, 1, 3) if options.small else (800, 5, 5)
    grids = [random_maps((CLASSES, GRID, GRID), seed=0, index=index) for index in range(count)]
    full = [upsample(grid[None], (size, size))[0] for grid in grids]
    noise = [random_maps((CLASSES, size, size), seed=1, index=index) for index in range(min(count, 2))]
    what = f"{CLASSES} maps an image, quantile {PERCENT}"
    sections = {
        f"Heatmap boxes: components of {size} x {size} maps from {GRID} x {GRID} (aim: 5 x), {what}": section(
            full, rounds
        ),
        f"Heatmap boxes: noise in every pixel of {size} x {size}, {what}": section(noise, 1),
        f"Heatmap boxes: components on the token grid of {GRID} x {GRID}, {what}": section(grids, rounds),
        f"Heatmap boxes: from the token grid to boxes in {size} x {size}, {what}": whole_way(grids, size, rounds),
    }
    for title, rows in sections.items():
        if options.small:
            print_table(f"{title} (small)", rows)
        else:
            write_section(title, "python benchmarks/heatmap_boxes.py", rows)
    return [{"section": title, **row} for title, rows in sections.items() for row in rows]


if __name__ == "__main__":
    main()
