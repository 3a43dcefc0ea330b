"""Rankings of items by one class's probability: average precision and area under the ROC curve, ties as groups.

Both measures change only at probabilities that a positive item has, so a sort of the values and two searches for the
positives' values replace an argsort of all items. torchmetrics computes the same from float32 curves over all items;
it took several times as long, and its macro AUROC counts a class without positives as 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.metrics.hamming import check_labels

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class PositiveGroups(NamedTuple):
    """The groups of tied items that hold at least one positive, best first."""

    scores: Floats  # (G,)
    positives: Ints  # (G,) positives of the group
    tied: Ints  # (G,) items of the group
    positives_so_far: Ints  # (G,) positives of this and better groups
    items_so_far: Ints  # (G,) items of this and better groups, groups without positives included
    items: int  # all items


def check_pairs(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and labels in the form that the multi-label measures work on.

    Args:
        probabilities: (N, C) between 0 and 1; half precision becomes float32, in which no two values merge.
        labels: (N, C) of 0 and 1.

    Returns:
        (N, C) float32 or float64, and (N, C) bool, both on the CPU.

    Raises:
        ValueError: Unequal or unsuitable shapes, no item, a value outside [0, 1], NaN, or a label other than 0 and 1.
    """
    labels = check_labels(torch.as_tensor(labels).detach().cpu())
    probabilities = torch.as_tensor(probabilities).detach().cpu()
    if probabilities.shape != labels.shape:
        raise ValueError(
            f"probabilities are {tuple(probabilities.shape)} and labels {tuple(labels.shape)}; both must be (N, C)."
        )
    if len(labels) == 0:
        raise ValueError("There is no item to score: the split or the selection of rows is empty.")
    if probabilities.dtype not in (torch.float32, torch.float64):
        probabilities = probabilities.float()
    low, high = (value.item() for value in probabilities.aminmax())
    # torchmetrics would apply a sigmoid to such a batch and leave the next one alone
    if not (low >= 0 and high <= 1):  # NaN fails both comparisons
        raise ValueError(
            f"probabilities range from {low:g} to {high:g} (nan = some are NaN); they must lie in [0, 1]. "
            "Apply torch.sigmoid to logits; NaN comes from a model that has diverged."
        )
    return probabilities, labels


def positive_groups(scores: Floats, positive: Bools) -> PositiveGroups:
    """Group one ranking at the scores of its positives.

    Args:
        scores: (N,) higher = better.
        positive: (N,) bool.

    Returns:
        The groups; none when there is no positive.
    """
    ordered = np.sort(scores)
    values, counts = np.unique(scores[positive], return_counts=True)
    values, counts = values[::-1], counts[::-1].astype(np.int64)
    left, right = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return PositiveGroups(values, counts, right - left, counts.cumsum(), len(ordered) - left, len(ordered))


def group_average_precision(groups: PositiveGroups) -> float:
    """Sum over the groups of the recall gained times the precision there; NaN without positives."""
    if len(groups.scores) == 0:
        return float("nan")
    precision = groups.positives_so_far / groups.items_so_far
    return float(groups.positives @ precision / groups.positives_so_far[-1])


def group_auroc(groups: PositiveGroups) -> float:
    """Share of (positive, negative) pairs in the right order, tied pairs half; NaN without both kinds."""
    total = int(groups.positives_so_far[-1]) if len(groups.scores) else 0
    negatives = groups.items - total
    if not total or not negatives:
        return float("nan")
    better = groups.items_so_far - groups.positives_so_far  # negatives as good as the group or better
    tied = groups.tied - groups.positives
    # integers up to here: half a pair is the smallest unit
    right = 2 * int(groups.positives @ (negatives - better)) + int(groups.positives @ tied)
    return right / (2 * total * negatives)


def class_groups(probabilities: Tensor, labels: Tensor, column: int) -> PositiveGroups:
    """The groups of one class; see ``positive_groups``.

    Args:
        probabilities: (N, C) as ``check_pairs`` returns them.
        labels: (N, C) bool.
        column: Class.

    Returns:
        The groups.
    """
    return positive_groups(probabilities[:, column].contiguous().numpy(), labels[:, column].contiguous().numpy())


def average_precision(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Average precision of each class over all items: the sum over thresholds of (recall gained) x precision.

    Items of equal probability form one group, so their order has no influence.

    Args:
        probabilities: (N, C) between 0 and 1.
        labels: (N, C) of 0 and 1.

    Returns:
        (C,) float64; NaN for a class without positives.

    Raises:
        ValueError: See ``check_pairs``.

    Reference:
        The definition of ``sklearn.metrics.average_precision_score``.

    >>> average_precision(torch.tensor([[0.9], [0.5], [0.5]]), torch.tensor([[1], [1], [0]]))
    tensor([0.8333], dtype=torch.float64)
    """
    probabilities, labels = check_pairs(probabilities, labels)
    classes = range(labels.shape[1])
    values = [group_average_precision(class_groups(probabilities, labels, column)) for column in classes]
    return torch.tensor(values, dtype=torch.float64)


def curve_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean average precision and AUROC, averaged in every usual way.

    Args:
        probabilities: (N, C) as ``check_pairs`` returns them.
        labels: (N, C) bool.

    Returns:
        ``map_macro``, ``map_micro``, ``map_weighted`` (by positives), ``auroc_macro``, ``auroc_micro``. Macro means are
        over the classes with a positive (AUROC: and a negative); NaN when there is none.
    """
    groups = [class_groups(probabilities, labels, column) for column in range(labels.shape[1])]
    precisions = torch.tensor([group_average_precision(group) for group in groups], dtype=torch.float64)
    support = labels.sum(dim=0).double()
    counted = support > 0
    areas = torch.tensor([group_auroc(group) for group in groups], dtype=torch.float64)
    del groups
    pooled = positive_groups(probabilities.reshape(-1).numpy(), labels.reshape(-1).numpy())
    return {
        "map_macro": precisions.nanmean().item(),
        "map_micro": group_average_precision(pooled),
        "map_weighted": ((precisions * support)[counted].sum() / support.sum()).item(),
        "auroc_macro": areas.nanmean().item(),
        "auroc_micro": group_auroc(pooled),
    }
