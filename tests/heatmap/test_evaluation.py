"""What a test makes of objects that do not count, and of images without objects."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_modules.heatmap.detector import CONTROLS, BoxRule, detect_batch
from lightning_modules.heatmap.diagnosis import batch_coverage
from lightning_modules.heatmap.evaluation import DetectorScores

BOXES = torch.tensor([[20.0, 20, 50, 50], [60, 60, 80, 80], [0, 60, 20, 80]])
LABELS = torch.tensor([0, 1, 0])


def scored(count: int, ignored: int) -> tuple[dict[str, float], DetectorScores]:
    """A test of four images with the first ``count`` boxes, of which the last ``ignored`` do not count."""
    scores, generator = DetectorScores(2, ("heatmap", *CONTROLS), 100), torch.Generator().manual_seed(0)
    ignore = torch.arange(count) >= count - ignored
    target = {"boxes": BOXES[:count], "labels": LABELS[:count], "ignore": ignore}
    box = {"boxes": BOXES[:1], "scores": torch.tensor([0.9]), "labels": LABELS[:1]}
    for index in range(4):
        maps = torch.rand(1, 2, 8, 8, generator=generator)
        maps[0, 0, 2:5, 2:5] += 2
        batch = {**{name: [value] for name, value in target.items()}, "size": torch.tensor([[80, 80]])}
        coverage = batch_coverage({**batch, "box_labels": batch["labels"]}, 2, (8, 8))
        found = {name: [box] for name in scores.detectors}
        scores.update(torch.tensor([index]), [target], found, maps, coverage, batch["size"], 80)
    return scores.compute(intervals=True), scores


def test_ignored_objects_change_no_figure() -> None:
    without, with_them = scored(1, 0)[0], scored(3, 2)[0]
    assert with_them["gap"] > 1.9
    assert with_them["max_box_accuracy"] == 1
    assert with_them == pytest.approx(without, nan_ok=True)
    assert scored(3, 0)[0]["gap"] < 1


def test_images_without_objects_have_figures() -> None:
    values, scores = scored(0, 0)
    assert math.isnan(values["ap_50"])
    assert values["num_images"] == 4
    assert not {"pxap", "random_pxap", "max_box_accuracy", "max_box_accuracy_v2", "gap"} & set(values)
    heading, rows = scores.tables(["a", "b"])["classes.csv"]
    assert [row[:2] for row in rows] == [["a", 0], ["b", 0]]
    assert all(math.isnan(row[heading.index("pxap")]) for row in rows)


@pytest.mark.parametrize(("ignored", "classes"), [(0, [0, 1]), (1, [0, 1]), (2, [0]), (3, [])])
def test_what_does_not_count_is_not_present(ignored, classes) -> None:
    batch = {"box_labels": [LABELS], "ignore": [torch.arange(3) >= 3 - ignored]}
    batch |= {"size": torch.tensor([[80, 80]]), "index": torch.tensor([0])}
    rule, maps = BoxRule("quantile", 75.0, "grid", "max", 0.0, 100, None), torch.rand(1, 2, 8, 8)
    found = detect_batch(rule, batch, maps, torch.ones(1, 2), None, "present", 1, controls=False)
    assert found["heatmap"][0]["labels"].unique().tolist() == classes
