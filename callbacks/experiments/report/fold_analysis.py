"""What tells folds apart: label frequencies, rare classes, and the classes that make a fold's score."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from callbacks.experiments.report.pooled import Pooled

EXACT = 7  # folds up to which all orders are gone through for a p-value: 5040


@dataclass(frozen=True)
class FoldAnalysis:
    """Numbers about K folds and C classes.

    Args:
        folds: K numbers of folds.
        class_names: C names.
        sizes: (K,) items.
        counts: (K, C) positives.
        deviation: (K, C) relative deviation of a class's frequency in the fold from that over all folds; NaN for a
            class without positives.
        ap: (K, C) average precision; NaN where a fold has no positive of the class.
        scores: (K,) mean average precision over classes.
        contributions: (K, C) share of a class in ``scores - scores.mean()``; the shares of a fold add up to it when
            every fold has every class.
    """

    folds: list[int]
    class_names: list[str]
    sizes: np.ndarray
    counts: np.ndarray
    deviation: np.ndarray
    ap: np.ndarray
    scores: np.ndarray
    contributions: np.ndarray

    @property
    def rarest(self) -> np.ndarray:
        """Classes with the fewest positives first, those without any left out."""
        totals = self.counts.sum(axis=0)
        order = np.argsort(totals, kind="stable")
        return order[totals[order] > 0]

    @property
    def rare_quarter(self) -> np.ndarray:
        """The quarter of the classes with the fewest positives, at least one."""
        return self.rarest[: max(1, len(self.rarest) // 4)]


def analyse(pooled: Pooled) -> FoldAnalysis:
    """Compare the folds of pooled predictions."""
    folds = pooled.folds
    rows = [pooled.fold == fold for fold in folds]
    sizes = np.array([row.sum() for row in rows])
    counts = np.array([pooled.labels[row].sum(axis=0) for row in rows])  # (K, C)
    ap = fold_precisions(pooled)
    return FoldAnalysis(
        folds=folds,
        class_names=pooled.class_names,
        sizes=sizes,
        counts=counts,
        deviation=relative_deviation(counts, sizes),
        ap=ap,
        scores=np.nanmean(ap, axis=1),
        contributions=contributions(ap),
    )


def fold_precisions(pooled: Pooled) -> np.ndarray:
    """Average precision of every class in every fold, from the scores of that fold's model alone.

    Returns:
        (K, C) float64; NaN where a fold has no positive of the class.
    """
    import torch

    from lightning_modules.metrics.multilabel_curves import average_precision

    found = []
    for fold in pooled.folds:
        labels = pooled.labels[pooled.fold == fold]
        pair = torch.from_numpy(pooled.probabilities[pooled.fold == fold]), torch.from_numpy(labels)
        ap = np.asarray(average_precision(*pair), dtype=np.float64)
        found.append(np.where(labels.any(axis=0), ap, np.nan))
    return np.stack(found)


def relative_deviation(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """How far the frequency of a class in a fold is from that over all folds, relative to the latter.

    Args:
        counts: (K, C) positives.
        sizes: (K,) items.

    Returns:
        (K, C); NaN for a class without positives.

    >>> relative_deviation(np.array([[2, 0], [6, 0]]), np.array([10, 10]))
    array([[-0.5,  nan],
           [ 0.5,  nan]])
    """
    overall = counts.sum(axis=0) / sizes.sum()
    frequency = counts / sizes[:, None]
    return np.divide(frequency, overall, out=np.full(frequency.shape, np.nan), where=overall > 0) - 1


def contributions(ap: np.ndarray) -> np.ndarray:
    """What each class adds to the difference of a fold's score from the mean over folds.

    The score of a fold is the mean AP over classes, so the difference is the mean over classes of a class's own
    difference from its mean over folds. A class that a fold lacks adds 0 there.

    Args:
        ap: (K, C), NaN where a fold lacks the class.

    >>> contributions(np.array([[0.5, 0.2], [0.7, 0.2]])).round(3)
    array([[-0.05,  0.  ],
           [ 0.05,  0.  ]])
    """
    known = ~np.isnan(ap).all(axis=0)
    difference = np.zeros(ap.shape)
    difference[:, known] = np.nan_to_num(ap[:, known] - np.nanmean(ap[:, known], axis=0))
    return difference / max(1, int(known.sum()))


class Correlation(NamedTuple):
    """A rank correlation.

    Args:
        rho: Spearman's.
        p: Two-sided p-value; NaN when a side does not vary.
        n: Pairs.
    """

    rho: float
    p: float
    n: int


def spearman(first: np.ndarray, second: np.ndarray) -> Correlation:
    """Spearman's rank correlation; with few pairs the p-value is exact, over all orders of the second.

    Args:
        first: (n,).
        second: (n,).

    >>> spearman(np.array([1, 2, 3, 4, 5]), np.array([2, 4, 6, 8, 9]))
    Correlation(rho=1.0, p=0.016666666666666666, n=5)
    """
    from scipy.stats import rankdata, spearmanr

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Correlation(float("nan"), float("nan"), len(first))
    ranks = [rankdata(values) - (len(first) + 1) / 2 for values in (first, second)]
    scale = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    rho = float(ranks[0] @ ranks[1]) / scale
    if len(first) > EXACT:
        return Correlation(rho, float(spearmanr(first, second).pvalue), len(first))
    orders = np.array(list(itertools.permutations(ranks[1])))  # (n!, n)
    return Correlation(rho, float((np.abs(orders @ ranks[0]) / scale >= abs(rho) - 1e-9).mean()), len(first))
