import json

import pytest

from datamodules.flickr import FlickrCaptions, MIRFlickr


@pytest.mark.parametrize("nested", [True, False])
def test_mirflickr_drops_unlabelled_and_untagged(tmp_path, nested, write_mirflickr):
    root = write_mirflickr(tmp_path / "f", nested=nested)
    data = MIRFlickr(str(root), 2, 3, min_tag_count=3, split_dir=str(tmp_path / "s"))
    assert data.records.ids == [f"im{i}" for i in range(4, 11)]
    assert data.class_names == ["animals", "sky"]
    assert data.records.labels.tolist() == [[int(i % 2 == 0), 1] for i in range(4, 11)]
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 3, "query": 2, "database": 5}
    item = data.dataset("query")[0]
    number = item["id"].removeprefix("im")
    assert item["captions"] == [f"sky, sea, only{number}"]
    assert item["image"].size == (16, 12)


def test_mirflickr_without_tag_filter_keeps_all_labelled(tmp_path, write_mirflickr):
    root = write_mirflickr(tmp_path / "f")
    data = MIRFlickr(str(root), 2, 3, min_tag_count=0, split_dir=str(tmp_path / "s"))
    assert data.records.ids == [f"im{i}" for i in range(2, 11)]
    assert data.records.captions[:2] == [["rare"], [""]]


def test_mirflickr_protocol_is_the_default(tmp_path, write_mirflickr):
    data = MIRFlickr(str(write_mirflickr(tmp_path / "f")))
    assert (data.num_query, data.num_train, data.min_tag_count) == (2000, 5000, 20)
    with pytest.raises(ValueError, match="lower min_tag_count"):
        _ = data.splits


def test_mirflickr_bad_layouts(tmp_path, write_mirflickr):
    root = write_mirflickr(tmp_path / "f")
    (root / "annotations" / "sky.txt").write_text("2\nx\n")
    with pytest.raises(ValueError, match=r"sky\.txt must hold one image number a line"):
        _ = MIRFlickr(str(root), 2, 3).splits
    for file in (root / "annotations").glob("*.txt"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no label files"):
        _ = MIRFlickr(str(root), 2, 3).splits
    root = write_mirflickr(tmp_path / "g")
    (root / "mirflickr" / "meta" / "tags" / "tags5.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"tags5\.txt of im5\.jpg"):
        _ = MIRFlickr(str(root), 2, 3).splits
    (tmp_path / "h").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images im1\.jpg"):
        _ = MIRFlickr(str(tmp_path / "h"), 2, 3).splits


@pytest.fixture
def caption_files(write_image):
    return lambda root, kind: _caption_files(root, kind, write_image)


def _caption_files(root, kind, write_image, count=6):
    folder = {"token": "flickr30k-images", "csv": "Images", "karpathy": "images"}[kind]
    names = [f"{1000 + i}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        write_image(root / folder / name, i)
    texts = {name: [f"a dog, number {k} of {name}" for k in range(5)] for name in names}
    if kind == "token":
        lines = [f"{name}#{k}\t{text}" for name in names for k, text in enumerate(texts[name])]
        (root / "results_20130124.token").write_text("\n".join(lines) + "\n")
    elif kind == "csv":
        lines = [f"{name},{text}" for name in names for text in texts[name]]
        (root / "captions.txt").write_text("image,caption\n" + "\n".join(lines) + "\n")
    else:
        parts = ["train", "train", "val", "test", "test", "restval"]
        images = [
            {"filename": n, "split": parts[i], "sentences": [{"raw": t} for t in texts[n]]} for i, n in enumerate(names)
        ]
        (root / "dataset_flickr8k.json").write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
    return texts


@pytest.mark.parametrize("kind", ["token", "csv", "karpathy"])
def test_flickr_captions_of_each_format(tmp_path, kind, caption_files):
    texts = caption_files(tmp_path, kind)
    data = FlickrCaptions(str(tmp_path), num_query=2, split_dir=str(tmp_path / "s"))
    assert data.splits["query"] == data.splits["database"]
    assert not set(data.splits["train"]) & set(data.splits["query"])
    assert [len(data.splits[s]) for s in ("train", "query")] == ([3, 2] if kind == "karpathy" else [4, 2])
    item = data.dataset("query")[1]
    assert item["captions"] == texts[item["id"]]
    assert item["labels"].shape == (0,)
    assert item["image"].size == (16, 12)
    # the saved parts are found again
    assert FlickrCaptions(str(tmp_path), num_query=2, split_dir=str(tmp_path / "s")).splits == data.splits


@pytest.mark.parametrize("protocol", ["retrieval", "holdout"])
def test_karpathys_file_replaces_a_drawn_part_of_the_same_items(tmp_path, protocol, caption_files):
    def test_part():
        data = FlickrCaptions(str(tmp_path), num_query=2, split_dir=str(tmp_path / "s"), protocol=protocol)
        return data.splits["query" if protocol == "retrieval" else "test"]

    caption_files(tmp_path, "csv")
    (tmp_path / "Images").rename(tmp_path / "images")
    drawn = test_part()
    caption_files(tmp_path, "karpathy")
    assert test_part() == ["1003.jpg", "1004.jpg"] != drawn
    assert len(list((tmp_path / "s").iterdir())) == 2


def test_flickr_captions_bad_input(tmp_path, caption_files):
    with pytest.raises(FileNotFoundError, match="no caption file"):
        _ = FlickrCaptions(str(tmp_path)).splits
    caption_files(tmp_path, "token")
    with pytest.raises(ValueError, match="num_query is 1000, but there are 6 images"):
        _ = FlickrCaptions(str(tmp_path), split_dir=str(tmp_path / "s")).splits
    (tmp_path / "results_20130124.token").write_text("1.jpg#0\tok\n2.jpg#0\n")
    with pytest.raises(ValueError, match=r"results_20130124\.token, line 2"):
        _ = FlickrCaptions(str(tmp_path)).splits
