import numpy as np
import pytest
import torch

from lightning_modules.heatmap.controls import centre_boxes, permuted_classes, random_maps, whole_image_boxes
from lightning_modules.heatmap.detector import BoxRule, control_detections


@pytest.mark.parametrize(("control", "box"), [(whole_image_boxes, [0, 0, 60, 40]), (centre_boxes, [15, 10, 45, 30])])
def test_one_box_a_class_best_first(control, box):
    found = control(torch.tensor([4, 7, 2]), (40, 60), torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64))
    assert found["boxes"].tolist() == [box] * 3
    assert found["labels"].tolist() == [7, 2, 4]
    torch.testing.assert_close(found["scores"], torch.tensor([0.3, 0.2, 0.1]))
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert found["labels"].dtype == torch.int64


@pytest.mark.parametrize("control", [whole_image_boxes, centre_boxes])
def test_no_class_gives_no_box(control):
    found = control(torch.empty(0, dtype=torch.int64), (40, 60), torch.empty(0))
    assert found["boxes"].shape == (0, 4)
    assert len(found["scores"]) == len(found["labels"]) == 0


def test_the_centre_box_covers_a_quarter_of_any_picture():
    x1, y1, x2, y2 = centre_boxes(torch.tensor([0]), (37, 51), torch.tensor([1.0]))["boxes"][0].tolist()
    assert (x2 - x1) * (y2 - y1) == pytest.approx(37 * 51 / 4)
    assert (x1 + x2, y1 + y2) == (51, 37)


def test_noise_depends_on_seed_and_index_alone():
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    maps = [random_maps((3, 5, 6), seed, index) for seed in (0, 1) for index in (0, 1)]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()
    torch.manual_seed(3)
    assert torch.equal(random_maps((3, 5, 6), 1, 0), maps[2])
    assert len({tuple(part.flatten().tolist()) for part in maps}) == 4
    assert maps[0].dtype == torch.float32


def test_noise_is_uniform():
    maps = random_maps((20, 28, 28), 0, 0)
    assert 0 <= maps.min() < 0.01
    assert 0.99 < maps.max() < 1
    assert maps.mean() == pytest.approx(0.5, abs=0.01)
    assert maps.var() == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize("classes", [2, 3, 20, 80])
def test_no_class_keeps_its_name(classes):
    for seed in range(20):
        order = permuted_classes(classes, seed)
        assert (order != torch.arange(classes)).all()
        assert torch.equal(order.sort().values, torch.arange(classes))
        assert torch.equal(order, permuted_classes(classes, seed))


def test_all_derangements_are_equally_probable():
    found = [tuple(permuted_classes(4, seed).tolist()) for seed in range(1800)]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 9
    assert ((counts - 200) ** 2 / 200).sum() < 26.1  # chi-square of 8 degrees of freedom, one in a thousand


def test_one_class_cannot_be_exchanged():
    with pytest.raises(ValueError, match="2 or more"):
        permuted_classes(1, 0)


def test_the_map_of_another_name_has_its_own_threshold():
    maps = torch.zeros(3, 4, 4)
    maps[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0])  # where the object of each name is, and nothing else
    order, presence = permuted_classes(3, seed=0), torch.ones(3)
    rule = BoxRule("fitted", 0.0, "grid", "max", 0.0, 100, None)
    asked = ([0, 1, 2], (4, 4), presence, torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64))
    found = control_detections(rule, maps, *asked, index=0)["permuted_names"]
    assert dict(zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)) == {
        label: float(order[label] + 1) for label in range(3)
    }
