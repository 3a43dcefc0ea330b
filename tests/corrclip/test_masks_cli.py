"""The command ``masks``: how many files it makes, what they hold, how it goes on, and what it says to other data."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import launch

from datamodules.mask_cache import read_masks
from datamodules.pictures import read_picture
from datamodules.scenes.voc_layout import write_voc
from lightning_modules.backbones.masks import Felzenszwalb

CONFIG = """\
trainer:
  default_root_dir: runs/masks
  accelerator: cpu
  enable_progress_bar: false
  callbacks: [{class_path: SegmentationWriter}]
model:
  class_path: CorrClipSegmentation
  init_args:
    encoder: {class_path: lightning_modules.backbones.OpenClip, init_args: {model: ViT-B-16, pretrained: openai}}
    guide: {class_path: lightning_modules.backbones.guide.Guide}
data:
  class_path: SegmentationBenchmark
  init_args:
    root: world
    benchmark: world
    masks: {class_path: lightning_modules.backbones.masks.Felzenszwalb, init_args: {scale: 200}}
    mask_cache: cache
"""  # the weights of neither network are here
BACKBONES = "lightning_modules.backbones"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 scenes in VOC's layout, 4 of them to score."""
    folder = tmp_path_factory.mktemp("masks")
    write_voc(str(folder / "world"), 20, size=48)
    return folder / "world"


@pytest.fixture
def place(world, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Path:
    (tmp_path / "world").symlink_to(world)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(place: Path) -> dict[str, Path]:
    """The files of the cache by the hash of the picture's bytes."""
    return {file.stem: file for file in (place / "cache").rglob("*") if file.is_file()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_all_masks_are_made_and_an_interrupted_run_goes_on(run_cli, place, capsys) -> None:
    run_cli("masks", "-c", "config.yaml")
    names = (place / "world/ImageSets/Segmentation/val.txt").read_text().split()
    images = [place / "world/JPEGImages" / f"{name}.jpg" for name in names]
    files = made(place)
    assert set(files) == {digest(image) for image in images}
    for image in images:
        expected = Felzenszwalb(200).masks(read_picture(image).pixels)
        assert torch.equal(read_masks(files[digest(image)]), expected)
    captured = capsys.readouterr()
    assert "masks of 4 images, 4 of them made now" in captured.out
    assert "Masks by felzenszwalb 200" in captured.err
    assert not (place / "runs").exists()
    times = {name: file.stat().st_mtime_ns for name, file in files.items()}
    gone, broken, *kept = sorted(files)
    files[gone].unlink()
    files[broken].write_bytes(b"half a file")
    run_cli("masks", "-c", "config.yaml", "--data.num_workers", "1")
    captured = capsys.readouterr().out
    assert "masks of 4 images, 2 of them made now" in captured
    again = made(place)
    assert set(again) == set(files)
    assert [again[name].stat().st_mtime_ns for name in kept] == [times[name] for name in kept]
    assert read_masks(again[broken]).shape == (48, 48)
    run_cli("masks", "-c", "config.yaml")
    captured = capsys.readouterr()
    assert "0 of them made now" in captured.out
    assert "Masks by" not in captured.err


def test_a_folder_of_pictures_of_every_kind(run_cli, place, capsys) -> None:
    folder = place / "pictures"
    folder.mkdir()
    scene = Image.open(place / "world/JPEGImages/000001.jpg").crop((0, 0, 40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.save(folder / "turned.jpg", exif=exif)
    scene.convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(np.asarray(scene.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    Image.new("RGBA", (1, 1)).save(folder / "pixel.png")
    run_cli("masks", "-c", "config.yaml", "--data.root", "nowhere", "--data.predict_images", "pictures")
    assert "masks of 4 images, 4 of them made now" in capsys.readouterr().out
    files, sizes = made(place), {}
    for image in folder.iterdir():
        ids = read_masks(files[digest(image) + ("-upright" if image.stem == "turned" else "")])
        assert torch.equal(ids, Felzenszwalb(200).masks(read_picture(image, upright=True).pixels))
        sizes[image.stem] = tuple(ids.shape)
    assert sizes == {"turned": (40, 30), "print": (30, 40), "deep": (30, 40), "pixel": (1, 1)}
    run_cli("masks", "-c", "config.yaml", "--data.predict_images", "pictures")  # and the set
    out = capsys.readouterr().out
    assert "masks of 4 images, 4 of them made now" in out
    assert "masks of 4 images, 0 of them made now" in out
    assert len(made(place)) == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.masks", "null"], "With no mask source in data.init_args.masks there is nothing to make"),
        (["--data.masks", f"{BACKBONES}.masks.NoMasks"], "the mask source 'none'"),
        (
            ["--data.masks", f"{BACKBONES}.mask_files.PregeneratedMasks", "--data.masks.folder", "world/RegionMasks"],
            "the mask source 'files RegionMasks'",
        ),
    ],
)
def test_sources_without_a_cache_have_nothing_to_make(words, said, run_cli, place, capsys) -> None:
    run_cli("masks", "-c", "config.yaml", *words)
    assert said in capsys.readouterr().out
    assert not made(place)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "Scenes"], "Scenes has no region masks to make. Use segmentation data"),
        (["--data.root", "nowhere"], "Dataset folder nowhere does not exist"),
        (["--data.masks.longest", "0"], "longest is 0"),
        (
            [
                "--data.masks",
                f"{BACKBONES}.mask_sam.SegmentAnything",
                "--data.masks.checkpoint",
                "a.pth",
            ],
            "SAM checkpoint a.pth does not exist. Check the path; the published files are https://",
        ),
    ],
)
def test_mistakes_end_with_one_message(words, said, run_cli, place, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run_cli("masks", "-c", "config.yaml", *words)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("error:") == 1
    assert said in err


def test_a_picture_that_cannot_be_decoded_is_named(run_cli, place, capsys) -> None:
    folder = place / "pictures"
    folder.mkdir()
    (folder / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        run_cli(
            "masks", "-c", "config.yaml", "--data.root", "nowhere", "--data.predict_images", "pictures",
            "--data.num_workers", "1",
        )  # fmt: skip
    assert "error: Image pictures/bad.jpg cannot be decoded" in capsys.readouterr().err


SCRIPT = """
import functools, os, sys
from pathlib import Path
import torch
import cli
from lightning_modules.backbones.masks import Felzenszwalb

os.chdir(sys.argv[1])
make = Felzenszwalb.masks
@functools.wraps(make)
def recorded(self, image, stem=None):
    Path(f"{stem}-{torch.distributed.get_rank()}.seen").touch()
    return make(self, image, stem)
Felzenszwalb.masks = recorded
words = sys.argv[1:]
sys.argv = ["cli.py"]
cli.main(["masks", "-c", "config.yaml", "--trainer.devices", words[-1], "--trainer.strategy", "ddp"])
"""


@pytest.mark.slow
def test_processes_share_the_pictures(place) -> None:
    launch(SCRIPT, 2, place)
    names = (place / "world/ImageSets/Segmentation/val.txt").read_text().split()
    seen = sorted(file.stem for file in place.glob("*.seen"))
    assert seen == [f"{name}-{rank}" for name, rank in zip(names, (0, 0, 1, 1), strict=True)]
    assert len(made(place)) == 4
