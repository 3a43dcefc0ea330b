"""Detection scores against torchmetrics with faster-coco-eval, and against plain loops."""

import math
import time

import numpy as np
import pytest
import torch
from detection_worlds import naive_average_precision, world
from torchmetrics.detection import MeanAveragePrecision

from lightning_modules.metrics import DetectionScores, average_precisions, detection_curves, match_detections, recalls

THRESHOLDS = [0.05, 0.1, 0.2, 0.5]
GRID = np.linspace(0, 1, 101)  # of COCO
CASES = [
    {},
    {"ignored": 0.3},
    {"levels": 3},
    {"grid": True},
    {"grid": True, "levels": 2, "ignored": 0.5},
    {"classes": 1, "levels": 4},
    {"classes": 6, "most": 3},
    {"most": 40, "images": 4},
    {"most": 300, "images": 3, "classes": 1, "levels": 10},  # over the limit of detections
]


def by_torchmetrics(predictions, targets, classes, points):
    """(K, C) average precision and recall, NaN for a class without truths."""
    metric = MeanAveragePrecision(
        backend="faster_coco_eval",
        iou_thresholds=THRESHOLDS,
        rec_thresholds=points,
        class_metrics=True,
        extended_summary=True,
    )
    metric.warn_on_many_detections = False
    metric.update(predictions, [{**target, "iscrowd": target["ignore"]} for target in targets])
    result = metric.compute()
    values = np.full((2, len(THRESHOLDS), classes), np.nan)
    seen = result["classes"].reshape(-1).tolist()
    values[0][:, seen] = result["precision"][:, :, :, 0, -1].mean(dim=1)
    values[1][:, seen] = result["recall"][:, :, 0, -1]
    return np.where(values < 0, np.nan, values)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_equal_torchmetrics(case, monkeypatch):
    classes = case.get("classes", 3)
    for seed in range(12):
        predictions, targets = world(**case, seed=seed)
        metric = DetectionScores(classes)
        metric.update(predictions, targets, torch.arange(len(targets)))
        scores, matches = metric.compute(), metric.matches()
        found = np.stack([average_precisions(matches), recalls(matches)])
        wanted = by_torchmetrics(predictions, targets, classes, GRID.tolist())
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        for name, rows in zip(("ap", "recall"), wanted, strict=True):
            for threshold, row in zip(("05", "10", "20", "50"), rows, strict=True):
                mean = np.nanmean(row) if (~np.isnan(row)).any() else np.nan
                assert scores[f"{name}_{threshold}"] == pytest.approx(mean, abs=1e-6, nan_ok=True)
                np.testing.assert_allclose(metric.per_class()[f"{name}_{threshold}"], row, atol=1e-6)
        counted = torch.cat([target["labels"][target["ignore"] == 0] for target in targets])
        assert scores["num_truths"] == len(counted)
        assert scores["classes_scored"] == len(counted.unique())
        assert scores["num_images"] == len(targets)

        # the recall points that torchmetrics takes by itself are these of float32
        with monkeypatch.context() as patch:
            patch.setitem(detection_curves.POINTS, "coco101", torch.linspace(0, 1, 101).double().numpy())
            rounded = average_precisions(matches)
        np.testing.assert_allclose(rounded, by_torchmetrics(predictions, targets, classes, None)[0], atol=1e-6)


@pytest.mark.parametrize("interpolation", ["coco101", "area", "voc07"])
@pytest.mark.parametrize("case", CASES[:7], ids=str)
def test_scores_are_those_of_plain_loops(case, interpolation):
    classes = case.get("classes", 3)
    for seed in range(3):
        predictions, targets = world(**case, seed=seed)
        matches = match_detections(predictions, targets, classes, THRESHOLDS)
        found = np.stack([average_precisions(matches, interpolation), recalls(matches)])
        for k, threshold in enumerate(THRESHOLDS):
            for label in range(classes):
                wanted = naive_average_precision(predictions, targets, threshold, label, interpolation)
                assert found[:, k, label] == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_a_curve_worked_out_by_hand():
    """Hit, miss, hit of four truths: precision 1 up to recall 1/4, 2/3 up to 1/2, then 0."""
    far = [[50.0 + 10 * i, 0, 55 + 10 * i, 5] for i in range(4)]
    found = {"boxes": [far[0], [0, 0, 5, 5], far[1]], "scores": [0.9, 0.8, 0.7], "labels": [0, 0, 0]}
    matches = match_detections([found], [{"boxes": far, "labels": [0] * 4}], 1, [0.5])
    assert average_precisions(matches, "area").item() == pytest.approx(1 / 4 + 2 / 3 / 4)
    assert average_precisions(matches, "voc07").item() == pytest.approx((3 + 3 * 2 / 3) / 11)
    assert average_precisions(matches, "coco101").item() == pytest.approx((26 + 25 * 2 / 3) / 101)
    assert recalls(matches).item() == 0.5


def test_without_truths_nothing_is_known():
    metric = DetectionScores(2)
    metric.update([{"boxes": [[0, 0, 1, 1]], "scores": [1.0], "labels": [0]}], [{"boxes": [], "labels": []}], [0])
    scores = metric.compute()
    assert math.isnan(scores["ap_50"])
    assert math.isnan(scores["recall_50"])
    assert scores["classes_scored"] == scores["num_truths"] == 0


def test_batches_do_not_matter_and_an_index_counts_once():
    predictions, targets = world(images=20, ignored=0.2)
    whole = DetectionScores(3)
    whole.update(predictions, targets, torch.arange(20))
    parts = DetectionScores(3)
    for rows in (range(10, 20), range(10), range(8, 12)):
        parts.update([predictions[i] for i in rows], [targets[i] for i in rows], torch.tensor(rows))
    assert parts.compute() == whole.compute()
    data, index = parts.collected()
    assert index.tolist() == list(range(20))
    for found, wanted in zip(data, whole.collected()[0], strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_names_are_thresholds_in_percent():
    metric = DetectionScores(1, thresholds=(0.5, 0.75, 1.0))
    assert metric.names == ["50", "75", "100"]
    assert "coco101" in metric.convention


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_unsuitable_use_is_refused():
    with pytest.raises(ValueError, match="num_classes is 0"):
        DetectionScores(0)
    with pytest.raises(ValueError, match="whole percents"):
        DetectionScores(1, thresholds=(0.5, 0.501))
    with pytest.raises(ValueError, match="interpolation is 'coco'"):
        average_precisions(match_detections([], [], 1), "coco")
    predictions, targets = world(images=4, most=8)
    metric = DetectionScores(3)
    with pytest.raises(ValueError, match="4 images and 3 indices"):
        metric.update(predictions, targets, torch.arange(3))
    with pytest.raises(ValueError, match="no image"):
        DetectionScores(3).compute()
    metric.update(predictions, targets, torch.zeros(4))
    with pytest.raises(ValueError, match="share index 0"):
        metric.compute()


@pytest.mark.slow
def test_it_is_much_faster_than_torchmetrics():
    predictions, targets = world(images=300, classes=20, most=50)
    metric = DetectionScores(20)
    metric.update(predictions[:2], targets[:2], torch.arange(2))
    metric.compute()  # compiles
    begin = time.perf_counter()
    metric.update(predictions[2:], targets[2:], torch.arange(2, 300))
    metric.compute()
    middle = time.perf_counter()
    by_torchmetrics(predictions, targets, 20, None)
    assert time.perf_counter() - middle > 4 * (middle - begin)  # 20 to 50 measured
