import importlib
from pathlib import Path

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
