import errno
import json
import shutil
import signal
import time
import warnings
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import launch, start
from toy_encoder import ToyEncoder

from datamodules import feature_store, features
from datamodules.coco import COCO
from datamodules.features import FeatureCache
from datamodules.flickr import FlickrCaptions


@pytest.fixture
def make_data(tmp_path, write_coco):
    root = write_coco(tmp_path / "coco", train=17, val=6)

    def make(**kwargs):
        arguments = {"num_query": 4, "num_train": 5, "split_dir": str(tmp_path / "splits"), "batch_size": 3, **kwargs}
        return COCO(str(root), **arguments)

    return make


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(features, "CHUNK_ITEMS", 4)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_features_equal_direct_encoding(make_data, tmp_path):
    data, encoder = make_data(), ToyEncoder()
    cache = FeatureCache(data, encoder, str(tmp_path / "cache"))
    for split in ("query", "train", "database"):
        got, dataset = cache.open(split), data.dataset(split)
        assert got.ids == data.splits[split]
        assert isinstance(got.image, np.memmap)
        assert isinstance(got.text, np.memmap)
        assert got.image.dtype == got.text.dtype == np.float16
        for i, item in enumerate(dataset):
            expected = np.asarray(item["image"], np.float64).transpose(2, 0, 1).reshape(-1) / 255
            expected = expected @ encoder.weights.double().numpy()
            assert np.allclose(got.image[i], expected, rtol=2e-3, atol=2e-2)
            texts = encoder.encode_text(item["captions"]).numpy().astype(np.float16)
            assert got.text.shape[1] == 6  # one item has six captions; the others repeat theirs in turn
            assert np.array_equal(got.text[i], texts[np.arange(6) % len(texts)])
            assert got.labels[i].tolist() == item["labels"].tolist()
    assert encoder.images == 21  # each item once, though train is a part of database


def test_second_open_encodes_nothing(make_data, tmp_path):
    FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "cache")).build()
    encoder = ToyEncoder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = FeatureCache(make_data(), encoder, str(tmp_path / "cache"))
        cache.open("train")
    assert encoder.images == 0
    manifest = json.loads((cache.path / "manifest.json").read_text())
    assert manifest["identity"]["weights"] == encoder.fingerprint()
    assert manifest["identity"]["backbone"] == "Toy/Encoder"
    assert manifest["identity"]["dtype"] == "float16"
    assert set(manifest["files"]) == {"image.npy", "text.npy", "labels.npy", "ids.json"}
    assert cache.path.parent == tmp_path / "cache"
    assert {p.name for p in cache.path.parent.iterdir()} == {cache.path.name, f"{cache.path.name}.lock"}  # no leftovers


def test_making_the_cache_does_not_move_the_random_numbers_of_the_run(make_data, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    for _ in ("empty", "filled"):
        torch.manual_seed(3)
        FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "fresh")).open("train")
        assert torch.equal(torch.rand(2), expected)


def test_other_splits_use_the_same_cache(make_data, tmp_path):
    first = FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "cache"))
    by_id = dict(zip(first.data.splits["database"], first.open("database").image, strict=True))
    encoder = ToyEncoder()
    second = FeatureCache(make_data(split_seed=3, num_query=7), encoder, str(tmp_path / "cache"))
    got = second.open("database")
    assert second.path == first.path
    assert encoder.images == 0
    for name, row in zip(got.ids, got.image, strict=True):
        assert name not in by_id or np.array_equal(row, by_id[name])


@pytest.mark.parametrize("what", ["weights", "preprocessing", "image", "caption"])
def test_stale_cache_is_never_used(make_data, tmp_path, what):
    old = FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "cache"))
    old.build()
    encoder = ToyEncoder(seed=1 if what == "weights" else 0)
    if what == "preprocessing":
        encoder.preprocessing = "other"
    data = make_data()
    if what == "image":
        path = data.root / "images" / "val2017" / "000000001002.jpg"
        path.write_bytes(path.read_bytes() + b"\0")
    if what == "caption":
        file = data.root / "annotations" / "captions_val2017.json"
        file.write_text(file.read_text().replace("picture 1003", "photo 1003"))
    cache = FeatureCache(data, encoder, str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="was made from other data, weights or preprocessing and is not used"):
        cache.open("query")
    assert encoder.images == 21
    assert cache.path != old.path


def test_every_file_is_checked_at_open(make_data, tmp_path):
    cache = FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "cache"))
    good = {s: np.array(cache.open(s).text) for s in ("query", "database")}
    for name in ("image.npy", "text.npy", "labels.npy", "ids.json", "manifest.json"):
        path = cache.path / name
        content = bytearray(path.read_bytes())
        content[-3] ^= 1  # one bit
        path.write_bytes(content)
        encoder = ToyEncoder()
        again = FeatureCache(make_data(), encoder, str(tmp_path / "cache"))
        with pytest.warns(UserWarning, match="is damaged: .*It is made anew"):
            assert np.array_equal(again.open("query").text, good["query"])
        assert encoder.images == 21, name
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1])):
        damage(cache.path / "image.npy")
        again = FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "cache"))
        with pytest.warns(UserWarning, match=r"image\.npy (is missing|has \d+ bytes)"):
            again.build()


def test_workers_give_the_same_cache(make_data, tmp_path):
    plain = FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "a"))
    plain.build()
    workers = FeatureCache(make_data(num_workers=2), ToyEncoder(), str(tmp_path / "b"))
    workers.build()
    assert contents(plain.path) == contents(workers.path)


def test_corrupt_image_is_named_without_a_traceback_and_keeps_what_is_done(make_data, tmp_path):
    data = make_data(num_workers=1)
    order = data.splits["query"] + data.splits["database"]
    victim = data.root / "images" / order[-1]
    content = victim.read_bytes()
    size = len(content)
    victim.write_bytes(b"\xff\xd8" + b"\0" * (size - 2))
    cache = FeatureCache(data, ToyEncoder(), str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=rf"^Image .*{victim.name} cannot be decoded") as caught:
        cache.build()
    assert "Traceback" not in str(caught.value)
    victim.write_bytes(content)  # same size: the same fingerprint
    encoder = ToyEncoder()
    FeatureCache(make_data(), encoder, str(tmp_path / "cache")).build()
    assert 0 < encoder.images <= 4


def test_not_finite_embeddings_are_refused(make_data, tmp_path):
    encoder = ToyEncoder()
    encoder.weights *= 1e6
    with pytest.raises(ValueError, match="not finite numbers in float16"):
        FeatureCache(make_data(), encoder, str(tmp_path / "cache")).build()


@pytest.mark.filterwarnings("ignore:Feature cache .* was made from other data")
def test_full_disk_before_and_while_writing(make_data, tmp_path, monkeypatch):
    earlier = FeatureCache(make_data(), ToyEncoder(seed=5), str(tmp_path / "cache"))
    earlier.build()
    before = contents(earlier.path)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 100))
        with pytest.raises(OSError, match=r"504 bytes are needed .* 100 are free") as caught:
            FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "cache")).build()
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path / "cache") in str(caught.value)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in ("write_chunk", "write_npy"):
        with monkeypatch.context() as patch:
            patch.setattr(feature_store, step, full)
            with pytest.raises(OSError, match=r"disk of .* is full: [\d,]+ bytes are needed") as caught:
                FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "cache")).build()
        assert caught.value.errno == errno.ENOSPC
    assert contents(earlier.path) == before
    encoder = ToyEncoder()
    FeatureCache(make_data(), encoder, str(tmp_path / "cache")).build()
    assert encoder.images == 0  # all chunks had been written before the disk was full


def test_a_damaged_chunk_is_encoded_again(make_data, tmp_path, monkeypatch):
    cache = FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cache.build()
    partial = cache.path.with_name(cache.path.name + ".partial")
    chunk = partial / "chunk-000002.npz"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 3] ^= 255
    chunk.write_bytes(content)
    encoder = ToyEncoder()
    FeatureCache(make_data(), encoder, str(tmp_path / "cache")).build()
    assert encoder.images == 4


def test_captions_without_labels(tmp_path, write_image):
    for i in range(5):
        write_image(tmp_path / "Images" / f"{i}.jpg", i)
    (tmp_path / "captions.txt").write_text("image,caption\n" + "".join(f"{i}.jpg,text {i}\n" for i in range(5)))
    data = FlickrCaptions(str(tmp_path), num_query=2, split_dir=str(tmp_path / "s"))
    cache = FeatureCache(data, ToyEncoder(), str(tmp_path / "cache"))
    assert cache.open("train").labels.shape == (3, 0)
    assert cache.open("query").ids == cache.open("database").ids
    with pytest.raises(ValueError, match="no split 'val'"):
        cache.open("val")


SCRIPT = """
import os
import sys
import torch
from toy_encoder import ToyEncoder
from datamodules import COCO, features

features.CHUNK_ITEMS = 4
root, splits, log, cache, pause, world = *sys.argv[1:5], float(sys.argv[5]), int(sys.argv[6])
rank = int(os.environ.get("LOCAL_RANK", 0))
if world > 1:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
encoder = ToyEncoder(log=log + str(rank), pause=pause)
cache = features.FeatureCache(COCO(root, 4, 5, split_dir=splits, batch_size=3), encoder, cache)
assert cache.open("train").image.shape == (5, 6)
"""


def arguments(tmp_path, data, pause):
    return [data.root, data.split_dir, tmp_path / "log", tmp_path / "cache", pause]


@pytest.mark.slow
def test_kill_in_mid_build_then_resume_without_repeating(make_data, tmp_path):
    data = make_data()
    plain = FeatureCache(data, ToyEncoder(), str(tmp_path / "plain"))
    plain.build()
    process = start(SCRIPT, [*arguments(tmp_path, data, 0.5), 1], tmp_path / "printed", tmp_path)
    try:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "cache").glob("*.partial/chunk-*.npz"))) < 2:
            assert process.is_alive(), (tmp_path / "printed").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    done = len(list((tmp_path / "cache").glob("*.partial/chunk-*.npz")))
    assert 2 <= done < 6
    assert not list((tmp_path / "cache").glob("*/manifest.json"))
    encoder = ToyEncoder()
    resumed = FeatureCache(make_data(), encoder, str(tmp_path / "cache"))
    resumed.build()
    assert encoder.images == 21 - 4 * done
    assert contents(resumed.path) == contents(plain.path)


@pytest.mark.slow
def test_two_processes_share_the_work_and_make_the_identical_cache(make_data, tmp_path):
    data = make_data()
    plain = FeatureCache(data, ToyEncoder(), str(tmp_path / "plain"))
    plain.build()
    launch(SCRIPT, 2, *arguments(tmp_path, data, 0.0))
    counts = [sum(map(int, (tmp_path / f"log{rank}").read_text().split())) for rank in range(2)]
    assert counts == [12, 9]  # six chunks of at most four: three each
    assert contents(tmp_path / "cache" / plain.path.name) == contents(plain.path)
