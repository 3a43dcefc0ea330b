import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Import a benchmark the way that ``python benchmarks/<name>.py`` does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_a_section_is_replaced_and_the_others_stay(script, tmp_path, capsys):
    table, path = script("table"), tmp_path / "RESULTS.md"
    table.write_section("One", "python one.py", [{"what": "a|b", "seconds": 1.23456}], path)
    table.write_section("Two", "python two.py", [{"what": "c", "seconds": 2}], path)
    table.write_section("One", "python one.py", [{"what": "d", "seconds": 0.5}, {"what": "e", "seconds": 3.0}], path)
    text = path.read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# Measurements", "## One", "## Two"]
    assert "| d | 0.5 |\n| e | 3 |" in text
    assert "1.235" not in text
    assert f"`python one.py` on {table.machine()}" in text
    assert "1.235" in capsys.readouterr().out


def test_a_bar_in_a_cell_does_not_break_the_table(script, tmp_path):
    script("table").write_section("One", "x", [{"what": "a|b"}], tmp_path / "RESULTS.md")
    assert "| a\\|b |" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.slow
def test_retrieval_is_measured_against_the_same_value(script, monkeypatch):
    results = FOLDER / "RESULTS.md"
    before = results.read_text() if results.is_file() else None
    rows = {row["what"]: row for row in script("retrieval").main(["--small"])}
    loop, ours = rows["numpy loop, stable argsort"], rows["mAP@all, ties stable"]
    assert ours["value"] == loop["value"]
    assert abs(float(rows["mAP@50, ties stable"]["difference to the stable loop"])) < 1e-12
    assert abs(float(rows["mAP@all, ties expected"]["value"]) - float(loop["value"])) < 2e-3
    assert any("extra memory (MiB)" in row for row in rows.values())
    assert (results.read_text() if results.is_file() else None) == before
