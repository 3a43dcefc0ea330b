import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from datamodules import DIOR
from datamodules.scenes import CLASS_NAMES, __main__
from datamodules.scenes.datamodule import make_scene
from datamodules.scenes.dior_layout import extreme_corners, write_dior


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_dior(str(root), 20, size=48, seed=3)
    return root


def test_lists_and_pictures(world):
    lists = {part: (world / "ImageSets/Main" / f"{part}.txt").read_text().split() for part in ("train", "val", "test")}
    assert {part: len(names) for part, names in lists.items()} == {"train": 12, "val": 4, "test": 4}
    assert [*lists["train"], *lists["val"], *lists["test"]] == [f"{n:05d}" for n in range(1, 21)]
    assert (world / "ImageSets/Main/trainval.txt").read_text().split() == [*lists["train"], *lists["val"]]
    assert {file.stem for file in (world / "JPEGImages-test").iterdir()} == set(lists["test"])
    assert Image.open(world / "JPEGImages-trainval/00001.jpg").size == (48, 48)
    for kind in ("Horizontal", "Oriented"):
        assert len(list((world / f"Annotations/{kind} Bounding Boxes").iterdir())) == 20
    size = ElementTree.parse(world / "Annotations/Oriented Bounding Boxes/00001.xml").find("size")
    assert [size.findtext(tag) for tag in ("width", "height", "depth")] == ["48", "48", "3"]


def test_the_ordinary_reader_reads_the_scenes(world):
    data = DIOR(str(world), classes=list(CLASS_NAMES), image_size=48)
    for part, numbers in (("train", range(1, 13)), ("val", range(13, 17)), ("test", range(17, 21))):
        records = data.records(part)
        for row, number in enumerate(numbers):
            scene, _ = make_scene(3, "world", number, 48)
            assert records.boxes[row].tolist() == [list(item.box) for item in scene.objects]
            assert records.box_labels[row].tolist() == [item.category for item in scene.objects]
            assert np.array_equal(records.presence()[row], scene.labels)
            pixels = np.asarray(data.picture(part, row), np.float32)
            assert np.abs(pixels - scene.image).mean() < 8  # JPEG
    with pytest.raises(ValueError, match=r"unknown class '(house|tree|swimmingpool|solarpanel|baseballfield)'"):
        [DIOR(str(world)).records(part) for part in ("train", "val", "test")]


def test_the_box_around_the_corners_is_the_horizontal_box(world):
    horizontal, oriented = (
        DIOR(str(world), annotations=kind, classes=list(CLASS_NAMES)) for kind in ("horizontal", "oriented")
    )
    for part in ("train", "val", "test"):
        straight, turned = horizontal.records(part), oriented.records(part)
        assert straight.polygons is None
        for row in range(len(straight)):
            assert np.array_equal(straight.boxes[row], turned.boxes[row])
            polygons = turned.polygons[row]
            assert np.array_equal(np.concatenate([polygons.min(axis=1), polygons.max(axis=1)], 1), turned.boxes[row])


@pytest.mark.parametrize("angle", [0, 10, 30, 45, 60, 80])
def test_corners_of_a_turned_rectangle_are_its_own(angle):
    turn = np.deg2rad(angle)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    centre, half = np.array([50.0, 50.0]), (30.0, 12.0)
    ys, xs = np.mgrid[:100, :100] + 0.5
    points = np.stack([xs, ys], axis=-1) - centre
    mask = (np.abs(points @ along) <= half[0]) & (np.abs(points @ across) <= half[1])
    expected = [centre + a * half[0] * along + b * half[1] * across for a in (-1, 1) for b in (-1, 1)]
    found = extreme_corners(mask)
    tolerance = 6 if angle in (10, 80) else 2.5  # a row of pixels is a long part of a side that is nearly level
    for corner in expected:
        assert np.linalg.norm(found - corner, axis=1).min() < tolerance
    ys, xs = np.nonzero(mask)
    assert [*found.min(0), *found.max(0)] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_the_command_writes_the_layout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scenes", "dior", str(tmp_path), "--num", "3", "--size", "32"])
    __main__.main()
    assert "3 scenes are in" in capsys.readouterr().out
    data = DIOR(str(tmp_path), classes=list(CLASS_NAMES), image_size=None)
    assert [data.dataset(part)[0]["id"] for part in ("train", "val", "test")] == ["00001", "00002", "00003"]
    assert data.dataset("test")[0]["image"].shape == (3, 32, 32)
    monkeypatch.setattr(sys, "argv", ["scenes", "dior", str(tmp_path), "--num", "2"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "--num must be at least 3" in capsys.readouterr().err
    with pytest.raises(ValueError, match="train, val and test need one each"):
        write_dior(str(tmp_path), 2)
