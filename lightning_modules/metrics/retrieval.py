"""Retrieval measures over Hamming rankings, as metrics that are exact over any number of processes.

The plain functions of ``hamming_scores`` can be imported from here as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_modules.metrics.ap_from_histogram import (
    PrecisionRecallCurve,
    expected_precision_sums,
    precision_at,
    precision_recall_curve,
    precision_within,
    random_average_precision,
    recall_at,
)
from lightning_modules.metrics.conventions import (
    Divisor,
    Empty,
    Ties,
    check_convention,
    describe_convention,
    divide,
    mean_of_counted,
    require_relevant,
)
from lightning_modules.metrics.hamming_backends import distance_histograms, stable_precision_sums
from lightning_modules.metrics.hamming_scores import (
    hamming_average_precision,
    hamming_mean_average_precision,
    hamming_precision_at_k,
    hamming_precision_recall_curve,
    hamming_precision_within_radius,
    hamming_recall_at_k,
    precision_sums,
)
from lightning_modules.metrics.hamming_states import HammingMetric
from lightning_modules.metrics.intervals import bootstrap_interval

__all__ = [
    "HammingMeanAveragePrecision",
    "HammingRetrieval",
    "PrecisionRecallCurve",
    "bootstrap_interval",
    "hamming_average_precision",
    "hamming_mean_average_precision",
    "hamming_precision_at_k",
    "hamming_precision_recall_curve",
    "hamming_precision_within_radius",
    "hamming_recall_at_k",
    "random_average_precision",
]


class HammingMeanAveragePrecision(HammingMetric):
    """Mean average precision of a Hamming ranking.

    ``update(codes, labels, index, role)`` takes queries and database in any order; ``compute()`` returns a float64
    scalar and sets ``random_floor``, the exact value of a random ranking under the same convention.

    Args:
        bits: Code length.
        top_k: Ranks that count; None = all.
        ties: ``expected`` (exact mean over all orders of tied items) or ``stable`` (database order: a database that is
            sorted by label, say, gets another value than a shuffled one).
        divisor: ``relevant_in_top_k``, ``min_k_relevant`` or ``relevant``.
        empty: A query whose divisor is 0 counts 0 (``zero``) or not at all (``skip``).
        kwargs: Of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``bits`` or ``top_k`` below 1, an unknown convention, or ``ties="expected"`` with ``top_k`` and
            ``divisor="relevant_in_top_k"``.

    >>> metric = HammingMeanAveragePrecision(bits=2)
    >>> codes, labels = torch.tensor([[-1, -1], [-1, 1], [1, 1]]), torch.tensor([[1], [0], [1]])
    >>> metric.update(codes, labels, torch.arange(3), role="database")
    >>> metric.update(codes[:1], labels[:1], torch.arange(1), role="query")
    >>> metric.compute()
    tensor(0.8333, dtype=torch.float64)
    """

    random_floor: Tensor | None = None

    def __init__(
        self,
        bits: int,
        top_k: int | None = None,
        ties: Ties = "expected",
        divisor: Divisor = "relevant_in_top_k",
        empty: Empty = "zero",
        **kwargs: Any,
    ) -> None:
        super().__init__(bits, **kwargs)
        check_convention(top_k, ties, divisor, empty)
        self.top_k, self.ties, self.divisor, self.empty = top_k, ties, divisor, empty

    @property
    def convention(self) -> str:
        """What the value means, in one line."""
        return describe_convention(self.top_k, self.ties, self.divisor, self.empty)

    def compute(self) -> Tensor:
        """Mean average precision.

        Returns:
            float64 scalar.

        Raises:
            ValueError: A role has no item, or no query has a relevant item.
        """
        pairs = self.pairs()
        sums, found, relevant = precision_sums(pairs, self.top_k, self.ties)
        floor = random_average_precision(relevant, pairs.n_database, self.top_k, self.divisor, self.empty)
        self.random_floor = floor.nanmean()
        return mean_of_counted(divide(sums, found, relevant, self.top_k, self.divisor, self.empty))


class HammingRetrieval(HammingMetric):
    """All figures of a Hamming ranking at once, with their floors and the intervals of the two mAPs.

    ``compute()`` returns a dict of tensors. Scalars: ``map`` (all ranks, ties expected) with ``map_low`` and
    ``map_high`` (95 % bootstrap over queries), ``map_at_<k>`` (ties stable, divided by the relevant items found, as
    UCMFH does) with its interval, ``precision_at_<k>``, ``recall_at_<k>``, ``precision_radius_2``; the floor of each of
    the five as ``random_<name>``, and ``random_precision``, the share of relevant items; the counts ``n_query``,
    ``n_database``, ``n_empty`` (queries without a relevant item). Curves of (bits + 1,): ``curve_radius``,
    ``curve_precision``, ``curve_recall``, ``curve_answered``. ``map_at_<k>`` alone depends on the order of the index.
    ``random_precision_radius_2`` alone depends on the codes: an empty ball counts 0 in it as in its figure.

    Args:
        bits: Code length.
        top_k: The k of the figures ``_at_<k>``.
        empty: A query whose divisor is 0 counts 0 (``zero``) or not at all (``skip``): in ``map`` one without relevant
            items, in ``map_at_<k>`` also one that finds none of them among the first k.
        kwargs: Of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``bits`` or ``top_k`` below 1, or an unknown ``empty``.

    >>> metric = HammingRetrieval(bits=2, top_k=2)
    >>> codes, labels = torch.tensor([[-1, -1], [-1, 1], [1, 1]]), torch.tensor([[1], [0], [1]])
    >>> metric.update(codes, labels, torch.arange(3), role="database")
    >>> metric.update(codes[:1], labels[:1], torch.arange(1), role="query")
    >>> {name: round(metric.compute()[name].item(), 4) for name in ("map", "map_at_2", "random_map")}
    {'map': 0.8333, 'map_at_2': 1.0, 'random_map': 0.8056}
    """

    def __init__(self, bits: int, top_k: int = 50, empty: Empty = "zero", **kwargs: Any) -> None:
        super().__init__(bits, **kwargs)
        check_convention(top_k, "stable", "relevant_in_top_k", empty)
        self.top_k, self.empty = top_k, empty

    @property
    def convention(self) -> str:
        """What the values mean, in one line."""
        whole = describe_convention(None, "expected", "relevant_in_top_k", self.empty)
        short = describe_convention(self.top_k, "stable", "relevant_in_top_k", self.empty)
        return (
            f"relevant = shares a label; map: {whole}; map_at_{self.top_k}: {short}; precision_at_{self.top_k}, "
            f"recall_at_{self.top_k}: ties=expected; precision_radius_2: an empty ball counts 0; "
            "map_low, map_high: 95 % bootstrap over queries"
        )

    def compute(self) -> dict[str, Tensor]:
        """All figures; the class lists them.

        Returns:
            Name -> float64 scalar, int64 count or curve.

        Raises:
            ValueError: A role has no item, no query has a relevant item, or ``skip`` leaves no query to average.
        """
        pairs, k = self.pairs(), self.top_k
        histograms = distance_histograms(pairs)
        relevant = histograms[:, 1].sum(dim=1)
        require_relevant(relevant)
        whole = divide(expected_precision_sums(histograms), relevant, relevant, None, "relevant", self.empty)
        sums, found, _ = stable_precision_sums(pairs, k).unbind(dim=1)
        short = divide(sums, found, relevant, k, "relevant_in_top_k", self.empty)
        mean, short_mean = mean_of_counted(whole), mean_of_counted(short)
        low, high = bootstrap_interval(whole)
        short_low, short_high = bootstrap_interval(short)
        curve = precision_recall_curve(histograms)
        n = pairs.n_database
        share, answered = relevant.double() / n, histograms[..., :3].sum(dim=(1, 2)) > 0  # a ball of radius 2
        random_short = random_average_precision(relevant, n, k, "relevant_in_top_k", self.empty)
        return {
            "map": mean,
            "map_low": low,
            "map_high": high,
            f"map_at_{k}": short_mean,
            f"map_at_{k}_low": short_low,
            f"map_at_{k}_high": short_high,
            f"precision_at_{k}": precision_at(histograms, k).mean(),
            f"recall_at_{k}": recall_at(histograms, k).nanmean(),
            "precision_radius_2": precision_within(histograms, 2).mean(),
            "random_map": random_average_precision(relevant, n, empty=self.empty).nanmean(),
            f"random_map_at_{k}": random_short.nanmean(),
            "random_precision": share.mean(),
            f"random_precision_at_{k}": share.mean(),
            f"random_recall_at_{k}": torch.tensor(min(k, n) / n, dtype=torch.float64),
            "random_precision_radius_2": (share * answered).mean(),
            "n_query": torch.tensor(pairs.n_query),
            "n_database": torch.tensor(n),
            "n_empty": (relevant == 0).sum(),
            **{f"curve_{name}": values for name, values in curve._asdict().items()},
        }
