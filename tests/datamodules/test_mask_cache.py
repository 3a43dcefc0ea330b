"""The cache of region masks: made once, found by the picture's bytes, rebuilt when broken, shared over processes."""

import io
import os
import pickle
from functools import cached_property
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from processes import launch

from datamodules.mask_cache import MaskCache, cache_folder, read_masks, write_masks
from datamodules.pictures import decode_picture, is_turned, read_picture


class Bright:
    """Regions by brightness; counts how often it is asked, and remembers the stem."""

    name = "bright / 2"
    in_processes = by_name = False

    def __init__(self, key="a", high=300):
        self.key, self.high, self.asked, self.stem = key, high, [], None

    def fingerprint(self):
        return self.key

    def masks(self, image, stem=None):
        self.asked.append(stem)
        return (image.float().mean(0) > 127).long() * self.high


class Slow(Bright):
    """Has a model, which it loads at first use."""

    loads: ClassVar[list[int]] = []  # shared with copies

    @cached_property
    def model(self):
        self.loads.append(1)
        return lambda: None  # cannot be pickled, as little as what lies on a GPU

    def masks(self, image, stem=None):
        self.model()
        return super().masks(image, stem)


class Whose(Bright):
    """Gives the number of the process that makes the masks, as the only region's id."""

    def __init__(self, in_processes):
        super().__init__()
        self.in_processes = in_processes

    def masks(self, image, stem=None):
        return torch.full(image.shape[1:], os.getpid() % 60000 + 1)


def png(seed=0, size=(5, 7)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), (pixels.astype(np.float32).mean(2) > 127) * 300


def picture(data, stem="a"):
    return decode_picture(data, stem, stem=stem)


def write_pngs(folder, count):
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(png(number)[0])
    return paths


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_masks_are_made_once_for_the_same_bytes(tmp_path):
    data, expected = png()
    (tmp_path / "one.png").write_bytes(data)
    (tmp_path / "two.png").write_bytes(data)
    source = Bright()
    masks = MaskCache(source, tmp_path / "cache")
    first = masks(read_picture(tmp_path / "one.png"))
    assert source.asked == ["one"]
    assert first.dtype == torch.int64
    np.testing.assert_array_equal(first.numpy(), expected)
    for same in (decode_picture(data, "upload"), read_picture(tmp_path / "two.png", upright=True)):
        assert torch.equal(masks(same), first)
    assert source.asked == ["one"]
    (file,) = files(tmp_path / "cache")
    assert file.parent.parent.name.startswith("bright-2-")
    with np.load(file) as arrays:
        assert arrays["instance_mask"].dtype == np.uint16
    masks(picture(png(1)[0]))
    assert len(source.asked) == 2


def test_a_picture_as_stored_and_upright_has_masks_of_its_own(tmp_path):
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, so that the size would tell nothing
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    path = tmp_path / "a.png"
    path.write_bytes(file.getvalue())
    assert is_turned(file.getvalue(), "a")
    masks = MaskCache(Bright(), tmp_path / "cache")
    for _ in range(2):
        assert masks(read_picture(path))[:, 0].tolist() == [300, 0, 0, 0]
        assert masks(read_picture(path, upright=True))[:, 0].tolist() == [0, 0, 0, 300]
    assert len(masks.source.asked) == len(files(tmp_path / "cache")) == 2
    assert masks.build([path]) == masks.build([path], upright=True) == 0
    named = Bright(None)
    named.by_name = True  # nobody knows whether those of a file are turned
    assert MaskCache(named, tmp_path / "cache")(read_picture(path))[:, 0].tolist() == [300, 0, 0, 0]
    with pytest.raises(ValueError, match=r"EXIF orientation turns the picture a, .* 'bright / 2' .* Store the picture"):
        MaskCache(named, tmp_path / "cache")(read_picture(path, upright=True))
    exif[0x0112] = 6  # a quarter, of which the size tells
    Image.fromarray(pixels[:3]).save(path, "PNG", exif=exif)
    assert MaskCache(named, tmp_path / "cache")(read_picture(path, upright=True))[0].tolist() == [0, 0, 300]
    (tmp_path / "bad.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"bad\.png cannot be decoded"):
        masks.build([tmp_path / "bad.png"], upright=True)


def test_another_source_has_its_own_folder(tmp_path, monkeypatch):
    folders = {cache_folder(Bright(key), tmp_path) for key in ("a", "b")}
    monkeypatch.setattr("datamodules.mask_cache.FORMAT", 99)
    folders.add(cache_folder(Bright("a"), tmp_path))
    assert len(folders) == 3


def test_a_source_without_fingerprint_is_asked_every_time(tmp_path):
    source = Bright(None)
    masks = MaskCache(source, tmp_path / "cache")
    assert torch.equal(masks(picture(png()[0])), masks(picture(png()[0])))
    assert len(source.asked) == 2
    assert masks.folder is None
    assert masks.build([tmp_path / "none.png"]) == 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "bit", "key", "type", "size"])
def test_a_broken_file_is_made_anew(damage, tmp_path, capsys):
    data, expected = png(size=(40, 50))
    source = Bright()
    masks = MaskCache(source, tmp_path / "cache")
    masks(picture(data))
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    if damage == "key":
        np.savez(file, other=np.zeros((2, 2), np.uint16))
    elif damage in ("type", "size"):
        np.savez(file, instance_mask=np.zeros((2, 2), np.float32 if damage == "type" else np.uint16))
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        file.write_bytes({"cut": whole[:-40], "empty": b"", "text": b"hello", "bit": flipped}[damage])
    broken = file.read_bytes()
    np.testing.assert_array_equal(masks(picture(data)).numpy(), expected)
    assert len(source.asked) == 2
    assert f"Cached masks {file} are broken" in capsys.readouterr().out
    masks(picture(data))
    assert len(source.asked) == 2
    assert capsys.readouterr().out == ""
    if damage != "size":  # which takes the decoded picture to see
        file.write_bytes(broken)
        (tmp_path / "a.png").write_bytes(data)
        assert masks.build([tmp_path / "a.png"]) == 1
        assert capsys.readouterr().out.count("are broken") == 1
        assert torch.equal(read_masks(file), torch.from_numpy(expected))


def test_ids_that_two_bytes_cannot_hold_are_refused(tmp_path):
    write_masks(tmp_path / "a.npz", torch.tensor([[0, 65534]]))
    assert read_masks(tmp_path / "a.npz").tolist() == [[0, 65534]]
    with pytest.raises(ValueError, match=r"masks of b7 have ids from 0 to 65535; the cache holds 0 to 65534"):
        MaskCache(Bright(high=65535), tmp_path / "b")(picture(png()[0], "b7"))
    with pytest.raises(ValueError, match="ids from -1"):
        write_masks(tmp_path / "c.npz", torch.tensor([[-1, 0]]))
    assert [p.name for p in files(tmp_path)] == ["a.npz"]


@pytest.mark.parametrize("key", ["a", None])
def test_masks_of_another_size_are_refused(key, tmp_path):
    source = Bright(key)
    source.masks = lambda image, stem: torch.zeros(3, 7)
    with pytest.raises(
        ValueError, match=r"source 'bright / 2' gave masks of the shape \(3, 7\) for a, .* are \(5, 7\)"
    ):
        MaskCache(source, tmp_path)(picture(png()[0]))
    assert files(tmp_path) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_masks(tmp_path / "a.npz", torch.tensor([[1]]))

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="No space"):
        write_masks(tmp_path / "a.npz", torch.tensor([[2]]))
    assert [p.name for p in files(tmp_path)] == ["a.npz"]
    assert read_masks(tmp_path / "a.npz").tolist() == [[1]]


def test_building_goes_on_where_it_stopped(tmp_path):
    paths = write_pngs(tmp_path, 5)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    masks = MaskCache(Bright(), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"bad\.png cannot be decoded"):
        masks.build([*paths[:2], bad, *paths[2:]])
    assert masks.source.asked == ["0", "1"]
    assert masks.build(paths) == 3
    assert masks.source.asked == ["0", "1", "2", "3", "4"]
    assert len(files(tmp_path / "cache")) == 5
    assert masks.build(paths) == 0
    files(tmp_path / "cache")[2].unlink()
    assert masks.build(paths) == 1
    assert len(masks.source.asked) == 6
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist"):
        masks.build([tmp_path / "none.png"])


def test_loader_processes_make_masks_only_where_the_source_allows_it(tmp_path):
    paths = write_pngs(tmp_path, 3)
    makers = {}
    for allowed in (True, False):
        masks = MaskCache(Whose(allowed), tmp_path / str(allowed))
        torch.manual_seed(0)
        assert masks.build(paths, workers=2) == 3
        assert torch.rand(1).item() == pytest.approx(0.49625658988952637)  # the first after that seed
        assert masks.build(paths, workers=2) == 0
        makers[allowed] = {int(read_masks(file)[0, 0]) for file in files(tmp_path / str(allowed))}
    assert makers[False] == {os.getpid() % 60000 + 1}
    assert len(makers[True] - makers[False]) == 2
    for name, kind in (("none.png", FileNotFoundError), ("bad.png", ValueError)):
        (tmp_path / "bad.png").write_bytes(b"no image")
        with pytest.raises(kind, match=rf"^Image .*{name}"):
            masks.build([tmp_path / name], workers=1)


def test_the_model_of_a_source_goes_when_the_masks_are_made(tmp_path):
    Slow.loads.clear()
    masks = MaskCache(Slow(), tmp_path / "cache")
    paths = write_pngs(tmp_path, 2)
    masks.build(paths)
    assert len(Slow.loads) == 1
    assert "model" not in vars(masks.source)
    there = pickle.loads(pickle.dumps(masks))  # as loader processes get it
    np.testing.assert_array_equal(there(read_picture(paths[1])).numpy(), png(1)[1])
    masks.build(paths)
    assert len(Slow.loads) == 1


SCRIPT = """
import os, sys
from pathlib import Path
from typing import ClassVar
import torch
from datamodules.mask_cache import MaskCache

class Named:
    name, in_processes = "named", False
    def fingerprint(self):
        return "n"
    def masks(self, image, stem=None):
        rank = torch.distributed.get_rank()
        (Path(sys.argv[1]) / f"{stem}-{rank}.seen").touch()
        return torch.full(image.shape[1:], rank + 1)

os.environ["RANK"], os.environ["WORLD_SIZE"] = os.environ["LOCAL_RANK"], sys.argv[-1]
torch.distributed.init_process_group("gloo")
folder = Path(sys.argv[1])
masks = MaskCache(Named(), folder / "cache")
paths = sorted(folder.glob("*.png"))
assert masks.build(paths) == 5
if torch.distributed.get_rank() == 0:
    for file in list((folder / "cache").rglob("*.npz"))[:2]:
        file.unlink()
torch.distributed.barrier()
assert masks.build(paths) == 2
try:
    masks.build([*paths, folder / "none.png"])
except (FileNotFoundError, ValueError) as error:
    assert "none.png does not exist" in str(error)
else:
    raise AssertionError("it must fail in both")
"""


@pytest.mark.slow
def test_processes_share_the_pictures(tmp_path):
    write_pngs(tmp_path, 5)
    launch(SCRIPT, 2, tmp_path)
    seen = {p.stem for p in tmp_path.glob("*.seen")}
    assert {"0-0", "1-0", "2-0", "3-1", "4-1"} <= seen  # and two by whoever was asked when they were gone
    assert len(seen) <= 7
    assert len(files(tmp_path / "cache")) == 5
