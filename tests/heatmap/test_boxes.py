import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_modules.heatmap.boxes import boxes_from_maps, component_boxes, upsample
from lightning_modules.heatmap.controls import random_maps
from lightning_modules.heatmap.thresholds import RULES, map_thresholds


def scipy_components(image, threshold, connectivity):
    """Boxes, areas, maxima and means by scipy."""
    image = image.numpy()
    labels, count = ndimage.label(image >= threshold, np.ones((3, 3)) if connectivity == 8 else None)
    index = np.arange(1, count + 1)
    boxes = [[xs.start, ys.start, xs.stop, ys.stop] for ys, xs in ndimage.find_objects(labels)]
    return (
        np.array(boxes, dtype=np.int64).reshape(-1, 4),
        np.bincount(labels.ravel(), minlength=count + 1)[1:],
        np.asarray(ndimage.maximum(image, labels, index) if count else [], np.float32),
        np.asarray(ndimage.mean(image.astype(np.float64), labels, index) if count else []),
    )


def assert_equal_to_scipy(maps, thresholds, connectivity=8):
    found = component_boxes(maps, thresholds, connectivity)
    assert torch.equal(found.maps, found.maps.sort().values)
    for index, image in enumerate(maps):
        mine = found.maps == index
        boxes, areas, maxima, means = scipy_components(
            image, thresholds[index].double().numpy(), connectivity
        )  # float64
        np.testing.assert_array_equal(found.boxes[mine].numpy(), boxes)
        np.testing.assert_array_equal(found.areas[mine].numpy(), areas)
        np.testing.assert_array_equal(found.maxima[mine].numpy(), maxima)
        np.testing.assert_allclose(found.means[mine].numpy(), means, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_thousands_of_random_maps_against_scipy(connectivity):
    rng = np.random.default_rng(connectivity)
    for _ in range(150):
        height, width = rng.integers(1, 40, 2)
        maps = torch.from_numpy(rng.normal(size=(10, height, width)).astype(np.float32))
        thresholds = torch.from_numpy(rng.normal(size=10))
        assert_equal_to_scipy(maps, thresholds, connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("grid", [7, 14])
def test_smooth_maps_against_scipy(connectivity, grid):
    noise = torch.randn(1, 20, grid, grid, generator=torch.Generator().manual_seed(grid))
    maps = upsample(noise, (160, 233))[0]
    for rule, value in (("quantile", 75), ("quantile", 30), ("otsu", None)):
        assert_equal_to_scipy(maps, map_thresholds(maps, rule, value), connectivity)


def spiral(size):
    """One arm that winds inwards: its runs meet again and again, and always are one component."""
    image, y, x, step = np.zeros((size, size), np.float32), 0, 0, (0, 1)
    image[0, 0] = 1
    while True:
        for _ in range(2):
            far_y, far_x = y + 2 * step[0], x + 2 * step[1]
            if (
                0 <= y + step[0] < size
                and 0 <= x + step[1] < size
                and not (0 <= far_y < size and 0 <= far_x < size and image[far_y, far_x])
            ):
                break
            step = (step[1], -step[0])
        else:
            return image
        y, x = y + step[0], x + step[1]
        if image[y, x]:
            return image
        image[y, x] = 1


COMB = np.zeros((9, 31), np.float32)
COMB[:, ::2] = 1
COMB[-1] = 1  # sixteen labels that the last row unites

SHAPES = {
    "all inside": np.ones((5, 70), np.float32),
    "all outside": np.zeros((5, 70), np.float32),
    "checkerboard": np.indices((17, 24)).sum(0).astype(np.float32) % 2,
    "checkerboard of odd size": (np.indices((15, 15)).sum(0).astype(np.float32) + 1) % 2,
    "one row": (np.arange(33, dtype=np.float32) % 3 > 0).astype(np.float32)[None],
    "one column": (np.arange(33, dtype=np.float32) % 3 > 0).astype(np.float32)[:, None],
    "one pixel": np.ones((1, 1), np.float32),
    "spiral": spiral(31),
    "its background": 1 - spiral(31),
    "comb": COMB,
    "comb upside down": COMB[::-1].copy(),
    "comb on its side": COMB.T.copy(),
    "right edge": np.eye(8, 64, 56, dtype=np.float32),
}


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", list(SHAPES))
def test_shapes_against_scipy(name, connectivity):
    values = np.random.default_rng(0).random(SHAPES[name].shape, np.float32)
    maps = torch.from_numpy(SHAPES[name] * (1 + values))[None]
    assert_equal_to_scipy(maps, torch.tensor([0.5]), connectivity)


def test_the_spiral_is_one_component():
    for image in (spiral(31), spiral(32)):
        found = component_boxes(torch.from_numpy(image)[None], torch.tensor([0.5]), connectivity=4)
        assert len(found.boxes) == 1
        assert found.areas.item() == image.sum() > 300


def test_corners_and_edges():
    maps = torch.eye(3)[None]
    assert component_boxes(maps, torch.tensor([0.5])).boxes.tolist() == [[0, 0, 3, 3]]
    assert len(component_boxes(maps, torch.tensor([0.5]), connectivity=4).boxes) == 3


def test_several_threads_find_the_same(monkeypatch):
    maps = upsample(torch.randn(1, 8, 14, 14), (256, 256))[0]
    thresholds = map_thresholds(maps, "quantile", 75)
    alone = component_boxes(maps, thresholds)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for a, b in zip(alone, component_boxes(maps, thresholds), strict=True):
        assert torch.equal(a, b)


def test_small_components_are_left_out():
    maps = torch.zeros(1, 4, 9)
    maps[0, 0, 0] = maps[0, 2, 3:5] = maps[0, 0, 6:9] = 1
    areas = [component_boxes(maps, torch.tensor([0.5]), min_area=area).areas.tolist() for area in (1, 2, 3, 4)]
    assert areas == [[1, 3, 2], [3, 2], [3], []]


def test_nothing_is_inside_an_infinite_threshold_and_no_nan_is_inside():
    maps = torch.tensor([[[1.0, math.nan, 2.0]], [[1.0, 2.0, 3.0]]])
    found = component_boxes(maps, torch.tensor([0.0, math.inf]))
    assert found.boxes.tolist() == [[0, 0, 1, 1], [2, 0, 3, 1]]
    assert component_boxes(torch.zeros(0, 3, 3), torch.zeros(0)).boxes.shape == (0, 4)


def test_a_threshold_between_two_float32_numbers():
    low = torch.tensor(0.1)
    high = low.nextafter(torch.tensor(1.0))
    maps = torch.stack([low, high]).view(1, 1, 2)
    just_above = torch.tensor([low.double().item() * (1 + 1e-10)], dtype=torch.float64)
    assert component_boxes(maps, just_above).boxes.tolist() == [[1, 0, 2, 1]]
    assert component_boxes(maps, low[None]).boxes.tolist() == [[0, 0, 2, 1]]


def test_boxes_are_scaled_and_sorted():
    maps = torch.zeros(2, 4, 8)
    maps[0, 0, :2] = torch.tensor([0.3, 0.5])
    maps[0, 2:4, 6:] = 0.9
    maps[1, 1, 1] = 0.7
    found = boxes_from_maps(maps, torch.tensor([0.2, 0.2]), size=(400, 1200))
    assert found["boxes"].tolist() == [[900, 200, 1200, 400], [150, 100, 300, 200], [0, 0, 300, 100]]
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert found["labels"].tolist() == [0, 1, 0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.5]))
    mean = boxes_from_maps(maps, torch.tensor([0.2, 0.2]), size=(400, 1200), score="mean")
    torch.testing.assert_close(mean["scores"], torch.tensor([0.9, 0.7, 0.4]))
    best = boxes_from_maps(maps, torch.tensor([0.2, 0.2]), size=(400, 1200), max_detections=1)
    assert best["boxes"].tolist() == [[900, 200, 1200, 400]]


def test_presence_moves_scores_in_one_direction_only():
    maps = torch.tensor([[[0.4, 0.0]], [[0.5, 0.0]], [[-0.1, -0.9]], [[-0.2, -0.9]]])
    thresholds = torch.tensor([0.2, 0.2, -0.5, -0.5])
    presence = torch.tensor([0.9, 0.1, 0.9, 0.01])
    found = boxes_from_maps(maps, thresholds, (1, 2), score="mean_x_presence", presence=presence)
    assert found["labels"].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(found["scores"], torch.tensor([0.36, 0.05, -0.1, -0.2]))


def test_the_smallest_area_is_in_pixels_of_the_picture():
    maps = torch.zeros(1, 8, 8)
    maps[0, 0, :3] = maps[0, 4, 4:6] = 1  # cells of 10 x 10 pixels
    count = [
        len(boxes_from_maps(maps, torch.tensor([0.5]), (80, 80), min_area=area)["boxes"]) for area in (1, 200, 201, 301)
    ]
    assert count == [2, 2, 1, 0]


def test_suppression_stays_inside_a_class():
    ring = torch.zeros(20, 20)
    ring[0], ring[-1], ring[:, 0], ring[:, -1] = 0.5, 0.5, 0.5, 0.5
    inner = torch.zeros(20, 20)
    inner[2:18, 2:18] = 0.9
    maps = torch.stack([ring + inner, ring])  # the inner box covers 64 % of the ring's
    thresholds = torch.tensor([0.4, 0.4])
    assert boxes_from_maps(maps, thresholds, (20, 20))["labels"].tolist() == [0, 0, 1]
    assert boxes_from_maps(maps, thresholds, (20, 20), nms_iou=0.65)["labels"].tolist() == [0, 0, 1]
    kept = boxes_from_maps(maps, thresholds, (20, 20), nms_iou=0.6)
    assert kept["labels"].tolist() == [0, 1]
    assert kept["boxes"].tolist() == [[2, 2, 18, 18], [0, 0, 20, 20]]


def test_no_component_gives_no_detection():
    for nms_iou in (None, 0.5):
        found = boxes_from_maps(torch.ones(2, 4, 4), torch.full((2,), math.inf), (8, 8), nms_iou=nms_iou)
        assert found["boxes"].shape == (0, 4)
        assert len(found["scores"]) == len(found["labels"]) == 0


def test_no_class_gives_no_detection():
    maps = torch.empty(0, 4, 4)
    for rule in RULES:
        thresholds = map_thresholds(maps, rule, 1, torch.empty(0))
        found = boxes_from_maps(maps, thresholds, (8, 8), score="mean_x_presence", presence=torch.empty(0), nms_iou=0.5)
        assert found["boxes"].shape == (0, 4)


def test_boxes_of_the_token_grid_lie_near_those_of_the_full_map():
    maps = torch.zeros(1, 1, 14, 14)
    maps[0, 0, 3:9, 5:8] = 1
    full = upsample(maps, (448, 448))[0]
    half = torch.tensor([0.5])
    before, after = (boxes_from_maps(part, half, (448, 448))["boxes"][0] for part in (maps[0], full))
    assert before.tolist() == [160, 96, 256, 288]
    assert (before - after).abs().max() <= 1


def test_upsampling_is_bilinear_between_centres():
    maps = torch.randn(2, 3, 5, 7)
    found = upsample(maps, (11, 20)).double().numpy()
    ys = ((np.arange(11) + 0.5) * 5 / 11 - 0.5).clip(0, 4)
    xs = ((np.arange(20) + 0.5) * 7 / 20 - 0.5).clip(0, 6)
    grid = np.stack(np.meshgrid(ys, xs, indexing="ij"))
    for b in range(2):
        for k in range(3):
            wanted = ndimage.map_coordinates(maps[b, k].double().numpy(), grid, order=1)
            np.testing.assert_allclose(found[b, k], wanted, atol=1e-5)


@pytest.mark.parametrize(("percent", "low", "high"), [(30, 0.93, 1.0), (75, 0.0, 0.3)])
def test_thirtieth_percentile_of_noise_is_a_whole_image_box(percent, low, high):
    for grid in (7, 14, 28):
        covers = []
        for index in range(20):
            maps = upsample(random_maps((1, grid, grid), seed=0, index=index)[None], (224, 224))[0]
            found = component_boxes(maps, map_thresholds(maps, "quantile", percent))
            x1, y1, x2, y2 = found.boxes[found.areas.argmax()].tolist()
            covers.append((x2 - x1) * (y2 - y1) / 224**2)
        assert low <= np.median(covers) <= high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: component_boxes(m, t[:1]), "need one number each"),
        (lambda m, t: component_boxes(m, t / 0 * 0), "none of them NaN"),
        (lambda m, t: component_boxes(m[..., :0], t), "at least one pixel"),
        (lambda m, t: component_boxes(m, t, connectivity=6), "must be 4 or 8"),
        (lambda m, t: boxes_from_maps(m, t, (4, 4), score="sum"), "choose one of max, mean"),
        (lambda m, t: boxes_from_maps(m, t, (4, 4), score="mean_x_presence"), "needs the presence"),
        (lambda m, t: boxes_from_maps(m, t, (4, 4), score="mean_x_presence", presence=t[:1]), "2 classes"),
    ],
)
def test_wrong_arguments_name_the_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.rand(2, 4, 4), torch.tensor([0.5, 0.5]))
