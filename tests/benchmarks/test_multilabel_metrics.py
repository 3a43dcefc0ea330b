import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_scores_are_measured_against_the_same_values(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    results = FOLDER / "RESULTS.md"
    before = results.read_text() if results.is_file() else None
    rows = {row["what"]: row for row in importlib.import_module("multilabel_metrics").main(["--small"])}
    for kind in ("sigmoid", "votes of 20"):
        assert float(rows[f"{kind}: ours, all 18 in one call"]["largest difference"]) < 1e-6
        assert rows[f"{kind}: all scores, memory beyond the data"]["MiB"] < 300
    assert (results.read_text() if results.is_file() else None) == before
