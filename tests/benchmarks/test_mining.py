import importlib
from pathlib import Path

import pytest
from detection_worlds import world

from lightning_modules.detection.mining import HardNegativeMiner

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def mining(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("mining")


def test_mining_is_measured_against_the_same_records(mining):
    results = FOLDER / "RESULTS.md"
    before = results.read_text() if results.is_file() else None
    rows = mining.main(["--small"])  # equal records are asserted in there
    assert [row["route"] for row in rows] == [mining.LOOP, mining.COLUMNS, mining.TUPLES]
    assert rows[0]["hard negatives"] > 100
    assert rows[1]["x double loop, CPU"] > 2  # a bound for few images on a busy machine, not the aim
    assert (results.read_text() if results.is_file() else None) == before


@pytest.mark.parametrize("positive", [0.5, 0.3])
@pytest.mark.parametrize(
    "case",
    [{}, {"levels": 2}, {"grid": True}, {"grid": True, "levels": 3, "most": 30}, {"classes": 1, "most": 20}],
    ids=str,
)
def test_records_are_those_of_the_double_loop(mining, case, positive):
    """Ties of scores (``levels``) and overlaps (``grid``), images without predictions or truths, unseen classes."""
    seen = set()
    for seed in range(25):
        predictions, truths = world(**case, seed=seed)
        miner = HardNegativeMiner(confidence_threshold=0.2, iou_threshold=positive)
        records = miner.find_hard_negatives(predictions, truths)
        wanted = mining.mined_by_loops(predictions, truths, 0.2, positive, 0.2 * positive)
        assert list(records) == wanted
        seen |= {record.type for record in wanted}
    assert seen >= {"localisation", "background", "missed"}
    assert ({"class", "both"} <= seen) == (case.get("classes") != 1)


@pytest.mark.slow
def test_the_rounds_are_timed_within_the_training(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    rows = importlib.import_module("mining_overhead").main(["--small"])
    assert [row["rounds"] for row in rows] == [2, 2]
    assert all(0 < row["rounds, CPU (s)"] < row["rounds (s)"] + 1 for row in rows)
