import importlib
from pathlib import Path

import pytest
from processes import launch

FOLDER = Path(__file__).parents[2] / "benchmarks"


MEMORY = """
import sys
sys.path[:0] = ["benchmarks"]
from contextlib import redirect_stdout
from multilabel_metrics import measure_memory

with open(sys.argv[1], "w") as file, redirect_stdout(file):
    measure_memory(int(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.slow
def test_scores_are_measured_against_the_same_values(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))

    def memory(n, kind):  # in a process of its own as in the benchmark, but one that starts at once
        launch(MEMORY, 1, tmp_path / kind, n, kind)
        return tuple(map(float, (tmp_path / kind).read_text().split()))

    monkeypatch.setattr(importlib.import_module("multilabel_metrics"), "memory", memory)
    results = FOLDER / "RESULTS.md"
    before = results.read_text() if results.is_file() else None
    rows = {row["what"]: row for row in importlib.import_module("multilabel_metrics").main(["--small"])}
    for kind in ("sigmoid", "votes of 20"):
        assert float(rows[f"{kind}: ours, all 18 in one call"]["largest difference"]) < 1e-6
        assert rows[f"{kind}: all scores, memory beyond the data"]["MiB"] < 300
    assert (results.read_text() if results.is_file() else None) == before
