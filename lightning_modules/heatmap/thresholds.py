"""Rules that turn a similarity map into a threshold; a pixel is inside when its value reaches it.

Half of the rules cannot tell maps apart that differ by a positive factor and a constant: ``quantile``, ``top_k``,
``relative``, ``otsu`` and ``mean_sd`` give the same mask for S and a * S + b. ``top_k`` is ``quantile`` by another
name, and the mask of -S at the quantile p is the complement of that of S at 100 - p. Only ``fixed`` looks at the
values themselves.

A map whose pixels are all equal shows nothing: under every rule its threshold is infinite, so that no pixel is inside.
The thresholds are float64 on the CPU, where the components are labelled: rounded to float32, a value between two
pixels would often be one of them, and the mask another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.metrics.multilabel_curves import positive_groups

BINS = 256
# A constant map that was interpolated may differ in its last bits: rounded, the four weights of a pixel need not add up
# to 1. No real map is so flat.
ROUNDING_STEPS = 8

Row = NDArray[np.floating]


def quantile(maps: Tensor, percent: float) -> Tensor:
    """The value with ``percent`` of the pixels below it, between two pixels as in ``numpy.percentile`` (linear).

    Args:
        maps: (..., H, W).
        percent: 0 to 100; 75 lets a quarter of the pixels in.

    Returns:
        (...) float64; infinite for a constant map.

    Raises:
        ValueError: ``percent`` outside 0 to 100, no pixel, or a value that is not finite.

    >>> quantile(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 75)
    tensor(3.2500, dtype=torch.float64)
    """
    _check_percent(percent)

    def threshold(row: Row) -> float:
        position = percent * (len(row) - 1) / 100
        below = math.floor(position)
        ordered = np.partition(row, below)
        low = float(ordered[below])
        high = float(ordered[below + 1 :].min()) if below + 1 < len(row) else low
        return low + (high - low) * (position - below)

    return _per_map(maps, threshold)


def relative(maps: Tensor, percent: float) -> Tensor:
    """The value ``percent`` of the way from the smallest pixel to the largest.

    Args:
        maps: (..., H, W).
        percent: 0 to 100. Not a quantile: on a random map 75 lets in about a hundredth of the pixels, not a quarter.

    Returns:
        (...) float64; infinite for a constant map.

    Raises:
        ValueError: ``percent`` outside 0 to 100, no pixel, or a value that is not finite.

    >>> relative(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), 75)
    tensor(4., dtype=torch.float64)
    """
    _check_percent(percent)
    return _per_map(maps, lambda row: float(row.min()) + (float(row.max()) - float(row.min())) * percent / 100)


def top_k(maps: Tensor, k: int) -> Tensor:
    """The k-th largest value: k pixels reach it, more where several tie with it.

    Args:
        maps: (..., H, W).
        k: 1 to H * W.

    Returns:
        (...) float64; infinite for a constant map.

    Raises:
        ValueError: ``k`` outside 1 to H * W or not a whole number, no pixel, or a value that is not finite.

    >>> top_k(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 2)
    tensor(3., dtype=torch.float64)
    """
    pixels = maps.shape[-2:].numel()
    if k != int(k) or not 1 <= k <= pixels:
        raise ValueError(f"top_k is {k}; it counts pixels: a whole number from 1 to {pixels}, the pixels of a map.")
    place = pixels - int(k)
    return _per_map(maps, lambda row: float(np.partition(row, place)[place]))


def otsu(maps: Tensor) -> Tensor:
    """The threshold that separates two classes of pixels best: the largest variance between their means.

    The range of each map is cut into 256 bins. Returned is the smallest value of the upper class; of several equal
    maxima the lowest counts.

    Args:
        maps: (..., H, W).

    Returns:
        (...) float64; infinite for a constant map.

    Raises:
        ValueError: No pixel, or a value that is not finite.

    Reference:
        Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9(1), 1979, eq. 18.

    >>> otsu(torch.tensor([[0.1, 0.2], [0.8, 0.9]]))
    tensor(0.8000, dtype=torch.float64)
    """
    return _per_map(maps, _otsu)


def mean_sd(maps: Tensor, k: float) -> Tensor:
    """The mean plus k standard deviations (of all pixels, divisor H * W).

    Args:
        maps: (..., H, W).
        k: Standard deviations; negative ones go below the mean.

    Returns:
        (...) float64; infinite for a constant map.

    Raises:
        ValueError: No pixel, or a value that is not finite.

    >>> mean_sd(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), 0.5)
    tensor(2.5000, dtype=torch.float64)
    """
    return _per_map(maps, lambda row: float(row.mean(dtype=np.float64)) + k * float(row.std(dtype=np.float64)))


def fixed(maps: Tensor, per_class: Tensor) -> Tensor:
    """One threshold a class for all images, fitted elsewhere (:func:`fit_class_thresholds`).

    Args:
        maps: (..., K, H, W).
        per_class: (K,); infinite = the class is never detected.

    Returns:
        (..., K) float64; infinite for a constant map.

    Raises:
        ValueError: Not K thresholds, a NaN among them, no pixel, or a value that is not finite.

    >>> fixed(torch.arange(8.0).reshape(2, 2, 2), torch.tensor([0.5, 6.0]))
    tensor([0.5000, 6.0000], dtype=torch.float64)
    """
    if maps.ndim < 3 or per_class.shape != maps.shape[-3:-2] or per_class.isnan().any():
        raise ValueError(
            f"There are thresholds {tuple(per_class.shape)} for maps {tuple(maps.shape)}; maps (..., K, H, W) need one "
            "number a class, none of them NaN. Fit them with the classes that are detected."
        )
    return torch.maximum(per_class.detach().cpu().double(), _per_map(maps, lambda row: -math.inf))


_WITH_VALUE: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "quantile": quantile,
    "relative": relative,
    "top_k": top_k,
    "mean_sd": mean_sd,
}
RULES = (*_WITH_VALUE, "otsu", "fixed")


def map_thresholds(maps: Tensor, rule: str, value: float | None = None, per_class: Tensor | None = None) -> Tensor:
    """The threshold of each map by the rule of that name.

    Args:
        maps: (..., H, W); (..., K, H, W) for ``fixed``.
        rule: One of ``RULES``.
        value: Percent for ``quantile`` and ``relative``, pixels for ``top_k``, standard deviations for ``mean_sd``;
            not looked at by ``otsu`` and ``fixed``.
        per_class: (K,) thresholds, for ``fixed`` only.

    Returns:
        (...) float64; infinite for a constant map.

    Raises:
        ValueError: Unknown rule, its value or thresholds are missing, or what the rule itself refuses.

    >>> map_thresholds(torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 5.0], [5.0, 5.0]]]), "top_k", 1)
    tensor([4., inf], dtype=torch.float64)
    """
    if rule not in RULES:
        raise ValueError(f"The threshold rule is {rule!r}; choose one of {', '.join(RULES)}.")
    if rule == "otsu":
        return otsu(maps)
    if rule == "fixed":
        if per_class is None:
            raise ValueError("The rule fixed needs a threshold a class: fit them on the training split first.")
        return fixed(maps, per_class)
    if value is None:
        raise ValueError(f"The rule {rule} needs a value: percent, pixels or standard deviations.")
    return _WITH_VALUE[rule](maps, value)


def fit_class_thresholds(scores: Tensor, inside: Tensor) -> Tensor:
    """The raw similarity of each class that best tells grid cells inside its boxes from those outside, by F1.

    The best threshold always is the similarity of some cell inside: a lower one lets in cells outside only. Of equal
    maxima the highest is taken. Fit on training images, and detect in others.

    Args:
        scores: (N, K) raw similarities of the grid cells of all training images, one below another.
        inside: (N, K) bool, the cell lies in a box of the class: boxes cover at least half of it.

    Returns:
        (K,) float64; infinite for a class without a cell inside, which then is never detected.

    Raises:
        ValueError: Unequal shapes, no cell, ``inside`` is not bool, or a similarity is not finite.

    >>> fit_class_thresholds(torch.tensor([[0.3], [0.2], [0.1]]), torch.tensor([[True], [True], [False]]))
    tensor([0.2000], dtype=torch.float64)
    """
    if scores.shape != inside.shape or scores.ndim != 2 or inside.dtype != torch.bool or len(scores) == 0:
        raise ValueError(
            f"scores are {tuple(scores.shape)} and inside {tuple(inside.shape)} {inside.dtype}; both must be (N, K) of "
            "at least one grid cell, and inside bool (coverage >= 0.5)."
        )
    if not scores.isfinite().all():
        raise ValueError("Some similarities are NaN or infinite: look at the embeddings of the training images.")
    thresholds = torch.full((scores.shape[1],), math.inf, dtype=torch.float64)
    columns = scores.detach().float() if scores.dtype != torch.float64 else scores.detach()
    for column in range(len(thresholds)):
        cells, positive = columns[:, column].cpu().numpy(), inside[:, column].cpu().numpy()
        groups = positive_groups(cells, positive)
        if len(groups.scores):
            f1 = 2 * groups.positives_so_far / (groups.items_so_far + groups.positives_so_far[-1])
            thresholds[column] = float(groups.scores[f1.argmax()])
    return thresholds


def _check_percent(percent: float) -> None:
    if not 0 <= percent <= 100:
        raise ValueError(f"The threshold is {percent} percent; it must lie between 0 and 100 (75, not 0.75).")


def _per_map(maps: Tensor, threshold: Callable[[Row], float]) -> Tensor:
    """Threshold of each map (..., H, W) from its pixels (H * W,); infinite where all are equal."""
    if maps.ndim < 2 or maps.shape[-2:].numel() == 0:
        raise ValueError(f"The maps are {tuple(maps.shape)}; (..., H, W) with at least one pixel is needed.")
    maps = maps.detach().cpu()
    rows = (maps if maps.dtype == torch.float64 else maps.float()).flatten(-2)  # (..., H * W)
    values = [_checked(row, threshold) for row in rows.reshape(-1, rows.shape[-1]).numpy()]
    return torch.tensor(values, dtype=torch.float64).reshape(maps.shape[:-2])


def _checked(row: Row, threshold: Callable[[Row], float]) -> float:
    low, high = row.min(), row.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(
            "A similarity map holds NaN or infinite values: look at the embeddings of the image and class."
        )
    if high - low <= ROUNDING_STEPS * np.finfo(row.dtype).eps * max(abs(low), abs(high)):
        return math.inf
    return threshold(row)


def _otsu(row: Row) -> float:
    low, high = float(row.min()), float(row.max())
    bins = np.minimum((row.astype(np.float64) - low) / (high - low) * BINS, BINS - 1).astype(np.int64)
    counts = np.bincount(bins, minlength=BINS)
    pixels, sums = counts.cumsum()[:-1], (counts * np.arange(BINS)).cumsum()  # of the lower class, whole numbers
    apart = (pixels * sums[-1] - sums[:-1] * len(row)).astype(np.float64) ** 2
    between = apart / (pixels * (len(row) - pixels))  # no class is empty: the end bins hold a pixel each
    return float(row[bins > between.argmax()].min())
