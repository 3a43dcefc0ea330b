"""Confidence intervals of a mean: over many items by bootstrap, over a few runs by Student's t."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def bootstrap_interval(
    values: Tensor, confidence: float = 0.95, samples: int = 1000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Percentile bootstrap interval of the mean, items being drawn with replacement.

    Args:
        values: (N,) one value an item; NaN = the item does not count.
        confidence: Coverage, between 0 and 1.
        samples: Number of redrawn means.
        seed: Seed of the draws.

    Returns:
        Lower and upper end, float64 scalars on the CPU; NaN for one value.

    Raises:
        ValueError: No value counts, or ``confidence`` is not between 0 and 1.

    Reference:
        Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979.

    >>> low, high = bootstrap_interval(torch.arange(100) / 99)
    >>> bool(low < 0.5 < high)
    True
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95 does.")
    counted = values.detach().double().cpu()
    array = counted[~counted.isnan()].numpy()
    if len(array) == 0:
        raise ValueError("No value counts, so their mean has no interval.")
    if len(array) == 1:
        return torch.tensor(torch.nan, dtype=torch.float64), torch.tensor(torch.nan, dtype=torch.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, 2**20 // len(array))  # a few million draws at a time keep memory small
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        means[start:stop] = array[rng.integers(0, len(array), (stop - start, len(array)), dtype=np.int32)].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float, float]:
    """Mean of a few values, as one a fold or one a seed, with Student's t interval.

    The interval takes the values for independent draws. Folds share most of their training rows, so that theirs is
    narrower than that of fresh data would be.

    Args:
        values: The values; at least one.
        confidence: Coverage, between 0 and 1.

    Returns:
        Mean, standard deviation (divided by n - 1), lower and upper end; the last three are NaN for one value.

    Raises:
        ValueError: No value, or ``confidence`` is not between 0 and 1.

    Reference:
        Student, "The probable error of a mean", 1908.

    >>> [round(number, 3) for number in t_interval([0.70, 0.72, 0.74])]
    [0.72, 0.02, 0.67, 0.77]
    """
    from scipy.special import stdtrit

    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95 does.")
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("There is no value, so there is no mean: no run has finished.")
    mean = float(array.mean())
    if array.size == 1:
        return mean, float("nan"), float("nan"), float("nan")
    deviation = float(array.std(ddof=1))
    half = float(stdtrit(array.size - 1, (1 + confidence) / 2)) * deviation / array.size**0.5
    return mean, deviation, mean - half, mean + half
