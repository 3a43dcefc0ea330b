"""Scores of multi-label classification, as functions and as a metric that is exact over any number of processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.metrics.hamming import check_labels
from lightning_modules.metrics.multilabel_curves import check_pairs, curve_scores
from lightning_modules.metrics.multilabel_decisions import THRESHOLD_SCORES, threshold_scores
from lightning_modules.metrics.multilabel_ranks import item_ranks

__all__ = ["THRESHOLD_SCORES", "MultilabelScores", "multilabel_scores", "threshold_scores"]


def multilabel_scores(probabilities: Tensor, labels: Tensor, thresholds: float | Tensor = 0.5) -> dict[str, float]:
    """All scores of multi-label predictions.

    Macro means are over the classes with a positive (AUROC: and a negative); the others are left out, and
    ``classes_scored`` counts those with a positive. Micro pools all N x C decisions, ``map_weighted`` weighs classes by
    their positives. A precision without predictions counts 0. An item without labels has coverage 0, ranking loss 0,
    LRAP 1. All as in scikit-learn, which however counts an absent class as 0 in a macro mean.

    Args:
        probabilities: (N, C) between 0 and 1.
        labels: (N, C) of 0 and 1.
        thresholds: One number or (C,); a prediction is ``probability >= threshold``.

    Returns:
        ``map_{macro,micro,weighted}``, ``auroc_{macro,micro}``, ``{f1,precision,recall}_{macro,micro}``,
        ``hamming_loss``, ``exact_match``, ``coverage_error``, ``ranking_loss``, ``lrap``, ``mae`` and
        ``classes_scored``. NaN where nothing defines the score, as mAP without any positive.

    Raises:
        ValueError: Unequal shapes, no item, a probability outside [0, 1], NaN, a label other than 0 and 1, or
            thresholds that are neither one number nor one a class.

    >>> scores = multilabel_scores(torch.tensor([[0.9, 0.2], [0.4, 0.1]]), torch.tensor([[1, 0], [1, 0]]))
    >>> {name: round(scores[name], 4) for name in ("map_macro", "f1_macro", "hamming_loss", "classes_scored")}
    {'map_macro': 1.0, 'f1_macro': 0.6667, 'hamming_loss': 0.25, 'classes_scored': 1.0}
    """
    probabilities, labels = check_pairs(probabilities, labels)
    curves = curve_scores(probabilities, labels)
    ranks = item_ranks(probabilities, labels)
    # torchmetrics' mean absolute error needs contiguous inputs and a float copy of the labels; this needs neither
    distance = probabilities.sum(dtype=torch.float64) + (1 - 2 * probabilities[labels].double()).sum()
    return {
        **curves,
        **threshold_scores(probabilities, labels, thresholds),
        "coverage_error": ranks.coverage.mean().item(),
        "ranking_loss": ranks.loss.mean().item(),
        "lrap": ranks.lrap.mean().item(),
        "mae": distance.item() / labels.numel(),
        "classes_scored": float(labels.any(dim=0).sum()),
    }


class MultilabelScores(Metric):
    """Collects probabilities and labels of all items; ``compute()`` gives ``multilabel_scores``, ``collected()`` them.

    A sampler that pads the last batch of a process repeats items; each index counts once.

    Args:
        num_classes: Number of classes.
        kwargs: Of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``num_classes`` below 1.

    >>> metric = MultilabelScores(num_classes=2)
    >>> metric.update(torch.tensor([[0.9, 0.2], [0.4, 0.1]]), torch.tensor([[1, 0], [1, 0]]), torch.tensor([0, 1]))
    >>> metric.compute()["recall_macro"]
    0.5
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    probabilities: list[Tensor]
    labels: list[Tensor]
    index: list[Tensor]

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; there must be at least one class.")
        self.num_classes = num_classes
        for name in ("probabilities", "labels", "index"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor, index: Tensor) -> None:
        """Add items.

        Args:
            probabilities: (B, C) between 0 and 1; kept in float32.
            labels: (B, C) of 0 and 1.
            index: (B,) position of each item in its dataset.

        Raises:
            ValueError: Malformed or unequal shapes, or labels other than 0 and 1.
        """
        labels = check_labels(labels)
        shape = (len(labels), self.num_classes)
        index = torch.as_tensor(index, device=labels.device).long().flatten()
        if not (probabilities.shape == labels.shape == shape and len(index) == len(labels)):
            raise ValueError(
                f"probabilities {tuple(probabilities.shape)}, labels {tuple(labels.shape)} and {len(index)} indices do "
                f"not belong together; give (B, {self.num_classes}), (B, {self.num_classes}) and (B,)."
            )
        self.probabilities.append(probabilities.detach().float())
        self.labels.append(labels.to(torch.uint8))  # not every backend gathers booleans
        self.index.append(index)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; see ``torchmetrics.Metric.sync``.

        Args:
            args: Of the overridden method.
            kwargs: Of the overridden method.
        """
        # a process that saw no item must still gather tensors of the right type and width
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if together and isinstance(self.index, list) and not self.index:  # a tensor once gathered
            self.probabilities.append(torch.zeros(0, self.num_classes, device=self.device))
            self.labels.append(torch.zeros(0, self.num_classes, dtype=torch.uint8, device=self.device))
            self.index.append(torch.zeros(0, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def collected(self) -> tuple[Tensor, Tensor, Tensor]:
        """The items of all processes, each index once, in the order of the index; every process must call it.

        Returns:
            (N, C) float32 probabilities, (N, C) bool labels and (N,) int64 indices, on the metric's device.

        Raises:
            ValueError: No item was seen, or one index carries two label sets.
        """
        gather = self._to_sync and not self._is_synced  # compute() has gathered already
        with self.sync_context(should_sync=gather, should_unsync=gather):
            states = [_joined(getattr(self, name)) for name in ("probabilities", "labels", "index")]
        if states[2] is None or len(states[2]) == 0:
            raise ValueError(
                "The metric has seen no item: call update(probabilities, labels, index) for each batch before "
                "compute(), and check that the split is not empty."
            )
        probabilities, labels, index = (state for state in states if state is not None)
        order = index.argsort(stable=True)
        probabilities, labels, index = probabilities[order], labels[order].bool(), index[order]
        repeats = index[1:] == index[:-1]
        clash = repeats & (labels[1:] != labels[:-1]).any(dim=1)
        if clash.any():
            raise ValueError(
                f"Two items with different labels share index {int(index[1:][clash][0])}. `index` must be the position "
                "in the dataset, not in the batch."
            )
        first = torch.cat([repeats.new_ones(1), ~repeats])
        return probabilities[first], labels[first], index[first]

    def compute(self) -> dict[str, float]:
        """Scores of all collected items at threshold 0.5; see ``multilabel_scores``.

        Returns:
            Name -> value.

        Raises:
            ValueError: No item was seen, a probability outside [0, 1] or NaN, or one index carries two label sets.
        """
        probabilities, labels, _ = self.collected()
        return multilabel_scores(probabilities, labels)


def _joined(state: list[Tensor] | Tensor) -> Tensor | None:
    """A list state before or after a gather, as one tensor; None when nothing was collected."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else None
