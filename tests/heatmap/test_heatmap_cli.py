"""Heatmap detection through the command line on a few generated scenes: test, fit, predict, two processes, mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from processes import launch

from datamodules.scenes.dior_layout import write_dior
from datamodules.scenes.sprites import CLASS_NAMES

CONFIG = f"""\
seed_everything: 1
trainer:
  default_root_dir: runs/world
  max_epochs: 0
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  log_every_n_steps: 1
model:
  class_path: HeatmapDetection
  init_args:
    encoder: {{class_path: lightning_modules.backbones.TinyClip}}
    templates: plain
    value: 88
data:
  class_path: DIOR
  init_args: {{root: world, image_size: 96, classes: {list(CLASS_NAMES)}, split_dir: splits, batch_size: 16}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 scenes in DIOR's layout: 48 to train on, 16 to validate, 16 to test."""
    folder = tmp_path_factory.mktemp("heatmap")
    write_dior(str(folder / "world"), 80)
    return folder / "world"


@pytest.fixture
def place(world, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Path:
    """The working folder of a test."""
    (tmp_path / "world").symlink_to(world)
    (tmp_path / "config.yaml").write_text(CONFIG)
    resnet = {"class_path": "lightning_modules.backbones.OpenClip", "init_args": {"model": "RN50", "pretrained": None}}
    (tmp_path / "resnet.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"encoder": resnet}}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def block(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["test"]


def test_a_test_without_training_beats_every_control(run_cli, place, capsys) -> None:
    callbacks = ("--trainer.callbacks+=HeatmapPictures", "--trainer.callbacks+=ResultTables")
    run_cli("test", "-c", "config.yaml", "--model.init_args.redundancy", "none", *callbacks)
    found = block(place / "runs/world")
    metrics = found["metrics"]
    controls = {
        name: metrics[f"test/{name}_ap_20"] for name in ("whole_image", "centre_box", "noise_map", "permuted_names")
    }
    assert metrics["test/ap_20"] > 0.6
    assert metrics["test/ap_20_low"] > max(metrics[f"test/{name}_ap_20_high"] for name in controls)
    assert found["floors"]["test/ap_20"] == max(controls.values())
    assert found["floors"]["test/gap_positive"] == 0.5
    assert metrics["test/whole_image_ap_05"] > 0.3 > metrics["test/whole_image_ap_20"]  # what a low IoU is worth
    assert metrics["test/gap_positive"] > 0.9
    assert metrics["test/pxap"] > metrics["test/random_pxap"] + 0.4
    assert found["n"]["images"] == 16
    assert "present (oracle)" in found["notes"]["convention"]
    assert "noise_map" in capsys.readouterr().out
    assert list((place / "runs/world/pictures").glob("heatmap_*.png"))
    with (place / "runs/world/classes.csv").open() as file:
        classes = [row for row in csv.DictReader(file) if row["boxes"] != "0"]
    assert sum(float(row["ap_20"]) for row in classes) / len(classes) == pytest.approx(metrics["test/ap_20"], abs=1e-5)
    with (place / "runs/world/diagnosis.csv").open() as file:
        gaps = [float(row["inside"]) - float(row["outside"]) for row in csv.DictReader(file)]
    assert sum(gaps) / len(gaps) == pytest.approx(metrics["test/gap"], abs=1e-5)


def test_batch_size_changes_nothing(run_cli, place) -> None:
    for size in (1, 16):
        run_cli(
            "test",
            "-c",
            "config.yaml",
            "--data.init_args.batch_size",
            size,
            "--trainer.default_root_dir",
            f"runs/{size}",
        )
    one, many = (block(place / f"runs/{size}")["metrics"] for size in (1, 16))
    assert one == pytest.approx(many, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "lr"), [("linear", 0.005), ("lora", 0.02)])
def test_training_raises_the_gap(adapter, lr, run_cli, place, world) -> None:
    same = ("-c", "config.yaml", "--model.init_args.redundancy", "none", "--model.init_args.threshold", "fitted")
    untrained = world.parent / "untrained"  # the same for all adapters
    if not (untrained / "results.json").exists():
        run_cli("test", *same, "--trainer.default_root_dir", untrained)
    trained = ("--model.init_args.adapter", adapter, "--model.init_args.lr", lr)
    quick = ("--trainer.max_epochs", "10", "--trainer.limit_val_batches", "0")
    run_cli("fit", *same, *trained, *quick, "--test_after_fit", "true")
    before, after = (block(folder)["metrics"] for folder in (untrained, place / "runs/world"))
    assert after["test/gap"] > before["test/gap"] + 0.05
    assert after["test/whole_image_ap_05"] == pytest.approx(before["test/whole_image_ap_05"], abs=0.02)
    checkpoint = torch.load(next((place / "runs/world").rglob("*.ckpt")), weights_only=True)
    assert not any("resblocks" in name for name in checkpoint["state_dict"])  # the adapter alone
    run_cli(
        "test",
        *same,
        "--model.init_args.adapter",
        adapter,
        "--ckpt_path",
        "last",
        "--trainer.default_root_dir",
        "runs/world",
    )
    again = block(place / "runs/world")["metrics"]
    assert again["test/gap"] == pytest.approx(after["test/gap"], abs=1e-5)


def test_signs_and_thresholds_come_from_the_training_part_alone(run_cli, place, world) -> None:
    same = ("test", "-c", "config.yaml", "--model.init_args.threshold", "fitted", "--model.init_args.sign", "fitted")
    run_cli(*same)
    first = block(place / "runs/world")["metrics"]
    (place / "other").mkdir()
    for name in ("Annotations", "ImageSets", "JPEGImages-trainval", "JPEGImages-test"):
        (place / "other" / name).symlink_to(world / name)
    (place / "other" / "ImageSets").unlink()
    (place / "other" / "ImageSets" / "Main").mkdir(parents=True)
    for part in ("train", "val", "trainval", "test"):
        lines = (world / "ImageSets" / "Main" / f"{part}.txt").read_text().splitlines()
        kept = lines[:4] if part == "test" else lines
        (place / "other" / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(kept) + "\n")
    run_cli(*same, "--data.init_args.root", "other", "--trainer.default_root_dir", "runs/other")
    assert block(place / "runs/other")["n"]["images"] == 4
    assert first["test/gap_positive"] > 0.9


def test_predict_on_a_folder_with_free_names(run_cli, place, world) -> None:
    (place / "photos" / "more").mkdir(parents=True)
    for number, path in enumerate(sorted((world / "JPEGImages-test").iterdir())[:3]):
        Image.open(path).resize((120, 80)).save(place / "photos" / ("more/c.png" if number == 2 else f"{number}.png"))
    run_cli(
        "predict", "-c", "config.yaml", "--model.init_args.class_names", "[house, tree]",
        "--data.init_args.predict_images", "photos", "--model.init_args.class_source", "all",
        "--trainer.callbacks+=BoxWriter",
    )  # fmt: skip
    content = json.loads((place / "runs/world/predictions/boxes.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["0.png", "1.png", "more/c.png"]
    assert {(image["width"], image["height"]) for image in content["images"]} == {(120, 80)}
    assert [entry["name"] for entry in content["categories"]] == ["house", "tree"]
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        assert x >= 0 <= y
        assert x + width <= 120.001
        assert y + height <= 80.001
    assert (place / "runs/world/predictions/pictures/more/c.png.png").is_file()


MISTAKES = {
    "percent": (["--model.init_args.value", "130"], ["value is 130", "0 to 100"]),
    "path": (["--model.init_args.path", "surgry"], ["path", "surgry"]),
    "too deep": (["--model.init_args.num_layers", "13"], ["num_layers is 13", "12 blocks"]),
    "template": (["--model.init_args.templates", "[a photo]"], ["must each hold {} once"]),
    "template with more": (["--model.init_args.templates", "['a {large} {}']"], ["no other braces"]),
    "templates": (["--model.init_args.templates", "photos"], ["no templates 'photos'", "photo"]),
    "ensemble of blanks": (["--model.init_args.class_names", "['']"], ["none empty"]),
    "oracle": (["--data.init_args.predict_images", "world/JPEGImages-test", "--trainer.callbacks+=BoxWriter"],
               ["class_source present needs annotations", "top_k"]),
    "nothing to train": ([], ["nothing to train", "adapter: linear"]),
    "order": (["--model.init_args.class_names", "[harbor, ship]"], ["harbor, ship) are for predict"]),
    "half": (["--trainer.precision", "bf16-true"], ["bf16-mixed"]),
    "resnet": (["-c", "resnet.yaml"], ["no vision transformer", "Take a ViT"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_with_one_message(name, run_cli, place, capsys) -> None:
    options, wanted = MISTAKES[name]
    command = {"oracle": "predict", "nothing to train": "fit"}.get(name, "test")
    more = ["--trainer.max_epochs", "1"] if command == "fit" else []
    with pytest.raises(SystemExit) as stop:
        run_cli(command, "-c", "config.yaml", *options, *more)
    message = capsys.readouterr().err
    assert stop.value.code == 2, message
    assert all(words in message for words in wanted), message
    assert "Traceback" not in message
    assert not (place / "runs/world/results.json").exists()


DDP_RUN = """
import sys
import cli
root, target, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
cli.main(["test", "-c", f"{root}/config.yaml", "--data.init_args.root", f"{root}/world",
          "--data.init_args.batch_size", "3", "--trainer.devices", str(processes), "--trainer.default_root_dir", target,
          *(["--trainer.strategy", "ddp"] if processes > 1 else [])])
"""


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(place) -> None:
    config = yaml.safe_load((place / "config.yaml").read_text())
    config["model"]["init_args"] |= {"sign": "fitted", "threshold": "fitted"}
    config["data"]["init_args"]["split_dir"] = str(place / "splits")
    config["trainer"]["callbacks"] = [{"class_path": "HeatmapPictures"}, {"class_path": "ResultTables"}]
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    for processes in (1, 2):
        launch(DDP_RUN, processes, place, place / f"runs/{processes}")
    one, two = (block(place / f"runs/{processes}")["metrics"] for processes in (1, 2))
    assert two == pytest.approx(one, abs=1e-6)
    assert block(place / "runs/2")["processes"] == 2
    rows = [(place / f"runs/{processes}/diagnosis.csv").read_text().splitlines() for processes in (1, 2)]
    assert [row.split(",")[:2] for row in rows[1]] == [row.split(",")[:2] for row in rows[0]]  # each pair once
