import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_an_epoch_from_the_cache_is_fifty_times_faster(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    results = FOLDER / "RESULTS.md"
    before = results.read_text() if results.is_file() else None
    rows = {row["what"]: row for row in importlib.import_module("feature_cache").main(["--small"])}
    live, cached = rows["epoch through ViT-B/32"], rows["epoch from the cache"]
    assert cached["items"] == live["items"] == 16
    assert live["seconds"] / cached["seconds"] >= 50
    assert (results.read_text() if results.is_file() else None) == before
