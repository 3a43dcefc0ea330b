"""CorrCLIP through the command line on a few generated scenes, and the pipeline against its parts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from processes import launch

from datamodules import SegmentationBenchmark
from datamodules.scenes.voc_layout import write_voc
from lightning_modules.backbones import TinyClip
from lightning_modules.backbones.guide import ClipGuide
from lightning_modules.backbones.vit import vision_transformer
from lightning_modules.corrclip.evaluation import PAPER_ORDER, benchmark_rows
from lightning_modules.corrclip.prompts import Classes, prompt_classes, read_lines, split_lines
from lightning_modules.corrclip.segmenter import Segmenter

CONFIG = """\
seed_everything: 1
trainer:
  default_root_dir: runs/corr
  accelerator: cpu
  enable_progress_bar: false
  callbacks: [{class_path: ResultTables}]
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
    run_cli("validate", "-c", "config.yaml")
    block = json.loads((place / "runs/corr/results.json").read_text())["validate"]
    assert block["floors"]["val/miou"] == pytest.approx(floors["test/miou"])
    assert block["metrics"]["val/miou"] == pytest.approx(found["test/miou"], abs=1e-6)
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


def tiny_segmenter(**settings: Any) -> tuple[Segmenter, int]:
    """A segmenter of small windows with the tiny CLIP as its own guide, and the length of its embeddings."""
    encoder = TinyClip()
    towers = encoder.towers
    visual = vision_transformer(towers.visual, positions="bicubic")
    guide = ClipGuide(visual, towers.mean, towers.std)
    sizes = {"short": 96, "crop": 96, "stride": 48, "batch": 3}
    return Segmenter(visual, guide, towers.mean, towers.std, **sizes | settings), encoder.embed_dim


def some_classes(count: int, width: int) -> Classes:
    text = F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(0)), dim=-1)
    return Classes(tuple("abcdefg"[:count]), text, torch.arange(count))


def scene(world: Path, number: int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A scene in another size, and regions of 2000 pixels each."""
    item = SegmentationBenchmark(str(world), "world").dataset()[number]
    image = F.interpolate(item["image"][None].float(), size).to(torch.uint8)[0]
    return image, torch.arange(size[0] * size[1]).view(size) // 2000


def test_a_whole_picture_is_its_windows_one_by_one(world) -> None:
    segmenter, width = tiny_segmenter()
    image, ids = scene(world, 0, (96, 150))
    classes = some_classes(5, width)
    with torch.inference_mode():
        (logits,) = segmenter.logits([image], [ids], classes.text)
        single = [segmenter.window_logits(image[None, :, :, x : x + 96], ids[None, :, x : x + 96], classes.text)
                  for x in (0, 48, 54)]  # fmt: skip
        labels = segmenter(image, ids, classes)
    total, count = torch.zeros(5, 96, 150), torch.zeros(150)
    for x, values in zip((0, 48, 54), single, strict=True):
        total[:, :, x : x + 96] += F.interpolate(values, (96, 96), mode="bilinear", align_corners=False)[0]
        count[x : x + 96] += 1
    torch.testing.assert_close(logits.resized((96, 150)), total / count, atol=1e-5, rtol=1e-4)
    assert labels.shape == (96, 150)
    for region in range(1, 8):  # corrected: one class each
        assert len(labels[ids == region].unique()) == 1


@pytest.mark.parametrize("guide_once", [False, True])
def test_a_batch_of_four_pictures_is_four_single_ones(guide_once, world) -> None:
    segmenter, width = tiny_segmenter(guide_once=guide_once)
    pictures = [scene(world, k, size) for k, size in enumerate([(96, 150), (130, 96), (50, 40), (200, 200)])]
    text = some_classes(5, width).text
    with torch.inference_mode():
        together = segmenter.logits(*zip(*pictures, strict=True), text)
        for (image, ids), found in zip(pictures, together, strict=True):
            (alone,) = segmenter.logits([image], [ids], text)
            torch.testing.assert_close(found.grids, alone.grids, atol=1e-5, rtol=1e-4)
            assert torch.equal(found.rows, alone.rows)


def test_a_guide_that_sees_the_whole_picture_gives_each_window_its_part(world) -> None:
    """Where the picture is one window, both ways are one; else a window's features are those of its patches."""
    once, width = tiny_segmenter(guide_once=True)
    each, _ = tiny_segmenter()
    classes = some_classes(5, width)
    image, ids = scene(world, 0, (96, 96))
    with torch.inference_mode():
        (a,), (b,) = (way.logits([image], [ids], classes.text) for way in (once, each))
        torch.testing.assert_close(a.grids, b.grids, atol=1e-5, rtol=1e-4)
        image, ids = scene(world, 0, (96, 192))
        (a,), (b,) = (way.logits([image], [ids], classes.text) for way in (once, each))
        assert (a.grids - b.grids).abs().max() > 1e-3
        seen = []
        places = [(slice(0, 96), slice(x, x + 96)) for x in (0, 48, 96)]
        seen = once._shared_guide(image, places)
    patch = once.guide.patch_size[0]
    assert [len(part) for part in seen] == [(96 // patch) ** 2] * 3
    first, last = (part.unflatten(0, (96 // patch, -1)) for part in (seen[0], seen[1]))
    torch.testing.assert_close(first[:, 48 // patch :], last[:, : 48 // patch])  # 48 is a whole number of patches


def test_several_sets_are_scored_by_one_command(run_cli, place, world, capsys) -> None:
    (place / "data").mkdir()
    for name in ("VOC2012", "world"):
        (place / "data" / name).symlink_to(world)
    several = CONFIG.replace("SegmentationBenchmark", "SegmentationBenchmarks").replace("root: world", "root: data")
    several = several.replace("benchmark: world", "benchmarks: [voc20, cityscapes, voc21, world]")
    several = several.replace("[{class_path: ResultTables}]", "[ResultTables, BenchmarkTable]")
    (place / "several.yaml").write_text(several)
    run_cli("test", "-c", "several.yaml")
    printed = capsys.readouterr().out
    assert "cityscapes is left out: Benchmark cityscapes is not in data" in printed
    found = metrics(place / "runs/corr")
    values = [found[f"test/{name}/miou"] for name in ("voc21", "voc20", "world")]
    assert found["test/mean_miou"] == pytest.approx(sum(values) / 3)
    assert found["test/world/miou_oracle"] > values[2] > found["test/world/miou_random_text"]
    rows = list(csv.reader((place / "runs/corr/benchmarks.csv").open()))
    assert rows[0] == ["mIoU, %", "voc21", "voc20", "world", "mean"]
    assert [float(cell) for cell in rows[1][1:4]] == pytest.approx([100 * value for value in values], rel=1e-4)
    assert (place / "runs/corr/benchmarks.md").read_text() in printed
    assert (place / "runs/corr/classes_voc20.csv").read_text().count("\n") == 21
    run_cli("test", "-c", "config.yaml", "--trainer.default_root_dir", "runs/alone")
    assert metrics(place / "runs/alone")["test/miou"] == pytest.approx(values[2], abs=1e-6)


TWO = """
import sys
import cli
cli.main(["test", "-c", sys.argv[1], "--trainer.devices", sys.argv[2], "--trainer.strategy", "ddp"])
"""


@pytest.mark.slow
def test_two_processes_write_the_table_of_one(run_cli, place, world) -> None:
    (place / "data").mkdir()
    for name in ("VOC2012", "world"):
        (place / "data" / name).symlink_to(world)
    several = CONFIG.replace("SegmentationBenchmark", "SegmentationBenchmarks").replace("benchmark: world", "")
    several = several.replace("root: world", f"root: {place / 'data'}\n    benchmarks: [voc21, world]")
    several = several.replace("ResultTables}", "ResultTables}, {class_path: SegmentationPictures}")
    several = several.replace("mask_cache: masks", f"mask_cache: {place / 'masks'}")
    for name in ("one", "two"):
        (place / f"{name}.yaml").write_text(several.replace("runs/corr", str(place / name)))
    run_cli("test", "-c", "one.yaml")
    launch(TWO, 2, place / "two.yaml")
    tables = [(place / name / "benchmarks.csv").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1]
    assert metrics(place / "one") == pytest.approx(metrics(place / "two"), abs=1e-6)


def test_published_rows_stand_beside_the_same_sets() -> None:
    keys = ("miou", "miou_low", "miou_high", "random_miou", "miou_random_text", "miou_oracle")
    values = {name: dict.fromkeys(keys, 0.5) for name in reversed(PAPER_ORDER)}
    heading, rows = benchmark_rows(values)
    assert heading == ["mIoU, %", *PAPER_ORDER, "mean"]
    by_name = {row[0]: row for row in rows}
    paper = by_name["CorrCLIP B/16 MetaCLIP, SAM 2 (32 points)"]
    assert (paper[1], paper[8]) == (74.8, 43.7)
    assert paper[-1] == pytest.approx(51.0, abs=0.05)  # the mean that the paper prints
    assert by_name["CorrCLIP L/14 MetaCLIP, EntitySeg"][-1] == pytest.approx(55.4, abs=0.05)
    assert by_name["this test"][1:] == [50.0] * 9


def test_text_embeddings_are_kept_and_broken_ones_made_anew(tmp_path) -> None:
    encoder = TinyClip()
    plain = prompt_classes(encoder, ["sea; water", "ship"], "aerial")
    kept = prompt_classes(encoder, ["sea; water", "ship"], "aerial", str(tmp_path))
    files = sorted(tmp_path.rglob("*.npy"))
    torch.testing.assert_close(kept.text, plain.text)
    assert len(files) == 3
    times = [file.stat().st_mtime_ns for file in files]
    files[1].write_bytes(b"broken")
    again = prompt_classes(encoder, ["ship", "sea; water", "car"], "aerial", str(tmp_path))
    torch.testing.assert_close(again.text[[1, 2, 0]], plain.text)
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, times, strict=True)] == [True, False, True]
    prompt_classes(encoder, ["ship"], "photo", str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2  # other templates lie apart


@pytest.mark.parametrize("given", ["photos", "photos/000001.jpg"])
def test_predict_on_pictures_with_classes_of_ones_own(given, run_cli, place, world) -> None:
    (place / "photos").mkdir()
    (place / "classes.txt").write_text("water;sea\n\nship\n")
    for name in ("000001.jpg", "000003.jpg"):
        (place / "photos" / name).write_bytes((world / "JPEGImages" / name).read_bytes())
    run_cli(
        "predict", "-c", "config.yaml", "--data.predict_images", given, "--data.root", "nowhere",
        "--model.class_lines", "[water; sea, ship]" if given == "photos" else "classes.txt",
        "--trainer.callbacks+=SegmentationWriter",
    )  # fmt: skip
    folder = place / "runs/corr/predictions"
    areas = json.loads((folder / "areas.json").read_text())
    assert areas["classes"] == ["water", "ship"]
    for image in areas["images"]:
        labels = Image.open(folder / "labels" / f"{image['id']}.png")
        assert labels.size == Image.open(place / "photos" / image["id"]).size
        counts = torch.tensor(list(labels.tobytes())).bincount(minlength=2).tolist()
        assert {area["class"]: area["pixels"] for area in image["areas"]} == {
            name: count for name, count in zip(("water", "ship"), counts, strict=True) if count
        }
    assert len(list((folder / "overlays").glob("*.png"))) == len(areas["images"]) == (2 if given == "photos" else 1)


def test_a_class_file_is_text(tmp_path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not text in UTF-8 .* Save it as UTF-8"):
        read_lines(str(tmp_path / "latin.txt"))


def test_classes_of_ones_own_must_fit_the_label_maps(run_cli, place, capsys) -> None:
    with pytest.raises(SystemExit):
        run_cli("test", "-c", "config.yaml", "--model.class_lines", "[water, ship]")
    assert "class_lines has 2 classes, but the label maps have 13" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.stride", "0"], "stride 0"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--model.class_lines", "[cat, cat]"], "'cat' occurs twice among the classes"),
        (["--model.class_lines", "none.txt"], "none.txt does not exist"),
        (["--model.similarity", "cosine"], "clip_qq"),
        (["--model.class_lines", "[]"], "There is no class. Name at least one"),
        (["--model.class_lines", "[a; b, c; b]"], "'b' occurs twice among the classes"),
        (
            ["--model.stride", "100"],
            "stride is 100 and crop 96: windows would leave pixels out. Set stride to at most 96",
        ),
        (["--model.similarity", "vanilla"], "set scope to false, alpha and beta to 0"),
        (["--model.eps", "-1"], "eps is -1.0; it must be at least 0"),
        (["--model.threshold", "2"], "threshold is 2.0; a probability lies between 0 and 1."),
        (["--data.num_workers", "-1"], "num_workers is -1; it must be at least 0."),
        (["--data.mask_cache", "config.yaml"], "mask_cache config.yaml is a file. Name a folder."),
        (["--data.masks", "Felzenswalb"], "Write the whole path, as lightning_modules.backbones.masks.Felzenszwalb."),
        (["--data.masks.scale", "-1"], "error: scale -1"),
    ],
)
def test_mistakes_end_with_one_message(words, said, run_cli, place, capsys) -> None:
    with pytest.raises(SystemExit):
        run_cli("test", "-c", "config.yaml", *words)
    err = capsys.readouterr().err
    assert err.count("error:") == 1
    assert said in err
    assert "CLIP_SUITE_DEBUG" not in err
    assert not list(place.rglob("*.npz"))  # nothing was made before


@pytest.mark.slow
def test_an_ablation_without_training_tests_its_cells_once(run_cli, place, capfd) -> None:
    (place / "grid.yaml").write_text("setting:\n  no merging: {model.init_args.eps: null}\n")
    words = ["-c", "config.yaml", "--grid", "grid.yaml", "--metric", "test/miou", "--trainer.max_epochs", "0"]
    run_cli("ablate", *words)
    (folder,) = (place / "runs/corr/cells").iterdir()
    table = json.loads((place / "runs/corr/ablation.json").read_text())
    assert table["cells"][0]["mean"] == pytest.approx(metrics(folder / "seed_0")["test/miou"])
    assert not (folder / "seed_0/checkpoints").exists()
    run_cli("ablate", *words)
    assert "1 run, 1 of them finished earlier" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        run_cli("ablate", *words, "--model.tau", "0.5")
    assert "was finished with other settings: model.init_args.tau (was 0.25, is 0.5)" in capfd.readouterr().err


def test_a_mistake_that_a_loader_process_meets_is_one_message_too(run_cli, place, world, capsys) -> None:
    (place / "photos").mkdir()
    (place / "photos" / "a.jpg").write_bytes((world / "JPEGImages" / "000001.jpg").read_bytes()[:300])
    words = ["--data.predict_images", "photos", "--data.num_workers", "1", "--data.masks", "null"]
    words.append("--trainer.callbacks+=SegmentationWriter")
    with pytest.raises(SystemExit) as stop:
        run_cli("predict", "-c", "config.yaml", *words, "--model.class_lines", "[sea, ship]")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert stop.value.code == 2
    assert line.startswith("error: Image photos/a.jpg cannot be decoded")
    assert line.endswith("Replace the file, or take it out of the data.")


def test_sets_that_are_nowhere_are_named_once(run_cli, place, capsys) -> None:
    (place / "several.yaml").write_text(
        CONFIG.replace("SegmentationBenchmark", "SegmentationBenchmarks").replace("benchmark: world", "")
    )
    for root, said in (
        ("none", "folder none does not exist"),
        ("masks", "None of the benchmarks voc21, voc20, context59"),
    ):
        (place / "masks").mkdir(exist_ok=True)
        with pytest.raises(SystemExit):
            run_cli("test", "-c", "several.yaml", "--data.root", root)
        err = capsys.readouterr().err
        assert said in err
        assert err.count("does not exist") + err.count("is not in") == 1


def test_fit_says_that_there_is_nothing_to_train(run_cli, place, capsys) -> None:
    with pytest.raises(SystemExit):
        run_cli("fit", "-c", "config.yaml", "--trainer.max_epochs", "1")
    assert "needs no training" in capsys.readouterr().err


def test_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="no class"):
        split_lines([])
