"""Rankings of the classes within one item: coverage, ranking loss, label ranking average precision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PAIRS_AT_ONCE = 2**22  # compared (label, class) pairs that are held in memory


class ItemRanks(NamedTuple):
    """How well each item's classes are ordered; see ``item_ranks``."""

    coverage: Tensor  # (N,) classes one has to read, best first, to meet every label; 0 without labels
    loss: Tensor  # (N,) share of (label, other class) pairs in the wrong order, ties wrong; 0 without both kinds
    lrap: Tensor  # (N,) mean over the labels of the precision at their rank; 1 without labels


def item_ranks(probabilities: Tensor, labels: Tensor) -> ItemRanks:
    """Measures of the order of the classes within each item; a tie counts against the model, as in scikit-learn.

    For each label of an item, ``rank`` counts the classes that are as probable or more, ``found`` the labels among
    them; all three measures follow from the two counts. (torchmetrics' ranking loss orders tied classes by column, and
    its LRAP is a Python loop over the items.)

    Args:
        probabilities: (N, C) as ``check_pairs`` returns them.
        labels: (N, C) bool.

    Returns:
        Three (N,) float64 tensors.

    Reference:
        Tsoumakas, Katakis, Vlahavas, "Mining multi-label data", 2010; the definitions of scikit-learn.

    >>> ranks = item_ranks(torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([[False, True, False]]))
    >>> [value.item() for value in ranks]
    [3.0, 1.0, 0.3333333333333333]
    """
    n, classes = labels.shape
    coverage, wrong, precision = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
    rows, columns = labels.nonzero(as_tuple=True)
    step = max(1, PAIRS_AT_ONCE // classes)
    for row, column in zip(rows.split(step), columns.split(step), strict=True):
        better = probabilities[row] >= probabilities[row, column, None]  # (P, C)
        rank = better.sum(dim=1).double()
        found = (better & labels[row]).sum(dim=1).double()
        coverage.scatter_reduce_(0, row, rank, "amax")
        wrong.index_add_(0, row, rank - found)
        precision.index_add_(0, row, found / rank)
    present = labels.sum(dim=1).double()
    pairs = present * (classes - present)
    return ItemRanks(
        coverage,
        torch.where(pairs > 0, wrong / pairs.clamp(min=1), 0.0),
        torch.where(present > 0, precision / present.clamp(min=1), 1.0),
    )
