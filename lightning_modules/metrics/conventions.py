"""The conventions that make one average precision differ from another, under the same name, in published work."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Ties = Literal["expected", "stable"]
Divisor = Literal["relevant_in_top_k", "min_k_relevant", "relevant"]
Empty = Literal["zero", "skip"]


def check_convention(top_k: int | None, ties: str, divisor: str, empty: str) -> None:
    """Refuse a convention that does not exist or has no exact value.

    Args:
        top_k: Ranks that count; None = all.
        ties: ``expected`` or ``stable``.
        divisor: ``relevant_in_top_k``, ``min_k_relevant`` or ``relevant``.
        empty: ``zero`` or ``skip``.

    Raises:
        ValueError: With the values that exist.
    """
    for name, value, known in (("ties", ties, Ties), ("divisor", divisor, Divisor), ("empty", empty, Empty)):
        if value not in get_args(known):
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, get_args(known)))}.")
    check_top_k(top_k)
    if top_k is not None and ties == "expected" and divisor == "relevant_in_top_k":
        raise ValueError(
            f"ties='expected' with top_k={top_k} has no closed form when divisor='relevant_in_top_k', because the "
            "divisor itself depends on the order of ties. Use divisor='min_k_relevant' or 'relevant' with "
            "ties='expected', or ties='stable' to reproduce published mAP@k, or top_k=None."
        )


def check_top_k(top_k: int | None, name: str = "top_k") -> None:
    """Refuse a number of ranks below 1.

    Args:
        top_k: Ranks that count; None = all.
        name: What to call it in an error.

    Raises:
        ValueError: Below 1.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"{name} is {top_k}; at least the first rank must count. Leave it out to count all ranks.")


def describe_convention(top_k: int | None, ties: str, divisor: str, empty: str) -> str:
    """One line that names a convention of mean average precision.

    Args:
        top_k: Ranks that count; None = all.
        ties: Order of tied items.
        divisor: What the sum of precisions is divided by.
        empty: What becomes of a query whose divisor is 0.

    Returns:
        The line.

    >>> describe_convention(50, "stable", "relevant_in_top_k", "zero")
    'mAP@50 (ties=stable, divisor=relevant_in_top_k, empty=zero)'
    """
    return f"mAP@{top_k or 'all'} (ties={ties}, divisor={divisor}, empty={empty})"


def require_relevant(relevant: Tensor) -> None:
    """Refuse data in which no query has anything to find.

    Args:
        relevant: (Q,) relevant items of each query.

    Raises:
        ValueError: All are 0.
    """
    if not relevant.any():
        raise ValueError(
            f"None of the {len(relevant)} queries shares a label with any database item, so retrieval figures are "
            "undefined. Check that the labels are not all 0 and that both splits use the same order of classes."
        )


def divide(sums: Tensor, found: Tensor, relevant: Tensor, top_k: int | None, divisor: Divisor, empty: Empty) -> Tensor:
    """Average precision from the sum of precisions, by a named convention.

    Args:
        sums: (Q,) sums of precisions.
        found: (Q,) relevant items in the top k.
        relevant: (Q,) relevant items in the database.
        top_k: Ranks that count; None = all.
        divisor: ``relevant_in_top_k``, ``min_k_relevant`` or ``relevant``.
        empty: A query whose divisor is 0 counts 0 (``zero``) or not at all (``skip``: NaN here).

    Returns:
        (Q,) float64.
    """
    if top_k is None or divisor == "relevant":
        below = relevant
    elif divisor == "min_k_relevant":
        below = relevant.clamp(max=top_k)
    else:
        below = found
    nothing = 0.0 if empty == "zero" else torch.nan
    return torch.where(below > 0, sums.double() / below.clamp(min=1), nothing)


def mean_of_counted(values: Tensor) -> Tensor:
    """Mean over the queries that count.

    Args:
        values: (Q,) values, NaN = the query does not count.

    Returns:
        Scalar.

    Raises:
        ValueError: No query counts.
    """
    if values.isnan().all():
        raise ValueError(
            "empty='skip' leaves no query to average: none has a relevant item among the ranks that count. "
            "Use empty='zero' or a larger top_k."
        )
    return values.nanmean()
