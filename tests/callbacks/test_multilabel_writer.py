"""The tables of predictions, read back and compared with what the module returned."""

import csv

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from processes import launch
from pyarrow import parquet
from torch.utils.data import DataLoader

from callbacks.multilabel_writer import MultilabelWriter

CLASSES = ["cat", "dog, large", "übermensch"]


def outputs_of(index, loader=0, bits=12):
    """What a module would return for some items, a function of their index alone."""
    g = np.random.default_rng([7, loader])
    probabilities, codes = g.random((100, 3)).astype(np.float32), g.choice([-1, 1], (100, max(bits, 1)))
    probabilities[0] = [0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.0]
    found = {
        "index": index,
        "probabilities": torch.from_numpy(probabilities)[index],
        "ids": [f"part{loader}/bild, {int(i)}.jpg" for i in index],
    }
    return {**found, "codes": torch.from_numpy(codes).to(torch.int8)[index]} if bits else found


class Module(LightningModule):
    def __init__(self, bits=12, thresholds=None):
        super().__init__()
        self.bits, self.decision_thresholds = bits, thresholds

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return outputs_of(batch, dataloader_idx, self.bits)


class Plain(LightningModule):
    def predict_step(self, batch, batch_idx):
        return outputs_of(batch, bits=0)


class Data(LightningDataModule):
    class_names = CLASSES

    def __init__(self, *counts):
        super().__init__()
        self.counts = counts

    def predict_dataloader(self):
        loaders = [DataLoader(range(n), batch_size=4) for n in self.counts]
        return loaders if len(loaders) > 1 else loaders[0]


def read(folder):
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return rows, parquet.read_table(folder / "predictions.parquet").to_pylist()


def check_rows(rows, table, counts, thresholds, bits):
    expected = [outputs_of(torch.arange(n), loader, bits) for loader, n in enumerate(counts)]
    probabilities = torch.cat([part["probabilities"] for part in expected]).numpy()
    assert [row["id"] for row in rows] == [name for part in expected for name in part["ids"]]
    assert len(rows) == len(table) == sum(counts)
    for i, (row, entry) in enumerate(zip(rows, table, strict=True)):
        labels = [name for c, name in enumerate(CLASSES) if probabilities[i, c] >= thresholds[c]]
        assert row["labels"] == ";".join(labels)
        assert entry["labels"] == labels
        assert entry["id"] == row["id"]
        for c, name in enumerate(CLASSES):
            assert entry[f"p_{name}"] == probabilities[i, c]
            assert float(row[f"p_{name}"]) == pytest.approx(float(probabilities[i, c]), rel=1e-5)
    if bits:
        codes = torch.cat([part["codes"] for part in expected]).tolist()
        for code, row, entry in zip(codes, rows, table, strict=True):
            digits = "".join("1" if value > 0 else "0" for value in code).ljust(-(-bits // 8) * 8, "0")
            assert row["code"] == entry["code"] == f"{int(digits, 2):0{len(digits) // 4}x}"
    else:
        assert "code" not in {*rows[0], *table[0]}


@pytest.mark.parametrize("bits", [0, 1, 12, 64])
def test_the_tables_hold_what_the_module_returned(make_trainer, tmp_path, capsys, bits):
    make_trainer(tmp_path, MultilabelWriter()).predict(Module(bits), datamodule=Data(11), return_predictions=False)
    rows, table = read(tmp_path / "predictions")
    check_rows(rows, table, (11,), [0.5] * 3, bits)
    assert list(rows[0]) == ["id", "labels", *(f"p_{name}" for name in CLASSES), *(["code"] if bits else [])]
    assert list(rows[0]) == list(table[0])
    assert rows[0]["labels"] == "cat"  # exactly 0.5 is enough, a little less is not
    printed = capsys.readouterr().out
    assert "probability >= 0.5 for every class" in printed
    assert "predictions of 11 items written to" in printed
    assert sorted(file.name for file in (tmp_path / "predictions").iterdir()) == [
        "predictions.csv",
        "predictions.parquet",
    ]


def test_fitted_thresholds_decide_and_are_told(make_trainer, tmp_path, capsys):
    thresholds = torch.tensor([0.9, 0.1, 0.0])
    writer = MultilabelWriter(str(tmp_path / "elsewhere"))
    make_trainer(tmp_path / "run", writer).predict(Module(thresholds=thresholds), datamodule=Data(30))
    check_rows(*read(tmp_path / "elsewhere"), (30,), thresholds.tolist(), 12)
    assert "fitted on training items (0.000 to 0.900)" in capsys.readouterr().out


def test_several_loaders_are_told_apart(make_trainer, tmp_path):
    make_trainer(tmp_path, MultilabelWriter()).predict(Module(), datamodule=Data(9, 5))
    rows, table = read(tmp_path / "predictions")
    check_rows(rows, table, (9, 5), [0.5] * 3, 12)
    assert [entry["part"] for entry in table] == [row["part"] for row in rows] == ["0"] * 9 + ["1"] * 5


def test_a_module_without_thresholds_and_codes_and_a_second_run(make_trainer, tmp_path):
    for count in (20, 6):
        make_trainer(tmp_path, MultilabelWriter()).predict(Plain(), datamodule=Data(count))
    check_rows(*read(tmp_path / "predictions"), (6,), [0.5] * 3, 0)


def test_a_trial_run_writes_nothing(make_trainer, tmp_path):
    make_trainer(tmp_path, MultilabelWriter(), fast_dev_run=True).predict(Module(), datamodule=Data(9))
    assert not (tmp_path / "predictions").exists()


class Wrong(Module):
    def predict_step(self, batch, batch_idx):
        return batch


def test_what_does_not_fit_is_named(make_trainer, tmp_path):
    def predict(module, data):
        make_trainer(tmp_path, MultilabelWriter()).predict(module, datamodule=data)

    with pytest.raises(ValueError, match="predict_step of Wrong must return a dict with 'index', 'probabilities'"):
        predict(Wrong(), Data(9))
    short = Data(9)
    short.class_names = CLASSES[:2]
    with pytest.raises(ValueError, match="3 probabilities an item, but the data has 2 class names"):
        predict(Module(), short)
    with pytest.raises(ValueError, match=r"decision_thresholds has shape \(2,\); \(3,\) is needed"):
        predict(Module(thresholds=torch.ones(2)), Data(9))
    with pytest.raises(ValueError, match="the data has no class names"):
        make_trainer(tmp_path, MultilabelWriter()).predict(Module(), DataLoader(range(4), batch_size=2))
    assert not (tmp_path / "predictions").exists()


DDP_RUN = """
import sys
sys.path[:0] = [".", "tests/support", "tests/callbacks"]
from lightning.pytorch import Trainer
from callbacks.multilabel_writer import MultilabelWriter
from test_multilabel_writer import Data, Module

Trainer(
    accelerator="cpu", devices=int(sys.argv[2]), strategy="ddp", logger=False, enable_progress_bar=False,
    enable_checkpointing=False, callbacks=[MultilabelWriter(sys.argv[1])],
).predict(Module(), datamodule=Data(11, 5), return_predictions=False)
"""


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(tmp_path):
    launch(DDP_RUN, 2, tmp_path / "two")
    check_rows(*read(tmp_path / "two"), (11, 5), [0.5] * 3, 12)
