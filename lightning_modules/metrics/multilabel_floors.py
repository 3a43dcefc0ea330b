"""Scores of a multi-label prediction that never looks at the item."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.metrics.ap_from_histogram import random_average_precision
from lightning_modules.metrics.hamming import check_labels
from lightning_modules.metrics.multilabel import multilabel_scores, threshold_scores


def prior_scores(train_frequency: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores that a prediction reaches without looking at the item.

    Predicted is the constant "the probability of a class is its frequency in the training rows", whose AUROC is 0.5.
    Thresholds fitted to a constant say yes to every item, except for classes without training positives; those
    decisions give the ``_fitted`` scores.

    Mean average precision is an exception: the AP of a constant is the prevalence, but a random order reaches more on
    average, a lot more where positives are few (one positive of n items: the n-th harmonic number over n). So
    ``map_macro`` and ``map_weighted`` are the exact expectation over all orders of the items, and ``map_micro`` the
    larger of the constant's, which puts frequent classes first, and of the expectation over all orders of the N x C
    pairs.

    Args:
        train_frequency: (C,) share of the training rows that carry each class.
        labels: (N, C) of 0 and 1, of the rows that are scored.

    Returns:
        The scores of ``multilabel_scores``, and those of ``threshold_scores`` with the suffix ``_fitted``.

    Raises:
        ValueError: Unequal numbers of classes, frequencies outside [0, 1], no item, or labels other than 0 and 1.

    >>> scores = prior_scores(torch.tensor([0.5, 0.5]), torch.tensor([[1, 1], [0, 1]]))
    >>> scores["map_macro"], scores["auroc_macro"], scores["recall_macro_fitted"]  # map (3/4 + 1) / 2
    (0.875, 0.5, 1.0)
    """
    labels = check_labels(labels)
    frequency = torch.as_tensor(train_frequency, dtype=torch.float64).cpu()
    if frequency.shape != labels.shape[1:]:
        raise ValueError(
            f"train_frequency has shape {tuple(frequency.shape)}, but the labels have {labels.shape[1]} classes; both "
            "must come from the same list of classes."
        )
    probabilities = frequency.expand(labels.shape)
    scores = multilabel_scores(probabilities, labels)
    fitted = threshold_scores(probabilities, labels, torch.where(frequency > 0, frequency, 0.5))
    return {
        **scores,
        **random_order_scores(labels, scores["map_micro"]),
        **{f"{name}_fitted": value for name, value in fitted.items()},
    }


def random_order_scores(labels: Tensor, constant_micro: float) -> dict[str, float]:
    """The floors of mean average precision.

    Args:
        labels: (N, C) bool.
        constant_micro: ``map_micro`` of the class frequencies.
    """
    positives = labels.sum(dim=0).cpu()
    expected = random_average_precision(positives, len(labels), empty="skip")  # (C,), NaN without a positive
    pooled = random_average_precision(positives.sum()[None], labels.numel(), empty="skip").item()
    return {
        "map_macro": expected.nanmean().item(),
        "map_micro": max(constant_micro, pooled),
        "map_weighted": ((expected * positives).nansum() / positives.sum()).item(),
    }
