"""CorrCLIP's scope, merging and map correction against the loops over regions that a user would write.

python benchmarks/corrclip.py [--small]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from table import print_table, write_section
from torch import Tensor

from lightning_modules.corrclip.correction import correct_map
from lightning_modules.corrclip.correlation import interaction_matrix
from lightning_modules.corrclip.regions import merge_regions

EPS, CLASSES = 0.2, 171
Rows = list[dict[str, Any]]


def loop_scope(similarity: Tensor, labels: Tensor) -> Tensor:
    """One image (N, N), (N,): the union of an outer product for each region, then the part without masks."""
    ids = labels.unique()
    allowed = torch.zeros_like(similarity, dtype=torch.bool)
    for each in ids[1:]:
        inside = labels == each
        allowed |= torch.outer(inside, inside)
    bare = labels == ids[0]
    allowed |= (bare[:, None] | bare[None]) & (similarity > similarity.mean())
    return allowed


def loop_merge(features: Tensor, labels: Tensor) -> Tensor:
    """One image (N, C), (N,): a mean for each region, scikit-learn's DBSCAN, new labels region by region."""
    from sklearn.cluster import DBSCAN

    ids = labels.unique()
    means = []
    for each in ids[1:]:
        inside = (labels == each).float()
        means.append(F.normalize((features * inside[:, None]).sum(0) / inside.sum(), dim=-1))
    similarity = torch.stack(means) @ torch.stack(means).T
    distance = (similarity.max() - similarity).numpy()
    clusters = DBSCAN(eps=EPS, min_samples=1, metric="precomputed").fit_predict(distance)
    merged = torch.zeros_like(labels)
    for each, cluster in zip(ids[1:], clusters, strict=True):
        merged[labels == each] = int(cluster) + 1
    return merged


def loop_correct(prediction: Tensor, mask: Tensor) -> Tensor:
    """One picture (H, W) twice: the mode of each region."""
    corrected = prediction.clone()
    for each in mask.unique()[1:]:
        inside = mask == each
        corrected[inside] = prediction[inside].mode().values
    return corrected


def regions_of(rows: int, columns: int, count: int, seed: int) -> Tensor:
    """An id map (rows, columns) of the nearest of random sites, 0 among them."""
    generator = torch.Generator().manual_seed(seed)
    sites = torch.rand(count, 2, generator=generator) * torch.tensor([rows, columns])
    ys, xs = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    pixels = torch.stack([ys, xs], dim=-1).flatten(0, 1).float()
    return torch.cat([torch.cdist(part, sites).argmin(1) for part in pixels.split(65536)]).view(rows, columns)


def compared(
    step: str, case: str, loop: Callable[..., Tensor], ours: Callable[..., Tensor], inputs: list[Any], rounds: int
) -> dict[str, Any]:
    """A row: milliseconds of both, which take turns on each input, and the median of the turns' ratios.

    Args:
        step: Of the method.
        case: What the inputs are.
        loop: Takes the tensors of one image.
        ours: Takes them with a batch dimension.
        inputs: Tuples of tensors without a batch dimension.
        rounds: Passes over the inputs.
    """
    slow, fast = [], []
    for turn in range(rounds + 1):
        for each in inputs:
            batch = [tensor[None] for tensor in each]
            start = time.perf_counter()
            expected = loop(*each)
            middle = time.perf_counter()
            found = ours(*batch)
            end = time.perf_counter()
            assert torch.equal(found[0], expected), f"{step}: other results than the loop's"
            if turn:  # the first loads and allocates
                slow.append(middle - start)
                fast.append(end - middle)
    return {
        "step": step,
        "case": case,
        "loop, ms": 1e3 * median(slow),
        "suite, ms": 1e3 * median(fast),
        "x loop": round(median(a / b for a, b in zip(slow, fast, strict=True)), 1),
        "turns": len(slow),
    }


def rows_of(grid: int, width: int, counts: list[int], picture: tuple[int, int, int], rounds: int) -> Rows:
    """All rows.

    Args:
        grid: Rows and columns of the guide's patches.
        width: Channels of the guide.
        counts: Regions a window.
        picture: Rows, columns and regions of the map that is corrected.
        rounds: Passes.
    """
    rows = []
    generator = torch.Generator().manual_seed(0)
    for count in counts:
        labels = [regions_of(grid, grid, count, seed).flatten() for seed in range(2)]
        things = torch.randn(count // 2, width, generator=generator)  # of two regions or more each
        noise = 0.5 * torch.randn(2, grid * grid, width, generator=generator)
        features = [F.normalize(things[each % len(things)] + noise[i], dim=-1) for i, each in enumerate(labels)]
        case = f"{grid * grid} patches, {count} regions"
        scopes = [(f @ f.T, each) for f, each in zip(features, labels, strict=True)]
        rows.append(compared("scope", case, loop_scope, interaction_matrix, scopes, rounds))
        merges = list(zip(features, labels, strict=True))
        rows.append(compared("merging", case, loop_merge, merge_regions, merges, rounds))
    height, breadth, count = picture
    mask = regions_of(height, breadth, count, 5)
    prediction = torch.randint(0, CLASSES, (height, breadth), generator=generator)
    case = f"{height} x {breadth}, {count} regions, {CLASSES} classes"
    rows.append(compared("correction", case, loop_correct, correct_map, [(prediction, mask)], rounds))
    return rows


def main(arguments: list[str] | None = None) -> Rows:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of the table.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few patches and a small picture; prints only")
    if parser.parse_args(arguments).small:
        rows = rows_of(28, 64, [60], (240, 320, 60), rounds=4)
        print_table("CorrCLIP's loops (small)", rows)
    else:  # a window of 336 with a guide of patch 8, and a picture of Cityscapes
        rows = rows_of(42, 768, [10, 50, 100], (1024, 2048, 150), rounds=5)
        write_section("CorrCLIP: steps without loops (aim: 10 x each)", "python benchmarks/corrclip.py", rows)
    return rows


if __name__ == "__main__":
    main()
