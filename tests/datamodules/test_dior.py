import numpy as np
import pytest

from datamodules.dior import CLASSES, DIOR, DISPLAY_NAMES, NOVEL

SPELLINGS = {1: "Expressway-Service-area", 2: "expressway-toll-station", 3: "Tennis Court", 4: "windmill"}


def horizontal(*objects):
    parts = [
        f"<object><name>{name}</name><pose>Unspecified</pose><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box in objects
    ]
    return f"<annotation><size><width>16</width><height>12</height></size>{''.join(parts)}</annotation>"


def oriented(*objects):
    parts = []
    for name, corners in objects:
        fields = "".join(
            f"<x_{corner}>{x}</x_{corner}><y_{corner}>{y}</y_{corner}>"
            # the real files do not list the corners around the box
            for corner, (x, y) in sorted(
                zip(("left_top", "right_top", "right_bottom", "left_bottom"), corners, strict=True)
            )
        )
        parts.append(f"<object><type>robndbox</type><name>{name}</name><robndbox>{fields}</robndbox></object>")
    return f"<annotation>{''.join(parts)}</annotation>"


@pytest.fixture
def root(tmp_path, write_image):
    """1-2 train, 3 val, 4-6 test; picture 5 has no object, picture n < 5 one and an airport."""
    base = tmp_path / "DIOR"
    lists = {"train": [1, 2], "val": [3], "test": [4, 5, 6]}
    (base / "ImageSets" / "Main").mkdir(parents=True)
    for kind in ("Horizontal", "Oriented"):
        (base / "Annotations" / f"{kind} Bounding Boxes").mkdir(parents=True)
    for part, numbers in lists.items():
        (base / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{n:05d}\r\n" for n in numbers))
        for n in numbers:
            folder = "JPEGImages-test" if part == "test" else "JPEGImages-trainval"
            write_image(base / folder / f"{n:05d}.jpg", n)
            name = SPELLINGS.get(n, "vehicle")
            boxes = [] if n == 5 else [(name, (n, 1, n + 5, 8)), ("airport", (0, 0, 16, "12"))]
            (base / "Annotations/Horizontal Bounding Boxes" / f"{n:05d}.xml").write_text(horizontal(*boxes))
            corners = [] if n == 5 else [(name, [(n, 3), (n + 4, 1), (n + 5, 6), (n + 1, 8)])]
            (base / "Annotations/Oriented Bounding Boxes" / f"{n:05d}.xml").write_text(oriented(*corners))
    return base


def test_boxes_are_those_of_the_xml(root):
    data = DIOR(str(root))
    records = data.records("train")
    assert records.ids == ["00001", "00002"]
    assert records.boxes[0].tolist() == [[1, 1, 6, 8], [0, 0, 16, 12]]
    assert records.box_labels[0].tolist() == [CLASSES.index("Expressway-Service-area"), 1]
    assert records.box_labels[1].tolist() == [CLASSES.index("Expressway-toll-station"), 1]
    assert data.records("val").box_labels[0].tolist() == [CLASSES.index("tenniscourt"), 1]
    assert records.polygons is None
    test = data.records("test")
    assert [len(boxes) for boxes in test.boxes] == [2, 0, 2]
    assert test.paths[0].parent.name == "JPEGImages-test"
    assert test.sizes.tolist() == [[12, 16]] * 3
    assert data.dataset("test")[1]["boxes"].shape == (0, 4)
    assert DIOR(str(root), train_on="trainval").records("train").ids == ["00001", "00002", "00003"]


def test_oriented_boxes(root):
    data = DIOR(str(root), annotations="oriented", batch_size=3)
    records = data.records("train")
    assert records.polygons[0].tolist() == [[[1, 3], [5, 1], [6, 6], [2, 8]]]
    assert records.boxes[0].tolist() == [[1, 1, 6, 8]]
    for part in ("train", "val", "test"):
        straight = DIOR(str(root)).records(part).boxes
        assert all(np.array_equal(a, b[:1]) for a, b in zip(data.records(part).boxes, straight, strict=True))
    (batch,) = data.test_dataloader()
    assert [polygons.shape for polygons in batch["polygons"]] == [(1, 4, 2), (0, 4, 2), (1, 4, 2)]


def test_names_of_the_twenty_classes(root):
    data = DIOR(str(root))
    assert data.class_names == list(CLASSES)
    assert len(set(CLASSES)) == 20
    assert data.class_names[6:10] == ["dam", "Expressway-Service-area", "Expressway-toll-station", "golffield"]
    # every display name is the class name with spaces put in, so none has a typing error
    assert list(DISPLAY_NAMES) == list(CLASSES)
    for name, words in DISPLAY_NAMES.items():
        assert words.replace(" ", "") == name.lower().replace("-", "")
        assert words.strip() == words
    assert data.display_names[9:11] == ["golf field", "ground track field"]
    assert {len(words.split()) for words in data.display_names} == {1, 2, 3}


def test_the_zero_shot_split(root):
    novel, base = (DIOR(str(root), class_split=split) for split in ("novel", "base"))
    assert novel.class_names == list(NOVEL) == ["airport", "basketballcourt", "groundtrackfield", "windmill"]
    assert len(base.class_names) == 16
    assert not set(base.class_names) & set(NOVEL)
    assert base.records("train").ids == ["00001", "00002"]
    assert base.records("train").boxes[0].tolist() == [[1, 1, 6, 8]]
    assert base.records("train").box_labels[0].tolist() == [base.class_names.index("Expressway-Service-area")]
    test = novel.records("test")
    assert [labels.tolist() for labels in test.box_labels] == [[3, 0], [], [0]]
    assert novel.display_names[2] == "ground track field"
    with pytest.raises(ValueError, match="Leave out classes"):
        DIOR(str(root), classes=["ship"], class_split="base")


def test_own_classes_and_folds(root, tmp_path):
    file = root / "Annotations/Horizontal Bounding Boxes/00001.xml"
    classes = ["tree", "swimming pool", "Airport", "toll-booth", *(name for name in CLASSES if name != "airport")]
    file.write_text(
        horizontal(("swimmingpool", (1, 1, 2, 2)), ("storage_tank", (1, 1, 2, 2)), ("AIRPORT", (1, 1, 2, 2)))
    )
    data = DIOR(str(root), classes=classes)
    assert data.records("train").box_labels[0].tolist() == [1, classes.index("storagetank"), 2]
    assert data.display_names[:4] == ["tree", "swimming pool", "airport", "toll booth"]
    assert data.display_names[classes.index("storagetank")] == "storage tank"
    folds = [
        DIOR(str(root), classes=classes, num_folds=3, fold=f, stratified=False, split_dir=str(tmp_path / "s"))
        for f in range(3)
    ]
    with pytest.warns(UserWarning, match="no positive in some folds"):
        held = [data.records("val").ids for data in folds]
    assert sorted(name for names in held for name in names) == ["00001", "00002", "00003"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", r"is not DIOR's XML .*Unpack it again"),
        (horizontal(("dam", (1, 1, 4, 4)), ("golfield", (1, 1, 4, 4))), r"object 2: unknown class 'golfield'.*golff"),
        (horizontal(("ship", (5, 1, 4, 4))), r"object 1 \(ship\): box \[5, 1, 4, 4\] is empty or inverted"),
        (horizontal(("ship", (5, 1, 18, 4))), r"object 1 \(ship\): .*outside the picture of 16 x 12 pixels"),
        (horizontal(("ship", (5, 1, "nan", 4))), r"object 1 \(ship\): .* is not finite"),
        (horizontal(("ship", (5, 1, "", 4))), r"object 1 \(ship\): bndbox lacks xmin, .*, or one is no number"),
        (oriented(("ship", [(1, 1)] * 4)), r"object 1 \(ship\): bndbox lacks .*annotations: horizontal fits"),
        (horizontal().replace("16", "800"), r"boxes are of a picture of 800 x 12 pixels, but it has 16 x 12"),
        (horizontal().replace("16", "wide"), r"is not DIOR's XML"),
    ],
)  # fmt: skip
def test_broken_annotations_name_file_and_object(root, text, message):
    (root / "Annotations/Horizontal Bounding Boxes/00002.xml").write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)Annotation file .*00002\.xml.*{message}"):
        DIOR(str(root)).records("train")


def test_missing_files_are_named(root):
    (root / "Annotations/Oriented Bounding Boxes/00003.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"Oriented Bounding Boxes/00003\.xml does not exist"):
        DIOR(str(root), annotations="oriented").records("val")
    (root / "JPEGImages-trainval/00003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images that the lists name are missing, first .*00003\.jpg"):
        DIOR(str(root)).records("val")
    (root / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.txt does not exist"):
        DIOR(str(root)).records("val")
    (root / "ImageSets/Main/test.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"test part of .* has no picture"):
        DIOR(str(root)).records("test")
    for arguments, message in (
        ({"annotations": "polar"}, "known: horizontal, oriented"),
        ({"class_split": "x"}, "novel"),
    ):
        with pytest.raises(ValueError, match=message):
            DIOR(str(root), **arguments)
