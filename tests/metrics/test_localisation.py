"""Pixel average precision against scikit-learn over pooled pixels; box accuracy against plain loops."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from lightning_modules.metrics import PixelAveragePrecision, max_box_accuracy, pixel_average_precision
from lightning_modules.metrics.localisation import count_levels


def make(images=10, classes=3, size=12, seed=0, levels=2**11, scale=1.0):
    """Maps rounded to ``levels``, higher inside boxes; the last class is in no image."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.zeros(images, classes, size, size, dtype=torch.bool)
    for image in range(images):
        for label in range(classes - 1):
            if torch.rand(1, generator=g) < 0.6:
                x, y = torch.randint(0, size - 4, (2,), generator=g)
                truth[image, label, y : y + 4, x : x + 3] = True
    maps = torch.randn(truth.shape, generator=g) * 0.3 + 0.3 * truth
    return ((maps * levels).round() / levels) * scale, truth


def pooled(maps, truth, label):
    """Average precision over the pixels of the images with the class, and the share inside."""
    rows = truth[:, label].flatten(1).any(dim=1)
    inside, scores = truth[rows, label].flatten().numpy(), maps[rows, label].flatten().double().numpy()
    return average_precision_score(inside, scores), inside.mean()


@pytest.mark.parametrize(("levels", "resolution"), [(2**11, 2**-11), (8, 2**-11), (8, 0.125)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_average_precision_of_pooled_pixels(levels, resolution, dtype):
    maps, truth = make(levels=levels)
    metric = PixelAveragePrecision(3, resolution)
    for rows in torch.arange(10).split(4):
        metric.update(maps[rows].to(dtype), truth[rows], rows)
    wanted = [pooled(maps, truth, label) for label in range(2)]
    found = metric.per_class()
    np.testing.assert_allclose(found["pxap"], [*(ap for ap, _ in wanted), np.nan], atol=1e-12)
    np.testing.assert_allclose(found["random_pxap"], [*(floor for _, floor in wanted), np.nan], atol=1e-12)
    present = truth.flatten(2).any(dim=2).sum(dim=0)
    assert found["maps_scored"].tolist() == present.tolist()
    scores = metric.compute()
    assert scores["pxap"] == pytest.approx(np.mean([ap for ap, _ in wanted]))
    assert scores["random_pxap"] == pytest.approx(np.mean([floor for _, floor in wanted]))
    assert (scores["classes_scored"], scores["maps_scored"]) == (2, present.sum())


def test_scores_of_any_size_need_a_resolution_that_fits():
    maps, truth = make()
    for scale in (100.0, 2.0**-20):
        metric = PixelAveragePrecision(3, resolution=2**-11 * scale)
        metric.update(maps * scale - 7 * scale, truth, torch.arange(10))
        assert metric.per_class()["pxap"][0] == pytest.approx(pooled(maps, truth, 0)[0])


def test_finer_levels_than_the_resolution_hardly_matter():
    g = torch.Generator().manual_seed(0)
    maps, truth = make(images=40)
    maps = maps + torch.rand(maps.shape, generator=g) / 2**11
    metric = PixelAveragePrecision(3)
    metric.update(maps, truth, torch.arange(40))
    assert metric.per_class()["pxap"][1] == pytest.approx(pooled(maps, truth, 1)[0], abs=1e-3)


def test_the_default_suits_flat_maps():
    maps, truth = make(images=40)
    maps = (maps + torch.rand(maps.shape, generator=torch.Generator().manual_seed(0)) / 2**11) / 30  # deviation .01
    metric = PixelAveragePrecision(3)
    metric.update(maps, truth, torch.arange(40))
    assert metric.per_class()["pxap"][0] == pytest.approx(pooled(maps, truth, 0)[0], abs=1e-3)


def test_constant_and_perfect_maps():
    truth = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
    truth[..., :2] = True
    for maps, wanted in ((torch.zeros(truth.shape), 8 / 20), (truth.float(), 1.0)):
        metric = PixelAveragePrecision(1)
        metric.update(maps, truth, torch.tensor([0]))
        assert metric.compute()["pxap"] == pytest.approx(wanted)
        assert metric.compute()["random_pxap"] == pytest.approx(8 / 20)


def test_an_index_counts_once_even_if_its_map_differs_a_little():
    maps, truth = make()
    once, twice = PixelAveragePrecision(3), PixelAveragePrecision(3)
    for metric in (once, twice):
        metric.update(maps, truth, torch.arange(10))
    twice.update(maps[:3] + 0.01, truth[:3], torch.arange(3))
    assert once.compute() == twice.compute()


def test_levels_are_counts_of_pixels():
    maps = torch.tensor([[[-0.5, 0.5], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.25]]])
    truth = torch.tensor([[[1, 1], [0, 1]], [[0, 0], [0, 1]]]).bool()
    levels, sizes = count_levels(maps, truth, 0.25)
    assert levels.tolist() == [[-3, 1], [4, 1], [5, 2], [0, 3], [3, 1]]
    assert sizes.tolist() == [3, 2]


def test_counts_of_pixels_weigh_scores():
    scores, inside, outside = np.array([0.2, 0.9, 0.2, 0.5]), np.array([3, 1, 0, 2]), np.array([1, 0, 2, 4])
    pixels = [(s, y) for s, i, o in zip(scores, inside, outside, strict=True) for y in [1] * i + [0] * o]
    wanted = average_precision_score([y for _, y in pixels], [s for s, _ in pixels])
    assert pixel_average_precision(scores, inside, outside) == pytest.approx(wanted)
    assert math.isnan(pixel_average_precision(np.array([4]), np.array([0]), np.array([1])))


def test_unsuitable_maps_are_refused():
    maps, truth = make()
    metric = PixelAveragePrecision(3)
    with pytest.raises(ValueError, match="do not belong together"):
        metric.update(maps[:, :2], truth[:, :2], torch.arange(10))
    with pytest.raises(ValueError, match="9 indices"):
        metric.update(maps, truth, torch.arange(9))
    for wrong in (float("nan"), float("inf"), 1e9):
        with pytest.raises(ValueError, match="not finite, or too large"):
            metric.update(torch.full_like(maps, wrong), truth, torch.arange(10))
    metric.update(maps, torch.zeros_like(truth), torch.arange(10))
    with pytest.raises(ValueError, match="no map of a present class"):
        metric.compute()
    with pytest.raises(ValueError, match="resolution is 0"):
        PixelAveragePrecision(3, 0)
    with pytest.raises(ValueError, match="num_classes is 0"):
        PixelAveragePrecision(0)


def test_box_accuracy_chooses_a_threshold_for_each_delta():
    overlaps = np.random.default_rng(0).random((7, 30))

    def accuracy(delta):
        return max(sum(value >= delta for value in row) / 30 for row in overlaps.tolist())

    assert max_box_accuracy(overlaps) == pytest.approx(accuracy(0.5))
    three = (0.3, 0.5, 0.7)
    assert max_box_accuracy(overlaps, three) == pytest.approx(sum(map(accuracy, three)) / 3)
    assert max_box_accuracy(np.array([[0.5]])) == 1
    with pytest.raises(ValueError, match="overlaps"):
        max_box_accuracy(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="NaN"):
        max_box_accuracy(np.array([[np.nan]]))
