"""Retrieval measures over Hamming rankings, as plain functions.

All take the same four matrices: ``query_codes`` (Q, bits), ``database_codes`` (N, bits), ``query_labels`` (Q, C) and
``database_labels`` (N, C). A database item is relevant when it shares a label with the query.
"""

from __future__ import annotations

from torch import Tensor

from lightning_modules.metrics.ap_from_histogram import (
    PrecisionRecallCurve,
    expected_precision_sums,
    precision_at,
    precision_recall_curve,
    precision_within,
    recall_at,
)
from lightning_modules.metrics.conventions import (
    Divisor,
    Empty,
    Ties,
    check_convention,
    check_top_k,
    divide,
    mean_of_counted,
    require_relevant,
)
from lightning_modules.metrics.hamming import PackedPairs, pack_pairs
from lightning_modules.metrics.hamming_backends import distance_histograms, stable_precision_sums


def precision_sums(pairs: PackedPairs, top_k: int | None, ties: Ties) -> tuple[Tensor, Tensor, Tensor]:
    """What every convention of average precision starts from.

    Args:
        pairs: Packed codes and labels.
        top_k: Ranks that count; None = all.
        ties: Order of tied items.

    Returns:
        Three (Q,): the sum of the precisions at relevant ranks, the relevant items in the top k (in the database
        when ``ties="expected"``, where no divisor needs the former), the relevant items in the database.

    Raises:
        ValueError: No query has a relevant item.
    """
    if ties == "expected":
        histograms = distance_histograms(pairs)
        relevant = histograms[:, 1].sum(dim=1)
        sums, found = expected_precision_sums(histograms, top_k), relevant
    else:
        sums, found, relevant = stable_precision_sums(pairs, top_k).unbind(dim=1)
    require_relevant(relevant)
    return sums, found, relevant


def hamming_average_precision(
    query_codes: Tensor,
    database_codes: Tensor,
    query_labels: Tensor,
    database_labels: Tensor,
    top_k: int | None = None,
    ties: Ties = "expected",
    divisor: Divisor = "relevant_in_top_k",
    empty: Empty = "zero",
) -> Tensor:
    """Average precision of each query when the database is ranked by Hamming distance.

    Args:
        query_codes: (Q, bits) numbers or booleans; bit = ``value > 0``.
        database_codes: (N, bits).
        query_labels: (Q, C) of 0 and 1.
        database_labels: (N, C) of 0 and 1.
        top_k: Ranks that count; None = all.
        ties: ``expected``: the exact mean over all orders of items at one distance, which no order of the database
            changes; ``stable``: database order, as published evaluations do.
        divisor: Of the sum of precisions: ``relevant_in_top_k`` (relevant items found, UCMFH's and DeepHash's),
            ``min_k_relevant`` (the best reachable) or ``relevant`` (all relevant items). The same without ``top_k``.
        empty: A query whose divisor is 0 counts 0 (``zero``) or not at all (``skip``: NaN in its place).

    Returns:
        (Q,) float64.

    Raises:
        ValueError: Malformed or mismatched matrices, no relevant item for any query, or ``ties="expected"`` with
            ``top_k`` and ``divisor="relevant_in_top_k"``, which has no closed form.

    Reference:
        He et al., "Hashing as Tie-Aware Learning to Rank", CVPR 2018.

    >>> import torch
    >>> codes, labels = torch.tensor([[-1, -1], [-1, -1], [1, 1]]), torch.tensor([[1], [0], [1]])
    >>> hamming_average_precision(codes[:1], codes, labels[:1], labels)  # (1 + 1/2)/2 in the tie, then 2/3
    tensor([0.7083], dtype=torch.float64)
    >>> hamming_average_precision(codes[:1], codes, labels[:1], labels, ties="stable")  # 1 and 2/3
    tensor([0.8333], dtype=torch.float64)
    """
    check_convention(top_k, ties, divisor, empty)
    pairs = pack_pairs(query_codes, database_codes, query_labels, database_labels)
    sums, found, relevant = precision_sums(pairs, top_k, ties)
    return divide(sums, found, relevant, top_k, divisor, empty)


def hamming_mean_average_precision(
    query_codes: Tensor,
    database_codes: Tensor,
    query_labels: Tensor,
    database_labels: Tensor,
    top_k: int | None = None,
    ties: Ties = "expected",
    divisor: Divisor = "relevant_in_top_k",
    empty: Empty = "zero",
) -> Tensor:
    """Mean over queries of :func:`hamming_average_precision`, whose arguments these are.

    Args:
        query_codes: (Q, bits) numbers or booleans; bit = ``value > 0``.
        database_codes: (N, bits).
        query_labels: (Q, C) of 0 and 1.
        database_labels: (N, C) of 0 and 1.
        top_k: Ranks that count; None = all.
        ties: ``expected`` or ``stable``.
        divisor: ``relevant_in_top_k``, ``min_k_relevant`` or ``relevant``.
        empty: ``zero`` or ``skip``.

    Returns:
        float64 scalar.

    Raises:
        ValueError: As :func:`hamming_average_precision`, or every query is skipped.

    >>> import torch
    >>> codes, labels = torch.tensor([[-1, -1], [-1, 1], [1, 1]]), torch.tensor([[1], [0], [1]])
    >>> hamming_mean_average_precision(codes[:1], codes, labels[:1], labels)
    tensor(0.8333, dtype=torch.float64)
    """
    values = hamming_average_precision(
        query_codes, database_codes, query_labels, database_labels, top_k, ties, divisor, empty
    )
    return mean_of_counted(values)


def hamming_precision_at_k(
    query_codes: Tensor, database_codes: Tensor, query_labels: Tensor, database_labels: Tensor, k: int
) -> Tensor:
    """Expected share of relevant items among the first k, averaged over queries; ties in random order.

    Args:
        query_codes: (Q, bits) numbers or booleans; bit = ``value > 0``.
        database_codes: (N, bits).
        query_labels: (Q, C) of 0 and 1.
        database_labels: (N, C) of 0 and 1.
        k: Ranks that count, cut to the size of the database.

    Returns:
        float64 scalar; a query without relevant items counts 0.

    Raises:
        ValueError: Malformed or mismatched matrices, ``k`` below 1, or no relevant item for any query.
    """
    check_top_k(k, "k")
    return precision_at(_histograms(query_codes, database_codes, query_labels, database_labels), k).mean()


def hamming_recall_at_k(
    query_codes: Tensor, database_codes: Tensor, query_labels: Tensor, database_labels: Tensor, k: int
) -> Tensor:
    """R@k: expected share of the relevant items that are among the first k; ties in random order.

    With one relevant item a query (caption retrieval) this is the usual hit rate.

    Args:
        query_codes: (Q, bits) numbers or booleans; bit = ``value > 0``.
        database_codes: (N, bits).
        query_labels: (Q, C) of 0 and 1.
        database_labels: (N, C) of 0 and 1.
        k: Ranks that count.

    Returns:
        float64 scalar, the mean over the queries that have relevant items.

    Raises:
        ValueError: Malformed or mismatched matrices, ``k`` below 1, or no relevant item for any query.
    """
    check_top_k(k, "k")
    return recall_at(_histograms(query_codes, database_codes, query_labels, database_labels), k).nanmean()


def hamming_precision_within_radius(
    query_codes: Tensor, database_codes: Tensor, query_labels: Tensor, database_labels: Tensor, radius: int = 2
) -> Tensor:
    """Share of relevant items within a Hamming radius, averaged over queries; an empty ball counts 0.

    Args:
        query_codes: (Q, bits) numbers or booleans; bit = ``value > 0``.
        database_codes: (N, bits).
        query_labels: (Q, C) of 0 and 1.
        database_labels: (N, C) of 0 and 1.
        radius: Largest distance that counts.

    Returns:
        float64 scalar.

    Raises:
        ValueError: Malformed or mismatched matrices, a negative radius, or no relevant item for any query.
    """
    if radius < 0:
        raise ValueError(f"radius is {radius}; a Hamming distance is at least 0.")
    return precision_within(_histograms(query_codes, database_codes, query_labels, database_labels), radius).mean()


def hamming_precision_recall_curve(
    query_codes: Tensor, database_codes: Tensor, query_labels: Tensor, database_labels: Tensor
) -> PrecisionRecallCurve:
    """Precision and recall of a lookup within each Hamming radius, averaged over queries.

    Args:
        query_codes: (Q, bits) numbers or booleans; bit = ``value > 0``.
        database_codes: (N, bits).
        query_labels: (Q, C) of 0 and 1.
        database_labels: (N, C) of 0 and 1.

    Returns:
        ``radius``, ``precision``, ``recall`` and ``answered``, each (bits + 1,).

    Raises:
        ValueError: Malformed or mismatched matrices, or no relevant item for any query.
    """
    return precision_recall_curve(_histograms(query_codes, database_codes, query_labels, database_labels))


def _histograms(query_codes: Tensor, database_codes: Tensor, query_labels: Tensor, database_labels: Tensor) -> Tensor:
    histograms = distance_histograms(pack_pairs(query_codes, database_codes, query_labels, database_labels))
    require_relevant(histograms[:, 1].sum(dim=1))
    return histograms
