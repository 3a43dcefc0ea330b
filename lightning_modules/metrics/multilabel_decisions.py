"""Decisions from probabilities, and their scores: F1, precision, recall, Hamming loss, exact match."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.metrics.multilabel_curves import check_pairs

THRESHOLD_SCORES = (
    "f1_macro",
    "f1_micro",
    "precision_macro",
    "precision_micro",
    "recall_macro",
    "recall_micro",
    "hamming_loss",
    "exact_match",
)


def threshold_scores(probabilities: Tensor, labels: Tensor, thresholds: float | Tensor) -> dict[str, float]:
    """The part of ``multilabel_scores`` that looks at decisions, for thresholds of one's own.

    Args:
        probabilities: (N, C) between 0 and 1.
        labels: (N, C) of 0 and 1.
        thresholds: One number or (C,); a prediction is ``probability >= threshold``.

    Returns:
        The scores named in ``THRESHOLD_SCORES``.

    Raises:
        ValueError: See ``multilabel_scores``.

    >>> scores = threshold_scores(torch.tensor([[0.9, 0.2]]), torch.tensor([[1, 1]]), torch.tensor([0.5, 0.1]))
    >>> scores["exact_match"]
    1.0
    """
    probabilities, labels = check_pairs(probabilities, labels)
    decisions = decide(probabilities, thresholds)
    counts = class_counts(decisions, labels)
    counted = counts[2] > 0
    macro = {name: value[counted].mean().item() for name, value in rates(*counts).items()}
    micro = {name: value.item() for name, value in rates(*(count.sum() for count in counts)).items()}
    found, predicted, present = (count.sum().item() for count in counts)
    return {
        **{f"{name}_macro": value for name, value in macro.items()},
        **{f"{name}_micro": value for name, value in micro.items()},
        "hamming_loss": (predicted + present - 2 * found) / labels.numel(),
        "exact_match": (decisions == labels).all(dim=1).double().mean().item(),
    }


def decide(probabilities: Tensor, thresholds: float | Tensor) -> Tensor:
    """Decisions: ``probability >= threshold``.

    Args:
        probabilities: (N, C).
        thresholds: One number or (C,).

    Returns:
        (N, C) bool.

    Raises:
        ValueError: Thresholds of another shape, or not finite.
    """
    dtype = probabilities.dtype if isinstance(thresholds, int | float) else None  # else 0.3 would become float32
    thresholds = torch.as_tensor(thresholds, dtype=dtype, device=probabilities.device)
    if thresholds.ndim and thresholds.shape != probabilities.shape[1:]:
        raise ValueError(
            f"thresholds have shape {tuple(thresholds.shape)}; give one number or ({probabilities.shape[1]},), one a "
            "class."
        )
    if not thresholds.isfinite().all():
        raise ValueError("thresholds hold NaN or infinity; fit_thresholds gives 0.5 to classes without positives.")
    return probabilities >= thresholds


def class_counts(decisions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, predictions and positives of each class, each (C,) float64.

    Args:
        decisions: (N, C) bool.
        labels: (N, C) bool.

    Returns:
        The three counts.
    """
    found, predicted, present = (rows.sum(dim=0).double() for rows in (decisions & labels, decisions, labels))
    return found, predicted, present


def rates(found: Tensor, predicted: Tensor, present: Tensor) -> dict[str, Tensor]:
    """F1, precision and recall from counts; 0 where a denominator is 0.

    Args:
        found: True positives, any shape.
        predicted: Predictions, same shape.
        present: Positives, same shape.

    Returns:
        ``f1``, ``precision``, ``recall``, each of the same shape.
    """
    return {
        "f1": 2 * found / (predicted + present).clamp(min=1),
        "precision": found / predicted.clamp(min=1),
        "recall": found / present.clamp(min=1),
    }
