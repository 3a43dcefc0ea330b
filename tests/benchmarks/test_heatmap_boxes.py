import importlib
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_boxes_are_measured_against_the_same_boxes(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    results = FOLDER / "RESULTS.md"
    before = results.read_text() if results.is_file() else None
    rows = importlib.import_module("heatmap_boxes").main(["--small"])  # equal boxes are asserted in there
    assert len({row["section"] for row in rows}) == 4
    for row in rows:
        assert row["components an image"] > 20
        if row["route"] != "scipy loop":
            assert row["x scipy loop, CPU"] > 1.5  # a bound for tiny maps on a busy machine, not the aim
    assert (results.read_text() if results.is_file() else None) == before
