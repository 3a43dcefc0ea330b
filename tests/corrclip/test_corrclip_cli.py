"""CorrCLIP through the command line on a few generated scenes, and the pipeline against its parts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datamodules import SegmentationBenchmark
from datamodules.scenes.voc_layout import write_voc
from datamodules.segmentation_dataset import require_upright
from lightning_modules import CorrClipSegmentation
from lightning_modules.backbones import TinyClip
from lightning_modules.backbones.guide import ClipGuide
from lightning_modules.backbones.vit import vision_transformer
from lightning_modules.corrclip.module import split_lines
from lightning_modules.corrclip.segmenter import Segmenter

CONFIG = """\
seed_everything: 1
trainer:
  default_root_dir: runs/corr
  accelerator: cpu
  enable_progress_bar: false
  callbacks: [{class_path: DetectionTables}]
model:
  class_path: CorrClipSegmentation
  init_args:
    encoder: {class_path: lightning_modules.backbones.TinyClip}
    templates: plain
    short: 96
    crop: 96
    stride: 48
data:
  class_path: SegmentationBenchmark
  init_args:
    root: world
    benchmark: world
    masks: {class_path: lightning_modules.backbones.masks.Felzenszwalb}
    mask_cache: masks
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 scenes in VOC's layout, 8 of them to score."""
    folder = tmp_path_factory.mktemp("corrclip")
    write_voc(str(folder / "world"), 40)
    return folder / "world"


@pytest.fixture
def place(world, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Path:
    (tmp_path / "world").symlink_to(world)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["test"]["metrics"]


def test_it_beats_the_plain_clip_and_batches_change_nothing(run_cli, place) -> None:
    run_cli("test", "-c", "config.yaml")
    found = metrics(place / "runs/corr")
    assert found["test/num_images"] == 8
    assert found["test/miou_low"] < found["test/miou"] < found["test/miou_high"]
    floors = json.loads((place / "runs/corr/results.json").read_text())["test"]["floors"]
    truth = torch.cat([item["target"].flatten() for item in SegmentationBenchmark("world", "world").dataset()])
    shares = truth[truth != 255].bincount() / (truth != 255).sum()
    assert floors["test/pixel_accuracy"] == pytest.approx(shares.max().item())
    assert floors["test/miou"] == pytest.approx(shares.max().item() / int((shares > 0).sum()))
    assert "test/boundary_iou" not in floors
    assert len(list((place / "masks").rglob("*.npz"))) == 8
    plain = ["similarity", "clip_qk", "scope", "false", "alpha", "0", "beta", "0", "correction", "false"]
    words = [f"--model.{word}" if i % 2 == 0 else word for i, word in enumerate(plain)]
    run_cli("test", "-c", "config.yaml", *words, "--trainer.default_root_dir", "runs/plain")
    assert found["test/miou"] > metrics(place / "runs/plain")["test/miou"] + 0.2
    run_cli(
        "test", "-c", "config.yaml", "--data.batch_size", "1", "--model.window_batch", "1",
        "--trainer.default_root_dir", "runs/one",
    )  # fmt: skip
    assert metrics(place / "runs/one")["test/miou"] == pytest.approx(found["test/miou"], abs=2e-3)


def test_a_whole_picture_is_its_windows_one_by_one(world) -> None:
    encoder = TinyClip()
    towers = encoder.towers
    visual = vision_transformer(towers.visual, positions="bicubic")
    guide = ClipGuide(visual, towers.mean, towers.std)
    segmenter = Segmenter(visual, guide, towers.mean, towers.std, short=96, crop=96, stride=48, batch=3)
    item = SegmentationBenchmark(str(world), "world").dataset()[0]
    image = F.interpolate(item["image"][None].float(), (96, 150)).to(torch.uint8)[0]
    ids = torch.arange(96 * 150).view(96, 150) // 2000
    text = F.normalize(torch.randn(5, encoder.embed_dim, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.inference_mode():
        logits = segmenter.logits(image, ids, text)
        single = [segmenter.window_logits(image[None, :, :, x : x + 96], ids[None, :, x : x + 96], text)[0]
                  for x in (0, 48, 54)]  # fmt: skip
        labels = segmenter(image, ids, text, torch.arange(5), 5)
    total, count = torch.zeros(5, 96, 150), torch.zeros(150)
    for x, values in zip((0, 48, 54), single, strict=True):
        total[:, :, x : x + 96] += values
        count[x : x + 96] += 1
    torch.testing.assert_close(logits, total / count, atol=1e-5, rtol=1e-4)
    assert labels.shape == (96, 150)
    for region in range(1, 8):  # corrected: one class each
        assert len(labels[ids == region].unique()) == 1


def test_predict_names_the_classes_that_are_asked_for(world) -> None:
    module = CorrClipSegmentation(
        TinyClip(), class_lines=["water; sea", "ship"], templates="plain", short=96, crop=96, stride=96
    )
    module._trainer = SimpleNamespace(datamodule=None)
    module.configure_model()
    item = SegmentationBenchmark(str(world), "world").dataset()[0]
    batch = {
        "image": [item["image"]],
        "instance_mask": [item["instance_mask"]],
        "id": ["a"],
        "index": torch.tensor([4]),
    }
    with torch.inference_mode():
        (found,) = module.predict_step(batch, 0)
    assert found["names"] == ["water", "ship"]
    assert found["index"] == 4
    assert found["labels"].shape == item["image"].shape[1:]
    assert set(found["labels"].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.stride", "0"], "stride 0"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--model.class_lines", "[cat, cat]"], "'cat' occurs twice"),
        (["--model.similarity", "cosine"], "clip_qq"),
    ],
)
def test_mistakes_end_with_one_message(words, said, run_cli, place, capsys) -> None:
    with pytest.raises(SystemExit):
        run_cli("test", "-c", "config.yaml", *words)
    err = capsys.readouterr().err
    assert err.count("error:") == 1
    assert said in err


def test_fit_says_that_there_is_nothing_to_train(run_cli, place, capsys) -> None:
    with pytest.raises(SystemExit):
        run_cli("fit", "-c", "config.yaml", "--trainer.max_epochs", "1")
    assert "needs no training" in capsys.readouterr().err


def test_regions_of_an_image_that_its_exif_tag_turns_are_refused(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, so the size would tell nothing
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"a\.jpg has an EXIF tag"):
        require_upright(tmp_path / "a.jpg")


def test_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="no class"):
        split_lines([])
