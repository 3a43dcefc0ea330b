import pytest

from datamodules.dota import CLASSES, DOTA

LABELS = """imagesource:GoogleEarth
gsd:0.146343590398

1.0 2.0 9.0 2.0 9.0 7.0 1.0 7.0 small-vehicle 0
5 1 11 4 8 9 2 6 plane 1
13 2 17.5 4 14 10 10 8 Storage-Tank
"""


@pytest.fixture
def root(tmp_path, write_image):
    base = tmp_path / "DOTA"
    for part, numbers in {"train": (0, 1), "val": (2,), "test": (3,)}.items():
        for n in numbers:
            write_image(base / part / "images" / f"P{n:04d}.png", n)
            (base / part / "labelTxt").mkdir(exist_ok=True)
            (base / part / "labelTxt" / f"P{n:04d}.txt").write_text(LABELS if n != 1 else "imagesource:GoogleEarth\n")
    return base


def test_corners_boxes_and_difficult_objects(root):
    data = DOTA(str(root), image_size=8, batch_size=2)
    records = data.records("train")
    assert records.ids == ["P0000", "P0001"]
    assert records.boxes[0].tolist() == [[1, 2, 9, 7], [2, 1, 11, 9], [10, 2, 16, 10]]  # the last reaches over the edge
    assert records.polygons[0][1].tolist() == [[5, 1], [11, 4], [8, 9], [2, 6]]
    assert records.polygons[0][2].max() == 17.5
    assert records.box_labels[0].tolist() == [
        CLASSES["v1.0"].index(n) for n in ("small-vehicle", "plane", "storage-tank")
    ]
    assert records.ignore[0].tolist() == [False, True, False]
    assert records.boxes[1].shape == (0, 4)
    assert data.display_names[:4] == ["plane", "baseball diamond", "bridge", "ground track field"]
    batch = next(iter(data.gallery_dataloader()))
    assert [polygons.shape for polygons in batch["polygons"]] == [(3, 4, 2), (0, 4, 2)]
    tiled = DOTA(str(root), tile=8).records("train")  # 16 x 12: lefts 0, 8 and tops 0, 4
    assert tiled.ids[:5] == ["P0000_x0_y0", "P0000_x8_y0", "P0000_x0_y4", "P0000_x8_y4", "P0001_x0_y0"]
    assert tiled.boxes[3].tolist() == [[0, 0, 1, 3], [0, 0, 3, 5], [2, 0, 8, 6]]
    assert tiled.ignore[3].tolist() == [True, True, False]
    assert tiled.polygons[3][2].tolist() == [[5, -2], [9.5, 0], [6, 6], [2, 4]]


def test_classes_of_the_versions(root):
    assert [len(names) for names in CLASSES.values()] == [15, 16, 18]
    assert DOTA(str(root), version="v2.0").class_names[15:] == ["container-crane", "airport", "helipad"]
    data = DOTA(str(root), classes=["storage tank", "plane", "small vehicle"])
    assert data.records("val").box_labels[0].tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match=r"version is 2; known: v1\.0, v1\.5, v2\.0"):
        DOTA(str(root), version="2")
    with pytest.raises(ValueError, match=r"P0002\.txt, line 5: unknown class 'plane'\. Nearest: airplane"):
        DOTA(str(root), classes=["airplane", "small-vehicle"]).records("val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3 4 5 6 7 ship 0", r"line 1: '1 2 3 4 5 6 7 ship 0' is not 'x1 y1"),
        ("1 1 3 1 3 x 1 3 ship 0", "line 1: .* is not"),
        ("1 1 3 1 3 3 1 3", "line 1: .* is not"),
        ("1 1 3 1 3 3 1 3 ship hard", "line 1: .* is not"),
        ("1 1 3 1 3 3 1 3 small vehicle 0", "line 1: .* is not"),
        ("1 1 3 1 3 3 1 3 shp 0", "line 1: unknown class 'shp'. Nearest: ship"),
        ("1 1 3 1 3 1 1 1 ship 0", r"object 1 \(ship\): .* is empty"),
        ("20 1 30 1 30 3 20 3 ship 0", r"object 1 \(ship\): .* is outside the picture of 16 x 12"),
        ("1 1 3 1 3 nan 1 3 ship 0", r"object 1 \(ship\): .* is not finite"),
    ],
)
def test_bad_lines_are_named(root, line, message):
    (root / "val/labelTxt/P0002.txt").write_text(line)
    with pytest.raises(ValueError, match=rf"Annotation file .*P0002\.txt, {message}"):
        DOTA(str(root)).records("val")


def test_missing_files(root, tmp_path):
    (root / "train/labelTxt/P0001.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"P0001\.txt does not exist"):
        DOTA(str(root)).records("train")
    (root / "val/labelTxt/P0009.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"1 of the labels .* have no image .*, first P0009"):
        DOTA(str(root)).records("val")
    (root / "test/labelTxt/P0003.txt").unlink()
    (root / "test/labelTxt").rmdir()
    with pytest.raises(ValueError, match="no part 'test'; known: train, val"):
        DOTA(str(root)).records("test")
    with pytest.raises(FileNotFoundError, match=r"Label folder .*labelTxt does not exist"):
        DOTA(str(tmp_path)).records("train")
