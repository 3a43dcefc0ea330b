import numpy as np
import pytest

from datamodules.voc import CLASSES, VOC, read_objects

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"
BOX = "<xmax>{2}</xmax><xmin>{0}</xmin><ymin>{1}</ymin><ymax>{3}</ymax>"


def annotation(*objects):
    """An annotation file of (name, difficult, (xmin, ymin, xmax, ymax))."""
    parts = [OBJECT.format(name, hard, BOX.format(*box)) for name, hard, box in objects]
    return f"<annotation><folder>VOC2012</folder>{''.join(parts)}</annotation>"


@pytest.fixture
def write_voc(tmp_path, write_image):
    """A VOC folder: images 0-5 train, 6-9 val, 10-12 test; image 3 has no object."""

    def write(test_annotated=True):
        root = tmp_path / "VOC"
        names = [f"2012_{i:06d}" for i in range(13)]
        lists = {"train": names[:6], "val": names[6:10], "trainval": names[:10], "test": names[10:]}
        for folder in ("ImageSets/Main", "Annotations"):
            (root / folder).mkdir(parents=True)
        for part, part_names in lists.items():
            (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(part_names) + "\n")
        for i, name in enumerate(names):
            write_image(root / "JPEGImages" / f"{name}.jpg", i)
            if i < 10 or test_annotated:
                objects = [] if i == 3 else [(CLASSES[i % 4], 0, (1, 1, 4, 6)), ("dog", 1, (2, 2, 3, 3))]
                (root / "Annotations" / f"{name}.xml").write_text(annotation(*objects))
        return root

    return write


def test_objects_of_an_annotation_file(tmp_path):
    path = tmp_path / "a.xml"
    text = annotation(("person", 0, (8, 12, 352, "498.5")), ("cat", 1, (1, 1, 9, 9)), ("person", 0, (1, 1, 2, 3)))
    # a body part is an object inside the object; some files leave 'difficult' empty or out
    part = "<part><name>head</name><bndbox><xmin>3</xmin></bndbox></part></object>"
    text = text.replace("</object>", part, 1).replace("<difficult>0</difficult>", "<difficult/>", 1)
    path.write_text(text.replace("<difficult>0</difficult>", ""))
    found = read_objects(path)
    assert np.flatnonzero(found.labels).tolist() == [CLASSES.index("cat"), CLASSES.index("person")]
    assert found.boxes.tolist() == [[7, 11, 352, 498.5], [0, 0, 2, 3]]
    assert found.box_labels.tolist() == [14, 14]
    assert (found.labels.dtype, found.boxes.dtype, found.box_labels.dtype) == (np.uint8, np.float32, np.int64)
    path.write_text(annotation())
    assert read_objects(path).boxes.shape == (0, 4)


def test_holdout_with_published_test_annotations(write_voc, tmp_path):
    data = VOC(str(write_voc()), protocol="holdout", split_dir=str(tmp_path / "s"))
    assert {name: len(part) for name, part in data.splits.items()} == {"development": 10, "test": 3}
    assert data.splits["development"] == [f"2012_{i:06d}" for i in range(10)]
    assert data.class_names == list(CLASSES)
    assert len(CLASSES) == 20
    item = data.dataset("development")[1]
    assert item["captions"] == ["a photo."]
    assert item["boxes"].tolist() == [[0, 0, 4, 6]]
    assert item["box_labels"].tolist() == [1]
    assert np.flatnonzero(item["labels"]).tolist() == [1, CLASSES.index("dog")]
    unlabelled = data.dataset("development")[3]
    assert unlabelled["labels"].sum() == 0
    assert unlabelled["boxes"].shape == (0, 4)


def test_holdout_without_test_annotations_tests_on_val(write_voc, tmp_path):
    data = VOC(str(write_voc(test_annotated=False)), protocol="holdout", split_dir=str(tmp_path / "s"))
    assert [data.splits[part][0] for part in ("development", "test")] == ["2012_000000", "2012_000006"]
    assert {name: len(part) for name, part in data.splits.items()} == {"development": 6, "test": 4}
    assert data.splits_file.name.startswith("voc-holdout-development6-test4-")
    assert VOC(str(data.root), protocol="holdout", split_dir=str(tmp_path / "s")).splits == data.splits


def test_retrieval_draws_from_the_labelled_images(write_voc, tmp_path):
    data = VOC(str(write_voc()), 3, 5, split_dir=str(tmp_path / "s"))
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 5, "query": 3, "database": 9}
    assert "2012_000003" not in data.records.ids


def test_bad_layouts_name_the_file(write_voc, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="Set root to the folder of one year"):
        _ = VOC(str(tmp_path / "empty")).splits
    root = write_voc()

    def splits():
        return VOC(str(root), protocol="holdout", split_dir=str(tmp_path / "s")).splits

    path = root / "Annotations" / "2012_000011.xml"
    good = path.read_text()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"2012_000011\.xml does not exist"):
        splits()
    for bad in (
        good[:-20],
        annotation(("unicorn", 0, (1, 1, 2, 2))),
        annotation(("cat", 0, (1, 1, "x", 2))),
        annotation(("cat", 0, (1, 1, "", 2))),
    ):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"2012_000011\.xml cannot be read"):
            splits()
    path.write_text(good)
    main = root / "ImageSets" / "Main"
    (main / "test.txt").write_text("2012_000009\n2012_000010\n")
    with pytest.raises(ValueError, match="hold-out part, first 2012_000009"):
        splits()
    (main / "trainval.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"trainval\.txt lists no image"):
        splits()
    (root / "JPEGImages" / "2012_000001.jpg").unlink()
    (main / "trainval.txt").write_text("2012_000001\n2012_000002\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 4 images.*2012_000001\.jpg"):
        splits()
