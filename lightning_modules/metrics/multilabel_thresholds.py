"""Thresholds that turn probabilities into decisions, fitted class by class."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.metrics.multilabel_curves import check_pairs, class_groups


def fit_thresholds(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The threshold of each class that maximises F1 on these items; a prediction is ``probability >= threshold``.

    The best threshold always is a probability of some positive item: a lower one adds false positives only. Of equal
    maxima the highest threshold is taken. Fit on training rows only, and score others.

    Args:
        probabilities: (N, C) between 0 and 1.
        labels: (N, C) of 0 and 1.

    Returns:
        (C,) of the dtype of the probabilities (float32 for half precision), so that the comparison is exact; 0.5 for
        a class without positives.

    Raises:
        ValueError: Unequal shapes, no item, a probability outside [0, 1], NaN, or a label other than 0 and 1.

    Reference:
        Lipton, Elkan, Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure", ECML 2014.

    >>> fit_thresholds(torch.tensor([[0.2], [0.4], [0.3], [0.1]]), torch.tensor([[1], [1], [0], [0]]))
    tensor([0.2000])
    """
    probabilities, labels = check_pairs(probabilities, labels)
    thresholds = torch.full((labels.shape[1],), 0.5, dtype=probabilities.dtype)
    for column in range(labels.shape[1]):
        groups = class_groups(probabilities, labels, column)
        if len(groups.scores):
            f1 = 2 * groups.positives_so_far / (groups.items_so_far + groups.positives_so_far[-1])
            thresholds[column] = groups.scores[f1.argmax()].item()
    return thresholds
