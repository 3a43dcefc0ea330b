"""Boundary regions and boundary IoU against eroded masks."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from lightning_modules.metrics import SegmentationScores
from lightning_modules.metrics.segmentation_boundary import boundary_distance, boundary_region


def eroded_region(mask, distance):
    """The part of a mask that eroding it takes away; the outside of the image is outside of the mask."""
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


def blobs(height, width, classes, seed):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, 5, 6, generator=g)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].argmax(0)


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 7, 8, 30])
@pytest.mark.parametrize("size", [(40, 61), (1, 30), (17, 1), (1, 1)])
def test_the_region_is_what_erosion_takes_from_each_class(distance, size):
    labels = blobs(*size, classes=4, seed=distance)
    wanted = np.zeros(size, bool)
    for label in range(4):
        wanted |= eroded_region(labels.numpy() == label, distance)
    assert np.array_equal(boundary_region(labels, distance).numpy(), wanted)


def test_distance_is_a_share_of_the_diagonal():
    assert boundary_distance(375, 500) == 12  # 12.5, rounded to even as Python does
    assert boundary_distance(1024, 2048) == 46
    assert boundary_distance(3, 4) == 1
    assert boundary_distance(300, 400, 0.1) == 50


def test_boundary_iou_is_that_of_the_masks_of_each_class():
    classes, ratio = 4, 0.05
    targets = [blobs(60, 80, classes, 1), blobs(45, 50, classes, 2), blobs(30, 90, classes, 3)]
    predictions = [torch.roll(target, (1, 2), (0, 1)) for target in targets]
    targets[0][10:14] = 255
    intersection, union = np.zeros(classes), np.zeros(classes)
    for prediction, target in zip(predictions, targets, strict=True):
        p, t, distance = prediction.numpy(), target.numpy(), boundary_distance(*target.shape, ratio)
        for label in range(classes):
            of_p, of_t = (eroded_region((side == label) & (t != 255), distance) for side in (p, t))
            intersection[label] += (of_p & of_t).sum()
            union[label] += (of_p | of_t).sum()
    metric = SegmentationScores(classes, boundary_ratio=ratio)
    metric.update(predictions, targets, torch.arange(3))
    np.testing.assert_array_equal(metric.per_class()["boundary_iou"], intersection / union)
    found = metric.compute()
    assert found["boundary_miou"] == pytest.approx((intersection / union).mean())
    assert found["boundary_miou"] < found["miou"]
    plain = SegmentationScores(classes, boundary_ratio=None)
    plain.update(predictions, targets, torch.arange(3))
    assert plain.compute() == {name: value for name, value in found.items() if name != "boundary_miou"}
    assert "boundary" not in plain.convention


def test_what_is_predicted_in_the_void_does_not_count():
    target = blobs(40, 50, 3, 4)
    target[:, 20:24] = 255
    shown = []
    for filling in (0, 1, 2):
        metric = SegmentationScores(3, boundary_ratio=0.05)
        metric.update([target.masked_fill(target == 255, filling)], [target], torch.tensor([0]))
        shown.append(metric.compute()["boundary_miou"])
    assert shown == [1, 1, 1]


def test_boundary_iou_by_hand():
    target = torch.zeros(9, 9).long()
    target[3:6, 3:6] = 1
    prediction = torch.zeros(9, 9).long()
    prediction[3:6, 4:7] = 1
    metric = SegmentationScores(2)  # a distance of 1
    metric.update([prediction], [target], torch.tensor([0]))
    # class 1: rings of 8 pixels, which share the upper and lower two
    assert metric.per_class()["boundary_iou"][1] == 4 / 12
    assert metric.per_class()["iou"][1] == 6 / 12
