"""Where a multi-label model errs: by class, by class confused with, by company, by size, by item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.metrics.hamming import check_labels
from lightning_modules.metrics.multilabel_curves import average_precision, check_pairs
from lightning_modules.metrics.multilabel_decisions import class_counts, decide, rates
from lightning_modules.metrics.multilabel_intervals import average_precision_intervals
from lightning_modules.metrics.multilabel_ranks import item_ranks

ROWS_AT_ONCE = 2**14
FEWEST_ITEMS = 10  # a share of fewer items is not given


def class_table(
    probabilities: Tensor, labels: Tensor, thresholds: float | Tensor, class_names: Sequence[str]
) -> list[dict[str, str | int | float]]:
    """One row a class, in the order of the classes.

    Args:
        probabilities: (N, C) between 0 and 1.
        labels: (N, C) of 0 and 1.
        thresholds: One number or (C,); a prediction is ``probability >= threshold``.
        class_names: C names.

    Returns:
        Rows of ``name``, ``support`` (positives), ``ap`` with its 95 % bootstrap interval ``ap_low`` to ``ap_high``,
        ``precision``, ``recall``, ``f1``. A class without positives has NaN in all but the first two; a class without
        predictions has precision 0.

    Raises:
        ValueError: Another number of names than of classes, or malformed data (``check_pairs``, ``decide``).
    """
    probabilities, labels = check_pairs(probabilities, labels)
    if len(class_names) != labels.shape[1]:
        raise ValueError(f"{len(class_names)} class names for {labels.shape[1]} classes; give one name a class.")
    counts = class_counts(decide(probabilities, thresholds), labels)
    low, high = average_precision_intervals(probabilities, labels)
    columns = {"ap": average_precision(probabilities, labels), "ap_low": low, "ap_high": high}
    for name in ("precision", "recall", "f1"):
        columns[name] = torch.where(counts[2] > 0, rates(*counts)[name], torch.nan)
    return [
        {"name": str(name), "support": int(counts[2][i]), **{key: column[i].item() for key, column in columns.items()}}
        for i, name in enumerate(class_names)
    ]


def confused_with(predictions: Tensor, labels: Tensor) -> Tensor:
    """For each class, which classes were there when it was predicted wrongly.

    A false positive of class i spreads a mass of 1 evenly over the classes of the item that the model missed, or over
    all classes of the item if it missed none. An item without labels has nothing to be confused with: left out.

    Args:
        predictions: (N, C) of 0 and 1.
        labels: (N, C) of 0 and 1.

    Returns:
        (C, C) float64; row i sums to 1 over the true classes, or is all 0 without such false positives.

    Raises:
        ValueError: Unequal shapes, or values other than 0 and 1.

    >>> confused_with(torch.tensor([[1, 0, 1]]), torch.tensor([[0, 1, 1]]))[0]
    tensor([0., 1., 0.], dtype=torch.float64)
    """
    predictions, labels = _check_decisions(predictions, labels)
    mass = torch.zeros(labels.shape[1], labels.shape[1], dtype=torch.float64)
    for predicted, true in _parts(predictions, labels):
        missed = true & ~predicted
        blamed = torch.where(missed.any(dim=1, keepdim=True), missed, true).double()
        share = blamed / blamed.sum(dim=1, keepdim=True).clamp(min=1)
        mass += (predicted & ~true).double().T @ share  # (C, C)
    return mass / mass.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def cooccurrence_confusion(predictions: Tensor, labels: Tensor) -> Tensor:
    """Multi-label confusion, freed of how often classes occur: how the presence of j draws false alarms of i.

    Entry (i, j) is P(i predicted | j true, i not true) divided by P(i predicted | i not true). A value of 1 means that
    j's presence has no influence: items with j get wrong predictions of i as often as any items without i. At 3 they
    get three times as many, at 0 none.

    Args:
        predictions: (N, C) of 0 and 1.
        labels: (N, C) of 0 and 1.

    Returns:
        (C, C) float64. NaN on the diagonal, where fewer than 10 items have j but not i, and where class i has no false
        positive at all.

    Raises:
        ValueError: Unequal shapes, or values other than 0 and 1.
    """
    predictions, labels = _check_decisions(predictions, labels)
    classes = labels.shape[1]
    alarms, items = (torch.zeros(classes, classes, dtype=torch.float64) for _ in range(2))
    all_alarms, all_items = (torch.zeros(classes, dtype=torch.float64) for _ in range(2))
    for predicted, true in _parts(predictions, labels):
        wrong, absent, present = predicted & ~true, ~true, true.float()
        alarms += wrong.float().T @ present  # whole numbers: exact in float32
        items += absent.float().T @ present
        all_alarms += wrong.sum(dim=0)
        all_items += absent.sum(dim=0)
    share = alarms / items.clamp(min=1)
    expected = (all_alarms / all_items.clamp(min=1))[:, None]
    known = (items >= FEWEST_ITEMS) & (expected > 0)
    return torch.where(known, share / torch.where(expected > 0, expected, 1.0), torch.nan)


def misses_by_area(
    predictions: Tensor, labels: Tensor, areas: Tensor, edges: Sequence[float]
) -> list[dict[str, float]]:
    """False negatives by the size of the object.

    Args:
        predictions: (N, C) of 0 and 1.
        labels: (N, C) of 0 and 1.
        areas: (N, C) area of the largest object of the class, as a fraction of the image; NaN = absent or unknown.
        edges: Ends of the size bins, increasing; a bin holds its lower end, the last one also its upper end.

    Returns:
        For each bin ``low``, ``high``, ``objects`` (labels whose area lies in the bin), ``missed`` (those without a
        prediction) and ``rate`` (NaN without objects). Areas outside all bins are left out.

    Raises:
        ValueError: Unequal shapes, values other than 0 and 1, or edges that are not at least two increasing numbers.

    >>> labels, areas = torch.tensor([[1, 1]]), torch.tensor([[0.01, 0.5]])
    >>> [row["rate"] for row in misses_by_area(torch.tensor([[0, 1]]), labels, areas, [0, 0.1, 1])]
    [1.0, 0.0]
    """
    predictions, labels = _check_decisions(predictions, labels)
    areas = torch.as_tensor(areas).detach().cpu().double()
    if areas.shape != labels.shape:
        raise ValueError(f"areas are {tuple(areas.shape)} and labels {tuple(labels.shape)}; both must be (N, C).")
    ends = torch.tensor([float(edge) for edge in edges], dtype=torch.float64)
    if len(ends) < 2 or not (ends[1:] > ends[:-1]).all():
        raise ValueError(f"edges are {list(edges)}; give at least two increasing numbers, as [0, 0.01, 0.1, 1].")
    counted = labels & (areas >= ends[0]) & (areas <= ends[-1])  # NaN fails both
    bins = (torch.bucketize(areas[counted], ends, right=True) - 1).clamp(max=len(ends) - 2)
    objects = bins.bincount(minlength=len(ends) - 1)
    missed = bins[~predictions[counted]].bincount(minlength=len(ends) - 1)
    return [
        {
            "low": float(low),
            "high": float(high),
            "objects": int(total),
            "missed": int(lost),
            "rate": int(lost) / int(total) if total else float("nan"),
        }
        for low, high, total, lost in zip(ends[:-1], ends[1:], objects, missed, strict=True)
    ]


def worst_items(probabilities: Tensor, labels: Tensor, count: int) -> Tensor:
    """The items that the model orders worst: lowest LRAP first, of equal ones the highest binary cross entropy.

    Args:
        probabilities: (N, C) between 0 and 1.
        labels: (N, C) of 0 and 1; items without labels are left out.
        count: Number of items.

    Returns:
        At most ``count`` row numbers, int64.

    Raises:
        ValueError: ``count`` below 1, or malformed data (``check_pairs``).

    >>> worst_items(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.9]]), torch.tensor([[1, 0], [0, 1], [1, 0]]), 2)
    tensor([1, 2])
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least one item.")
    probabilities, labels = check_pairs(probabilities, labels)
    entropy = F.binary_cross_entropy(probabilities.double(), labels.double(), reduction="none").mean(dim=1)
    order = entropy.argsort(descending=True, stable=True)
    # rounded: equal precisions that were added in another order must stay equal
    lrap = item_ranks(probabilities, labels).lrap.round(decimals=9)
    order = order[lrap[order].argsort(stable=True)]
    return order[labels.any(dim=1)[order]][:count]


def _check_decisions(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    predictions, labels = check_labels(predictions, "predictions"), check_labels(labels)
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions are {tuple(predictions.shape)} and labels {tuple(labels.shape)}; both must be (N, C)."
        )
    return predictions.cpu(), labels.cpu()


def _parts(predictions: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time: products of all rows would need them as numbers."""
    yield from zip(predictions.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True)
