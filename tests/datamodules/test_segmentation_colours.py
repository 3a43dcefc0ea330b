"""Label maps of colours and of votes, and the two sets that have them, in their published layouts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import Cub200, SegmentationFolder
from datamodules.segmentation_colours import check_colours, load_colours
from datamodules.segmentation_cub import load_votes

COLOURS = [[0, 0, 0], [255, 0, 255], [0, 0, 255]]


def save(path: Path, pixels, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(pixels, dtype=np.uint8), mode).save(path)
    return path


def test_each_colour_is_its_place_in_the_list(tmp_path) -> None:
    path = save(tmp_path / "a.bmp", [[[255, 0, 255], [0, 0, 0]], [[0, 0, 255], [255, 0, 255]]])
    found = load_colours(path, COLOURS)
    assert found.tolist() == [[1, 0], [2, 1]]
    assert found.dtype == np.uint16


@pytest.mark.parametrize("seed", range(3))
def test_many_colours_as_a_plain_loop_finds_them(seed, tmp_path) -> None:
    g = np.random.default_rng(seed)
    colours = np.unique(g.integers(0, 256, (50, 3)), axis=0)
    g.shuffle(colours)
    truth = g.integers(0, len(colours), (13, 17))
    found = load_colours(save(tmp_path / "a.png", colours[truth]), colours.tolist())
    assert found.tolist() == truth.tolist()


def test_a_palette_file_counts_by_its_colours(tmp_path) -> None:
    image = Image.fromarray(np.array([[3, 4]], dtype=np.uint8), "P")
    image.putpalette([0, 0, 0] * 3 + [0, 0, 255] + [255, 0, 255])
    image.save(tmp_path / "a.png")
    assert load_colours(tmp_path / "a.png", COLOURS).tolist() == [[2, 1]]


@pytest.mark.parametrize("strange", [[255, 255, 255], [0, 0, 1], [254, 0, 255]])
def test_another_colour_is_named(strange, tmp_path) -> None:
    path = save(tmp_path / "a.bmp", [[[0, 0, 255], strange, strange]])
    with pytest.raises(
        ValueError, match=re.escape(f"a.bmp has the colour {strange} in 2 pixels, which is of no class")
    ):
        load_colours(path, COLOURS)


def test_a_file_that_is_not_there_or_broken(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"b\.bmp does not exist"):
        load_colours(tmp_path / "b.bmp", COLOURS)
    (tmp_path / "b.bmp").write_bytes(b"BM no picture")
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_colours(tmp_path / "b.bmp", COLOURS)


@pytest.mark.parametrize(
    ("colours", "said"),
    [
        (COLOURS[:2], "2 colours, but there are 3 classes"),
        ([*COLOURS[:2], [0, 0]], r"\[0, 0\] is no colour"),
        ([*COLOURS[:2], [0, 0, 256]], r"\[0, 0, 256\] is no colour"),
        ([*COLOURS[:2], [0, 0, 0]], "of class 0 and of class 2"),
    ],
)
def test_colours_that_name_no_classes(colours, said) -> None:
    with pytest.raises(ValueError, match=said):
        check_colours(colours, 3)


def test_a_bird_is_where_three_of_five_annotators_saw_it(tmp_path) -> None:
    grey = [[0, 51, 102, 153, 204, 255]]  # none to all five
    path = save(tmp_path / "017.Cardinal" / "a.png", grey, "L")
    assert load_votes(path).tolist() == [[0, 0, 0, 17, 17, 17]]
    with pytest.raises(ValueError, match=r"must begin with the number of its class, as 017\.Cardinal"):
        load_votes(save(tmp_path / "Cardinal" / "a.png", grey, "L"))


def test_suim_as_it_unpacks(tmp_path) -> None:
    save(tmp_path / "TEST/images/d_r_1_.jpg", np.zeros((2, 2, 3)))
    save(tmp_path / "TEST/masks/d_r_1_.bmp", [[[0, 0, 255]] * 2, [[255, 0, 255]] * 2])
    save(tmp_path / "TEST/masks/HD/d_r_1_.bmp", np.zeros((2, 2)), "L")  # one class alone; not looked at
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/three.txt").write_text("water\nreef\ndiver\n")
    data = SegmentationFolder(
        str(tmp_path),
        images="TEST/images",
        labels="TEST/masks",
        label_suffix=".bmp",
        classes=str(tmp_path / "lists/three.txt"),
        label_colours=COLOURS,
    )
    assert data.class_names == ["water", "reef", "diver"]
    assert data.dataset()[0]["target"].tolist() == [[2, 2], [1, 1]]


def test_a_class_file_below_the_root_comes_before_one_elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "names.txt").write_text("cat\n")
    assert SegmentationFolder("set", classes="names.txt").class_lines == ["cat"]
    (tmp_path / "set" / "names.txt").write_text("dog\n")
    assert SegmentationFolder("set", classes="names.txt").class_lines == ["dog"]
    with pytest.raises(FileNotFoundError, match=r"set/other\.txt does not exist"):
        _ = SegmentationFolder("set", classes="other.txt").class_lines


@pytest.fixture
def cub(tmp_path) -> Path:
    root = tmp_path / "CUB_200_2011"
    names = ["001.Black_footed_Albatross/A_1", "200.Common_Yellowthroat/B_2", "200.Common_Yellowthroat/B_3"]
    for name in names:
        save(root / "images" / f"{name}.jpg", np.zeros((2, 3, 3)))
        save(tmp_path / "segmentations" / f"{name}.png", [[255, 204, 0], [51, 0, 0]], "L")
    (root / "images.txt").write_text("".join(f"{i} {name}.jpg\n" for i, name in enumerate(names, 1)))
    (root / "train_test_split.txt").write_text("1 0\n2 1\n3 0\n")
    (tmp_path / "classes.txt").write_text("background\n" + "".join(f"bird {i}\n" for i in range(200)))
    return root


def test_cub_as_it_unpacks(cub) -> None:
    data = Cub200(str(cub), str(cub.parent / "classes.txt"))
    dataset = data.dataset()
    assert data.files.ids == ["001.Black_footed_Albatross/A_1", "200.Common_Yellowthroat/B_3"]
    assert dataset[0]["target"].tolist() == [[1, 1, 0], [0, 0, 0]]
    assert dataset[1]["target"].tolist() == [[200, 200, 0], [0, 0, 0]]
    (cub.parent / "segmentations").rename(cub / "segmentations")
    assert Cub200(str(cub), str(cub.parent / "classes.txt")).dataset()[1]["target"].max() == 200


def test_a_cub_that_is_not_whole(cub) -> None:
    (cub.parent / "few.txt").write_text("background\nbird\n")
    with pytest.raises(ValueError, match="2 lines; background and the 200 kinds make 201"):
        _ = Cub200(str(cub), str(cub.parent / "few.txt")).class_lines
    (cub.parent / "segmentations/200.Common_Yellowthroat/B_3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 segmentations are missing, first .*B_3\.png"):
        _ = Cub200(str(cub), str(cub.parent / "classes.txt")).files
    (cub / "train_test_split.txt").write_text("1 1\n2 1\n3 1\n")
    with pytest.raises(ValueError, match="names no image to test"):
        _ = Cub200(str(cub), str(cub.parent / "classes.txt")).files
    (cub / "images.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.txt does not exist"):
        _ = Cub200(str(cub), str(cub.parent / "classes.txt")).files
