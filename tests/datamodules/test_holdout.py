"""Protocol holdout: a development pool in folds and a test part, for each dataset and through the feature cache."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import COCO, FeatureCache, FlickrCaptions, MIRFlickr
from datamodules import feature_store as store

TRAIN, VAL = 24, 6  # images of the tiny COCO; number 0 of each part has no annotation


@pytest.fixture
def make_data(tmp_path, write_coco):
    root = write_coco(tmp_path / "coco", train=TRAIN, val=VAL)

    def make(**kwargs):
        return COCO(str(root), **{"protocol": "holdout", "split_dir": str(tmp_path / "splits"), **kwargs})

    return make


def coco_names(part, count):
    start = 1000 * (part == "val2017")
    return [f"{part}/{start + i:012d}.jpg" for i in range(count)]


def test_coco_develops_on_train_and_tests_on_val(make_data):
    data = make_data()
    assert list(data.splits) == ["development", "test"]
    assert data.splits["development"] == coco_names("train2017", TRAIN)
    assert data.splits["test"] == coco_names("val2017", VAL)
    saved = json.loads(data.splits_file.read_text())
    assert data.splits_file.name.startswith("coco-holdout-val2017-")
    assert saved["splits"] == data.splits


def test_an_image_without_a_label_stays_with_a_row_of_zeros(make_data):
    for part in ("development", "test"):
        item = make_data().dataset(part)[0]
        assert item["labels"].tolist() == [0, 0, 0]
        assert item["boxes"].shape == (0, 4)
        assert item["box_labels"].shape == (0,)
        assert len(item["captions"]) == 5


@pytest.mark.parametrize("stratified", [True, False])
def test_folds_partition_the_pool(make_data, stratified):
    held, hashes = [], set()
    for fold in range(3):
        data = make_data(num_folds=3, fold=fold, stratified=stratified, split_seed=42)
        splits = data.splits
        assert list(splits) == ["development", "test", "train", "val"]
        assert not set(splits["train"]) & set(splits["val"])
        assert sorted(splits["train"] + splits["val"]) == sorted(splits["development"])
        assert splits["test"] == coco_names("val2017", VAL)
        held += splits["val"]
        hashes.add(data.folds.tobytes())
        assert data.dataset("val").records.ids == splits["val"]
    assert sorted(held) == sorted(splits["development"])
    assert len(hashes) == 1
    assert len(list(Path(data.split_dir).glob("folds-*.json"))) == 1


def test_arguments_that_do_not_fit(make_data):
    for arguments, message in (
        ({"num_folds": 1}, "num_folds is 1; cross-validation needs at least 2"),
        ({"num_folds": 3, "fold": 3}, "fold is 3; with num_folds 3 it must be 0 to 2"),
        ({"num_folds": 3, "fold": -1}, "fold is -1"),
        ({"num_folds": 3, "protocol": "retrieval"}, "num_folds 3 needs protocol: holdout"),
        ({"protocol": "crossval"}, "known: retrieval, holdout"),
        ({"holdout": "test2017"}, "known: val2017, karpathy"),
    ):
        with pytest.raises(ValueError, match=message):
            make_data(**arguments)
    with pytest.raises(ValueError, match=f"num_folds is 25; with {TRAIN} items"):
        _ = make_data(num_folds=25).splits
    with pytest.raises(ValueError, match=r"has no folds\. Set num_folds"):
        _ = make_data().folds
    with pytest.raises(ValueError, match="no split 'val'; known: development, test"):
        make_data().dataset("val")


def test_a_class_that_a_fold_lacks_is_named(make_data, recwarn):
    data = make_data()
    path = data.root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 90 or a["image_id"] == 2]
    path.write_text(json.dumps(content))
    _ = make_data(num_folds=2).splits
    assert [w for w in recwarn if "toothbrush (fold " in str(w.message)]


def test_folds_changed_by_hand_are_refused(make_data):
    _ = make_data(num_folds=3).splits
    (file,) = make_data().split_dir.glob("folds-*.json")
    saved = json.loads(file.read_text())
    saved["folds"][0].append(saved["folds"][1].pop())
    file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=rf"{file.name}: the saved folds do not match their hash. Delete the file"):
        _ = make_data(num_folds=3).splits


def test_a_skipped_image_is_in_no_fold(make_data):
    image = make_data().records.paths[5]
    image.write_bytes(image.read_bytes()[:200])
    data = make_data(num_folds=3, skip_corrupt=True)
    assert len(data.splits["development"]) == TRAIN - 1
    assert coco_names("train2017", 6)[5] not in data.splits["train"] + data.splits["val"]


def test_coco_needs_both_parts(make_data):
    (make_data().root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json does not exist"):
        _ = make_data().splits
    assert make_data(protocol="retrieval", num_query=3, num_train=5).splits["database"]


@pytest.fixture
def karpathy(make_data):
    """Write Karpathy's file for the tiny COCO; number i of all images is in part i % 4."""
    path = make_data().root / "annotations" / "dataset_coco.json"
    numbers = [*range(TRAIN), *range(1000, 1000 + VAL)]
    parts = ["train", "restval", "val", "test"]
    images = [{"cocoid": n, "split": parts[i % 4], "filename": f"COCO_{n}.jpg"} for i, n in enumerate(numbers)]

    def write(change=lambda images: {"images": images}):
        content = change(images)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return images

    return write


def test_karpathy_pools_his_train_restval_and_val(make_data, karpathy):
    images = karpathy()
    data = make_data(holdout="karpathy", num_folds=3)
    test = {image["cocoid"] for image in images if image["split"] == "test"}
    assert len(test) == 7
    numbers = {part: {int(Path(name).stem) for name in names} for part, names in data.splits.items()}
    assert numbers["test"] == test
    assert numbers["development"] == {image["cocoid"] for image in images} - test
    assert numbers["train"] | numbers["val"] == numbers["development"]
    # captions and labels are those of the 2017 files
    item = data.dataset("test")[0]
    assert item["captions"][0] == "picture 3 caption 0"
    assert make_data(holdout="karpathy").splits_file != make_data().splits_file


def test_another_karpathy_file_gives_other_parts(make_data, karpathy):
    karpathy()
    first = make_data(holdout="karpathy").splits
    karpathy(lambda images: {"images": [{**i, "split": "val" if i["cocoid"] == 3 else i["split"]} for i in images]})
    second = make_data(holdout="karpathy").splits
    assert set(first["test"]) - set(second["test"]) == {coco_names("train2017", 4)[3]}


def test_images_that_karpathy_does_not_name_are_left_out(make_data, karpathy):
    karpathy(lambda images: {"images": images[2:]})
    data = make_data(holdout="karpathy")
    with pytest.warns(UserWarning, match=r"tells no part of 2 of the 30 images"):
        splits = data.splits
    assert sum(map(len, splits.values())) == 28


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: '{"images": [', "is not JSON"),
        (lambda images: [1], "has no images"),
        (lambda images: {"foo": 1}, r"has no images\. It is not Karpathy's dataset_coco\.json.*unpack that of"),
        (lambda images: {"images": []}, r"has no images\. It is not Karpathy's dataset_coco\.json.*holdout: val2017"),
        (lambda images: {"images": None}, "has no images"),
        (lambda images: {"images": "x"}, "image 0 has no cocoid"),
        (lambda images: {"images": [{"id": 1, "file_path": "x", "split": "train"}]}, r"no 'cocoid'.*cocotalk\.json"),
        (lambda images: {"images": [{**images[0], "split": "dev"}]}, r"train, restval, val or test \(no 'dev'\)"),
        (lambda images: {"images": [{**images[0], "cocoid": "x"}]}, "image 0 has no cocoid"),
        (lambda images: {"images": [*images, images[4]]}, "COCO image 4 is in it twice"),
        (
            lambda images: {"images": [*images, {**images[0], "cocoid": 77}, {**images[0], "cocoid": 88}]},
            "2 of its 32 images are not in the annotations, first 77.*unpack both annotation files",
        ),
        (lambda images: {"images": images[:3]}, "The test part of .* is empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*tells no part of")
def test_damaged_or_foreign_karpathy_files_are_refused(make_data, karpathy, change, message):
    karpathy(change)
    with pytest.raises(ValueError, match=message):
        _ = make_data(holdout="karpathy").splits


def test_karpathy_file_is_missing_or_images_have_other_names(make_data, karpathy):
    with pytest.raises(FileNotFoundError, match=r"dataset_coco\.json does not exist.*or set holdout: val2017"):
        _ = make_data(holdout="karpathy").splits
    karpathy()
    path = make_data().root / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace(f"{5:012d}.jpg", "five.jpg"))
    image = make_data().root / "images" / "train2017" / f"{5:012d}.jpg"
    image.rename(image.with_name("five.jpg"))
    with pytest.raises(ValueError, match="not named by its COCO number"):
        _ = make_data(holdout="karpathy").splits


def test_mirflickr_draws_its_test_part_and_keeps_the_unlabelled(tmp_path, write_mirflickr):
    arguments = {"num_query": 3, "min_tag_count": 0, "split_dir": str(tmp_path / "s")}
    data = MIRFlickr(str(write_mirflickr(tmp_path / "f")), protocol="holdout", num_folds=2, **arguments)
    assert data.records.ids == [f"im{i}" for i in range(1, 11)]
    assert data.records.labels[0].tolist() == [0, 0]
    assert {name: len(part) for name, part in data.splits.items()} == {
        "development": 7,
        "test": 3,
        "train": len(data.splits["train"]),
        "val": 7 - len(data.splits["train"]),
    }
    # the same images in every run, and the retrieval protocol stays what it was
    again = MIRFlickr(str(data.root), protocol="holdout", **{**arguments, "split_dir": str(tmp_path / "t")})
    assert again.splits["test"] == data.splits["test"]
    assert MIRFlickr(str(data.root), num_train=3, **arguments).records.ids == [f"im{i}" for i in range(2, 11)]
    with pytest.raises(ValueError, match=r"num_query is 2000, but there are 10 items.*num_query: 2"):
        _ = MIRFlickr(str(data.root), protocol="holdout", min_tag_count=0, split_dir=str(tmp_path / "s")).splits


def test_flickr_captions_have_plain_folds(tmp_path, write_image):
    names = [f"{i}.jpg" for i in range(10)]
    for i, name in enumerate(names):
        write_image(tmp_path / "images" / name, i)
    images = [
        {"filename": name, "split": "test" if i < 2 else "val" if i < 4 else "train", "sentences": [{"raw": "a dog"}]}
        for i, name in enumerate(names)
    ]
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    arguments = {"protocol": "holdout", "num_folds": 2, "split_dir": str(tmp_path / "s")}
    data = FlickrCaptions(str(tmp_path), **arguments)
    assert (data.splits["development"], data.splits["test"]) == (names[2:], names[:2])
    assert sorted(data.splits["train"] + data.splits["val"]) == names[2:]
    assert next(data.split_dir.glob("folds-*")).name.startswith("folds-kfold-k2")
    with pytest.raises(TypeError, match="stratified"):
        FlickrCaptions(str(tmp_path), stratified=True, **arguments)
    (tmp_path / "dataset_flickr8k.json").unlink()
    (tmp_path / "captions.txt").write_text("image,caption\n" + "".join(f"{name},a dog\n" for name in names))
    drawn = FlickrCaptions(str(tmp_path), num_query=3, **arguments).splits
    assert [len(drawn[part]) for part in ("development", "test")] == [7, 3]


def test_loaders_give_batches_of_decoded_items(make_data):
    data = make_data(num_folds=3, batch_size=4)
    (val,) = data.val_dataloader()
    batch = next(iter(val))
    assert [image.size for image in batch["image"]] == [(16, 12)] * 4
    assert all(isinstance(image, Image.Image) for image in batch["image"])
    assert batch["id"] == data.splits["val"][:4]
    assert batch["index"].tolist() == [0, 1, 2, 3]
    expected = data.dataset("val").records.take(range(4))
    assert torch.equal(batch["labels"], torch.from_numpy(expected.labels.astype(np.float32)))
    assert batch["captions"] == expected.captions
    assert [boxes.tolist() for boxes in batch["boxes"]] == [boxes.tolist() for boxes in expected.boxes]
    for loaders, part in (
        ([data.train_dataloader()], "train"),
        (data.test_dataloader(), "test"),
        (data.predict_dataloader(), "test"),
        ([make_data(batch_size=4).train_dataloader()], "development"),
    ):
        (loader,) = loaders
        assert sorted(name for b in loader for name in b["id"]) == sorted(data.splits[part])
    assert make_data().val_dataloader() == []
    torch.manual_seed(0)
    assert [name for b in data.train_dataloader() for name in b["id"]] != data.splits["train"]


def test_loaders_of_the_retrieval_protocol(make_data):
    data = make_data(protocol="retrieval", num_query=4, num_train=6)
    assert [[name for b in loader for name in b["id"]] for loader in data.test_dataloader()] == [
        data.splits["query"],
        data.splits["database"],
    ]
    assert len(data.train_dataloader().dataset) == 6
    assert data.val_dataloader() == []


class Encoder:
    """The mean colour of an image and the length of a text."""

    name, embed_dim, preprocessing = "mean", 3, "none"

    def __init__(self):
        self.images = 0

    def fingerprint(self):
        return "0"

    def preprocess(self, image):
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255

    def encode_image(self, images):
        self.images += len(images)
        return images.mean((2, 3))

    def encode_text(self, texts):
        return torch.tensor([[len(text)] * 3 for text in texts], dtype=torch.float32)


def test_one_cache_serves_every_fold_in_runs_of_rows(make_data, tmp_path):
    encoder, data = Encoder(), make_data(num_folds=3)
    cache = FeatureCache(data, encoder, str(tmp_path / "cache"))
    for part in ("development", "test"):
        got = cache.open(part)
        assert isinstance(got.image, np.memmap)
        assert got.ids == data.splits[part]
        items = list(data.dataset(part))
        means = [np.asarray(item["image"]).mean((0, 1)) / 255 for item in items]
        assert np.allclose(got.image, means, atol=2e-3)
        assert np.array_equal(got.labels, torch.stack([item["labels"] for item in items]).numpy())
    assert encoder.images == TRAIN + VAL
    assert store.open_arrays(cache.path)[3] == data.splits["development"] + data.splits["test"]
    for other in (make_data(), make_data(num_folds=3, fold=2), make_data(num_folds=2, stratified=False)):
        again = FeatureCache(other, encoder, str(tmp_path / "cache"))
        assert again.path == cache.path
        for part in other.splits:
            assert again.open(part).ids == other.splits[part]
    assert encoder.images == TRAIN + VAL


def test_retrieval_and_holdout_of_the_same_items_share_a_cache(make_data, tmp_path):
    # COCO's differ by the images without a label, so give every image one.
    root = make_data().root
    for part in ("train2017", "val2017"):
        path = root / "annotations" / f"instances_{part}.json"
        content = json.loads(path.read_text())
        first = content["images"][0]["id"]
        content["annotations"].append({"image_id": first, "category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0})
        path.write_text(json.dumps(content))
    encoder = Encoder()
    retrieval = make_data(protocol="retrieval", num_query=4, num_train=6)
    caches = [FeatureCache(data, encoder, str(tmp_path / "cache")) for data in (retrieval, make_data())]
    assert caches[0].path == caches[1].path
    query = caches[0].open("query")
    assert store.open_arrays(caches[0].path)[3] == retrieval.splits["query"] + retrieval.splits["database"]
    development, test = (caches[1].open(part) for part in ("development", "test"))
    assert encoder.images == TRAIN + VAL
    means = dict(zip([*development.ids, *test.ids], [*development.image, *test.image], strict=True))
    assert all(np.array_equal(means[name], row) for name, row in zip(query.ids, query.image, strict=True))


@pytest.mark.filterwarnings("ignore:.*have no positive in some folds")
def test_generated_world_has_a_holdout(tmp_path):
    from datamodules.scenes.layouts import write_coco

    write_coco(str(tmp_path / "world"), 12, 4, size=32)
    data = COCO(str(tmp_path / "world"), protocol="holdout", num_folds=3, split_dir=str(tmp_path / "s"))
    assert [len(data.splits[part]) for part in ("development", "test")] == [12, 4]
    assert len(data.splits["train"]) + len(data.splits["val"]) == 12
