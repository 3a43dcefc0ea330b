"""The cache of region masks: made once, found by the picture's bytes, rebuilt when broken, shared over processes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from processes import launch

from datamodules.mask_cache import build_masks, cache_folder, cached_masks, decode_picture, read_masks, write_masks


class Bright:
    """Regions by brightness; counts how often it is asked, and remembers the stem."""

    name = "bright / 2"

    def __init__(self, key="a", high=300):
        self.key, self.high, self.asked, self.stem = key, high, 0, None

    def fingerprint(self):
        return self.key

    def masks(self, image, stem=None):
        self.asked, self.stem = self.asked + 1, stem
        return (image.float().mean(0) > 127).long() * self.high


def png(seed=0, size=(5, 7)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), (pixels.astype(np.float32).mean(2) > 127) * 300


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_masks_are_made_once_for_the_same_bytes(tmp_path):
    data, expected = png()
    (tmp_path / "one.png").write_bytes(data)
    (tmp_path / "two.png").write_bytes(data)
    source = Bright()
    masks = cached_masks(source, tmp_path / "cache")
    first = masks(tmp_path / "one.png")
    assert (source.asked, source.stem) == (1, "one")
    assert first.dtype == torch.int64
    np.testing.assert_array_equal(first.numpy(), expected)
    for same in (data, tmp_path / "two.png", str(tmp_path / "one.png")):
        assert torch.equal(masks(same), first)
    assert source.asked == 1
    (file,) = files(tmp_path / "cache")
    assert file.parent.parent.name.startswith("bright-2-")
    with np.load(file) as arrays:
        assert arrays["instance_mask"].dtype == np.uint16
    masks(png(1)[0])
    assert source.asked == 2


def test_another_source_has_its_own_folder(tmp_path, monkeypatch):
    folders = {cache_folder(Bright(key), tmp_path) for key in ("a", "b")}
    monkeypatch.setattr("datamodules.mask_cache.FORMAT", 99)
    folders.add(cache_folder(Bright("a"), tmp_path))
    assert len(folders) == 3


def test_a_source_without_fingerprint_is_asked_every_time(tmp_path, capsys):
    source = Bright(None)
    masks = cached_masks(source, tmp_path / "cache")
    assert torch.equal(masks(png()[0]), masks(png()[0]))
    assert source.asked == 2
    assert build_masks([], source, tmp_path / "cache") is None
    assert "needs no cache" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "bit", "key", "type"])
def test_a_broken_file_is_made_anew(damage, tmp_path, capsys):
    data, expected = png(size=(40, 50))
    source = Bright()
    masks = cached_masks(source, tmp_path)
    masks(data)
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    if damage == "key":
        np.savez(file, other=np.zeros((2, 2), np.uint16))
    elif damage == "type":
        np.savez(file, instance_mask=np.zeros((2, 2), np.float32))
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        file.write_bytes({"cut": whole[:-40], "empty": b"", "text": b"hello", "bit": flipped}[damage])
    np.testing.assert_array_equal(masks(data).numpy(), expected)
    assert source.asked == 2
    assert f"Cached masks {file} are broken" in capsys.readouterr().out
    masks(data)
    assert source.asked == 2
    assert capsys.readouterr().out == ""


def test_ids_that_two_bytes_cannot_hold_are_refused(tmp_path):
    write_masks(tmp_path / "a.npz", torch.tensor([[0, 65535]]))
    assert read_masks(tmp_path / "a.npz").tolist() == [[0, 65535]]
    with pytest.raises(ValueError, match=r"in memory have ids from 0 to 65536; the cache holds 0 to 65535"):
        cached_masks(Bright(high=65536), tmp_path / "b")(png()[0])
    with pytest.raises(ValueError, match="ids from -1"):
        write_masks(tmp_path / "c.npz", torch.tensor([[-1, 0]]))
    assert [p.name for p in files(tmp_path)] == ["a.npz"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_masks(tmp_path / "a.npz", torch.tensor([[1]]))

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="No space"):
        write_masks(tmp_path / "a.npz", torch.tensor([[2]]))
    assert [p.name for p in files(tmp_path)] == ["a.npz"]
    assert read_masks(tmp_path / "a.npz").tolist() == [[1]]


def encode(image, kind, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def test_pictures_of_every_kind_are_decoded():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
    grey = Image.fromarray(pixels)
    expected = np.stack([pixels] * 3)
    deep = Image.fromarray(pixels.astype(np.uint16) * 257)
    for data in (encode(grey, "PNG"), encode(deep, "PNG"), encode(grey.convert("RGBA"), "PNG")):
        np.testing.assert_array_equal(decode_picture(data, "a").numpy(), expected)
    np.testing.assert_array_equal(decode_picture(encode(grey.convert("CMYK"), "TIFF"), "a").numpy(), expected)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    turned = decode_picture(encode(grey, "PNG", exif=exif), "a")
    np.testing.assert_array_equal(turned[0].numpy(), np.rot90(pixels, -1))
    assert decode_picture(encode(Image.new("RGB", (1, 1)), "PNG"), "a").shape == (3, 1, 1)
    for bad in (b"", b"hello", encode(Image.new("RGB", (64, 64)), "PNG")[:-60]):
        with pytest.raises(ValueError, match=r"Image a\.png cannot be decoded"):
            decode_picture(bad, "a.png")


def test_building_goes_on_where_it_stopped(tmp_path, capsys):
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(png(number)[0])
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    source = Bright()
    with pytest.raises(ValueError, match=r"bad\.png cannot be decoded"):
        build_masks([*paths[:2], bad, *paths[2:]], source, tmp_path / "cache", progress=False)
    assert source.asked == 2
    folder = build_masks(paths, source, tmp_path / "cache")
    assert source.asked == 5
    assert "masks of 5 images, 3 of them made now" in capsys.readouterr().out
    assert len(files(folder)) == 5
    build_masks(paths, source, tmp_path / "cache", progress=False)
    assert source.asked == 5
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist"):
        build_masks([tmp_path / "none.png"], source, tmp_path / "cache", progress=False)


SCRIPT = """
import os, sys
from pathlib import Path
import torch
from datamodules.mask_cache import build_masks

class Named:
    name = "named"
    def fingerprint(self):
        return "n"
    def masks(self, image, stem=None):
        rank = torch.distributed.get_rank()
        (Path(sys.argv[1]) / f"{stem}-{rank}.seen").touch()
        return torch.full(image.shape[1:], rank + 1)

os.environ["RANK"], os.environ["WORLD_SIZE"] = os.environ["LOCAL_RANK"], sys.argv[-1]
torch.distributed.init_process_group("gloo")
folder = Path(sys.argv[1])
build_masks(sorted(folder.glob("*.png")), Named(), folder / "cache", progress=False)
bad = [*sorted(folder.glob("*.png")), folder / "none.png"]
try:
    build_masks(bad, Named(), folder / "cache", progress=False)
except (FileNotFoundError, ValueError) as error:
    assert "none.png does not exist" in str(error)
else:
    raise AssertionError("it must fail in both")
"""


@pytest.mark.slow
def test_processes_share_the_pictures(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png(number)[0])
    launch(SCRIPT, 2, tmp_path)
    seen = sorted(p.stem for p in tmp_path.glob("*.seen"))
    assert seen == ["0-0", "1-0", "2-0", "3-1", "4-1"]
    assert len(files(tmp_path / "cache")) == 5
