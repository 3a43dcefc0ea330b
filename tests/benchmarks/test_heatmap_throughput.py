import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_whole_test_gives_the_boxes_of_the_demo_loop(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    demo, suite = importlib.import_module("heatmap_throughput").main(["--small"])
    assert float(suite["boxes in common"]) > 0.99
    assert float(suite["mean AP"]) == pytest.approx(float(demo["mean AP"]), abs=2e-3)
    assert suite["ms an image"] > 0  # three small pictures: the Trainer's own start is most of the time
