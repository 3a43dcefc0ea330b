"""How well heatmaps find objects without a threshold to choose: pixel average precision and maximal box accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.boxes import Floats
from lightning_modules.metrics.detection_curves import class_means
from lightning_modules.metrics.rows import Ints, RowMetric, ragged_rows

RESOLUTION = 2**-14  # about 0.00006: cosines keep some thousand levels


class PixelAveragePrecision(RowMetric):
    """Pixel average precision (PxAP) of similarity maps: precision and recall of pixels over all thresholds.

    The pixels of all images with a class are ranked together by the score of that class; a map of a class that the
    image lacks does not count. ``compute()`` gives ``pxap``, the mean over the classes with pixels, its floor
    ``random_pxap``, the share of pixels inside, which a constant or random map scores, and the counts
    ``classes_scored`` and ``maps_scored``.

    Scores are rounded to multiples of ``resolution`` and counted, so no range need be known and nothing depends on the
    number of processes or on batches. Each map keeps 8 bytes for every level that it takes, at most twice that: 12 KiB
    for a smooth map of 448 x 448 pixels with a standard deviation of .01, 50 KiB with .05. Pixels on one level tie, and
    that lowers PxAP: with the default by less than .001 at a standard deviation of .01, by .007 at .001.

    Args:
        num_classes: Number of classes.
        resolution: Difference of scores below which pixels may tie; the default suits cosines and maps in 0..1.
        kwargs: Of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``num_classes`` below 1 or ``resolution`` not above 0.

    Reference:
        Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, section 4.1.

    >>> metric = PixelAveragePrecision(num_classes=1)
    >>> metric.update(torch.tensor([[[[0.9, 0.5, 0.1]]]]), torch.tensor([[[[True, False, True]]]]), torch.tensor([0]))
    >>> {name: round(value, 4) for name, value in metric.compute().items()}
    {'pxap': 0.8333, 'random_pxap': 0.6667, 'classes_scored': 1.0, 'maps_scored': 1.0}
    """

    higher_is_better = True
    levels: list[Tensor]  # (L, 2) int32: twice the level, plus 1 inside the truth; pixels there
    maps: list[Tensor]  # (P, 3) int64: dataset index, class, rows of ``levels``

    def __init__(self, num_classes: int, resolution: float = RESOLUTION, **kwargs: Any) -> None:
        super().__init__({"levels": (2, torch.int32), "maps": (3, torch.int64)}, **kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; there must be at least one class.")
        if not resolution > 0:
            raise ValueError(f"resolution is {resolution}; it must lie above 0, as 0.001 does.")
        self.num_classes, self.resolution = num_classes, resolution

    def update(self, maps: Tensor, truth: Tensor, index: Tensor) -> None:
        """Add the maps of a batch.

        Args:
            maps: (B, C, H, W) scores of each class at each pixel.
            truth: (B, C, H, W) bool, inside an object of the class: its mask, or its boxes; all False = not present.
            index: (B,) position of each image in its dataset.

        Raises:
            ValueError: Malformed or unequal shapes, or a score that is not finite or too large for ``resolution``.
        """
        index = torch.as_tensor(index, device=maps.device).long().flatten()
        if maps.ndim != 4 or maps.shape != truth.shape or maps.shape[:2] != (len(index), self.num_classes):
            raise ValueError(
                f"maps {tuple(maps.shape)}, truth {tuple(truth.shape)} and {len(index)} indices do not belong "
                f"together; give (B, {self.num_classes}, H, W) twice and (B,)."
            )
        image, label = truth.flatten(2).any(dim=2).nonzero(as_tuple=True)  # (P,) each
        if len(image) == 0:
            return
        levels, sizes = count_levels(maps[image, label], truth[image, label].bool(), self.resolution)
        self.levels.append(levels.to(self.device, torch.int32))
        self.maps.append(torch.stack([index[image], label, sizes], dim=1).to(self.device))

    def per_class(self) -> dict[str, Floats]:
        """Pixel average precision and its floor by class; every process must call it.

        Returns:
            ``pxap`` and ``random_pxap`` -> (C,), NaN for a class without pixels, and ``maps_scored`` -> (C,).
        """
        levels, maps = self.gathered()
        # a sampler that pads the last batch of a process repeats images: each index and class counts once
        _, first = np.unique(maps[:, :2], axis=0, return_index=True)
        starts = maps[:, 2].cumsum() - maps[:, 2]
        ap, floor, scored = (np.full(self.num_classes, np.nan) for _ in range(3))
        for label in range(self.num_classes):
            chosen = first[maps[first, 1] == label]
            scored[label] = len(chosen)
            if len(chosen):
                level, pixels = levels[ragged_rows(starts[chosen], maps[chosen, 2])].T
                inside = pixels * (level % 2)
                ap[label] = pixel_average_precision(level // 2, inside, pixels - inside)
                floor[label] = inside.sum() / pixels.sum()
        return {"pxap": ap, "random_pxap": floor, "maps_scored": scored}

    def compute(self) -> dict[str, float]:
        """Scores of all maps; the class lists them.

        Returns:
            Name -> value.

        Raises:
            ValueError: No map of a present class was seen.
        """
        values = self.per_class()
        if not values["maps_scored"].any():
            raise ValueError(
                "The metric has seen no map of a present class: call update(maps, truth, index) for each batch before "
                "compute(), and check that truth is not all False."
            )
        return {
            "pxap": float(class_means(values["pxap"])),
            "random_pxap": float(class_means(values["random_pxap"])),
            "classes_scored": float((values["maps_scored"] > 0).sum()),
            "maps_scored": float(values["maps_scored"].sum()),
        }


def count_levels(maps: Tensor, truth: Tensor, resolution: float = RESOLUTION) -> tuple[Tensor, Tensor]:
    """Count the pixels of each map at each level of score, inside and outside the truth.

    Args:
        maps: (P, H, W) scores.
        truth: (P, H, W) bool.
        resolution: Difference of score between two levels.

    Returns:
        (L, 2) int64, map after map: twice the level plus 1 inside the truth, and the pixels there, at least one; and
        (P,) the rows of each map.

    Raises:
        ValueError: A score that is not finite or too large for ``resolution``.

    >>> count_levels(torch.tensor([[[0.5, 0.5, 0.0]]]), torch.tensor([[[True, False, False]]]), resolution=0.25)
    (tensor([[0, 1],
            [4, 1],
            [5, 1]]), tensor([3]))
    """
    span = 2**31  # of levels, so that a map's number and its level share an int64
    scaled = (maps.detach().float().flatten(1) / resolution).round()
    if not (scaled.abs() < span // 4).all():  # also NaN
        raise ValueError(
            f"A score is not finite, or too large for a resolution of {resolution}: it must lie below "
            f"{span // 4 * resolution:g}. Give a coarser resolution, or find where the maps first become NaN."
        )
    number = torch.arange(len(maps), device=maps.device)[:, None]
    keys = (number * span + 2 * scaled.long() + truth.flatten(1) + span // 2).flatten()
    # on a CPU numpy sorts integers ten times as fast as torch does
    ordered = torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else keys.sort().values
    keys, counts = torch.unique_consecutive(ordered, return_counts=True)
    return torch.stack([keys % span - span // 2, counts], dim=1), torch.bincount(keys // span, minlength=len(maps))


def pixel_average_precision(scores: Floats | Ints, inside: Ints, outside: Ints) -> float:
    """Pixel average precision of one class: the sum over descending scores of precision times gain in recall.

    Args:
        scores: (L,) scores, in any order and repeated as often as one likes; pixels with equal scores enter together.
        inside: (L,) number of pixels with this score inside an object of the class.
        outside: (L,) number of those outside.

    Returns:
        Average precision; NaN without a pixel inside. A constant map gives the share of pixels inside.

    Reference:
        Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, section 4.1.

    >>> pixel_average_precision(np.array([0.9, 0.5, 0.5]), np.array([2, 1, 0]), np.array([0, 0, 1]))
    0.9166666666666666
    """
    present, place = np.unique(-scores, return_inverse=True)  # highest first
    gained = np.bincount(place, weights=inside, minlength=len(present))
    ranked = np.bincount(place, weights=inside + outside, minlength=len(present)).cumsum()
    if gained.sum() == 0:
        return float("nan")
    return float((gained * gained.cumsum() / np.maximum(ranked, 1)).sum() / gained.sum())


def max_box_accuracy(overlaps: Floats, deltas: Sequence[float] = (0.5,)) -> float:
    """Share of localised objects at the best threshold of the heatmap (MaxBoxAcc).

    Args:
        overlaps: (T, P) highest IoU between a predicted box and a truth, for each threshold that was put to the
            heatmaps and each pair of image and class; 0 where there is no box.
        deltas: IoUs at which a pair counts as localised; the result is the mean over them, each at its own best
            threshold. (0.5,) is MaxBoxAcc, (0.3, 0.5, 0.7) MaxBoxAccV2.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: No threshold, no pair, no delta, or NaN.

    Reference:
        Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, equation 5, and
        "Evaluation for Weakly Supervised Object Localization: Protocol, Metrics, and Datasets", 2020 (V2).

    >>> max_box_accuracy(np.array([[0.6, 0.2, 0.5], [0.4, 0.8, 0.1]]), deltas=(0.5,))
    0.6666666666666666
    """
    overlaps = np.asarray(overlaps, dtype=np.float64)
    if overlaps.ndim != 2 or overlaps.size == 0 or np.isnan(overlaps).any() or len(deltas) == 0:
        raise ValueError(
            f"overlaps {overlaps.shape} must be (thresholds, pairs), neither empty nor NaN, and deltas {tuple(deltas)} "
            "not empty; a pair without a predicted box has overlap 0."
        )
    return float(np.mean([(overlaps >= delta).mean(axis=1).max() for delta in deltas]))
