"""Detectors and the miner through the command line on a few generated scenes: fit, test, predict, resume, mistakes."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import launch, start
from toy_detectors import save_detector
from toy_onnx import save_linear

from datamodules import DIOR
from datamodules.scenes.dior_layout import write_dior
from datamodules.scenes.sprites import CLASS_NAMES
from lightning_modules.detection.weights import hardness_weights

CONFIG = f"""\
seed_everything: 1
trainer:
  default_root_dir: runs/mined
  max_epochs: 5
  accelerator: cpu
  gradient_clip_val: 10
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  callbacks:
    - class_path: ResultTables
    - class_path: AverageWeights
      init_args: {{decay: 0.5}}
    - class_path: ModelCheckpoint
      init_args: {{monitor: val/ap_50, mode: max, save_last: true}}
    - class_path: HardNegativeMining
      init_args: {{every_n_epochs: 2, start_epoch: 1, confidence_threshold: 0.012, crops: 3}}
model:
  class_path: ConvDetection
  init_args: {{width: 8}}
data:
  class_path: DIOR
  init_args: {{root: world, image_size: 64, classes: {list(CLASS_NAMES)}, split_dir: splits, batch_size: 16}}
"""
MINER = "--trainer.callbacks.init_args"  # the last one of the list


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 scenes in DIOR's layout: 36 to train on, 12 to validate, 12 to test."""
    folder = tmp_path_factory.mktemp("detection")
    write_dior(str(folder / "world"), 60)
    return folder / "world"


@pytest.fixture
def place(world, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Path:
    """The working folder of a test."""
    (tmp_path / "world").symlink_to(world)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_model(place: Path, model: str, **arguments: Any) -> Path:
    """A configuration with another model."""
    config = yaml.safe_load(CONFIG)
    config["model"] = {"class_path": model, "init_args": arguments}
    (place / "other.yaml").write_text(yaml.safe_dump(config))
    return place / "other.yaml"


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["test"]["metrics"]


def mined(folder: Path) -> dict[str, Any]:
    """What the miner left in the last checkpoint."""
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["HardNegativeMining"]


def test_fit_mines_between_epochs_and_a_test_gives_the_same_in_a_process_of_its_own(run_cli, place) -> None:
    run_cli("fit", "-c", "config.yaml", "--test_after_fit", "true")
    folder = place / "runs/mined"
    rounds = sorted(path.name for path in (folder / "hard_negatives").iterdir())
    assert rounds == ["epoch_001", "epoch_003"]  # before epochs 1 and 3, none after the last
    report = json.loads((folder / "hard_negatives/epoch_003/report.json").read_text())
    counts = report["statistics"]
    assert counts["hard_negatives"] > 0
    assert counts["total_predictions"] == sum(
        counts[name] for name in ("true_positives", "false_positives", "below_threshold", "ignored")
    )
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mining/hard_negative_rate"]]
    assert [row["epoch"] for row in rows] == ["0", "2"]
    assert float(rows[1]["mining/recall"]) == pytest.approx(report["metrics"]["recall"], abs=1e-6)

    state = mined(folder)
    assert state["rounds"] == 2
    assert state["hardness"].shape == (36,)
    weights = hardness_weights(state["hardness"])
    assert int((weights > weights.min()).sum()) == 6  # the hardest ceil(0.3 / 2 * 36)

    after_fit = metrics(folder)
    assert after_fit["test/ap_50_low"] <= after_fit["test/ap_50"] <= after_fit["test/ap_50_high"]
    with (folder / "classes.csv").open() as file:
        classes = [row for row in csv.DictReader(file) if row["boxes"] != "0"]
    mean = sum(float(row["ap_50"]) for row in classes) / len(classes)
    assert mean == pytest.approx(after_fit["test/ap_50"], abs=1e-5)
    run_cli("test", "-c", "config.yaml", "--ckpt_path", "best")
    assert metrics(folder) == pytest.approx(after_fit, abs=1e-6)  # the averaged weights both times


@pytest.mark.slow
def test_a_killed_training_mines_and_ends_like_an_undisturbed_one(run_cli, place) -> None:
    settings = ["-c", "config.yaml", f"{MINER}.save_hard_negatives", "false", "--data.init_args.batch_size", "6"]
    run_cli("fit", *settings, "--trainer.default_root_dir", "runs/whole")
    last = place / "runs/mined/checkpoints/last.ckpt"
    process = start("import cli; cli.main()", ["fit", *settings], place / "printed", place)
    while process.is_alive() and not (last.is_file() and torch.load(last, weights_only=True)["epoch"] > 0):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (place / "printed").read_text()
    run_cli("fit", *settings, "--ckpt_path", "last")
    whole, resumed = mined(place / "runs/whole"), mined(place / "runs/mined")
    assert resumed["rounds"] == whole["rounds"] == 2
    torch.testing.assert_close(resumed["hardness"], whole["hardness"], rtol=1e-5, atol=1e-6)
    files = [place / "runs" / name / "checkpoints/last.ckpt" for name in ("whole", "mined")]
    a, b = (torch.load(file, weights_only=True)["current_model_state"] for file in files)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


RANKS = f"""\
import sys
from lightning.pytorch import Trainer, seed_everything
from callbacks import HardNegativeMining
from datamodules import DIOR
from lightning_modules import ConvDetection

root, out, strategy, processes = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
seed_everything(3)
module = ConvDetection(width=8, lr=1e-30, weight_decay=0.0)
data = DIOR(root=root, image_size=64, classes={list(CLASS_NAMES)}, split_dir=out + "/splits", batch_size=6)
miner = HardNegativeMining(every_n_epochs=1, start_epoch=1, strategy=strategy, confidence_threshold=0.011, crops=0)
trainer = Trainer(
    max_epochs=2, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
    limit_val_batches=0, callbacks=[miner],
)
drawn = []
module.on_train_batch_end = lambda outputs, batch, batch_idx: drawn.append(batch["index"].tolist())
trainer.fit(module, data)
import torch
torch.save([data.sampler.weights, miner.hardness, drawn], out + f"/weights_{{processes}}_{{trainer.global_rank}}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["tide", "loss_based"])
def test_two_processes_mine_what_one_does_and_draw_by_the_same_weights(strategy, world, tmp_path) -> None:
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        launch(RANKS, processes, world, tmp_path / str(processes), strategy)
    tables = [tmp_path / str(n) / "hard_negatives/epoch_001/hard_negatives.csv" for n in (1, 2)]
    assert tables[0].read_text() == tables[1].read_text()
    assert len(tables[0].read_text().splitlines()) > 10
    one, *two = (
        torch.load(tmp_path / f"{n}/weights_{n}_{rank}.pt", weights_only=True) for n, rank in ((1, 0), (2, 0), (2, 1))
    )
    for weights, hardness, _ in two:
        assert torch.equal(weights, two[0][0])
        torch.testing.assert_close(hardness, one[1], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(weights, one[0], rtol=1e-5, atol=1e-8)
    assert one[0].max() > 2 * one[0].min()  # they acted


@pytest.mark.parametrize("family", ["yolos", "rt_detr_v2"])
def test_detectors_of_transformers_train_are_mined_and_tested(family, run_cli, place) -> None:
    folder = save_detector(place / "model", family)  # for three classes; the data has more
    run_cli(
        "fit", "-c", with_model(place, "DetectionTransformer", name=str(folder)), "--test_after_fit", "true",
        "--trainer.max_epochs", "2", f"{MINER}.strategy", "loss_based", f"{MINER}.confidence_threshold", "0.1",
    )  # fmt: skip
    state = mined(place / "runs/mined")
    assert state["rounds"] == 1
    assert 6 <= int((state["hardness"] > 0).sum()) <= 7
    assert 0 <= metrics(place / "runs/mined")["test/ap_50"] <= 1


def test_an_onnx_file_predicts_and_each_batch_is_mined(run_cli, place, capsys) -> None:
    save_linear(place / "detector.onnx", (1, 21, 5 + len(CLASS_NAMES)))
    config = with_model(place, "OnnxDetection", file="detector.onnx")
    words = ["--trainer.callbacks", "RealTimeMining", "--trainer.callbacks.confidence_threshold", "0.05"]
    run_cli("test", "-c", config, *words)
    report = json.loads((place / "runs/mined/hard_negatives/test/report.json").read_text())
    assert report["statistics"]["false_positives"] + report["statistics"]["false_negatives"] > 0
    assert "hard negatives in 12 images" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_cli("fit", "-c", config)
    assert "An ONNX file cannot be trained" in capsys.readouterr().err


def test_mining_the_adapter_of_heatmaps(run_cli, place) -> None:
    encoder = {"class_path": "lightning_modules.backbones.TinyClip"}
    config = with_model(
        place, "HeatmapDetection", encoder=encoder, templates="plain", value=88, adapter="linear", threshold="fitted"
    )
    config.write_text(config.read_text().replace("val/ap_50", "val/ap_20"))
    run_cli(
        "fit", "-c", config, "--trainer.max_epochs", "2", "--data.init_args.image_size", "96",
        f"{MINER}.confidence_threshold", "-1", f"{MINER}.iou_threshold", "0.2",
    )  # fmt: skip
    report = json.loads((place / "runs/mined/hard_negatives/epoch_001/report.json").read_text())
    assert report["metrics"]["recall"] > 0.4  # at an IoU of .2, as the heatmap's boxes are coarse


def test_all_that_mining_can_act_on_works_together(run_cli, place) -> None:
    run_cli("fit", "-c", "config.yaml", "--trainer.max_epochs", "1", "--trainer.default_root_dir", "runs/teacher")
    teacher = place / "runs/teacher/checkpoints/last.ckpt"
    run_cli(
        "fit", "-c", "config.yaml", "--trainer.max_epochs", "2", f"{MINER}.act_on", "loss", f"{MINER}.patches", "4",
        f"{MINER}.save_hard_negatives", "false", "--model.paste", "1", "--model.online_ratio", "0.5",
        "--model.teacher", teacher, "--trainer.precision", "bf16-mixed",
    )  # fmt: skip
    state = mined(place / "runs/mined")
    assert state["rounds"] == 1
    assert len(state["cut"]) == 4
    assert all(piece.dtype == torch.uint8 for piece in state["cut"])
    stored = torch.load(place / "runs/mined/checkpoints/last.ckpt", weights_only=True)
    assert not any("teacher" in name for name in stored["state_dict"])
    assert all(value.isfinite().all() for value in stored["state_dict"].values())


def test_the_fullest_images_are_a_control(run_cli, place) -> None:
    words = [f"{MINER}.control", "fullest", f"{MINER}.save_hard_negatives", "false", "--trainer.max_epochs", "2"]
    run_cli("fit", "-c", "config.yaml", *words)
    data = DIOR(root="world", classes=list(CLASS_NAMES))
    assert mined(place / "runs/mined")["hardness"].tolist() == [len(boxes) for boxes in data.records("train").boxes]


MISTAKES = {
    "strategy": ([f"{MINER}.strategy", "hardest"], ["strategy is 'hardest'", "'confidence_based'"]),
    "key": ([f"{MINER}.raito", "0.3"], ["raito", "Nearest: ratio"]),
    "ratio": ([f"{MINER}.ratio", "1.5"], ["share of hard negatives is 1.5", "below 1"]),
    "start": ([f"{MINER}.start_epoch", "0"], ["start_epoch 0", "at least 1"]),
    "picture size": (["--data.init_args.image_size", "null"], ["different sizes", "image_size"]),
    "online": (["--model.init_args.online_ratio", "0"], ["online_ratio 0"]),
    "no such detector": (
        ["--model", "DetectionTransformer", "--model.name", "nowhere/at_all"],
        ["nowhere/at_all"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_one_message(mistake, run_cli, place, capsys) -> None:
    words, expected = MISTAKES[mistake]
    config = with_model(place, "DetectionTransformer") if "DetectionTransformer" in words else "config.yaml"
    with pytest.raises(SystemExit):
        run_cli("fit", "-c", config, *words)
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert all(part in said for part in expected), said
    assert not (place / "runs/mined/checkpoints").exists()
