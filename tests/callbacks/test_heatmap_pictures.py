"""The sheets of a toy test: which images they show, and what is a hit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from torch.utils.data import DataLoader

from callbacks import heatmap_pictures
from callbacks.heatmap_pictures import HeatmapPictures, Sighting, judge, row_of
from callbacks.panels import HIT, MISS, QUIET

NAMES = ["storage tank", "ship/boat", "ship:boat", "never there"]
LABELS = [[0], [0, 1], [], [1, 1, 2], [0], [2], [0, 1]]  # true classes of each image


def boxes_of(index: int) -> torch.Tensor:
    return torch.tensor([[10.0 * k, index, 10 * k + 8, index + 8] for k in range(len(LABELS[index]))]).reshape(-1, 4)


def map_of(index: int, label: int) -> torch.Tensor:
    return torch.tensor([[index, label, 0.0], [0.0, 0.0, 1.0]])


class Data(LightningDataModule):
    """Seven images of 40 x 30 pixels, each in its own colour."""

    def test_dataloader(self):
        def collate(rows):
            labels = [torch.tensor(LABELS[row], dtype=torch.long) for row in rows]
            return {
                "boxes": [boxes_of(row) for row in rows],
                "box_labels": labels,
                "ignore": [torch.zeros(len(each), dtype=torch.bool) for each in labels],
                "index": torch.tensor(rows),
                "id": [f"folder/{row}" for row in rows],
            }

        return DataLoader(range(len(LABELS)), batch_size=3, collate_fn=collate)

    def picture(self, part, index):
        assert part == "test"
        return Image.new("RGB", (40, 30), (index, 0, 0))


class Module(LightningModule):
    """Finds every true box, and one more in each image."""

    def test_step(self, batch, batch_idx):
        index = batch["index"].tolist()
        found = [
            {
                "boxes": torch.cat([torch.tensor([[20.0, 20, 30, 30]]), boxes_of(i)]),
                "scores": torch.linspace(0.25, 0.5, len(LABELS[i]) + 1),
                "labels": torch.tensor([0, *LABELS[i]]),
            }
            for i in index
        ]
        maps = torch.stack([torch.stack([map_of(i, k) for k in range(len(NAMES))]) for i in index])
        return {"maps": maps, "found": found, "names": NAMES}


class Silent(LightningModule):
    def test_step(self, batch, batch_idx):
        return None


def test_the_first_images_of_each_class_are_shown(make_trainer, tmp_path, monkeypatch) -> None:
    rows, titles, sheet = [], [], heatmap_pictures.contact_sheet
    monkeypatch.setattr(heatmap_pictures, "row_of", lambda *given: rows.append(given) or row_of(*given))
    monkeypatch.setattr(heatmap_pictures, "contact_sheet", lambda r, title: titles.append(title) or sheet(r, title))
    callback = HeatmapPictures(per_class=2)
    make_trainer(tmp_path, callback).test(Module(), datamodule=Data(), verbose=False)

    assert titles == NAMES[:3]
    assert [one.index for one, _ in rows] == [0, 1, 1, 3, 3, 5]  # the third class is in two images alone
    for label in range(3):
        for one, picture in rows[2 * label : 2 * label + 2]:
            mine = [k for k, true in enumerate(LABELS[one.index]) if true == label]
            assert one.name == f"folder/{one.index}"
            assert picture.getpixel((0, 0)) == (one.index, 0, 0)
            assert one.heatmap.tolist() == map_of(one.index, label).tolist()
            assert one.heatmap.base is None  # keeps nothing of the batch
            assert one.truths.tolist() == boxes_of(one.index)[mine].tolist()
            extra = [[20.0, 20, 30, 30]] if label == 0 else []
            assert one.boxes.tolist() == extra + one.truths.tolist()
            assert len(one.scores) == len(one.boxes)
    names = ["heatmap_storage_tank", "heatmap_ship_boat", "heatmap_ship_boat_2"]
    assert callback.pictures == {name: tmp_path / "pictures" / f"{name}.png" for name in names}
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "pictures", *callback.pictures.values()])
    for path in callback.pictures.values():
        with Image.open(path) as image:
            assert image.size == (1100, 88 + 2 * (192 + 34) + 8)


def sighting(boxes, scores, truths, ignore=None) -> Sighting:
    truths = np.array(truths, dtype=np.float32).reshape(-1, 4)
    ignore = np.zeros(len(truths), dtype=bool) if ignore is None else np.array(ignore)
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Sighting(0, "a", np.eye(3, dtype=np.float32), truths, ignore, boxes, np.array(scores, dtype=np.float32))


def test_hits_are_those_of_the_metric() -> None:
    truths = [[0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]]
    boxes = [
        [0, 0, 10, 10],  # a second box on the first truth, which is weaker
        [0, 0, 10, 9],  # takes the first truth
        [58, 50, 60, 60],  # IoU 0.2 exactly
        [59, 50, 60, 60],  # IoU 0.1
        [80, 80, 90, 90],  # on a truth that does not count
    ]
    hit, ignored = judge(sighting(boxes, [0.1, 0.9, 0.5, 0.6, 0.7], truths, [False, False, True]))
    assert (hit & ~ignored).tolist() == [False, True, True, False, False]
    assert ignored.tolist() == [False, False, False, False, True]
    hit, ignored = judge(sighting([], [], truths))
    assert hit.shape == ignored.shape == (0,)


def test_a_row_says_what_the_boxes_amount_to(monkeypatch) -> None:
    drawn = []
    original = heatmap_pictures.heatmap_row
    monkeypatch.setattr(heatmap_pictures, "heatmap_row", lambda *given: drawn.append(given) or original(*given))
    picture = Image.new("RGB", (96, 96))
    one = sighting(
        [[70, 0, 80, 10], [0, 0, 10, 10], [80, 80, 90, 90]],
        [0.0312, 0.9, 0.5],
        [[0, 0, 10, 10], [80, 80, 90, 90]],
        [False, True],
    )
    row_of(one, picture)
    _, _, truths, found, _, outcome = drawn[-1]
    assert truths.colours == [HIT, QUIET]
    assert found.colours == [HIT, QUIET, MISS]
    assert found.texts == ["✓ 0.90", "0.50", "✗ 0.031"]
    assert found.corners[:, 0].tolist() == [0, 80, 70]
    assert outcome == "1 of 1 found, 1 false"

    many = sighting([[k, 0, k + 1, 9] for k in range(13)], np.arange(13) / 10, [[40, 40, 50, 50]])
    row_of(many, picture)
    _, _, truths, found, _, outcome = drawn[-1]
    assert found.corners[:, 0].tolist() == list(range(12, 2, -1))
    assert len(found.colours) == len(found.texts) == 10
    assert outcome == "0 of 1 found, 13 false; 10 drawn"
    assert row_of(sighting([], [], [[0, 0, 5, 5]]), picture)[3].caption == "0 of 1 found, 0 false"


def test_a_module_or_data_without_the_protocol_is_told_so(make_trainer, tmp_path) -> None:
    with pytest.warns(UserWarning, match="test_step of Silent returned no 'maps', 'found' and 'names'"):
        make_trainer(tmp_path, HeatmapPictures()).test(Silent(), datamodule=Data(), verbose=False)
    with pytest.warns(UserWarning, match=r"the datamodule has no picture\(part, index\)"):
        make_trainer(tmp_path, HeatmapPictures()).test(Module(), Data().test_dataloader(), verbose=False)
    make_trainer(tmp_path, HeatmapPictures(), fast_dev_run=True).test(Module(), datamodule=Data(), verbose=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="per_class is 0; it must be at least 1"):
        HeatmapPictures(0)


def test_an_offline_wandb_run_holds_the_pictures(make_trainer, tmp_path) -> None:
    import wandb

    logger, callback = WandbLogger(project="test", save_dir=tmp_path), HeatmapPictures(1)
    make_trainer(tmp_path, callback, logger=logger).test(Module(), datamodule=Data(), verbose=False)
    files = Path(logger.experiment.dir)
    wandb.finish()
    assert len(callback.pictures) == 3
    sent = {file.read_bytes() for file in files.glob("media/images/test/heatmap_*.png")}
    assert sent == {path.read_bytes() for path in callback.pictures.values()}
