"""Bootstrap intervals of multi-label average precision, items being drawn with replacement.

A redraw is a weight of each item: how often it was drawn. Average precision changes only at the probabilities of
positives, so each class needs two sums of weights a group: over the items between two such probabilities, and over the
positives. Both are products of a sparse 0/1 matrix with the weights of many redraws at a time.

A positive that is drawn twice stands above itself, so the average precision of a redraw is too high, with few positives
by more than the width of the interval. So the redraws of each class are shifted until their mean is the class's value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.metrics.multilabel_curves import average_precision, check_pairs, class_groups

DRAWS_AT_ONCE = 2**22  # drawn items that are held in memory

Floats = NDArray[np.floating]


class _Groups(NamedTuple):
    items: Any  # (G, N) sparse: the items between this group's probability and that of the group before
    positives: Any  # (G, N) sparse: the positives among them


def average_precision_intervals(
    probabilities: Tensor, labels: Tensor, confidence: float = 0.95, samples: int = 200, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Centred percentile bootstrap interval of each class's average precision.

    A redraw without a positive of a class does not count for that class. With few positives the interval is narrower
    than it should be, since no redraw holds a positive that the data lacks.

    Args:
        probabilities: (N, C) between 0 and 1.
        labels: (N, C) of 0 and 1.
        confidence: Coverage, between 0 and 1.
        samples: Number of redraws.
        seed: Seed of the draws.

    Returns:
        Lower and upper end, (C,) float64 each; NaN for a class without positives.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1, ``samples`` below 1, or malformed data (``check_pairs``).

    Reference:
        Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979.

    >>> scores, labels = torch.linspace(0, 1, 50)[:, None], (torch.arange(50) % 3 == 0)[:, None]
    >>> low, high = average_precision_intervals(scores, labels)
    >>> bool(low < average_precision(scores, labels) < high)
    True
    """
    ends = _ends(_redrawn([probabilities], labels, confidence, samples, seed)[0], confidence).clip(0, 1)
    return torch.from_numpy(ends[0]), torch.from_numpy(ends[1])


def macro_interval(
    probabilities: Tensor, labels: Tensor, confidence: float = 0.95, samples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Macro mean average precision with its centred percentile bootstrap interval.

    Args:
        probabilities: (N, C) between 0 and 1.
        labels: (N, C) of 0 and 1.
        confidence: Coverage, between 0 and 1.
        samples: Number of redraws; a class that one holds no positive of counts there with its value.
        seed: Seed of the draws.

    Returns:
        Value, lower and upper end; NaN when no class has a positive.

    Raises:
        ValueError: See ``average_precision_intervals``.
    """
    values = average_precision(probabilities, labels)
    redrawn = _redrawn([probabilities], labels, confidence, samples, seed)[0]
    low, high = _ends(_class_mean(redrawn, values), confidence).clip(0, 1)
    return values.nanmean().item(), float(low), float(high)


def paired_difference(
    a: Tensor, b: Tensor, labels: Tensor, samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Macro mean average precision of ``a`` minus that of ``b`` on the same items, with its bootstrap interval.

    Both models are scored on the same redraws, so what makes an item hard for both cancels. An interval that lies on
    one side of 0 speaks for a difference on such items; it says nothing about other training runs of the two models.

    Args:
        a: (N, C) probabilities of one model.
        b: (N, C) probabilities of the other.
        labels: (N, C) of 0 and 1.
        samples: Number of redraws.
        confidence: Coverage, between 0 and 1.
        seed: Seed of the draws.

    Returns:
        Difference, lower and upper end; NaN when no class has a positive.

    Raises:
        ValueError: See ``average_precision_intervals``.
    """
    values = [average_precision(model, labels) for model in (a, b)]
    redrawn = _redrawn([a, b], labels, confidence, samples, seed)
    first, second = (_class_mean(*pair) for pair in zip(redrawn, values, strict=True))
    low, high = _ends(first - second, confidence)
    return (values[0].nanmean() - values[1].nanmean()).item(), float(low), float(high)


def _redrawn(models: Sequence[Tensor], labels: Tensor, confidence: float, samples: int, seed: int) -> list[Floats]:
    """Average precision of each redraw and class, centred on the value of the class: (samples, C) for each model."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95 does.")
    if samples < 1:
        raise ValueError(f"samples is {samples}; an interval needs at least one redraw, better 200 or more.")
    pairs = [check_pairs(model, labels) for model in models]
    n, classes = pairs[0][1].shape
    grouped = [[_groups(*pair, column) for column in range(classes)] for pair in pairs]
    values = [np.full((samples, classes), np.nan) for _ in models]
    for start, weights in _draws(n, samples, seed):
        for model, found in zip(grouped, values, strict=True):
            for column, groups in enumerate(model):
                if groups is not None:
                    found[start : start + weights.shape[1], column] = _weighted(groups, weights)
    return [_centred(found, average_precision(*pair).numpy()) for found, pair in zip(values, pairs, strict=True)]


def _centred(redrawn: Floats, values: Floats) -> Floats:
    """Redraws (samples, C) shifted so that their mean is the value (C,) of each class."""
    counted = ~np.isnan(redrawn)
    number = counted.sum(axis=0)
    mean = np.where(counted, redrawn, 0).sum(axis=0) / np.maximum(number, 1)
    return redrawn + (values - mean)


def _draws(n: int, samples: int, seed: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Number of the first redraw and (N, S) weights, some redraws at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // n)
    for start in range(0, samples, step):
        size = min(step, samples - start)
        weights = np.empty((n, size), dtype=np.float32)  # exact: sums stay below 2**24 up to 16 million items
        for column in range(size):
            weights[:, column] = np.bincount(rng.integers(0, n, n, dtype=np.int32), minlength=n)
        yield start, weights


def _groups(probabilities: Tensor, labels: Tensor, column: int) -> _Groups | None:
    """Which items belong to which group of one class; None without positives."""
    from scipy.sparse import csr_matrix

    scores = class_groups(probabilities, labels, column).scores
    if len(scores) == 0:
        return None
    values, positive = probabilities[:, column].contiguous().numpy(), labels[:, column].contiguous().numpy()
    group = len(scores) - np.searchsorted(scores[::-1], values, "right")  # items below all positives get G

    def matrix(members: NDArray[np.bool_]) -> Any:
        rows = np.flatnonzero(members)
        ones = np.ones(len(rows), dtype=np.float32)
        return csr_matrix((ones, (group[rows], rows)), shape=(len(scores), len(values)))

    return _Groups(matrix(group < len(scores)), matrix(positive))


def _weighted(groups: _Groups, weights: NDArray[np.float32]) -> Floats:
    """Average precision of one class under each column of weights, NaN where no positive has weight."""
    gained = groups.positives @ weights  # (G, S)
    found = gained.cumsum(axis=0)
    ranked = (groups.items @ weights).cumsum(axis=0)
    precision = found / np.maximum(ranked, 1)
    total = found[-1].astype(np.float64)
    sums = np.einsum("gs,gs->s", gained, precision, dtype=np.float64)
    return np.where(total > 0, sums / np.maximum(total, 1), np.nan)


def _class_mean(redrawn: Floats, values: Tensor) -> Floats:
    """Mean over the classes with a value: (samples, C) -> (samples,); where a redraw has none of a class, its value."""
    scored = ~np.isnan(values.numpy())
    if not scored.any():
        return np.full(len(redrawn), np.nan)
    known = redrawn[:, scored]
    return np.where(np.isnan(known), values.numpy()[scored], known).mean(axis=1)


def _ends(values: Floats, confidence: float) -> Floats:
    """Quantiles over the first axis, NaN left out: (2, ...)."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    columns = values.reshape(len(values), -1)
    ends = np.full((2, columns.shape[1]), np.nan)
    for number, column in enumerate(columns.T):
        counted = column[~np.isnan(column)]
        if len(counted):
            ends[:, number] = np.quantile(counted, tails)
    return ends.reshape(2, *values.shape[1:])
