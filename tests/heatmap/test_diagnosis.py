"""Coverage of patches, gaps and ROC areas against pixels, pairs and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_modules.heatmap.diagnosis import (
    area_under_roc,
    batch_coverage,
    box_coverage,
    class_coverage,
    diagnose,
    gap_summary,
    gaps_by_class,
)


def test_coverage_is_the_share_of_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(4, 13, 2) * 6
        x, y = np.sort(rng.integers(0, width + 1, 2)), np.sort(rng.integers(0, height + 1, 2))
        mask = np.zeros((height, width))
        mask[y[0] : y[1], x[0] : x[1]] = 1
        wanted = mask.reshape(3, height // 3, 2, width // 2).mean((1, 3))
        box = torch.tensor([[x[0], y[0], x[1], y[1]]], dtype=torch.float32)
        np.testing.assert_allclose(box_coverage(box, (height, width), (3, 2)).numpy(), wanted, atol=1e-6)


def test_ignored_objects_cover_nothing() -> None:
    boxes, labels = torch.tensor([[0.0, 0, 4, 8], [4, 0, 8, 8]]), torch.tensor([0, 1])
    columns = {"boxes": [boxes, boxes], "box_labels": [labels, labels], "size": torch.tensor([[8, 8], [8, 8]])}
    ignore = [torch.tensor([False, False]), torch.tensor([False, True])]
    left, right, nothing = [[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]
    assert batch_coverage({**columns, "ignore": ignore}, 2, (1, 2)).tolist() == [[left, right], [left, nothing]]


def test_coverage_of_several_boxes_and_classes() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8], [0, 0, 8, 4]])
    found = class_coverage(boxes, torch.tensor([1, 1, 0]), 3, (8, 8), (2, 2))
    assert found.tolist() == [[[1, 1], [0, 0]], [[1, 0], [0, 1]], [[0, 0], [0, 0]]]
    assert box_coverage(boxes[[0, 0]], (8, 8), (2, 2)).max() == 1  # never above 1
    assert box_coverage(boxes[:0], (8, 8), (2, 2)).tolist() == [[0, 0], [0, 0]]


def test_roc_area_is_the_share_of_pairs() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        scores = torch.from_numpy(rng.integers(0, 6, 20).astype(np.float32))
        positive = torch.from_numpy(rng.random(20) < 0.4)
        if positive.all() or not positive.any():
            continue
        pairs = [(h > n) + 0.5 * (h == n) for h in scores[positive].tolist() for n in scores[~positive].tolist()]
        assert area_under_roc(scores, positive) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(area_under_roc(torch.ones(3), torch.zeros(3, dtype=torch.bool)))


def test_diagnosis_of_an_image() -> None:
    maps = torch.tensor([[[0.1, 0.2], [0.4, 0.9]], [[0.5, 0.5], [0.5, 0.1]], [[0.0, 1.0], [2.0, 3.0]]])
    coverage = torch.zeros(3, 2, 2)
    coverage[0, 1, 1] = 1.0  # the highest patch
    coverage[1, 1, 1] = 0.2  # a small object: its best patch stands for it
    coverage[2] = 1.0  # covers everything: nothing outside to compare with
    rows = diagnose(maps, coverage, index=7)
    np.testing.assert_allclose(
        rows.numpy(), [[7, 0, 0.9, 0.7 / 3, 0.9 - 0.7 / 3, 1.0, 1], [7, 1, 0.1, 0.5, -0.4, 0.0, 1]], atol=1e-6
    )


def test_summary_and_classes() -> None:
    rows = torch.zeros(4, 7, dtype=torch.float64)
    rows[:, 0] = torch.tensor([3.0, 3, 5, 9])
    rows[:, 1] = torch.tensor([0.0, 2, 0, 0])
    rows[:, 4] = torch.tensor([0.2, -0.1, 0.4, 0.1])
    rows[:, 5] = torch.tensor([0.9, 0.4, float("nan"), 0.8])
    found = gap_summary(rows)
    assert found["gap"] == pytest.approx(0.15)
    assert found["gap_positive"] == 0.75
    assert found["patch_auroc"] == pytest.approx(0.7)
    assert found["gap_low"] < 0.15 < found["gap_high"]
    assert found["gap_low"] == pytest.approx(0.05)  # the bootstrap's worst draw: thrice the first image
    by_class = gaps_by_class(rows, 3)
    assert by_class[0] == pytest.approx(0.7 / 3)
    assert torch.isnan(by_class[1])
    assert by_class[2] == pytest.approx(-0.1)
    assert gap_summary(rows[:0]) == {}
