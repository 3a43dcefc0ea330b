"""Bootstrap intervals of detections against redraws whose images are matched and scored anew."""

import math

import numpy as np
import pytest
import torch
from detection_worlds import world

from lightning_modules.metrics import (
    average_precision_difference,
    average_precisions,
    bootstrap_average_precision,
    class_means,
    detection_intervals,
    match_detections,
)

THRESHOLDS = (0.05, 0.5)


def make(images=15, seed=0, **case):
    predictions, targets = world(images=images, seed=seed, **case)
    return predictions, targets, match_detections(predictions, targets, 3, THRESHOLDS)


def redraws(predictions, targets, number, seed, interpolation):
    """(number, K) mean average precision of images that are really drawn, each class centred on its value."""
    rng = np.random.default_rng(seed)
    value = average_precisions(match_detections(predictions, targets, 3, THRESHOLDS), interpolation)
    found = []
    for _ in range(number):
        rows = sorted(rng.integers(0, len(targets), len(targets), dtype=np.int32).tolist())
        drawn = match_detections([predictions[i] for i in rows], [targets[i] for i in rows], 3, THRESHOLDS)
        found.append(average_precisions(drawn, interpolation))
    present = ~np.isnan(value[0])
    value, found = value[:, present], np.stack(found)[:, :, present]
    centred = found - np.nanmean(found, axis=0) + value
    return np.where(np.isnan(found), value, centred).mean(axis=2)


@pytest.mark.parametrize("interpolation", ["coco101", "area", "voc07"])
@pytest.mark.parametrize("at_once", [20, 2**22])  # redraws one by one, or all together
def test_intervals_are_those_of_real_redraws(interpolation, at_once, monkeypatch):
    monkeypatch.setattr(detection_intervals, "DRAWS_AT_ONCE", at_once)
    for seed in range(3):
        predictions, targets, matches = make(seed=seed, ignored=0.2)
        wanted = redraws(predictions, targets, 40, seed + 5, interpolation)
        value, low, high = bootstrap_average_precision(matches, 40, 0.9, seed + 5, interpolation)
        np.testing.assert_allclose(value, class_means(average_precisions(matches, interpolation)))
        np.testing.assert_allclose([low, high], np.quantile(wanted, [0.05, 0.95], axis=0).clip(0, 1), atol=1e-9)

        worse = [{**p, "scores": p["scores"].flip(0)} for p in predictions]
        other = match_detections(worse, targets, 3, THRESHOLDS)
        others = redraws(worse, targets, 40, seed + 5, interpolation)
        difference, low, high = average_precision_difference(matches, other, 40, 0.9, seed + 5, interpolation)
        np.testing.assert_allclose(difference, value - class_means(average_precisions(other, interpolation)))
        np.testing.assert_allclose([low, high], np.quantile(wanted - others, [0.05, 0.95], axis=0), atol=1e-9)


def test_duplicates_lift_redraws_and_centring_takes_that_back():
    """One truth a class, found behind many misses: drawn twice it stands above itself."""
    box, far = [0, 0, 2, 2], [4, 4, 6, 6]
    found = [{"boxes": [far, box], "scores": [0.5 + i / 100, 0.4], "labels": [i % 6] * 2} for i in range(30)]
    targets = [{"boxes": [box] if i < 6 else [], "labels": [i] if i < 6 else []} for i in range(30)]
    matches = match_detections(found, targets, 6, [0.5])
    value = class_means(average_precisions(matches))
    draws = np.random.default_rng(0).multinomial(30, [1 / 30] * 30, size=500)
    plain = detection_intervals.weighted_average_precisions(matches, draws)
    assert np.nanmean(plain) > value + 0.04
    _, low, high = bootstrap_average_precision(matches)
    assert low < value < high
    assert abs((low + high) / 2 - value) < 0.03


@pytest.mark.slow
def test_coverage_of_the_expected_value():
    """Of 150 samples of 40 images, about 95 % of the intervals hold the mean of all 150 values."""
    intervals = []
    for seed in range(150):
        _, _, matches = make(images=40, seed=seed)
        intervals.append([end[1] for end in bootstrap_average_precision(matches, 200)])
    values, low, high = np.array(intervals).T
    held = (low <= values.mean()) & (values.mean() <= high)
    assert 0.85 <= held.mean() <= 0.99


def test_a_detector_does_not_differ_from_itself_and_beats_a_worse_one():
    predictions, targets, matches = make(images=80)
    assert all((part == 0).all() for part in average_precision_difference(matches, matches, 50))
    worse = [
        {**p, "scores": torch.rand(len(p["scores"]), generator=torch.Generator().manual_seed(0))}
        for p in targets_moved(predictions)
    ]
    difference, low, _ = average_precision_difference(matches, match_detections(worse, targets, 3, THRESHOLDS))
    assert (difference > low).all()
    assert (low > 0).all()


def targets_moved(predictions):
    """Detections 30 pixels away from where they should be."""
    return [{**p, "boxes": p["boxes"] + 30} for p in predictions]


def test_intervals_repeat_and_tighten():
    _, _, matches = make(images=60)
    first = bootstrap_average_precision(matches, seed=1)
    np.testing.assert_array_equal(first, bootstrap_average_precision(matches, seed=1))
    narrow = bootstrap_average_precision(matches, confidence=0.5, seed=1)
    assert (narrow.high - narrow.low < first.high - first.low).all()


def test_without_truths_nothing_is_known():
    nothing = {"boxes": [], "scores": [], "labels": []}
    matches = match_detections([nothing] * 3, [nothing] * 3, 2, [0.5])
    assert all(math.isnan(part.item()) for part in bootstrap_average_precision(matches, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"confidence": 95}, "confidence is 95"), ({"num_redraws": 0}, "num_redraws"), ({"interpolation": "x"}, "one of")],
)
def test_unsuitable_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_average_precision(make()[2], **arguments)


def test_other_images_are_refused():
    predictions, targets, matches = make()
    with pytest.raises(ValueError, match="thresholds"):
        average_precision_difference(matches, match_detections(predictions, targets, 3, [0.1, 0.5]))
    with pytest.raises(ValueError, match="truths of each image"):
        average_precision_difference(matches, make(seed=1)[2])
    with pytest.raises(ValueError, match="no image"):
        bootstrap_average_precision(match_detections([], [], 1))
