"""What a test of a set of images is made of: scores, their floor and ceiling, and a control with random texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.metrics.segmentation import SegmentationScores
from lightning_modules.metrics.segmentation_controls import majority_class, oracle_map
from lightning_modules.metrics.segmentation_intervals import bootstrap_mean_iou

FLOOR = "floor: every pixel of the class with most pixels"
CONTROLS = (
    "miou_random_text: random vectors in place of the texts; miou_oracle: each region its true class, the ceiling of "
    "the mask source"
)
PAPER_ORDER = ("voc21", "voc20", "context59", "context60", "cityscapes", "ade20k", "coco_stuff", "coco_object")
# mIoU in that order: Zhang et al., CorrCLIP, ICCV 2025, and its code's README; OpenAI's weights by OV-Stitcher's table.
PUBLISHED = {
    "CorrCLIP B/16 MetaCLIP, SAM 2 (32 points)": (74.8, 88.8, 48.8, 44.2, 49.4, 26.9, 31.6, 43.7),
    "CorrCLIP B/16 MetaCLIP, SAM 2 (8 points)": (73.9, 87.6, 48.0, 43.7, 47.9, 26.5, 31.8, 43.6),
    "CorrCLIP B/16 MetaCLIP, Mask2Former": (73.9, 87.8, 48.2, 43.7, 44.3, 24.6, 33.9, 46.2),
    "CorrCLIP B/16 MetaCLIP, EoMT": (76.0, 90.6, 50.4, 45.4, 48.0, 26.7, 34.5, 46.6),
    "CorrCLIP B/16 MetaCLIP, EntitySeg": (76.2, 89.6, 50.7, 45.7, 51.6, 28.6, 32.4, 44.5),
    "CorrCLIP B/16 OpenAI": (72.2, 88.7, 47.1, 41.6, 44.6, 23.7, 30.7, 40.7),
    "CorrCLIP L/14 MetaCLIP, SAM 2 (32 points)": (76.7, 91.5, 50.8, 44.9, 51.1, 30.7, 34.0, 49.4),
    "CorrCLIP L/14 MetaCLIP, SAM 2 (8 points)": (76.2, 91.2, 49.9, 44.2, 48.9, 29.8, 33.7, 49.0),
    "CorrCLIP L/14 MetaCLIP, Mask2Former": (76.3, 90.8, 50.2, 44.6, 45.4, 26.9, 35.6, 52.2),
    "CorrCLIP L/14 MetaCLIP, EoMT": (78.0, 92.2, 52.8, 46.4, 50.2, 30.1, 36.3, 52.9),
    "CorrCLIP L/14 MetaCLIP, EntitySeg": (78.9, 92.0, 53.0, 46.8, 53.7, 32.6, 34.9, 51.0),
    "CorrCLIP L/14 OpenAI": (71.8, 91.2, 47.2, 42.2, 47.9, 27.7, 31.0, 46.2),
    "CLIP B/16 OpenAI, plain": (18.6, 49.1, 11.2, 7.8, 6.7, 3.2, 5.7, 6.5),
}


def random_text(text: Tensor) -> Tensor:
    """Random directions of the shape of text embeddings (Q, D), the same at each call."""
    drawn = torch.randn(text.shape, generator=torch.Generator().manual_seed(0))
    return F.normalize(drawn, dim=-1).to(text)


class Evaluation(nn.Module):
    """Scores of one set of images with their controls.

    Args:
        name: Of the set.
        num_classes: Its classes.
        ignore_index: Label of pixels that do not count.
    """

    def __init__(self, name: str, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.name = name
        self.scores = SegmentationScores(num_classes, ignore_index)
        self.control = SegmentationScores(num_classes, ignore_index, boundary_ratio=None)
        self.oracle = SegmentationScores(num_classes, ignore_index, boundary_ratio=None)

    def update_controls(
        self, control: Sequence[Tensor], masks: Sequence[Tensor], targets: Sequence[Tensor], index: Tensor
    ) -> None:
        """Add images: label maps (H, W) found with random texts, region ids, true classes and positions in the set."""
        self.control.update(control, targets, index)
        pairs = zip(masks, targets, strict=True)
        best = [oracle_map(ids, true, self.scores.num_classes, self.scores.ignore_index) for ids, true in pairs]
        self.oracle.update(best, targets, index)

    def values(self, controls: bool) -> dict[str, float]:
        """The scores with their floor; with ``controls`` also interval and controls."""
        values = self.scores.compute()
        values["boundary_iou"] = values.pop("boundary_miou")  # named apart: the floor of miou is none of it
        counts, _ = self.scores.collected()
        floor = majority_class(counts)
        values["random_miou"], values["random_pixel_accuracy"] = floor["miou"], floor["pixel_accuracy"]
        if controls:
            _, values["miou_low"], values["miou_high"] = bootstrap_mean_iou(counts)
            values["miou_random_text"] = self.control.compute()["miou"]
            values["miou_oracle"] = self.oracle.compute()["miou"]
        return values

    def class_rows(self, names: Sequence[str]) -> tuple[list[str], list[list[object]]]:
        """Heading and rows of the table by class."""
        columns = self.scores.per_class()
        rows = [[name, *(float(values[k]) for values in columns.values())] for k, name in enumerate(names)]
        return ["class", *columns], rows

    def reset(self) -> None:
        """Forget all images."""
        for metric in (self.scores, self.control, self.oracle):
            metric.reset()


def benchmark_rows(values: dict[str, dict[str, float]]) -> tuple[list[str], list[list[object]]]:
    """The table over several sets, in percent: this test with interval, floor and controls, then published rows.

    Args:
        values: Of each set, by name, what :meth:`Evaluation.values` gives with controls.

    Returns:
        Heading, with sets in the paper's order and the mean over them, and rows; published ones know the eight
        benchmarks only, and their mean is over the same sets.

    >>> heading, rows = benchmark_rows({"voc20": {"miou": 0.5, "miou_low": 0.4, "miou_high": 0.6, "random_miou": 0.1,
    ...                                           "miou_random_text": 0.2, "miou_oracle": 0.9}})
    >>> heading, rows[0], rows[6]
    (['mIoU, %', 'voc20', 'mean'], ['this test', 50.0, 50.0], ['CorrCLIP B/16 MetaCLIP, SAM 2 (32 points)', 88.8, 88.8])
    """
    order = sorted(values, key=lambda name: PAPER_ORDER.index(name) if name in PAPER_ORDER else len(PAPER_ORDER))
    kinds = {
        "this test": "miou",
        "lower end of 95 %": "miou_low",
        "upper end of 95 %": "miou_high",
        "floor: majority class": "random_miou",
        "control: random texts": "miou_random_text",
        "ceiling: oracle of regions": "miou_oracle",
    }
    rows: list[list[object]] = []
    for label, key in kinds.items():
        row = [100 * values[name][key] for name in order]
        ends = key in ("miou_low", "miou_high")  # those of a mean are no means of ends
        rows.append([label, *row, float("nan") if ends else sum(row) / len(row)])
    if set(order) <= set(PAPER_ORDER):
        for label, known in PUBLISHED.items():
            row = [known[PAPER_ORDER.index(name)] for name in order]
            rows.append([label, *row, sum(row) / len(row)])
    return ["mIoU, %", *order, "mean"], rows
