"""Runs side by side that need the same feature cache."""

import errno
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from toy_encoder import ToyEncoder

from datamodules.coco import COCO
from datamodules.features import FeatureCache


@pytest.fixture
def make_data(tmp_path, write_coco):
    root = write_coco(tmp_path / "coco", train=17, val=6)

    def make(**kwargs):
        arguments = {"num_query": 4, "num_train": 5, "split_dir": str(tmp_path / "splits"), "batch_size": 3, **kwargs}
        return COCO(str(root), **arguments)

    return make


def test_runs_side_by_side_make_the_cache_once(make_data, tmp_path, capfd):
    caches = [FeatureCache(make_data(), ToyEncoder(pause=0.2), str(tmp_path / "cache")) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(lambda cache: cache.open("query"), caches))
    assert sorted(cache.encoder.images for cache in caches) == [0, 0, len(caches[0]._items()[0])]
    for part in parts[1:]:
        np.testing.assert_array_equal(part.image, parts[0].image)
    assert "is being made by another run; waiting for it" in capfd.readouterr().err
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_whole_cache_opens_where_nothing_can_be_written(make_data, tmp_path, monkeypatch):
    FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "cache")).build()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    cache = FeatureCache(make_data(), ToyEncoder(), str(tmp_path / "cache"))
    assert len(cache.open("query")) > 0
    assert cache.encoder.images == 0
