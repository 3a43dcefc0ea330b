"""Scores of a multi-label prediction that never looks at the item."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.metrics.hamming import check_labels
from lightning_modules.metrics.multilabel import multilabel_scores, threshold_scores


def prior_scores(train_frequency: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of the constant prediction "the probability of a class is its frequency in the training rows".

    Average precision of a constant is the prevalence among ``labels``, AUROC is 0.5. Thresholds fitted to a constant
    say yes to every item, except for classes without training positives; those decisions give the ``_fitted`` scores.

    Args:
        train_frequency: (C,) share of the training rows that carry each class.
        labels: (N, C) of 0 and 1, of the rows that are scored.

    Returns:
        The scores of ``multilabel_scores``, and those of ``threshold_scores`` with the suffix ``_fitted``.

    Raises:
        ValueError: Unequal numbers of classes, frequencies outside [0, 1], no item, or labels other than 0 and 1.

    >>> scores = prior_scores(torch.tensor([0.5, 0.25]), torch.tensor([[1, 0], [0, 0], [1, 1], [1, 0]]))
    >>> scores["map_macro"], scores["auroc_macro"], scores["recall_macro_fitted"]
    (0.5, 0.5, 1.0)
    """
    labels = check_labels(labels)
    frequency = torch.as_tensor(train_frequency, dtype=torch.float64).cpu()
    if frequency.shape != labels.shape[1:]:
        raise ValueError(
            f"train_frequency has shape {tuple(frequency.shape)}, but the labels have {labels.shape[1]} classes; both "
            "must come from the same list of classes."
        )
    probabilities = frequency.expand(labels.shape)
    fitted = threshold_scores(probabilities, labels, torch.where(frequency > 0, frequency, 0.5))
    return {
        **multilabel_scores(probabilities, labels),
        **{f"{name}_fitted": value for name, value in fitted.items()},
    }
