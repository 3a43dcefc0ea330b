"""results.json: complete, written in one step, kept when a run fails."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from toy_run import ToyData, ToyModule

from callbacks import results
from callbacks.results import Results, finite, floors, save_block


def trainer(folder: Path, **settings: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **settings,
    )


def test_after_a_test_the_file_says_what_was_measured(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    model, data = ToyModule(), ToyData()
    trainer(tmp_path, callbacks=[Results()]).test(model, datamodule=data, verbose=False)
    block = json.loads((tmp_path / "results.json").read_text())["test"]
    x, y = data.rows.tensors
    expected = (x.double() @ model.layer.weight.double().T + model.layer.bias.double() - y.double()).square().mean()
    assert block["metrics"]["test/error_map"] == pytest.approx(expected.item(), rel=1e-5)
    assert block["floors"] == {"test/error_map": 2.0}
    assert block["n"] == {"items": 8}
    assert block["seed"] == 7
    assert block["notes"]["convention"] == "squared error"
    assert block["versions"]["torch"] == torch.__version__.split("+")[0] or block["versions"]["torch"]
    assert {"lightning", "clip-suite", "python"} <= set(block["versions"])
    assert "git_commit" in block
    assert os.uname().nodename not in json.dumps(block)
    shown = capsys.readouterr().out
    assert "test/error_map" in shown
    assert "2.0000" in shown
    assert "squared error" in shown


def test_both_stages_are_kept_and_training_writes_none(tmp_path) -> None:
    model = ToyModule()
    run = trainer(tmp_path, callbacks=[Results()], max_epochs=1)
    run.fit(model, datamodule=ToyData())
    assert not (tmp_path / "results.json").exists()
    run.validate(model, datamodule=ToyData(), verbose=False)
    run.test(model, datamodule=ToyData(), verbose=False)
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"validate", "test"}


def test_a_failed_run_leaves_the_earlier_file(tmp_path, monkeypatch) -> None:
    file = tmp_path / "results.json"
    save_block(file, "test", {"metrics": {"a": 1.0}})
    before = file.read_bytes()

    class Broken(ToyModule):
        def on_test_epoch_end(self) -> None:
            raise ValueError("no relevant item")

    with pytest.raises(ValueError, match="no relevant item"):
        trainer(tmp_path, callbacks=[Results()]).test(Broken(), datamodule=ToyData(), verbose=False)
    assert file.read_bytes() == before

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_block(file, "test", {"metrics": {"a": 2.0}})
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_damaged_file_is_put_aside(tmp_path) -> None:
    file = tmp_path / "results.json"
    file.write_text("{half")
    save_block(file, "test", {"a": 1})
    assert json.loads(file.read_text()) == {"test": {"a": 1}}
    assert (tmp_path / "results.damaged.json").read_text() == "{half"


def test_numbers_that_json_cannot_hold_become_null(tmp_path) -> None:
    assert finite({"a": (float("inf"), 1.5)}) == {"a": [None, 1.5]}
    save_block(tmp_path / "r.json", "test", {"a": float("nan")})
    assert json.loads((tmp_path / "r.json").read_text())["test"]["a"] is None


def test_the_longest_floor_that_fits_is_taken() -> None:
    metrics = {"test/u_i2t_map": 0.5, "test/u_i2t_map_at_50": 0.6, "test/loss": 1.0, "test/random_map": 0.1}
    found = floors(metrics, {"random_map_at_50": 0.2, "convention": "x"})
    assert found == {"test/u_i2t_map": 0.1, "test/u_i2t_map_at_50": 0.2}


def test_the_commit_is_marked_when_files_differ(tmp_path, monkeypatch) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    source = tmp_path / "callbacks" / "results.py"
    source.parent.mkdir()
    source.write_text("a")
    monkeypatch.setattr(results, "__file__", str(source))
    assert results.git_commit() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = results.git_commit()
    assert clean is not None
    assert len(clean) == 40
    source.write_text("b")
    assert results.git_commit() == f"{clean}+changes"
