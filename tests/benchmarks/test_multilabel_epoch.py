import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
RESULTS = FOLDER / "RESULTS.md"


@pytest.fixture
def rows_of(monkeypatch):
    """The rows of a benchmark's quick run, which must leave the results file as it is."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def run(name):
        before = RESULTS.read_text()
        rows = importlib.import_module(name).main(["--small"])
        assert RESULTS.read_text() == before
        return rows

    return run


@pytest.mark.slow
def test_the_trainer_and_the_loop_take_the_same_steps_to_equal_weights(rows_of):
    for row in rows_of("multilabel_epoch"):
        assert row["largest difference of weights"] == "0e+00"
        assert row["items an epoch"] == 399
        assert row["steps each"] > 0
        assert row["ratio (median of segments)"] < 5  # a bound for a tiny network on a busy machine, not the aim


@pytest.mark.slow
def test_five_folds_pass_each_image_and_caption_through_the_towers_once(rows_of):
    counted = {row["what"]: row for row in rows_of("tower_passes") if row["run"].startswith("counted")}
    assert counted["images"]["for the cache"] == "72"
    assert counted["captions"]["for the cache"] == "360"
    assert counted["images"]["encoded in the loop"] == "300"
