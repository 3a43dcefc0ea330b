"""Scores of a trained detector against torchmetrics with faster-coco-eval, on random worlds."""

import math

import numpy as np
import pytest
from detection_worlds import naive_average_precision, world
from torchmetrics.detection import MeanAveragePrecision

from lightning_modules.detection.evaluation import HEADLINE, IOUS, class_rows, coco_scores, full_scores, shuffled
from lightning_modules.metrics import class_means, flatten_detections, match_detections, tide_errors, tide_gains
from lightning_modules.metrics.detection_intervals import bootstrap_average_precision
from lightning_modules.metrics.tide import TYPES

CASES = [
    {},
    {"ignored": 0.3},
    {"grid": True, "levels": 3, "ignored": 0.3},
    {"classes": 1, "levels": 4},
    {"classes": 6, "most": 3},
    {"most": 40, "images": 4},
    {"most": 260, "images": 3, "classes": 1},  # over the limit of detections
]
COCO = ("ap", "ap_50", "ap_75", "recall_50")


def by_torchmetrics(predictions, targets, classes):
    """COCO's scores, and those of each class by name; NaN without truths."""
    targets = [{**target, "iscrowd": target["ignore"]} for target in targets]
    results = []
    for thresholds in (list(IOUS), [0.5]):
        metric = MeanAveragePrecision(
            backend="faster_coco_eval",
            iou_thresholds=thresholds,
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            class_metrics=True,
            extended_summary=True,
        )
        metric.warn_on_many_detections = False
        metric.update(predictions, targets)
        results.append(metric.compute())
    every, half = results
    whole = dict(zip(COCO, (every["map"], every["map_50"], every["map_75"], half["mar_100"]), strict=True))
    seen = every["classes"].reshape(-1).tolist()
    precision = every["precision"][:, :, :, 0, -1].mean(dim=1)  # (10, seen)
    rows = {name: np.full(classes, np.nan) for name in COCO}
    values = (precision.mean(dim=0), precision[0], precision[5], half["recall"][0, :, 0, -1])
    for name, value in zip(COCO, values, strict=True):
        rows[name][seen] = np.where(value < 0, np.nan, value)
    return {name: math.nan if value < 0 else value.item() for name, value in whole.items()}, rows


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_are_those_of_torchmetrics(case):
    classes = case.get("classes", 3)
    for seed in range(4):
        predictions, targets = world(**case, seed=seed)
        data = flatten_detections(predictions, targets)
        whole, rows = by_torchmetrics(predictions, targets, classes)
        assert coco_scores(data, classes) == pytest.approx(whole, abs=1e-6, nan_ok=True)
        header, table = class_rows(data, [f"class {k}" for k in range(classes)])
        columns = dict(zip(header, zip(*table, strict=True), strict=True))
        for name in COCO:
            np.testing.assert_allclose(columns[name], rows[name], atol=1e-6)


def test_thresholds_are_those_of_coco():
    assert IOUS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    predictions, targets = world(images=8, seed=3)
    scores = [[naive_average_precision(predictions, targets, iou, label) for label in range(3)] for iou in IOUS]
    ap = np.nanmean(np.array(scores)[..., 0], axis=1)
    recall = np.nanmean(np.array(scores)[0, :, 1])
    wanted = {"ap": ap.mean(), "ap_50": ap[0], "ap_75": ap[5], "recall_50": recall}
    assert coco_scores(flatten_detections(predictions, targets), 3) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("case", [{}, {"ignored": 0.3}, {"images": 2}, {"classes": 1, "levels": 3}], ids=str)
def test_the_floor_is_the_score_of_the_next_image(case):
    classes = case.get("classes", 3)
    for seed in range(4):
        predictions, targets = world(**case, seed=seed)
        data = flatten_detections(predictions, targets)
        others = [predictions[i - 1] for i in range(len(predictions))]
        wanted = flatten_detections(others, targets)
        for found, value in zip(shuffled(data), wanted, strict=True):
            np.testing.assert_array_equal(found, value)
        floors, _ = by_torchmetrics(others, targets, classes)
        scores = full_scores(data, classes)
        found = {name: scores[f"random_{name}"] for name in COCO}
        assert found == pytest.approx(floors, abs=1e-6, nan_ok=True)


def test_a_detector_that_knows_the_place_alone_is_at_its_floor():
    """One object of one class, always at the same place, and never looked for elsewhere."""
    box = {"boxes": [[0, 0, 4, 4]], "labels": [0]}
    data = flatten_detections([{**box, "scores": [0.5]}] * 6, [box] * 6)
    scores = full_scores(data, 1)
    assert all(scores[name] == scores[f"random_{name}"] == 1 for name in COCO)
    elsewhere = [{"boxes": [[10 * i, 0, 10 * i + 4, 4]], "labels": [0]} for i in range(6)]
    scores = full_scores(flatten_detections([{**one, "scores": [0.5]} for one in elsewhere], elsewhere), 1)
    assert all(scores[name] == 1 for name in COCO)
    assert all(scores[f"random_{name}"] == 0 for name in COCO)


def test_a_test_reports_interval_gains_and_numbers_of_errors():
    predictions, targets = world(images=30, most=12, ignored=0.1, seed=9)  # has all types
    data = flatten_detections(predictions, targets)
    scores = full_scores(data, 3)
    assert set(scores) == {
        *COCO,
        *(f"random_{name}" for name in COCO),
        "ap_50_low",
        "ap_50_high",
        "dap_false_positive",
        "dap_false_negative",
        *(f"{what}_{name}" for what in ("dap", "num") for name in TYPES),
    }
    assert all(isinstance(value, float) for value in scores.values())
    assert all(any(f"test/{name}".endswith(end) for name in scores) for end in HEADLINE)
    assert {name: scores[name] for name in COCO} == coco_scores(data, 3)

    interval = bootstrap_average_precision(match_detections(predictions, targets, 3, [0.5]))
    assert scores["ap_50"] == pytest.approx(interval.value.item())
    assert (scores["ap_50_low"], scores["ap_50_high"]) == (interval.low.item(), interval.high.item())
    assert 0 < scores["ap_50_low"] < scores["ap_50"] < scores["ap_50_high"] < 1

    errors = tide_errors(data, 3)
    gains = tide_gains(errors)
    for name, gain in gains.items():
        assert scores[f"dap_{name}"] == pytest.approx(class_means(gain).item())
    for kind, name in enumerate(TYPES):
        number = (errors.kind == kind).sum() if name != "missed" else errors.missed.sum()
        assert scores[f"num_{name}"] == number > 0


def test_each_class_has_its_row():
    predictions, targets = world(images=30, classes=4, most=12, ignored=0.3, seed=5)
    data = flatten_detections(predictions, targets)
    header, rows = class_rows(data, ["ship", "plane", "harbour", "never"])
    assert header == [
        *("class", "boxes", "ap", "ap_50", "ap_75", "recall_50"),
        *(f"dap_{name}" for name in ("localisation", "class", "both", "duplicate", "background", "missed")),
        *(f"num_{name}" for name in ("localisation", "class", "both", "duplicate", "background", "missed")),
    ]
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["class"] for row in table] == ["ship", "plane", "harbour", "never"]
    labels = [
        label
        for target in targets
        for label, ignored in zip(target["labels"].tolist(), target["ignore"].tolist(), strict=True)
        if not ignored
    ]
    assert [row["boxes"] for row in table] == [labels.count(label) for label in range(4)]
    assert table[3]["boxes"] == 0
    assert math.isnan(table[3]["ap"])
    assert math.isnan(table[3]["dap_background"])
    scores = full_scores(data, 4)
    for name in header[2:]:
        values = [row[name] for row in table]
        assert all(type(value) in (int, float) for value in values)  # a table of plain numbers
        whole = sum(values) if name.startswith("num_") else np.nanmean(values)
        assert scores[name] == pytest.approx(whole)


def test_without_truths_or_detections():
    nothing, truth = {"boxes": [], "labels": []}, {"boxes": [[0, 0, 4, 4]], "labels": [1]}
    found = {**truth, "scores": [0.5]}
    scores = full_scores(flatten_detections([found] * 3, [nothing] * 3), 2)
    assert all(math.isnan(scores[name]) for name in (*COCO, "random_ap", "ap_50_low", "dap_background"))
    assert scores["num_background"] == 3
    scores = full_scores(flatten_detections([{**nothing, "scores": []}] * 3, [truth] * 3), 2)
    assert all(scores[name] == 0 for name in (*COCO, "random_ap", "ap_50_high"))
    assert scores["num_missed"] == 3
