"""Average precision and its relatives from distance histograms: exact expectations over the order of ties.

Hamming distances of short codes tie massively, and the order inside a tie is an accident of the database. Here every
order is equally likely and the expected value is computed in closed form, without any sorting.

Reference: He, Cakir, Bargal, Sclaroff, "Hashing as Tie-Aware Learning to Rank", CVPR 2018 (arXiv:1705.08562).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.metrics.conventions import Divisor, Empty, divide


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall of the ball of each Hamming radius, averaged over queries.

    Args:
        radius: (bits + 1,) int64: 0 ... bits.
        precision: (bits + 1,) float64, over the queries whose ball holds an item; 0 where no ball does.
        recall: (bits + 1,) float64.
        answered: (bits + 1,) float64, share of queries whose ball holds an item.
    """

    radius: Tensor
    precision: Tensor
    recall: Tensor
    answered: Tensor


def expected_precision_sums(histograms: Tensor, top_k: int | None = None) -> Tensor:
    """Expected sum of the precisions at the relevant ranks, each order of tied items being equally likely.

    Args:
        histograms: (Q, 2, D) counts of irrelevant and relevant items at each distance, nearest first; the same
            number of items for each query.
        top_k: Ranks that count; None = all.

    Returns:
        (Q,) float64.

    Reference:
        He et al., arXiv:1705.08562, section 3. A relevant item at place t of a bucket of n items, r of them relevant,
        behind N0 items of which R0 are relevant, has precision (R0 + 1 + (t - 1)(r - 1)/(n - 1)) / (N0 + t) on
        average, and a place holds a relevant item with probability r/n.

    >>> expected_precision_sums(torch.tensor([[[1, 0], [1, 1]]]))  # (1 + 1/2)/2 in the tie, then 2/3
    tensor([1.4167], dtype=torch.float64)
    """
    n = int(histograms[0].sum())
    limit, harmonic = top_k or n, _harmonic_numbers(n, histograms.device)
    # some queries at a time: the temporaries stay in the cache, and too small for torch to start threads
    parts = histograms.split(max(1, 2**14 // histograms.shape[-1]))
    return torch.cat([_expected_precision_sums(part, limit, harmonic) for part in parts])


def _expected_precision_sums(histograms: Tensor, limit: int, harmonic: Tensor) -> Tensor:
    relevant = histograms[:, 1].double()  # (Q, D)
    size = histograms.sum(dim=1).double()  # (Q, D)
    items_before = size.cumsum(dim=1) - size
    relevant_before = relevant.cumsum(dim=1) - relevant
    counted = torch.minimum((limit - items_before).clamp(min=0), size)  # places of the bucket inside the top k
    first = items_before.long()
    inverse_ranks = harmonic[first + counted.long()] - harmonic[first]  # sum of 1/(N0 + t)
    ahead = torch.where(size > 1, (relevant - 1) / (size - 1).clamp(min=1), 0)
    share = relevant / size.clamp(min=1)
    bucket = (relevant_before + 1) * inverse_ranks + ahead * (counted - (items_before + 1) * inverse_ranks)
    return (share * bucket).sum(dim=1)


def random_average_precision(
    relevant: Tensor,
    n_database: int,
    top_k: int | None = None,
    divisor: Divisor = "relevant_in_top_k",
    empty: Empty = "zero",
) -> Tensor:
    """Exact expected average precision of a random ranking: the floor of every retrieval figure.

    Args:
        relevant: (Q,) number of relevant items of each query.
        n_database: Number of database items.
        top_k: Ranks that count; None = all.
        divisor: As in :func:`divide`; every one has a closed form here.
        empty: ``zero``, or ``skip``: NaN without relevant items, and the mean over the rankings that would not be
            skipped.

    Returns:
        (Q,) float64.

    >>> random_average_precision(torch.tensor([1, 2, 0]), n_database=2)
    tensor([0.7500, 1.0000, 0.0000], dtype=torch.float64)
    """
    relevant = relevant.double()
    one_bucket = torch.stack([n_database - relevant, relevant], dim=1)[..., None]  # (Q, 2, 1)
    sums = expected_precision_sums(one_bucket, top_k)
    if top_k is None or divisor != "relevant_in_top_k":
        return divide(sums, relevant, relevant, top_k, divisor, empty)
    # The divisor j is random: hypergeometric. Given j, the sum is j/k (H_k + (j-1)/(k-1) (k - H_k)), and j cancels.
    k = min(top_k, n_database)
    some_found = -torch.expm1(_log_none_found(relevant, n_database, k))
    harmonic = float(_harmonic_numbers(k, relevant.device)[k])
    more_found = k * relevant / n_database - some_found  # E[(j - 1) where j >= 1]
    value = (harmonic * some_found + (k - harmonic) / max(k - 1, 1) * more_found) / k
    return value if empty == "zero" else value / some_found  # 0 / 0 = NaN without relevant items


def precision_at(histograms: Tensor, k: int) -> Tensor:
    """Expected share of relevant items among the first k, ties in random order.

    Args:
        histograms: (Q, 2, D) counts of irrelevant and relevant items at each distance.
        k: Ranks that count, cut to the size of the database.

    Returns:
        (Q,) float64.

    >>> precision_at(torch.tensor([[[1, 0], [1, 1]]]), k=1)
    tensor([0.5000], dtype=torch.float64)
    """
    return _expected_found(histograms, k) / min(k, int(histograms[0].sum()))


def recall_at(histograms: Tensor, k: int) -> Tensor:
    """Expected share of the relevant items that are among the first k (R@k), ties in random order.

    Args:
        histograms: (Q, 2, D) counts of irrelevant and relevant items at each distance.
        k: Ranks that count.

    Returns:
        (Q,) float64; NaN for a query without relevant items.

    >>> recall_at(torch.tensor([[[1, 0], [1, 1]]]), k=2)
    tensor([0.5000], dtype=torch.float64)
    """
    return _expected_found(histograms, k) / histograms[:, 1].sum(dim=1)


def precision_within(histograms: Tensor, radius: int) -> Tensor:
    """Share of relevant items among those within a Hamming radius; 0 when there are none.

    Args:
        histograms: (Q, 2, bits + 1) counts of irrelevant and relevant items at each distance.
        radius: Largest distance that counts.

    Returns:
        (Q,) float64.

    >>> precision_within(torch.tensor([[[1, 0], [1, 1]]]), radius=1)
    tensor([0.6667], dtype=torch.float64)
    """
    inside = histograms[..., : radius + 1].sum(dim=-1).double()  # (Q, 2)
    return inside[:, 1] / inside.sum(dim=1).clamp(min=1)


def precision_recall_curve(histograms: Tensor) -> PrecisionRecallCurve:
    """Precision and recall of a lookup within each Hamming radius.

    Args:
        histograms: (Q, 2, bits + 1) counts of irrelevant and relevant items at each distance.

    Returns:
        The curve; recall averages over the queries with relevant items.

    >>> precision_recall_curve(torch.tensor([[[1, 0], [1, 1]]])).recall
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    inside = histograms.cumsum(dim=-1).double()
    relevant, size = inside[:, 1], inside.sum(dim=1)  # (Q, bits + 1)
    filled = (size > 0).double()
    precision = (relevant / size.clamp(min=1)).sum(dim=0) / filled.sum(dim=0).clamp(min=1)
    has_relevant = relevant[:, -1] > 0
    recall = (relevant[has_relevant] / relevant[has_relevant, -1:]).sum(dim=0) / has_relevant.sum().clamp(min=1)
    radius = torch.arange(histograms.shape[-1], device=histograms.device)
    return PrecisionRecallCurve(radius, precision, recall, filled.mean(dim=0))


def _expected_found(histograms: Tensor, k: int) -> Tensor:
    """Expected number of relevant items in the top k: the bucket at the border gives its share."""
    size = histograms.sum(dim=1).double()
    counted = torch.minimum((k - (size.cumsum(dim=1) - size)).clamp(min=0), size)
    return (histograms[:, 1] * counted / size.clamp(min=1)).sum(dim=1)


def _log_none_found(relevant: Tensor, n: int, k: int) -> Tensor:
    """Logarithm of the chance that none of (Q,) relevant items is among the first k of n in random order, (Q,)."""
    total = torch.zeros_like(relevant)  # a sum of small terms: a difference of lgamma of n would lose all digits
    before = torch.arange(k, dtype=relevant.dtype, device=relevant.device)
    for part in before.split(max(1, 2**20 // max(1, len(relevant)))):
        total += torch.log1p(-(relevant[:, None] / (n - part)).clamp(max=1)).sum(dim=1)
    return total


def _harmonic_numbers(n: int, device: torch.device) -> Tensor:
    """H_0 ... H_n, (n + 1,) float64."""
    numbers = torch.zeros(n + 1, dtype=torch.float64, device=device)
    torch.cumsum(1 / torch.arange(1, n + 1, dtype=torch.float64, device=device), dim=0, out=numbers[1:])
    return numbers
