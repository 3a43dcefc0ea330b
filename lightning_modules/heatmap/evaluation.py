"""What a test collects of the heatmap and its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.heatmap.boxes import upsample
from lightning_modules.heatmap.detector import Detections
from lightning_modules.heatmap.diagnosis import COLUMNS, diagnose, gap_summary, gaps_by_class
from lightning_modules.heatmap.localise import STEPS, best_overlaps, inside_pixels
from lightning_modules.metrics.detection import DetectionScores
from lightning_modules.metrics.detection_intervals import bootstrap_average_precision
from lightning_modules.metrics.localisation import PixelAveragePrecision, max_box_accuracy
from lightning_modules.metrics.named_rows import NamedRows

HEADLINE = ("ap_05", "ap_10", "ap_20", "ap_50", "pxap", "max_box_accuracy_v2", "gap", "gap_positive", "patch_auroc")
AP_AND_RECALL, ENDS = ("ap_", "recall_"), ("_low", "_high")


class DetectorScores(nn.Module):
    """Boxes of several detectors on the same images, and the diagnosis of the maps.

    Args:
        num_classes: Number of classes K.
        detectors: Their names; the first is the method, the others are its controls.
        max_detections: Most boxes an image.
    """

    def __init__(self, num_classes: int, detectors: Sequence[str], max_detections: int) -> None:
        super().__init__()
        self.detectors = tuple(detectors)
        make = {name: DetectionScores(num_classes, max_detections=max_detections) for name in detectors}
        self.boxes = nn.ModuleDict(make)
        self.rows = NamedRows(len(COLUMNS), keys=2)
        self.pixels = PixelAveragePrecision(num_classes)
        self.overlaps = NamedRows(2 + STEPS, keys=2)

    def scores_of(self, detector: str) -> DetectionScores:
        """The boxes of one of the detectors."""
        return cast(DetectionScores, self.boxes[detector])

    @property
    def convention(self) -> str:
        """What the figures mean."""
        return (
            f"{self.scores_of(self.detectors[0]).convention}; gap: mean similarity of patches inside minus outside the "
            "boxes of a class, over pairs of image and class; PxAP and MaxBoxAcc in the squashed picture; floor: the "
            f"best of the controls {', '.join(self.detectors[1:])}"
        )

    def update(
        self,
        index: Tensor,
        targets: Sequence[Mapping[str, Tensor]],
        found: Mapping[str, Sequence[Detections]],
        maps: Tensor,
        coverage: Tensor,
        sizes: Tensor,
        side: int | None,
    ) -> None:
        """Add the B images of a batch.

        Args:
            index: Their positions in the data set, ``(B,)``.
            targets: ``boxes`` (n, 4), ``labels`` (n,) and ``ignore`` (n,) of each; pixels of those are background.
            found: Detections in each by the name of the detector.
            maps: ``(B, K, rows, columns)``.
            coverage: Share of each patch inside the boxes of each class that count, the same shape.
            sizes: Height and width of the pictures, ``(B, 2)``.
            side: Side of the squashed pictures, in which pixels are counted; None = do not look at pixels.
        """
        for name, detections in found.items():
            self.scores_of(name).update(detections, targets, index)
        self.rows.update(torch.cat([diagnose(*pair) for pair in zip(maps, coverage, index.tolist(), strict=True)]))
        if side is None:
            return
        for each, target, size, number in zip(maps, targets, sizes.tolist(), index.tolist(), strict=True):
            counts = ~target["ignore"].cpu()
            boxes, labels = target["boxes"].cpu()[counts], target["labels"].cpu()[counts]
            pixels = upsample(each[None], (side, side))
            inside = inside_pixels(boxes, labels, len(each), size, side)
            self.pixels.update(pixels, inside[None], torch.tensor([number]))
            classes, overlaps = best_overlaps(pixels[0], boxes, labels, size)
            names = torch.tensor([[number, label] for label in classes], dtype=torch.float32).reshape(-1, 2)
            self.overlaps.update(torch.cat([names, overlaps], dim=1))

    def compute(self, intervals: bool) -> dict[str, float]:
        """All figures; every process must call it.

        Args:
            intervals: With 95 % intervals over images, ending in ``_low`` and ``_high``, and with the controls.

        Returns:
            ``ap_05`` ... ``ap_50`` and ``recall_05`` ... of the method, its diagnosis, ``<control>_ap_05`` ... of each
            control, and ``random_ap_05`` ...: the best of the controls, which is the floor. Without an object the APs
            are NaN, and PxAP, MaxBoxAcc and the diagnosis are left out.
        """
        values = {**self.scores_of(self.detectors[0]).compute(), **gap_summary(self.rows.compute())}
        if not intervals:
            return {name: value for name, value in values.items() if not name.endswith(ENDS)}
        overlaps = self.overlaps.compute()[:, 2:].T.numpy()  # (STEPS, pairs of image and class)
        pixels = self.pixels.per_class()
        if pixels["maps_scored"].any():
            values |= {name: float(np.nanmean(pixels[name])) for name in ("pxap", "random_pxap")}
        if overlaps.size:
            values["max_box_accuracy"] = max_box_accuracy(overlaps)
            values["max_box_accuracy_v2"] = max_box_accuracy(overlaps, (0.3, 0.5, 0.7))
        values |= self._interval(self.detectors[0], "")
        for control in self.detectors[1:]:
            scores = self.scores_of(control).compute()
            values |= {f"{control}_{name}": value for name, value in scores.items() if name.startswith(AP_AND_RECALL)}
            values |= self._interval(control, f"{control}_")
        names = [name for name in values if name.startswith(AP_AND_RECALL) and not name.endswith(ENDS)]
        for name in names:
            values[f"random_{name}"] = max(values[f"{control}_{name}"] for control in self.detectors[1:])
        return {**values, "random_patch_auroc": 0.5, "random_gap": 0.0, "random_gap_positive": 0.5}

    def tables(self, names: Sequence[str]) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """Figures by class, and the diagnosis by image and class: file name to heading and rows; on every process.

        Args:
            names: K class names.
        """
        rows, scores = self.rows.compute(), self.scores_of(self.detectors[0])
        matches, columns = scores.matches(), {**scores.per_class(), "gap": gaps_by_class(rows, len(names)).numpy()}
        columns["pxap"] = self.pixels.per_class()["pxap"]
        boxes = matches.truths().sum(axis=0)
        classes = [[name, int(boxes[k]), *(float(v[k]) for v in columns.values())] for k, name in enumerate(names)]
        pairs = [[int(row[0]), names[int(row[1])], *row[2:-1], int(row[-1])] for row in rows.tolist()]
        return {"classes.csv": (["class", "boxes", *columns], classes), "diagnosis.csv": (list(COLUMNS), pairs)}

    def _interval(self, detector: str, prefix: str) -> dict[str, float]:
        found = bootstrap_average_precision(self.scores_of(detector).matches())
        rows = zip(self.scores_of(detector).names, found.low.tolist(), found.high.tolist(), strict=True)
        return {
            f"{prefix}ap_{name}_{end}": value
            for name, low, high in rows
            for end, value in (("low", low), ("high", high))
        }

    def reset(self) -> None:
        """Forget all images."""
        for metric in (*map(self.scores_of, self.detectors), self.rows, self.pixels, self.overlaps):
            metric.reset()
