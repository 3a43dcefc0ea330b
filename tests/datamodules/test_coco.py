import json

import numpy as np
import pytest
import torch

from datamodules.coco import COCO
from datamodules.image_text import load_image


@pytest.fixture
def data(tmp_path, write_coco):
    root = write_coco(tmp_path / "coco")
    return COCO(str(root), num_query=4, num_train=5, split_dir=str(tmp_path / "splits"))


def test_protocol_parts(data):
    splits = data.splits
    assert [len(splits[s]) for s in ("query", "train", "database")] == [4, 5, 9]
    assert not set(splits["query"]) & set(splits["database"])
    assert set(splits["train"]) <= set(splits["database"])
    # 9 + 6 images, one of each part without a label
    assert len(data.records) == 13
    assert "train2017/000000000000.jpg" not in data.records.ids


def test_literature_sizes_are_the_default(tmp_path, write_coco):
    data = COCO(str(write_coco(tmp_path / "coco")), split_dir=str(tmp_path / "s"))
    assert (data.num_query, data.num_train) == (5000, 10_000)
    with pytest.raises(ValueError, match=r"more than the 13 items there are.*num_query: 4"):
        _ = data.splits


def test_item_holds_captions_labels_and_boxes(data):
    name = "train2017/000000000001.jpg"
    part = "query" if name in data.splits["query"] else "database"
    item = data.dataset(part)[data.splits[part].index(name)]
    assert item["image"].size == (16, 12)
    assert item["image"].mode == "RGB"
    assert item["captions"] == [f"picture 1 caption {k}" for k in range(6)]
    # category 3 (column 1) as an object, 90 (column 2) as a crowd: a label but no box
    assert item["labels"].tolist() == [0.0, 1.0, 1.0]
    assert item["boxes"].tolist() == [[1.0, 2.0, 6.0, 8.0]]
    assert item["box_labels"].tolist() == [1]
    assert data.class_names == ["person", "car", "toothbrush"]


def test_index_is_the_position_and_transform_runs(data):
    dataset = data.dataset("train")
    dataset.transform = lambda image: torch.tensor(image.size)
    assert [dataset[i]["index"] for i in range(len(dataset))] == [0, 1, 2, 3, 4]
    assert dataset[2]["image"].tolist() == [16, 12]
    assert dataset[2]["id"] == data.splits["train"][2]


def test_flat_layout_gives_the_same_items(tmp_path, data, write_coco):
    flat = COCO(str(write_coco(tmp_path / "flat", nested=False)), 4, 5, split_dir=str(tmp_path / "s2"))
    assert flat.splits == data.splits
    assert flat.fingerprint() == data.fingerprint()


def test_parts_are_saved_hashed_and_read_again(data, tmp_path):
    first = data.splits
    saved = json.loads(data.splits_file.read_text())
    assert saved["sha256"] == data.splits_hash
    assert saved["seed"] == 0
    again = COCO(str(data.root), 4, 5, split_dir=str(tmp_path / "splits"))
    assert again.splits == first
    other = COCO(str(data.root), 4, 5, split_seed=1, split_dir=str(tmp_path / "splits"))
    assert other.splits != first
    saved["splits"]["query"].reverse()
    data.splits_file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="do not match their hash"):
        _ = COCO(str(data.root), 4, 5, split_dir=str(tmp_path / "splits")).splits


def test_parts_are_the_published_ones(data):
    # A constant: the draw must never change, or results of different versions could not be compared.
    assert data.splits_hash.startswith("d66829f6f9961e3d")


def test_fingerprint_follows_sizes_captions_and_labels(data, tmp_path):
    def fresh():
        return COCO(str(data.root), 4, 5, split_dir=str(tmp_path / "splits")).fingerprint()

    before = fresh()
    assert fresh() == before
    image = data.root / "images" / "val2017" / "000000001002.jpg"
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    assert fresh() != before
    image.write_bytes(content)
    for name, key in (("captions_train2017", "caption"), ("instances_train2017", "category_id")):
        path = data.root / "annotations" / f"{name}.json"
        text = path.read_text()
        changed = json.loads(text)
        changed["annotations"][-1][key] = (
            "another text" if key == "caption" else 90 - 87 * (changed["annotations"][-1][key] == 90)
        )
        path.write_text(json.dumps(changed))
        assert fresh() != before, key
        path.write_text(text)
    assert fresh() == before


def test_corrupt_image_is_named(data):
    path = data.dataset("query").records.paths[1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{path.name} cannot be decoded.*skip_corrupt"):
        data.dataset("query")[1]


def test_corrupt_image_is_skipped_and_counted_when_asked(data, tmp_path, capsys):
    victim = data.dataset("query").records
    name, path = victim.ids[1], victim.paths[1]
    path.write_bytes(path.read_bytes()[:200])
    skipping = COCO(str(data.root), 4, 5, split_dir=str(tmp_path / "splits"), skip_corrupt=True)
    assert all(name not in part for part in skipping.splits.values())
    assert len(skipping.records) == 12
    assert "1 corrupt image(s) left out of 13" in capsys.readouterr().out
    assert [item["id"] for item in skipping.dataset("query")] == skipping.splits["query"]
    # the list of skipped images is read back, not looked for again
    path.write_bytes(path.read_bytes()[:200])
    again = COCO(str(data.root), 4, 5, split_dir=str(tmp_path / "splits"), skip_corrupt=True)
    assert again.splits == skipping.splits


def test_bad_layouts_name_the_file(tmp_path, write_coco):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        _ = COCO(str(tmp_path / "nowhere")).splits
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"instances_train2017\.json"):
        _ = COCO(str(tmp_path / "empty")).splits
    root = write_coco(tmp_path / "coco")
    (root / "images" / "val2017" / "000000001003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 13 images.*000000001003\.jpg"):
        _ = COCO(str(root), 4, 5, split_dir=str(tmp_path)).splits
    (root / "annotations" / "captions_val2017.json").write_text('{"annotations": [')
    with pytest.raises(ValueError, match=r"captions_val2017\.json is not JSON"):
        _ = COCO(str(root), 4, 5).splits
    (root / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(ValueError, match=r"instances_train2017\.json has no images and no annotations"):
        _ = COCO(str(root), 4, 5).splits
    with pytest.raises(ValueError, match="both must be at least 1"):
        _ = COCO(str(write_coco(tmp_path / "ok")), 0, 5, split_dir=str(tmp_path)).splits


def test_unknown_part_and_missing_caption(data):
    with pytest.raises(ValueError, match="no split 'test'; known: train, query, database"):
        data.dataset("test")
    path = data.root / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [c for c in content["annotations"] if c["image_id"] != 1004]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"000000001004\.jpg has no caption"):
        _ = COCO(str(data.root), 4, 5).splits


def test_grey_and_palette_images_become_rgb(tmp_path):
    from PIL import Image

    for mode in ("L", "P", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (4, 3)).save(path)
        assert np.asarray(load_image(path)).shape == (3, 4, 3)
