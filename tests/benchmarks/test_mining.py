import importlib
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_mining_is_measured_against_the_same_records(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    results = FOLDER / "RESULTS.md"
    before = results.read_text() if results.is_file() else None
    rows = importlib.import_module("mining").main(["--small"])  # equal records are asserted in there
    assert rows[0]["hard negatives"] > 100
    assert rows[1]["x double loop, CPU"] > 1  # a bound for few images on a busy machine, not the aim
    assert (results.read_text() if results.is_file() else None) == before
