import json

import numpy as np
import pytest

from datamodules.box_records import join_records, tile_records
from datamodules.coco_boxes import CocoBoxes, write_coco_json
from datamodules.dior import DIOR
from datamodules.scenes import CLASS_NAMES
from datamodules.scenes.dior_layout import write_dior


@pytest.fixture
def content(tmp_path, write_image):
    """A file of three pictures of 16 x 12 pixels, the second without an object."""
    for n in range(3):
        write_image(tmp_path / "set/images/train/sub" / f"{n}.png", n)
    (tmp_path / "set/annotations").mkdir()
    return {
        "images": [{"id": 10 * n, "file_name": f"sub/{n}.png", "width": 16, "height": 12} for n in range(3)],
        "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "small-boat"}],
        "annotations": [
            {"id": 1, "image_id": 20, "category_id": 7, "bbox": [1, 2, 5, 6], "iscrowd": 0},
            {"id": 2, "image_id": 0, "category_id": 3, "bbox": [0.25, 0.5, 2.5, 3.25]},
            {"id": 3, "image_id": 20, "category_id": 3, "bbox": [0, 0, 16, 12.5], "iscrowd": 1},
        ],
    }


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, **kwargs):
        (tmp_path / "set/annotations/train.json").write_text(json.dumps(content))
        return CocoBoxes(str(tmp_path / "set"), **kwargs)

    return write_and_read


def test_corners_and_classes(content, read):
    data = read(content)
    assert data.class_names == ["car", "small-boat"]
    assert data.display_names == ["car", "small boat"]
    records = data.records("train")
    assert records.ids == [f"images/train/sub/{n}.png" for n in range(3)]
    assert [boxes.tolist() for boxes in records.boxes] == [
        [[0.25, 0.5, 2.75, 3.75]],
        [],
        [[1, 2, 6, 8], [0, 0, 16, 12]],
    ]
    assert [labels.tolist() for labels in records.box_labels] == [[1], [], [0, 1]]
    assert [ignore.tolist() for ignore in records.ignore] == [[False], [], [False, True]]
    assert records.presence().tolist() == [[0, 1], [0, 0], [1, 0]]
    assert (records.image_ids, records.category_ids) == ([0, 10, 20], [7, 3])
    assert records.take([2, 0]).image_ids == [20, 0]
    assert join_records([records, records]).image_ids is None
    assert tile_records(records, 8, 0).image_ids is None
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (3, 3, 224, 224)


def test_boxes_without_extent_are_left_out_and_counted(content, read, capsys):
    content["annotations"] += [{"id": 4, "image_id": 0, "category_id": 7, "bbox": [3, 3, 2.5, 0]}]
    assert [len(boxes) for boxes in read(content).records("train").boxes] == [1, 0, 2]
    assert "1 box(es) without width or height left out of 4" in capsys.readouterr().out


def test_files_and_folders_of_other_names(content, read, tmp_path):
    for image in content["images"]:
        image["file_name"] = image["file_name"].removeprefix("sub/")
    data = read(content, annotations={"val": "annotations/train.json"}, images={"val": "images/train/sub"})
    assert data.class_names == ["car", "small-boat"]
    assert len(data.records("val")) == 3
    with pytest.raises(ValueError, match="no part 'train'; known: val"):
        data.records("train")
    for arguments in (
        {"annotations": {"val": "a.json"}, "images": {"train": "i"}},
        {"annotations": {"valid": "a.json"}},
    ):
        with pytest.raises(ValueError, match="must name the same parts out of train, val, test"):
            CocoBoxes(str(tmp_path), **arguments)
    data.export_coco(str(tmp_path / "out"))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["val.json"]


def test_folds_need_no_test_part(content, read, tmp_path):
    (tmp_path / "set/annotations/val.json").write_text(json.dumps({**content, "images": [], "annotations": []}))
    parts = {"train": "annotations/train.json", "val": "annotations/val.json"}
    with pytest.raises(ValueError, match=r"val part of .* has no picture"):
        read(content, annotations=parts, num_folds=3).records("train")
    parts["val"] = parts["train"]
    images = dict.fromkeys(parts, "images/train")
    with pytest.raises(ValueError, match=r"Item images/train/sub/0\.png is twice in the development pool"):
        read(content, annotations=parts, images=images, num_folds=3).records("train")
    one = {**content, "images": content["images"][:1], "annotations": content["annotations"][1:2]}
    rest = {**content, "images": content["images"][1:], "annotations": content["annotations"][::2]}
    (tmp_path / "set/annotations/val.json").write_text(json.dumps(one))
    parts["val"] = "annotations/val.json"
    how = {"num_folds": 3, "stratified": False, "split_dir": str(tmp_path / "s")}
    data = read(rest, annotations=parts, images=images, **how)
    with pytest.warns(UserWarning, match="no positive"):
        assert len(data.records("train")) == 2
    assert len(data.records("val")) == 1


def test_dior_goes_through_json_unchanged(tmp_path):
    write_dior(str(tmp_path / "dior"), 10, size=32)
    dior = DIOR(str(tmp_path / "dior"), classes=list(CLASS_NAMES), train_on="train")
    dior.export_coco(str(tmp_path / "dior" / "json"))
    parts = ("train", "val", "test")
    data = CocoBoxes(str(tmp_path / "dior"), {part: f"json/{part}.json" for part in parts}, dict.fromkeys(parts, "."))
    assert data.class_names == dior.class_names
    for part in parts:
        ours, theirs = dior.records(part), data.records(part)
        assert [path.resolve() for path in theirs.paths] == [path.resolve() for path in ours.paths]
        assert np.array_equal(theirs.sizes, ours.sizes)
        for column in ("boxes", "box_labels", "ignore"):
            pairs = list(zip(getattr(ours, column), getattr(theirs, column), strict=True))
            assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)
        assert sum(map(len, ours.boxes))
        for a, b in zip(dior.dataset(part), data.dataset(part), strict=True):
            assert np.array_equal(a["image"], b["image"])


def test_fractions_and_crowds_go_through_json_unchanged(content, read, tmp_path):
    rng = np.random.default_rng(0)
    for k in range(200):
        x, y, width, height = rng.uniform(0.1, 5, 4)
        content["annotations"].append(
            {"id": 10 + k, "image_id": 10, "category_id": 7, "bbox": [x, y, width, height], "iscrowd": k % 2}
        )
    data = read(content)
    records = data.records("train")
    write_coco_json(records, tmp_path / "out/train.json", data.root / "images/train")
    copy = json.loads((tmp_path / "out/train.json").read_text())
    assert [image["file_name"] for image in copy["images"]] == [f"sub/{n}.png" for n in range(3)]
    assert [item["id"] for item in copy["annotations"]] == list(range(1, 204))
    assert copy["categories"] == content["categories"]
    assert [image["id"] for image in copy["images"]] == [0, 10, 20]
    again = read(copy).records("train")
    assert all(map(np.array_equal, again.boxes, records.boxes))
    assert all(map(np.array_equal, again.ignore, records.ignore))
    assert all(map(np.array_equal, again.box_labels, records.box_labels))


def test_areas_and_corners_in_json(tmp_path):
    write_dior(str(tmp_path / "dior"), 3, size=32, seed=1)
    data = DIOR(str(tmp_path / "dior"), annotations="oriented", classes=list(CLASS_NAMES))
    data.export_coco(str(tmp_path))
    items = json.loads((tmp_path / "train.json").read_text())["annotations"]
    polygons = data.records("train").polygons[0]
    assert [np.reshape(item["segmentation"][0], (4, 2)).tolist() for item in items] == polygons.tolist()
    for item, polygon in zip(items, polygons.astype(float), strict=True):
        # a quadrilateral is half the cross product of its diagonals
        (ax, ay), (bx, by) = polygon[2] - polygon[0], polygon[3] - polygon[1]
        assert item["area"] == abs(ax * by - ay * bx) / 2
    DIOR(str(tmp_path / "dior"), classes=list(CLASS_NAMES)).export_coco(str(tmp_path))
    items = json.loads((tmp_path / "train.json").read_text())["annotations"]
    assert all(item["area"] == item["bbox"][2] * item["bbox"][3] and item["segmentation"] == [] for item in items)
    with pytest.raises(ValueError, match="tiles are parts of files"):
        write_coco_json(tile_records(data.pictures("train"), 16, 0), tmp_path / "t.json", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [3, 1, -1, 2]}, r"image sub/2\.png, object 1 \(car\): box \[3, 1, 2, 3\] is empty or inverted"),
        ({"bbox": [3, 1, 20, 2]}, r"image sub/2\.png, object 1 \(car\): .*outside the picture of 16 x 12"),
        ({"bbox": [3, 1, float("nan"), 2]}, r"image sub/2\.png, object 1 \(car\): .* is not finite"),
        ({"category_id": 8}, r"annotation 1 is of category 8, which is not listed"),
        ({"image_id": 5}, r"annotation 1 is of image 5, which is not listed"),
    ],
)
def test_bad_annotations_name_file_and_picture(content, read, change, message):
    content["annotations"][0] |= change
    with pytest.raises(ValueError, match=rf"Annotation file .*train\.json.*{message}"):
        read(content).records("train")


def test_bad_files(content, read, tmp_path):
    del content["annotations"][1]["bbox"]
    with pytest.raises(ValueError, match=r"train\.json is damaged or lacks 'bbox'"):
        read(content).records("train")
    content["annotations"] = []
    content["images"][1]["width"] = 640
    with pytest.raises(ValueError, match=r"image sub/1\.png: the boxes are of a picture of 640 x 12"):
        read(content).records("train")
    content["images"][1] |= {"width": 16, "file_name": "gone.png"}
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images .* first .*gone\.png"):
        read(content).records("train")
    with pytest.raises(FileNotFoundError, match=r"val\.json does not exist"):
        read(content).records("val")
    content["images"] = content["images"][:1]
    other = {**content, "categories": content["categories"][:1]}
    (tmp_path / "set/annotations/val.json").write_text(json.dumps(other))
    data = read(content, images={"train": "images/train", "val": "images/train", "test": "images"})
    assert data.records("train").ids == read(content, images=dict.fromkeys(data.images, "train")).records("train").ids
    with pytest.raises(ValueError, match=r"val\.json has other categories than the train part"):
        data.records("val")
    with pytest.raises(ValueError, match="has no categories"):
        read({"images": [], "annotations": []}).records("train")
