import json

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.box_dataset import check_size, read_sizes
from datamodules.box_records import Entry, check_objects, gather
from datamodules.detection import DetectionData
from datamodules.pictures import read_picture

CLASSES = ["ship", "storage-tank", "dam"]


class Toy(DetectionData):
    """30 train, 12 val and 6 test pictures of 16 x 12 pixels; the classes of picture n are the bits of n % 8."""

    counts = {"train": range(30), "val": range(30, 42), "test": range(42, 48)}  # noqa: RUF012

    @property
    def class_names(self):
        return CLASSES

    def read_part(self, part):
        ids = [f"{n:02d}" for n in self.counts[part]]
        paths = [self.root / f"{name}.png" for name in ids]
        sizes = read_sizes(paths)
        objects = [
            check_objects(
                [Entry(CLASSES[c], c, (c, 1, c + 4, 6 + c), False) for c in range(3) if n >> c & 1],
                size,
                f"picture {n}",
            )
            for n, size in zip(self.counts[part], sizes.tolist(), strict=True)
        ]
        return gather(ids, paths, sizes, objects, self.class_names, oriented=False)


@pytest.fixture
def toy(tmp_path, write_image):
    for n in range(48):
        write_image(tmp_path / "toy" / f"{n:02d}.png", n)

    def make(**kwargs):
        return Toy(str(tmp_path / "toy"), split_dir=str(tmp_path / "splits"), **kwargs)

    return make


def test_batches_of_squashed_pictures(toy):
    data = toy(image_size=8, batch_size=5)
    batch = next(iter(data.val_dataloader()))
    assert sorted(batch) == ["box_labels", "boxes", "id", "ignore", "image", "index", "size"]
    assert (batch["image"].shape, batch["image"].dtype) == ((5, 3, 8, 8), torch.uint8)
    assert batch["size"].tolist() == [[12, 16]] * 5
    assert batch["index"].tolist() == [0, 1, 2, 3, 4]
    assert batch["id"] == ["30", "31", "32", "33", "34"]
    # picture 31 = 0b11111: all three classes; the boxes are in the pixels of the file
    assert batch["boxes"][1].tolist() == [[0, 1, 4, 6], [1, 1, 5, 7], [2, 1, 6, 8]]
    assert batch["box_labels"][1].tolist() == [0, 1, 2]
    assert batch["boxes"][2].shape == (0, 4)  # picture 32 has no object
    assert (batch["boxes"][0].dtype, batch["box_labels"][0].dtype) == (torch.float32, torch.int64)
    assert batch["ignore"][1].tolist() == [False] * 3
    squashed = Image.open(data.root / "31.png").convert("RGB").resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(batch["image"][1].permute(1, 2, 0), np.array(squashed))


def test_pictures_as_they_are_and_for_people(toy):
    data = toy(image_size=None, batch_size=4)
    batch = next(iter(data.test_dataloader()))
    assert isinstance(batch["image"], list)
    assert [image.shape for image in batch["image"]] == [(3, 12, 16)] * 4
    plain = np.array(Image.open(data.root / "43.png").convert("RGB"))
    assert np.array_equal(batch["image"][1].permute(1, 2, 0), plain)
    assert np.array_equal(np.array(data.picture("test", 1)), plain)
    assert np.array_equal(np.array(toy(image_size=8).picture("test", 1)), plain)
    assert data.display_names == ["ship", "storage tank", "dam"]


def test_training_is_shuffled_and_the_gallery_is_not(toy):
    data = toy(image_size=4, batch_size=30)
    orders = []
    for epoch in (0, 1, 0):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        orders.append(next(iter(loader))["index"].tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert list(range(30)) not in orders
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    gallery = next(iter(data.gallery_dataloader()))
    assert gallery["index"].tolist() == list(range(30))
    assert gallery["id"] == [f"{n:02d}" for n in range(30)]


def test_weights_of_the_training_items_outlive_the_loader(toy):
    data = toy(image_size=4, batch_size=30, num_folds=3)
    weights = torch.zeros(28)
    weights[[3, 20]] = 1
    data.sampler.set_weights(weights)
    for _ in range(2):
        (batch,) = data.train_dataloader()
        assert len(batch["index"]) == 28
        assert set(batch["index"].tolist()) == {3, 20}
    assert next(iter(data.gallery_dataloader()))["index"].tolist() == list(range(28))


def test_processes_share_what_is_scored_and_each_sees_the_whole_gallery(toy, monkeypatch):
    found = {"val": [], "test": [], "predict": [], "gallery": []}
    for rank in range(4):
        monkeypatch.setattr("datamodules.samplers.rank_and_world", lambda rank=rank: (rank, 4))
        data = toy(image_size=4, batch_size=2)
        for name, seen in found.items():
            loader = getattr(data, f"{name}_dataloader")()
            seen.append([index for batch in loader for index in batch["index"].tolist()])
            assert len(loader) == -(-len(seen[-1]) // 2)
    assert found["val"] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert found["test"] == found["predict"] == [[0, 1], [2, 3], [4], [5]]
    assert found["gallery"] == [list(range(30))] * 4


def test_the_seed_of_the_run_is_that_of_the_order(toy, monkeypatch):
    orders = []
    for seed in ("1", "2", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        orders.append(list(toy().sampler))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_workers_give_the_same_items(toy):
    alone, helped = (toy(image_size=6, batch_size=4, num_workers=workers, tile=8) for workers in (0, 2))
    batches = list(zip(alone.val_dataloader(), helped.val_dataloader(), strict=True))
    assert len(batches) == 12  # 12 pictures of 4 tiles
    for one, other in batches:
        assert torch.equal(one["image"], other["image"])
        assert one["id"] == other["id"]
        assert all(map(torch.equal, one["boxes"], other["boxes"]))


def test_train_on_both_parts(toy):
    data = toy(train_on="trainval")
    assert data.records("train").ids == [f"{n:02d}" for n in range(42)]
    assert data.records("val").ids == [f"{n:02d}" for n in range(30, 42)]
    assert len(data.records("test")) == 6
    assert len(toy().records("train")) == 30


def test_folds_are_stratified_by_the_classes_present(toy):
    held = []
    for fold in range(3):
        data = toy(num_folds=3, fold=fold, image_size=4)
        train, val = data.records("train"), data.records("val")
        assert sorted(train.ids + val.ids) == [f"{n:02d}" for n in range(42)]
        held += val.ids
        # Counted from the numbers: class c is in the pictures whose number has bit c. Thirds, up to one picture.
        for c in range(3):
            total = sum(n >> c & 1 for n in range(42))
            assert abs(sum(int(name) >> c & 1 for name in val.ids) - total / 3) < 1
        assert data.records("test").ids == [f"{n:02d}" for n in range(42, 48)]
        assert val.presence().tolist() == [[int(name) >> c & 1 for c in range(3)] for name in val.ids]
        assert data.folds_sha256 == toy(num_folds=3).folds_sha256
    assert sorted(held) == [f"{n:02d}" for n in range(42)]
    assert toy(num_folds=3, split_seed=1).folds_sha256 != data.folds_sha256
    assert len(toy(num_folds=6, stratified=False).records("val")) == 7
    # tiles of a picture never part: they would share pixels across the folds
    tiled = toy(num_folds=3, tile=8)
    parents = [{name.split("_")[0] for name in tiled.records(part).ids} for part in ("train", "val")]
    assert not parents[0] & parents[1]
    with pytest.raises(ValueError, match="Set num_folds"):
        _ = toy().folds


def test_a_folder_to_predict_on(toy, tmp_path, write_image):
    write_image(tmp_path / "new" / "b.jpg", 1, (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 20 x 10 pixels are to be shown as 10 x 20
    (tmp_path / "new" / "a").mkdir()
    wide = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).convert("RGB")
    wide.save(tmp_path / "new" / "a" / "turned.png", exif=exif)
    data = toy(predict_images=str(tmp_path / "new"), image_size=8)
    (batch,) = data.predict_dataloader()
    assert sorted(batch) == ["id", "image", "index", "size"]
    assert batch["id"] == ["a/turned.png", "b.jpg"]
    assert batch["size"].tolist() == [[20, 10], [10, 20]]
    assert np.array_equal(np.array(data.picture("predict", 0)), np.rot90(np.array(wide), -1))
    assert toy(predict_images=str(tmp_path / "new"), tile=10).records("predict").ids == [
        *("a/turned.png_x0_y0", "a/turned.png_x0_y10"),
        *("b.jpg_x0_y0", "b.jpg_x10_y0"),
    ]
    assert [len(batch["boxes"]) for batch in toy(batch_size=6).predict_dataloader()] == [6]  # the test part
    with pytest.raises(ValueError, match="has no part 'predict'; known: train, val, test"):
        toy().records("predict")


def test_tiles_are_cut_from_the_picture(toy):
    data = toy(tile=8, tile_overlap=2, image_size=None)
    records, dataset = data.records("test"), data.dataset("test")
    for row in range(len(records)):
        left, top, right, bottom = records.windows[row]
        whole = np.array(Image.open(records.paths[row]).convert("RGB"))
        assert np.array_equal(dataset[row]["image"].permute(1, 2, 0), whole[top:bottom, left:right])
        assert dataset[row]["size"].tolist() == [bottom - top, right - left]
    # the picture's boxes, counted pixel by pixel
    pictures = data.pictures("test")
    for row, name in enumerate(records.ids):
        left, top, right, bottom = records.windows[row]
        seen = []
        for x0, y0, x1, y1 in pictures.boxes[pictures.ids.index(name.split("_")[0])].astype(int):
            pixels = [(x, y) for x in range(x0, x1) for y in range(y0, y1) if left <= x < right and top <= y < bottom]
            if pixels:
                xs, ys = zip(*pixels, strict=True)
                box = [min(xs) - left, min(ys) - top, max(xs) + 1 - left, max(ys) + 1 - top]
                seen.append((box, len(pixels) < (x1 - x0) * (y1 - y0) / 2))
        assert [(b.tolist(), i) for b, i in zip(records.boxes[row], records.ignore[row], strict=True)] == seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_on": "val"}, "train_on is val; known: train, trainval"),
        ({"image_size": 0}, "image_size is 0"),
        ({"tile_overlap": 4}, "tile_overlap is 4, but there are no tiles. Set tile"),
        ({"tile": 8, "tile_overlap": 8}, "tile is 8 and tile_overlap 8"),
        ({"tile": 0}, "tile is 0"),
        ({"num_folds": 1}, "needs at least 2"),
        ({"num_folds": 3, "fold": 3}, "fold is 3"),
    ],
)
def test_arguments_that_do_not_fit(toy, arguments, message):
    with pytest.raises(ValueError, match=message):
        toy(**arguments)


def test_bad_folders_and_pictures(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Dataset folder .*nowhere does not exist. Set root"):
        Toy(str(tmp_path / "nowhere")).records("train")
    data = toy()
    for name in ("03", "07"):
        (data.root / f"{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 30 images that the lists name are missing, first .*03\.png"):
        data.records("train")
    (data.root / "43.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"43\.png cannot be decoded.*Replace the file"):
        data.records("test")
    good = (data.root / "44.png").read_bytes()
    (data.root / "44.png").write_bytes(good[:200])
    with pytest.raises(ValueError, match=r"44\.png cannot be decoded"):
        read_picture(data.root / "44.png")
    with pytest.raises(ValueError, match=r"f: the boxes are of a picture of 5 x 4 pixels, but it has 10 x 8"):
        check_size((4, 5), (8, 10), "f")


def test_parts_that_share_a_picture_or_are_empty(toy, monkeypatch):
    monkeypatch.setattr(Toy, "counts", {"train": range(5), "val": range(4, 9), "test": range(0)})
    with pytest.raises(ValueError, match=r"Item 04 is twice in the development pool"):
        toy(train_on="trainval").records("train")
    with pytest.raises(ValueError, match=r"test part of .* has no picture"):
        toy().records("test")
    monkeypatch.setattr(Toy, "counts", {"train": range(5), "val": range(5, 9), "test": range(8, 12)})
    with pytest.raises(ValueError, match="in the development pool and in the hold-out part, first 08"):
        toy(num_folds=2).records("train")
    monkeypatch.setattr(Toy, "counts", {"test": [1, 2, 2]})
    with pytest.raises(ValueError, match="Item 02 is twice in the hold-out part"):
        toy().records("test")


def test_export_of_a_fold(toy, tmp_path):
    data = toy(num_folds=3, tile=8)
    data.export_coco(str(tmp_path / "json"))
    content = {part: json.loads((tmp_path / "json" / f"{part}.json").read_text()) for part in ("train", "val", "test")}
    names = {part: [image["file_name"] for image in content[part]["images"]] for part in content}
    assert names == {part: [f"{name}.png" for name in data.pictures(part).ids] for part in content}
    assert len(names["train"]) + len(names["val"]) == 42
