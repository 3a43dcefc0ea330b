"""Multi-label hashing through the command line on a few generated scenes: fit, test, predict, trained towers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.scenes.layouts import write_coco

CONFIG = """\
seed_everything: 1
trainer:
  default_root_dir: runs/world
  max_epochs: 40
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {monitor: val/map, mode: max, save_last: true}
    - class_path: MultilabelPredictions
      init_args: {worst: 3}
    - class_path: MultilabelWriter
model:
  class_path: MultilabelHashing
  init_args: {bits: 16, hidden: 64, width: 32, lr: 0.01}
data:
  class_path: MultilabelData
  init_args:
    source:
      class_path: datamodules.FeatureCache
      init_args:
        root: cache
        encoder: {class_path: lightning_modules.backbones.TinyClip}
        data:
          class_path: COCO
          init_args: {root: world, protocol: holdout, split_dir: splits, batch_size: 32}
    num_folds: 3
    batch_size: 16
"""
ROOT = "data.init_args.source.init_args.data.init_args"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 100 scenes in COCO's layout, and the features of the first run."""
    folder = tmp_path_factory.mktemp("multilabel")
    write_coco(str(folder / "world"), num_train=80, num_val=20)
    return folder


@pytest.fixture
def place(world, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Path:
    """The working folder of a test, with the shared world, cache and splits in it."""
    for name in ("world", "cache", "splits"):
        (world / name).mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(world / name)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def block(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["test"]


def test_fit_test_and_predict_on_the_test_items_and_on_a_folder(run_cli, place) -> None:
    run_cli("fit", "-c", "config.yaml", "--test_after_fit", "true")
    folder = place / "runs/world"
    found = block(folder)
    metrics = found["metrics"]
    for part in ("fold", "test"):
        assert metrics[f"{part}/soft_map_micro"] > found["floors"][f"{part}/soft_map_micro"] + 0.03
        assert 0.1 < found["notes"][f"random_codes_map_macro_{part}"] < 0.5
    assert sum(found["n"].values()) < 100  # the selection items are not scored
    assert found["notes"]["features"].startswith("coco-tiny-clip-")  # the name of the cache, which ends in its hash
    with np.load(folder / "predictions.npz") as arrays:
        areas, labels = arrays["fold_areas"], arrays["fold_labels"]
        np.testing.assert_array_equal(np.isfinite(areas), labels > 0)
        assert np.nanmax(areas) <= 1
        assert np.isfinite(arrays["score"])
        first = dict(zip(arrays["test_ids"].tolist(), arrays["test_soft"], strict=True))
    worst = json.loads((folder / "worst/worst.json").read_text())
    assert [entry["part"] for entry in worst] == ["fold"] * 3 + ["test"] * 3
    assert worst[0]["lrap"] <= worst[1]["lrap"] <= worst[2]["lrap"]
    assert Image.open(folder / "worst" / worst[0]["picture"]).size == (224, 224)

    # a test in a process of its own takes everything from the checkpoint
    run_cli("test", "-c", "runs/world/config.yaml", "--ckpt_path", "best")
    again = block(folder)["metrics"]
    assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-6)

    run_cli("predict", "-c", "runs/world/config.yaml", "--ckpt_path", "best")
    rows = list(csv.DictReader((folder / "predictions/predictions.csv").open()))
    classes = [name for name in rows[0] if name.startswith("p_")]
    assert len(rows) == len(labels) + len(first)
    for row in rows:
        if row["part"] == "test":
            said = np.array([float(row[name]) for name in classes])
            np.testing.assert_allclose(said, first[row["id"]], atol=1e-5)

    # new images need neither the data set nor its features
    photos = place / "photos"
    photos.mkdir()
    for source in sorted((place / "world").rglob("*.jpg"))[:3]:
        Image.open(source).save(photos / source.name)
    (place / "captions.csv").write_text(
        "file,caption\n" + "".join(f"{p.name},there is a boat\n" for p in sorted(photos.iterdir()))
    )
    run_cli(
        *("predict", "-c", "runs/world/config.yaml", "--ckpt_path", "best", f"--{ROOT}.root", "gone"),
        *("--data.init_args.predict_images", "photos", "--data.init_args.predict_captions", "captions.csv"),
    )
    rows = list(csv.DictReader((folder / "predictions/predictions.csv").open()))
    assert [row["id"] for row in rows] == sorted(p.name for p in photos.iterdir())
    assert len(rows[0]["code"]) == 4
    assert all(0 <= float(rows[0][name]) <= 1 for name in classes)


def test_trained_towers_change_and_the_alignment_term_has_a_gradient(run_cli, place) -> None:
    run_cli(
        *("fit", "-c", "config.yaml", "--trainer.max_epochs", "1", "--trainer.default_root_dir", "runs/live"),
        *("--data.init_args.live", "true", "--data.init_args.augment", "true"),
        *("--model.init_args.unfreeze_blocks", "1", "--model.init_args.alignment_weight", "0.5"),
        *("--model.init_args.tower_lr", "0.001", "--trainer.limit_train_batches", "2"),
    )
    state = torch.load(place / "runs/live/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    from lightning_modules.backbones.tiny import TinyClip

    start = TinyClip().towers.model.state_dict()
    moved = {name for name, value in start.items() if not torch.equal(state[f"towers.model.{name}"], value)}
    assert any("visual.transformer.resblocks.11." in name for name in moved)
    assert any(name.startswith("transformer.resblocks.1.") for name in moved)
    assert not any("resblocks.10." in name or "resblocks.0." in name for name in moved)
    terms = (place / "runs/live/metrics.csv").read_text().partition("\n")[0].split(",")
    assert "train/loss_alignment" in terms


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.init_args.alignment_weight", "1"], "the term has no gradient"),
        (["--data.init_args.num_folds", "1"], "num_folds is 1"),
        (["--data.init_args.fold", "7"], "fold is 7"),
        ([f"--{ROOT}.protocol", "retrieval"], "Set its protocol: holdout"),
        (["--data.init_args.predict_captions", "captions.csv"], "set predict_images too"),
        ([f"--{ROOT}.holdout", "karpathy"], "dataset_coco.json"),
        (["--model.init_args.head", "knn", "--model.init_args.knn_neighbours", "90"], "knn_neighbours is 90"),
        (["--model.init_args.head", "knn", "--model.init_args.knn_neighbours", "0"], "knn_neighbours is 0; at least 1"),
        (["--model.init_args.bitz", "32"], "bits"),
    ],
)
def test_mistakes_end_with_a_message(run_cli, place, capsys, arguments, message) -> None:
    with pytest.raises(SystemExit) as stop:
        run_cli("fit", "-c", "config.yaml", "--trainer.default_root_dir", "runs/bad", *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
