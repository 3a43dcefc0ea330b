"""Label maps written, read back and compared with what the module returned; overlays and the sheet, pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from processes import launch
from torch.utils.data import DataLoader

from callbacks import segmentation_pictures, segmentation_writer
from callbacks.label_maps import (
    GREY,
    PALE,
    boundaries,
    class_colours,
    distinct_colours,
    label_picture,
    legend,
    oklab,
    painted,
    region_colours,
)
from callbacks.segmentation_pictures import SegmentationPictures, drawn_row, image_iou
from callbacks.segmentation_writer import SegmentationWriter, overlay_with_legend, percent

NAMES = ["background", "Straße", "cat"]
IDS = ["a.jpg", "sub/a.jpg", "sub/deeper/b", "../outside", "/etc/c"]
FILES = ["a.jpg.png", "sub/a.jpg.png", "sub/deeper/b.png", "outside.png", "etc/c.png"]
YELLOW, BLUE = (0xF0, 0xE1, 0x00), (0x2D, 0x3C, 0xB4)  # the first two colours


def map_of(index: int) -> torch.Tensor:
    """(3, 4): the class cat in ``index`` pixels, one of the street, the rest background."""
    labels = torch.zeros(12, dtype=torch.int64)
    labels[:index] = 2
    labels[11] = 1
    return labels.reshape(3, 4)


class Module(LightningModule):
    names = NAMES

    def predict_step(self, batch, batch_idx):
        index = batch["index"].tolist()
        return [{"labels": map_of(i), "id": IDS[i], "index": i, "names": self.names} for i in index]

    def test_step(self, batch, batch_idx):
        return {"found": [map_of(i) for i in batch["index"].tolist()], "names": self.names}


class Data(LightningDataModule):
    """Images of one colour; the truth of each is the first one's label map with a pixel that does not count."""

    def __init__(self, order=(0, 1, 2, 3, 4), lacks=()):
        super().__init__()
        self.order, self.lacks = list(order), lacks

    def test_dataloader(self):
        def collate(rows):
            truth = map_of(0)
            truth[0, 0] = 255
            batch = {
                "image": [torch.full((3, 3, 4), 100 + row, dtype=torch.uint8) for row in rows],
                "target": [truth for _ in rows],
                "instance_mask": [torch.tensor([[0, 0, 7, 7]] * 3) for _ in rows],
                "index": torch.tensor(rows),
                "id": [IDS[row] for row in rows],
            }
            return {name: values for name, values in batch.items() if name not in self.lacks}

        return DataLoader(self.order, batch_size=2, collate_fn=collate)

    predict_dataloader = test_dataloader


def files_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def check_files(folder: Path, drawn: int) -> None:
    expected = {f"labels/{name}" for name in FILES} | {f"overlays/{name}" for name in FILES[:drawn]}
    assert files_in(folder) == {*expected, "areas.json"}
    for index, name in enumerate(FILES):
        with Image.open(folder / "labels" / name) as image:
            assert image.mode == "P"
            assert np.array(image).tolist() == map_of(index).tolist()
            assert image.convert("RGB").getpixel((3, 2)) == YELLOW
    areas = json.loads((folder / "areas.json").read_text(encoding="utf-8"))
    assert areas["classes"] == NAMES
    assert [image["id"] for image in areas["images"]] == IDS  # each once, in the order of the set
    for index, image in enumerate(areas["images"]):
        counts = {"background": 11 - index, "Straße": 1, "cat": index}
        rows = [{"class": name, "pixels": n, "share": n / 12} for name, n in counts.items() if n]
        assert image == {"id": IDS[index], "width": 4, "height": 3, "areas": rows}


def test_the_files_hold_what_the_module_returned(make_trainer, tmp_path, capsys) -> None:
    data = Data(order=[3, 0, 1, 4, 2, 0, 3])  # a sampler over several processes repeats items
    trainer = make_trainer(tmp_path, SegmentationWriter(max_pictures=3))
    trainer.predict(Module(), datamodule=data, return_predictions=False)
    check_files(tmp_path / "predictions", 3)  # the first three of the set, in whatever order they come
    said = f"label maps of 5 images written to {tmp_path / 'predictions'} (labels, 3 overlays, areas.json)"
    assert said in capsys.readouterr().out
    (tmp_path / "predictions" / "mine.txt").write_text("kept")
    make_trainer(tmp_path, SegmentationWriter(max_pictures=0)).predict(
        Module(), datamodule=Data(order=[1]), return_predictions=False
    )
    assert files_in(tmp_path / "predictions") == {f"labels/{FILES[1]}", "areas.json", "mine.txt"}
    check_files(tmp_path / "predictions.previous", 3)


def test_names_that_are_no_utf8_or_as_long_as_can_be(make_trainer, tmp_path) -> None:
    latin, long = b"caf\xe9.png".decode(errors="surrogateescape"), ["\u6d77" * 83 + ".jpg", "\u6d77" * 83 + ".png"]

    class Named(Module):
        def predict_step(self, batch, batch_idx):
            names = [latin, *long]
            return [{"labels": map_of(i), "id": names[i], "index": i, "names": NAMES} for i in batch["index"].tolist()]

    make_trainer(tmp_path, SegmentationWriter()).predict(Named(), datamodule=Data([0, 1, 2]), return_predictions=False)
    images = json.loads((tmp_path / "predictions" / "areas.json").read_text())["images"]
    assert [image["id"] for image in images] == [latin, *long]
    written = [file.name for file in (tmp_path / "predictions" / "labels").iterdir()]
    assert f"{latin}.png" in written
    assert len({name for name in written if name.startswith("\u6d77" * 70)}) == 2


def test_label_maps_are_written_while_predict_runs(make_trainer, tmp_path) -> None:
    written = []

    class Watched(Module):
        def on_predict_batch_start(self, batch, batch_idx):
            written.append(len(files_in(tmp_path / "elsewhere")))

    writer = SegmentationWriter(str(tmp_path / "elsewhere"), max_pictures=0)
    trainer = make_trainer(tmp_path / "run", writer)
    trainer.predict(Watched(), datamodule=Data(), return_predictions=False)
    assert written == [0, 2, 4]
    assert trainer.predict_loop.predictions == []
    check_files(tmp_path / "elsewhere", 0)


def test_more_than_255_classes_take_16_bits(make_trainer, tmp_path) -> None:
    class Many(Module):
        def predict_step(self, batch, batch_idx):
            labels = torch.tensor([[0, 255, 299]])
            return [{"labels": labels, "id": "a", "index": 0, "names": [f"c{k}" for k in range(300)]}]

    make_trainer(tmp_path, SegmentationWriter()).predict(Many(), datamodule=Data([0], lacks=["image"]))
    folder = tmp_path / "predictions"
    assert files_in(folder) == {"labels/a.png", "areas.json"}  # without pictures no overlay
    with Image.open(folder / "labels" / "a.png") as image:
        assert image.mode == "I;16"
        assert np.array(image).tolist() == [[0, 255, 299]]
    (image,) = json.loads((folder / "areas.json").read_text())["images"]
    assert [row["class"] for row in image["areas"]] == ["c0", "c255", "c299"]


def test_an_overlay_shows_colours_boundaries_and_shares(monkeypatch) -> None:
    image, labels = np.full((3, 4, 3), 100, np.uint8), map_of(4).numpy()  # the first row is cat
    entries = []
    monkeypatch.setattr(segmentation_writer, "legend", lambda rows, *size: entries.extend(rows) or legend(rows, *size))
    drawn = overlay_with_legend(image, labels, NAMES, class_colours(NAMES))
    assert entries == [("background  58.3 %", (0, 0, 0)), ("cat  33.3 %", BLUE), ("Straße  8.3 %", YELLOW)]
    left = (drawn.width - 640) // 2  # four columns of 160 pixels
    assert drawn.getpixel((left + 80, 80)) == tuple((100 + c) // 2 for c in BLUE)
    assert drawn.getpixel((left + 80, 400)) == (50, 50, 50)
    assert [drawn.getpixel((left + 80, y))[0] for y in (158, 159, 160, 161)] == [72, 255, 255, 50]
    assert [percent(share) for share in (1.0, 0.001, 0.0009)] == ["100.0 %", "0.1 %", "< 0.1 %"]


class Wrong(LightningModule):
    def predict_step(self, batch, batch_idx):
        return batch["index"]

    def test_step(self, batch, batch_idx):
        return None


def test_what_does_not_fit_is_named_and_a_trial_run_writes_nothing(make_trainer, tmp_path) -> None:
    with pytest.raises(ValueError, match="predict_step of Wrong must return a list with a dict for each image"):
        make_trainer(tmp_path, SegmentationWriter()).predict(Wrong(), datamodule=Data())
    with pytest.raises(ValueError, match="max_pictures is -1; it must be at least 0"):
        SegmentationWriter(max_pictures=-1)
    with pytest.raises(ValueError, match="num_images is 0; it must be at least 1"):
        SegmentationPictures(0)
    with pytest.warns(UserWarning, match="test_step of Wrong returned no 'found' and 'names'"):
        make_trainer(tmp_path, SegmentationPictures()).test(Wrong(), datamodule=Data(), verbose=False)
    data = Data(lacks=["instance_mask"])
    with pytest.warns(UserWarning, match="the batches have no 'instance_mask'"):
        make_trainer(tmp_path, SegmentationPictures()).test(Module(), datamodule=data, verbose=False)
    trial = make_trainer(tmp_path, SegmentationWriter(), SegmentationPictures(), fast_dev_run=True)
    trial.predict(Module(), datamodule=Data())
    trial.test(Module(), datamodule=Data(), verbose=False)
    assert not list(tmp_path.iterdir())


DDP_RUN = """
import sys
sys.path[:0] = [".", "tests/support", "tests/callbacks"]
from lightning.pytorch import Trainer
from callbacks.segmentation_writer import SegmentationWriter
from test_segmentation_writer import Data, Module

Trainer(
    accelerator="cpu", devices=int(sys.argv[2]), strategy="ddp", logger=False, enable_progress_bar=False,
    enable_checkpointing=False, callbacks=[SegmentationWriter(sys.argv[1], 2)],
).predict(Module(), datamodule=Data(), return_predictions=False)
"""


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(tmp_path) -> None:
    launch(DDP_RUN, 2, tmp_path / "two")  # five images on two processes: one comes twice
    check_files(tmp_path / "two", 2)


def test_the_sheet_shows_the_first_images(make_trainer, tmp_path, monkeypatch) -> None:
    rows, sheet = [], segmentation_pictures.segmentation_sheet
    monkeypatch.setattr(segmentation_pictures, "segmentation_sheet", lambda r, *more: rows.extend(r) or sheet(r, *more))
    callback = SegmentationPictures(3)
    make_trainer(tmp_path, callback).test(Module(), datamodule=Data(), verbose=False)
    assert callback.pictures == {"segmentation": tmp_path / "pictures" / "segmentation.png"}
    assert files_in(tmp_path) == {"pictures/segmentation.png"}
    assert [row.cells[0].caption for row in rows] == IDS[:3]
    assert [row.cells[0].picture.getpixel((9, 9)) for row in rows] == [(100 + k,) * 3 for k in range(3)]
    assert [row.classes for row in rows] == [[0, 1], [0, 1, 2], [0, 1, 2]]
    # background 10 of 10 pixels, street 1 of 1; then the cat takes the pixel that does not count; then one that does
    outcomes = ["IoU 1.00, mean of 2 classes", "IoU 1.00, mean of 2 classes", "IoU 0.63, mean of 3 classes"]
    assert [row.cells[3].caption for row in rows] == outcomes
    with Image.open(callback.pictures["segmentation"]) as image:  # three rows of 240 pixels, one of names
        assert image.size == (2 * 20 + 4 * 320 + 3 * 12, 44 + 3 * (240 + 22 + 12) + 26 + 20)
        assert image.getpixel((20 + 332 + 280, 44 + 200)) == YELLOW  # true street in the first row


def test_of_several_sets_the_first_is_shown(make_trainer, tmp_path, monkeypatch) -> None:
    class Sets(Data):
        def test_dataloader(self):
            return [super().test_dataloader()] * 2

    class TwoLists(Module):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            found = super().test_step(batch, batch_idx)
            return {"found": [labels * 0 for labels in found["found"]], "names": ["one"]} if dataloader_idx else found

    given = []
    sheet = segmentation_pictures.segmentation_sheet
    monkeypatch.setattr(segmentation_pictures, "segmentation_sheet", lambda *g: given.extend(g) or sheet(*g))
    trainer = make_trainer(tmp_path, SegmentationPictures(3), limit_test_batches=1)  # two images of each set
    trainer.test(TwoLists(), datamodule=Sets(), verbose=False)
    rows, names, _ = given
    assert [row.cells[0].caption for row in rows] == IDS[:2]
    assert names == NAMES


def test_a_row_shows_truth_regions_and_prediction() -> None:
    image, regions = torch.zeros(3, 3, 4, dtype=torch.uint8), torch.tensor([[0, 0, 7, 7]] * 3)
    truth = torch.full((3, 4), 255)
    row = drawn_row("a", image, truth, regions, map_of(4), class_colours(NAMES))
    assert row.classes == [0, 1, 2]
    assert [cell.caption for cell in row.cells] == ["a", "", "1 region", "no pixel counts"]
    assert {colour for _, colour in row.cells[1].picture.getcolors()} == {GREY, PALE}
    assert row.cells[2].picture.getpixel((40, 40)) in (GREY, PALE)
    assert row.cells[2].picture.getpixel((300, 40)) == tuple(region_colours(7)[6].tolist())
    assert row.cells[3].picture.getpixel((40, 40)) == BLUE
    none = drawn_row("a", image, map_of(0), torch.zeros(3, 4, dtype=torch.int32), map_of(0), class_colours(NAMES))
    assert [none.cells[k].caption for k in (2, 3)] == ["0 regions", "IoU 1.00, mean of 2 classes"]
    assert image_iou(map_of(0), map_of(0) + 1, 3) == (0.0, 3)


def test_an_offline_wandb_run_holds_the_sheet(make_trainer, tmp_path) -> None:
    import wandb

    logger, callback = WandbLogger(project="test", save_dir=tmp_path), SegmentationPictures(1)
    make_trainer(tmp_path, callback, logger=logger).test(Module(), datamodule=Data(), verbose=False)
    files = Path(logger.experiment.dir)
    wandb.finish()
    (sent,) = files.glob("media/images/test/segmentation*.png")
    assert sent.read_bytes() == callback.pictures["segmentation"].read_bytes()


# Machado et al., "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009: full severity
VISIONS = [
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
]


def smallest_distance(colours: np.ndarray) -> float:
    places = oklab(colours)
    return float((np.linalg.norm(places[:, None] - places, axis=-1) + 9 * np.eye(len(colours))).min())


def seen(colours: np.ndarray, vision: list[list[float]]) -> np.ndarray:
    values = np.asarray(colours) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.array(vision).T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_colours_are_told_apart() -> None:
    dozen = np.concatenate([distinct_colours(12), [(0, 0, 0), (255, 255, 255)]])
    assert min(smallest_distance(seen(dozen, vision)) for vision in VISIONS) > 0.11
    assert smallest_distance(distinct_colours(21)) > 0.13
    assert smallest_distance(distinct_colours(255)) > 0.045
    many = distinct_colours(600)
    assert (many[:21] == distinct_colours(21)).all()
    assert (many[255:510] == many[:255]).all()
    assert (class_colours(["a", "background", "b"]) == [YELLOW, (0, 0, 0), BLUE]).all()
    assert smallest_distance(region_colours(12)) > 0.04
    assert oklab(np.array([255, 0, 0])).round(3).tolist() == [0.628, 0.225, 0.126]  # as its author publishes it


def test_a_palette_has_grey_where_there_is_no_class(make_trainer, tmp_path) -> None:
    make_trainer(tmp_path, SegmentationWriter()).predict(Module(), datamodule=Data([0]))
    with Image.open(tmp_path / "predictions" / "labels" / "a.jpg.png") as image:
        palette = np.array(image.getpalette()).reshape(-1, 3)
    assert palette[:4].tolist() == [[0, 0, 0], list(YELLOW), list(BLUE), list(GREY)]
    assert len(palette) == 256
    assert (palette[3:] == GREY).all()


def test_label_maps_of_any_shape_are_drawn() -> None:
    striped = painted(np.full((1, 12), -1), region_colours(0))[0, :, 0].tolist()
    assert striped == [128] * 5 + [176] * 5 + [128] * 2
    assert label_picture(np.zeros((1, 3000), int), region_colours(1), 320).size == (320, 1)
    assert boundaries(np.array([[1, 2], [1, 2], [3, 3]]), 1).tolist() == [[False, True], [False, True], [True, True]]
    assert not boundaries(np.array([[1, 2]]), 6).any()
    drawn = legend([("x" * 50, (1, 2, 3)), ("b", None)], 100)  # narrower than a name: one below the other
    assert drawn.size == (100, 44)
    assert drawn.getpixel((6, 11)) == (1, 2, 3)
    assert drawn.getpixel((6, 33)) in (GREY, PALE)
