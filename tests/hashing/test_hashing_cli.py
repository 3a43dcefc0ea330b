"""Cross-modal hashing through the command line: train, score, resume, predict, and the messages for bad features."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import start

CONFIG = """\
seed_everything: 1
trainer:
  default_root_dir: runs/hashing
  max_epochs: 20
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {monitor: val/map, mode: max, save_last: true}
    - class_path: ProgressiveScale
model:
  class_path: CrossModalHashing
  init_args: {bits: 16, hidden: 64, fusion: false, dropout: 0.0}
data:
  class_path: PairedFeatures
  init_args: {source: features.npz, val_fraction: 0.25, batch_size: 16}
"""


def write_features(file: Path, rows: int = 64, spoil: bool = False) -> None:
    """Items of four classes whose image and text features are noisy copies of a class mean."""
    rng = np.random.default_rng(0)
    means = {"image": rng.normal(size=(4, 12)), "text": rng.normal(size=(4, 8))}
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", rows), ("query", 16), ("database", 32)):
        classes = np.arange(count) % 4
        arrays[f"{split}_labels"] = np.eye(4, dtype=np.float32)[classes]
        for name, mean in means.items():
            noisy = mean[classes] + 0.3 * rng.normal(size=(count, mean.shape[1]))
            arrays[f"{split}_{name}"] = noisy.astype(np.float32)
    if spoil:
        arrays["train_image"][3, 5] = np.nan
    np.savez(file, **arrays)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_features(tmp_path / "features.npz")
    file = tmp_path / "hashing.yaml"
    file.write_text(CONFIG)
    return file


def block(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())[stage]


def test_fit_test_resume_predict(run_cli, config, tmp_path) -> None:
    folder = tmp_path / "runs" / "hashing"
    run_cli("fit", "-c", config)
    run_cli("test", "-c", config, "--ckpt_path", "best")
    tested = block(folder, "test")
    assert tested["metrics"]["test/unimodal_i2t_map"] > tested["floors"]["test/unimodal_i2t_map"] > 0
    assert tested["n"]["query"] == 16
    assert tested["n"]["database"] == 32
    assert tested["notes"]["convention"]
    run_cli("validate", "-c", config, "--ckpt_path", "last")
    assert "val/map" in block(folder, "validate")["metrics"]
    run_cli("predict", "-c", config, "--ckpt_path", "last", "--trainer.callbacks+=CodeWriter")
    assert np.load(folder / "codes" / "query.npz")["image_codes"].shape == (16, 2)


@pytest.mark.slow
def test_a_killed_training_ends_where_an_undisturbed_one_does(run_cli, config, tmp_path) -> None:
    settings = ("-c", config, "--trainer.max_epochs", "30")
    whole = ("--trainer.default_root_dir", "runs/whole")
    run_cli("fit", *settings, *whole)
    run_cli("test", *settings, *whole, "--ckpt_path", "last")

    last = tmp_path / "runs" / "hashing" / "checkpoints" / "last.ckpt"
    process = start("import cli; cli.main()", ["fit", *settings], tmp_path / "printed", tmp_path)
    while not last.is_file() and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "printed").read_text()
    assert torch.load(last, weights_only=True)["epoch"] < 29

    run_cli("fit", *settings, "--ckpt_path", "last")
    run_cli("test", *settings, "--ckpt_path", "last")
    undisturbed, resumed = (block(tmp_path / "runs" / name, "test")["metrics"] for name in ("whole", "hashing"))
    assert undisturbed == pytest.approx(resumed, abs=1e-6)
    curves = [(tmp_path / "runs" / name / "metrics.csv").read_text().splitlines() for name in ("whole", "hashing")]
    # one row may be lost: the last checkpoint is written before the training losses of its epoch are logged
    assert len(curves[0]) - len(curves[1]) in (0, 1)
    assert len(set(curves[1])) == len(curves[1])


def test_other_code_length_than_the_checkpoint_is_refused(run_cli, config, capsys) -> None:
    run_cli("fit", "-c", config)
    with pytest.raises(SystemExit) as stop:
        run_cli("test", "-c", config, "--ckpt_path", "best", "--model.bits", "32")
    assert stop.value.code == 2
    assert "does not belong to this CrossModalHashing: other shapes" in capsys.readouterr().err


def test_features_that_are_not_finite_are_named(run_cli, config, tmp_path, capsys) -> None:
    write_features(tmp_path / "features.npz", spoil=True)
    with pytest.raises(SystemExit) as stop:
        run_cli("fit", "-c", config)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "features.npz" in message
    assert "Traceback" not in message
