import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_steps_are_measured_against_loops_with_the_same_results(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    results = FOLDER / "RESULTS.md"
    before = results.read_text() if results.is_file() else None
    rows = importlib.import_module("corrclip").main(["--small"])  # equal results are asserted in there
    assert [row["step"] for row in rows] == ["scope", "merging", "correction"]
    for row in rows:
        assert row["x loop"] > 1.2, row  # a bound for tiny sizes on a busy machine, not the aim
    assert (results.read_text() if results.is_file() else None) == before


@pytest.mark.slow
def test_a_whole_step_is_measured_against_its_networks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    (row,) = importlib.import_module("corrclip_loop").main(["--small"])
    assert (row["windows"], row["queries"]) == (2, 4)
    assert 0.5 < row["x networks"] < 4  # few patches, so that the regions' tokens and the calls themselves weigh much


@pytest.mark.slow
def test_the_table_of_components(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    (row,) = importlib.import_module("corrclip_components").main(["--small"])
    assert 2 * 85 < row["parameters, M"] < 2 * 88
    assert 4 * 2 * 85 * 0.95 < row["peak memory, MiB"] < 4096  # from the weights alone, in MiB
    assert row["s a picture"] > 0
