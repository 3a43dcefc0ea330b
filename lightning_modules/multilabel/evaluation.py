"""What is fitted to the training items after an epoch, and the figures of a part under it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.multilabel import multilabel_scores
from lightning_modules.metrics.multilabel_decisions import threshold_scores
from lightning_modules.metrics.multilabel_thresholds import fit_thresholds
from lightning_modules.multilabel.checks import check_neighbours
from lightning_modules.multilabel.knn import KnnVotes

CONVENTION = (
    "AP of each class by scikit-learn's definition, macro over the classes with a positive; decisions at probability "
    "0.5 and, where a name ends in _fitted, at the thresholds with the best F1 on the training items; soft: classifier "
    "on relaxed codes, binary: on their signs; floor: the class frequencies of the training items as the prediction, "
    "of mAP the expectation of a random order (micro: the larger of the two)"
)
HEADLINE = ["map_macro", "map_micro", "f1_macro_fitted", "f1_micro_fitted", "auroc_macro", "lrap"]


@dataclass(frozen=True)
class Fitted:
    """What the training items alone decide, beside the weights.

    Args:
        thresholds: For each way of scoring the threshold ``(C,)`` of each class with the best F1 on training items.
        train_frequency: Share of the training items with each class, ``(C,)``.
        count: Number of training items.
        votes: The gallery of the KNN head.
        class_names: C names.
    """

    thresholds: dict[str, Tensor]
    train_frequency: Tensor
    count: int
    votes: KnnVotes | None
    class_names: list[str]

    @classmethod
    def from_training_items(
        cls, found: dict[str, Tensor], class_names: list[str], voting: tuple[int, float] | None
    ) -> Fitted:
        """Fit.

        Args:
            found: Of the training items the ``labels`` ``(N, C)``, the probabilities ``(N, C)`` by way of scoring and
                the ``codes`` ``(N, bits)``, where there are some.
            class_names: C names.
            voting: K and temperature of the KNN head; None = another head.
        """
        labels = found["labels"]
        votes = KnnVotes(found["codes"], labels, *voting) if voting else None
        probabilities = {kind: values for kind, values in found.items() if kind not in ("labels", "codes")}
        if votes:
            probabilities["binary"] = votes.leave_one_out()
        thresholds = {kind: fit_thresholds(values, labels).float() for kind, values in probabilities.items()}
        return cls(thresholds, labels.float().mean(dim=0), len(labels), votes, class_names)

    def voted_by(self, k: int, temperature: float) -> Fitted:
        """The same gallery with other votes and the thresholds that belong to them; without a gallery unchanged.

        Raises:
            ValueError: The gallery is too small for ``k``.
        """
        if self.votes is None or (self.votes.k, self.votes.temperature) == (k, temperature):
            return self
        check_neighbours(k, len(self.votes))
        votes = KnnVotes(self.votes.codes, self.votes.labels, k, temperature)
        thresholds = {"binary": fit_thresholds(votes.leave_one_out(), votes.labels).float()}
        return replace(self, votes=votes, thresholds=thresholds)

    @property
    def absent_classes(self) -> list[str]:
        """Classes that no training item has."""
        return [name for name, share in zip(self.class_names, self.train_frequency.tolist(), strict=True) if not share]

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors, strings and numbers, for a checkpoint."""
        return {
            "thresholds": self.thresholds,
            "train_frequency": self.train_frequency,
            "count": self.count,
            "votes": self.votes.state_dict() if self.votes else None,
            "class_names": self.class_names,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Fitted:
        """What :meth:`state_dict` describes."""
        votes = KnnVotes.from_state_dict(state["votes"]) if state["votes"] else None
        return cls(state["thresholds"], state["train_frequency"], state["count"], votes, state["class_names"])


def joined(outputs: Iterable[tuple[dict[str, Tensor], Tensor | None, Tensor]]) -> dict[str, Tensor]:
    """Probabilities by way of scoring, codes and labels of many batches, on the CPU.

    Args:
        outputs: For each batch its probabilities, its codes (or None) and its labels.

    Returns:
        The ways of scoring, ``codes`` and ``labels``, each with one row an item.
    """
    found: dict[str, list[Tensor]] = defaultdict(list)
    for probabilities, codes, labels in outputs:
        for name, values in {**probabilities, "codes": codes, "labels": labels}.items():
            if values is not None:
                found[name].append(values.cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def part_scores(probabilities: Tensor, labels: Tensor, thresholds: Tensor) -> dict[str, float]:
    """All figures of a part: those at the threshold 0.5 and, ending in ``_fitted``, at fitted thresholds.

    Args:
        probabilities: Shape ``(N, C)``.
        labels: Shape ``(N, C)``, 0 or 1.
        thresholds: Shape ``(C,)``.
    """
    fitted = threshold_scores(probabilities, labels, thresholds)
    return {**multilabel_scores(probabilities, labels), **{f"{name}_fitted": value for name, value in fitted.items()}}


def random_codes_map(labels: Tensor, train_frequency: Tensor, bits: int, k: int) -> float:
    """Macro average precision of KNN votes between random codes: what a code that has learnt nothing reaches.

    Args:
        labels: Labels of the items that are scored, ``(N, C)``.
        train_frequency: Share of the voting items with each class, ``(C,)``; 1000 such items are drawn.
        bits: Length of the codes.
        k: Neighbours that vote.
    """
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(1000, bits, generator=generator)
    gallery_labels = torch.rand(1000, len(train_frequency), generator=generator) < train_frequency
    votes = KnnVotes(gallery, gallery_labels, k=min(k, 1000))
    queries = torch.randn(len(labels), bits, generator=generator)
    return multilabel_scores(votes.probabilities(queries), labels)["map_macro"]


def in_order(codes: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Binary codes of all processes, one row an item, in ascending order of the items.

    Args:
        codes: This process's batches: index ``(B,)`` and codes int8 ``(B, bits)``.

    Returns:
        Shape ``(N, bits)``; an item that several processes hold comes once.
    """
    index, values = (torch.cat([pair[side] for pair in codes]) for side in (0, 1))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        shares: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shares, (index, values))
        index, values = (torch.cat([share[side] for share in shares]) for side in (0, 1))
    _, first = np.unique(index.numpy(), return_index=True)
    return values[torch.from_numpy(first)]


def selection_notes(count: int) -> dict[str, Any]:
    """What the figures of a validation mean, which scores the ``count`` items that selection looks at."""
    return {"convention": CONVENTION, "headline": HEADLINE, "n_select": count}


def test_notes(fitted: Fitted, predictions: dict[str, dict[str, Tensor]], bits: int | None, k: int) -> dict[str, Any]:
    """What the figures of a test mean.

    Args:
        fitted: What the training items decided.
        predictions: For ``fold`` and ``test`` the ``index`` and ``labels`` of the items.
        bits: Length of the codes; None = no codes.
        k: Neighbours of the KNN head.
    """
    notes: dict[str, Any] = {
        "convention": CONVENTION,
        "headline": HEADLINE,
        "n_train": fitted.count,
        **{f"n_{part}": len(values["index"]) for part, values in predictions.items()},
        "num_classes": len(fitted.class_names),
        "classes_not_trained": fitted.absent_classes,
    }
    for part, values in predictions.items():
        present = values["labels"].any(dim=0).tolist()
        names = zip(fitted.class_names, present, strict=True)
        notes[f"classes_not_scored_{part}"] = [name for name, scored in names if not scored]
        if bits:
            reached = random_codes_map(values["labels"], fitted.train_frequency, bits, k)
            notes[f"random_codes_map_macro_{part}"] = reached
    return notes
