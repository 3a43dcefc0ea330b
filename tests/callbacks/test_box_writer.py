"""The files of predicted boxes, read back and compared with what the module returned."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from PIL import Image
from processes import launch
from torch.utils.data import DataLoader

from callbacks.box_writer import BoxWriter, picture_name

NAMES = ["ship", "Flugzeug, groß"]
IDS = ["a.jpg", "sub/a.jpg", "sub/deeper/b", "c.png", "../outside"]


def found_in(index: int) -> dict:
    """What a module would return for an image: as many boxes as its index says, of rising score."""
    boxes = torch.tensor([[1.5 * k, 2, 1.5 * k + 4, 2 + index + 0.25] for k in range(index)]).reshape(-1, 4)
    return {
        "boxes": boxes,
        "scores": 0.5 + torch.arange(index) / 8,
        "labels": torch.arange(index) % 2,
        "id": IDS[index],
        "size": [30, 40],
        "index": index,
        "names": NAMES,
    }


class Module(LightningModule):
    def predict_step(self, batch, batch_idx):
        return [found_in(int(index)) for index in batch]


class Data(LightningDataModule):
    predict_images: str | None = "a folder"

    def __init__(self, order=(0, 1, 2, 3, 4)):
        super().__init__()
        self.order, self.asked = list(order), []

    def predict_dataloader(self):
        return DataLoader(self.order, batch_size=2)

    def picture(self, part, index):
        self.asked.append((part, index))
        return Image.new("RGB", (40, 30), (0, 0, index))


def read(folder):
    return [json.loads((folder / name).read_text(encoding="utf-8")) for name in ("boxes.json", "results.json")]


def check_files(folder) -> None:
    data, results = read(folder)
    assert data["categories"] == [{"id": 1, "name": "ship"}, {"id": 2, "name": "Flugzeug, groß"}]
    assert data["images"] == [
        {"id": i + 1, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(IDS)
    ]  # each once, the one without boxes too
    expected = []
    for index in range(5):
        for k in reversed(range(index)):  # the highest score first
            expected.append(
                {
                    "id": len(expected) + 1,
                    "image_id": index + 1,
                    "category_id": k % 2 + 1,
                    "bbox": [1.5 * k, 2.0, 4.0, index + 0.25],
                    "score": 0.5 + k / 8,
                    "area": 4 * (index + 0.25),
                    "iscrowd": 0,
                }
            )
    assert data["annotations"] == expected
    assert results == [{key: box[key] for key in ("image_id", "category_id", "bbox", "score")} for box in expected]


def test_the_files_hold_what_the_module_returned(make_trainer, tmp_path, capsys) -> None:
    data = Data(order=[3, 0, 1, 4, 2, 0, 3])  # a sampler over several processes repeats items
    make_trainer(tmp_path, BoxWriter()).predict(Module(), datamodule=data, return_predictions=False)
    folder = tmp_path / "predictions"
    check_files(folder)
    pictures = ["a.jpg.png", "c.png.png", "outside.png", "sub/a.jpg.png", "sub/deeper/b.png"]
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    assert sorted(files) == sorted(["boxes.json", "results.json", *(f"pictures/{name}" for name in pictures)])
    assert data.asked == [("predict", index) for index in range(5)]
    printed = capsys.readouterr().out
    assert f"10 boxes in 5 images written to {folder} (boxes.json, results.json, 5 pictures)" in printed


def test_pictures_are_enlarged_and_show_the_boxes(make_trainer, tmp_path) -> None:
    make_trainer(tmp_path, BoxWriter()).predict(Module(), datamodule=Data())
    with Image.open(tmp_path / "predictions" / "pictures" / "a.jpg.png") as image:
        assert image.size == (640, 480)
        assert image.getcolors() == [(640 * 480, (0, 0, 0))]
    with Image.open(tmp_path / "predictions" / "pictures" / "sub" / "a.jpg.png") as image:
        # the box 0, 2, 4, 3.25 sixteen times enlarged: columns 0 to 63, rows 32 to 51
        assert image.getpixel((63, 40)) == (0xD9, 0x5F, 0x02)
        assert image.getpixel((30, 51)) == (0xD9, 0x5F, 0x02)
        assert image.getpixel((30, 100)) == (0, 0, 1)


@pytest.mark.parametrize("number", [0, 2])
def test_only_the_first_pictures_are_drawn(make_trainer, tmp_path, number) -> None:
    data = Data()
    data.predict_images = None
    writer = BoxWriter(str(tmp_path / "elsewhere"), max_pictures=number)
    make_trainer(tmp_path / "run", writer).predict(Module(), datamodule=data)
    check_files(tmp_path / "elsewhere")
    assert data.asked == [("test", index) for index in range(number)]


def test_data_without_pictures_gives_the_files_alone(make_trainer, tmp_path) -> None:
    make_trainer(tmp_path, BoxWriter()).predict(Module(), DataLoader(range(5), batch_size=3))
    check_files(tmp_path / "predictions")
    assert not (tmp_path / "predictions" / "pictures").exists()


class CocoData(Data):
    """Data whose test part is a COCO file with ids of its own."""

    predict_images, display_names, windows = None, NAMES, None

    def records(self, part):
        assert part == "test"
        return SimpleNamespace(image_ids=[50, 40, 30, 20, 10], category_ids=[7, 3], windows=self.windows)


def test_ids_are_those_of_the_file_that_was_predicted_on(make_trainer, tmp_path, capsys) -> None:
    data = CocoData()
    make_trainer(tmp_path / "a", BoxWriter(max_pictures=0)).predict(Module(), datamodule=data)
    boxes, results = read(tmp_path / "a" / "predictions")
    assert [(image["id"], image["file_name"]) for image in boxes["images"]] == list(
        zip([50, 40, 30, 20, 10], IDS, strict=True)
    )
    assert boxes["categories"] == [{"id": 7, "name": "ship"}, {"id": 3, "name": "Flugzeug, groß"}]
    found = [(box["image_id"], box["category_id"]) for box in results]
    assert found == [(40, 7), (30, 3), (30, 7), (20, 7), (20, 3), (20, 7), (10, 3), (10, 7), (10, 3), (10, 7)]
    data.display_names, data.windows = ["others"], [(0, 0, 9, 9)]  # classes that the file has not, and tiles
    make_trainer(tmp_path / "b", BoxWriter(max_pictures=0)).predict(Module(), datamodule=data)
    assert [box["category_id"] for box in read(tmp_path / "b" / "predictions")[1]][:3] == [1, 2, 1]
    assert "10 boxes in 5 tiles written to" in capsys.readouterr().out


class Wrong(LightningModule):
    def predict_step(self, batch, batch_idx):
        return batch


def test_what_does_not_fit_is_named_and_a_trial_run_writes_nothing(make_trainer, tmp_path) -> None:
    with pytest.raises(
        ValueError, match="predict_step of Wrong must return a list with a dict for each image, of index"
    ):
        make_trainer(tmp_path, BoxWriter()).predict(Wrong(), datamodule=Data())
    with pytest.raises(ValueError, match="max_pictures is -1; it must be at least 0"):
        BoxWriter(max_pictures=-1)
    make_trainer(tmp_path, BoxWriter(), fast_dev_run=True).predict(Module(), datamodule=Data())
    assert not (tmp_path / "predictions").exists()


def test_pictures_stay_in_their_folder() -> None:
    names = ["00801", "a/b.jpg", "/etc/a", "../../a", "a/../b"]
    assert [picture_name(name).as_posix() for name in names] == [
        "00801.png",
        "a/b.jpg.png",
        "etc/a.png",
        "a.png",
        "a/b.png",
    ]
    long = [picture_name("a/" + "\u00e9" * 125 + end).name for end in ("x.jpg", "y.jpg")]  # 254 bytes and the ending
    assert [len(name.encode()) <= 255 for name in long] == [True, True]
    assert [name[:110] for name in long] == ["\u00e9" * 110] * 2
    assert long[0] != long[1]


DDP_RUN = """
import sys
sys.path[:0] = [".", "tests/support", "tests/callbacks"]
from lightning.pytorch import Trainer
from callbacks.box_writer import BoxWriter
from test_box_writer import Data, Module

Trainer(
    accelerator="cpu", devices=int(sys.argv[2]), strategy="ddp", logger=False, enable_progress_bar=False,
    enable_checkpointing=False, callbacks=[BoxWriter(sys.argv[1])],
).predict(Module(), datamodule=Data(), return_predictions=False)
"""


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(tmp_path) -> None:
    launch(DDP_RUN, 2, tmp_path / "two")  # five images on two processes: one comes twice
    check_files(tmp_path / "two")
