"""The predictions of all folds put together, each item scored by the one model that had not seen it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from callbacks.experiments.result_files import PARTS, SCORINGS, Run


@dataclass(frozen=True)
class Pooled:
    """Items of all folds.

    Args:
        class_names: C names.
        labels: (N, C) bool.
        probabilities: (N, C) float32 of one scoring.
        decisions: (N, C) bool, by the thresholds of the model that scored the item.
        areas: (N, C) area of the largest object of the class as a fraction of the image, NaN where unknown; None
            when a fold has none.
        fold: (N,) number of the fold.
        part: ``fold`` (every item is out of its model's fold), or ``test``.
        scoring: ``soft`` or ``binary``.
        fitted: Whether the thresholds were fitted on training rows; 0.5 otherwise.
    """

    class_names: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    decisions: np.ndarray
    areas: np.ndarray | None
    fold: np.ndarray
    part: str
    scoring: str
    fitted: bool

    @property
    def folds(self) -> list[int]:
        """The folds that are there, ascending."""
        return np.unique(self.fold).tolist()


def pool(runs: Mapping[int, Run]) -> Pooled | None:
    """Put the scored parts together.

    Args:
        runs: Fold to its run; those without predictions are left out.

    Returns:
        The fold parts of all runs; of a single run without one, its test part. None when there are no predictions.
    """
    known = {fold: run.predictions for fold, run in sorted(runs.items()) if run.predictions}
    for part in PARTS[: 1 if len(known) > 1 else 2]:
        found = {fold: (entry, entry.parts[part]) for fold, entry in known.items() if part in entry.parts}
        scorings = [name for name in SCORINGS if all(name in piece.probabilities for _, piece in found.values())]
        if not found or not scorings:
            continue
        scoring = scorings[0]
        pieces = [piece for _, piece in found.values()]
        fitted = all(scoring in entry.thresholds for entry, _ in found.values())
        decisions = [
            piece.probabilities[scoring] >= (entry.thresholds[scoring] if fitted else 0.5)
            for entry, piece in found.values()
        ]
        areas = [piece.areas for piece in pieces if piece.areas is not None]
        return Pooled(
            class_names=next(iter(found.values()))[0].class_names,
            labels=np.concatenate([piece.labels for piece in pieces]),
            probabilities=np.concatenate([piece.probabilities[scoring] for piece in pieces]),
            decisions=np.concatenate(decisions),
            areas=np.concatenate(areas) if len(areas) == len(pieces) else None,
            fold=np.repeat(list(found), [len(piece.ids) for piece in pieces]),
            part=part,
            scoring=scoring,
            fitted=fitted,
        )
    return None
