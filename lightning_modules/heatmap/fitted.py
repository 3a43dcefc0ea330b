"""What the training part decides: a sign and a threshold for each class, fitted to maps or taken from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_modules.heatmap.diagnosis import COVERED, diagnose, gaps_by_class
from lightning_modules.heatmap.thresholds import fit_class_thresholds

MAP_SETTINGS = (  # arguments of the module that change a map; what was fitted to one map says nothing of another
    "path", "num_layers", "residual", "ffn", "fusion", "redundancy", "strength", "sign", "templates", "adapter", "rank",
)  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """What the training part decides.

    Args:
        signs: 1 or -1 for each class ``(K,)``.
        thresholds: Similarity, after the sign, from which on a patch of each class counts as inside, ``(K,)`` float64.
        count: Number of training images.
    """

    signs: Tensor
    thresholds: Tensor
    count: int

    @classmethod
    def from_maps(cls, images: Iterable[tuple[Tensor, Tensor]], sign: str) -> Fitted:
        """Fit.

        Args:
            images: For each training image its maps, without sign, and the coverage, both ``(K, rows, columns)``.
            sign: ``1`` or ``-1`` for all classes, or ``fitted``: a class with a negative mean gap is turned round.

        Raises:
            ValueError: There is no training image.
        """
        rows, cells, inside = [], [], []
        for number, (maps, coverage) in enumerate(images):
            rows.append(diagnose(maps, coverage, number))
            cells.append(maps.flatten(1).T)
            inside.append(coverage.flatten(1).T >= COVERED)
        if not cells:
            raise ValueError("The training part is empty, so there is nothing to fit signs or thresholds to.")
        classes = cells[0].shape[1]
        if sign == "fitted":
            signs = torch.where(gaps_by_class(torch.cat(rows), classes) < 0, -1.0, 1.0).float()
        else:
            signs = torch.full((classes,), float(sign))
        thresholds = fit_class_thresholds(torch.cat(cells) * signs, torch.cat(inside))
        return cls(signs, thresholds, len(rows))

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Mapping[str, Any], names: Sequence[str], settings: Mapping[str, Any]
    ) -> Fitted | None:
        """What a checkpoint of ``HeatmapDetection`` holds for these classes, by their names.

        Args:
            checkpoint: With ``heatmap``, which holds ``names`` and ``fitted``, and ``hyper_parameters``.
            names: The K class names of this run.
            settings: Arguments of the module in this run.

        Returns:
            None where nothing was fitted, or to maps of other :data:`MAP_SETTINGS` or without one of the classes.
        """
        stored, fitted = list(checkpoint["heatmap"]["names"]), checkpoint["heatmap"]["fitted"]
        if fitted is None or not set(names) <= set(stored):
            return None
        if settings["redundancy"] == "class_mean" and sorted(names) != sorted(stored):  # the others are in every map
            return None
        before = checkpoint.get("hyper_parameters", {})
        if any(name not in before or before[name] != settings[name] for name in MAP_SETTINGS):
            return None
        places = [stored.index(name) for name in names]
        return cls(fitted["signs"][places], fitted["thresholds"][places], fitted["count"])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"signs": self.signs, "thresholds": self.thresholds, "count": self.count}


def places_of(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Where the data, to whose boxes one wants to fit, has the classes.

    Args:
        names: Names of the K classes.
        known: Names of the data's classes.

    Raises:
        ValueError: The data has no class of one of the names.

    >>> places_of(["harbor", "ship"], ["airplane", "ship", "harbor"])
    [2, 1]
    """
    if missing := [name for name in names if name not in known]:
        raise ValueError(
            "A fitted sign or threshold needs training boxes of every class, and the data has none of "
            f"{', '.join(missing)}. Use data with these classes, a checkpoint in which they were fitted, or "
            "another sign and threshold."
        )
    return [known.index(name) for name in names]
