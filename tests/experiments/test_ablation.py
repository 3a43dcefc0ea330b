"""The ablate command: the cells of a grid, what it refuses, its tables, and the means of the factors."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml
from result_folders import write_ablation

from callbacks.experiments.ablation import marginal
from callbacks.experiments.ablation_tables import ablation_tables, marginals_figure
from callbacks.experiments.grid import Factor, cells_of, read_factors
from callbacks.experiments.summary import statistics
from lightning_modules.messages.settings import leaves

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GRIDS = sorted((CONFIGS / "multilabel" / "grids").glob("*.yaml"))
PM = "\N{PLUS-MINUS SIGN}"
GRID = """\
width:
  four: {model.init_args.width: 4, data.init_args.width: 4}
  nine: {model.init_args.width: 9, data.init_args.width: 9}
model.init_args.mode: [sum, mean]
"""


@pytest.fixture
def grid(tmp_path) -> Path:
    file = tmp_path / "grid.yaml"
    file.write_text(GRID)
    return file


def record(folder: Path) -> dict:
    return json.loads((folder / "runs/toy/ablation.json").read_text())


def test_all_cells_and_seeds_run_and_are_tabulated(run_cli, fold_config, grid, started, tmp_path, capsys) -> None:
    run_cli("ablate", "-c", fold_config, "--grid", grid, "--seeds", "[0,2]")
    assert started[:3] == [
        "width four, mode sum, seed 0",
        "width four, mode sum, seed 2",
        "width four, mode mean, seed 0",
    ]
    assert len(started) == 8
    found = record(tmp_path)
    assert found["factors"] == {"width": ["four", "nine"], "model.init_args.mode": ["sum", "mean"]}
    assert found["missing"] == []
    by_width = {"four": 0.504, "nine": 0.509}  # and 0.01 more a seed, see the toy
    for cell in found["cells"]:
        values = by_width[cell["settings"]["width"]] + np.array([0.0, 0.02])
        assert cell["mean"] == pytest.approx(values.mean(), abs=1e-6)
        assert cell["sd"] == pytest.approx(values.std(ddof=1), abs=1e-6)
        wanted = scipy.stats.t.interval(0.95, 1, loc=values.mean(), scale=scipy.stats.sem(values))
        assert (cell["low"], cell["high"]) == pytest.approx(wanted, abs=1e-5)
        saved = yaml.safe_load((tmp_path / "runs/toy" / cell["seeds"]["2"]["folder"] / "config.yaml").read_text())
        assert saved["seed_everything"] == 2
        assert saved["model"]["init_args"]["mode"] == cell["settings"]["model.init_args.mode"]
        assert saved["data"]["init_args"]["width"] == saved["model"]["init_args"]["width"]
    levels = found["marginals"]["width"]
    assert [level["mean"] for level in levels] == pytest.approx([0.514, 0.519], abs=1e-6)
    assert [level["combinations"] for level in levels] == [2, 2]
    text = (tmp_path / "runs/toy/ablation.md").read_text()
    assert "| nine | sum | **0.5190" in text
    assert "2 seeds a setting" in text
    assert r"\begin{tabular}" in (tmp_path / "runs/toy/ablation.tex").read_text()
    assert (tmp_path / "runs/toy/marginals.png").stat().st_size > 5000
    assert yaml.safe_load((tmp_path / "runs/toy/grid.yaml").read_text()) == yaml.safe_load(GRID)
    assert "0.5190" in capsys.readouterr().out


def test_the_best_in_bold_is_among_the_settings_with_all_seeds() -> None:
    cells = [{"settings": {"lr": lr}, **statistics(values), "floor": None}
             for lr, values in ((1, [0.9, None]), (2, [0.8, 0.84]), (3, [0.7, 0.74]))]  # fmt: skip
    record = {"metric": "map", "seeds": [0, 1], "factors": {"lr": [1, 2, 3]}, "convention": None, "missing": []}
    (table,) = ablation_tables({**record, "cells": cells, "marginals": {}})
    assert [[cell.text for cell in row if cell.best] for row in table.cells()] == [[], [f"0.8200 {PM} 0.0283"], []]
    assert "not corrected for the number of comparisons" in " ".join(table.notes)


@pytest.mark.parametrize("second", [0.1, 0.2])
def test_floors_that_differ_stand_beside_their_figures(second: float) -> None:
    cells = [{"settings": {"k": k}, **statistics([0.5]), "floor": floor} for k, floor in ((1, 0.1), (2, second))]
    record = {"metric": "map", "seeds": [0], "factors": {"k": [1, 2]}, "convention": None, "missing": []}
    (table,) = ablation_tables({**record, "cells": cells, "marginals": {}})
    last = [row[-1].text for row in table.cells()]
    assert (table.head[-1], last) == (("n", ["1", "1"]) if second == 0.1 else ("floor", ["0.1000", "0.2000"]))
    assert ("Floor: 0.1000." in table.notes) is (second == 0.1)
    assert len(table.align) == len(table.head)


def test_only_missing_cells_run_also_in_a_larger_grid(fails, run_cli, fold_config, started, tmp_path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("model.init_args.lr: [0.1]")
    run_cli("ablate", "-c", fold_config, "--grid", file)
    file.write_text("model.init_args.lr: [0.1, 0.2]")
    (tmp_path / "die_lr_0.2,_seed_0").touch()
    (tmp_path / "fail_0").touch()
    shown = fails(1, "ablate", "-c", fold_config, "--grid", file)
    assert started == ["lr 0.1, seed 0", "lr 0.2, seed 0"]
    assert "lr 0.2, seed 0 failed: killed by SIGKILL" in shown
    entry = record(tmp_path)["cells"][1]["seeds"]["0"]
    assert entry["status"] == "failed"
    assert "SIGKILL" in entry["error"]
    assert record(tmp_path)["cells"][1]["mean"] is None
    (tmp_path / "fail_0").unlink()
    (tmp_path / "die_lr_0.2,_seed_0").unlink()
    run_cli("ablate", "-c", fold_config, "--grid", file)
    assert started[2:] == ["lr 0.2, seed 0"]


def test_a_finished_cell_with_other_settings_is_refused(fails, run_cli, fold_config, grid, started) -> None:
    run_cli("ablate", "-c", fold_config, "--grid", grid)
    shown = fails(2, "ablate", "-c", fold_config, "--grid", grid, "--trainer.max_epochs", "2")
    assert "trainer.max_epochs (was 1, is 2)" in shown


def test_a_metric_that_no_run_has_is_told_with_those_it_has(fails, fold_config, started, tmp_path) -> None:
    (tmp_path / "g.yaml").write_text("model.init_args.lr: [0.1, 0.2]")
    shown = fails(2, "ablate", "-c", fold_config, "--grid", "g.yaml", "--metric", "fold/mapp")
    assert "no finished run has the --metric fold/mapp. Nearest: fold/soft_map_macro, test/soft_map_macro." in shown
    assert "The other one was not started" in shown
    assert started == ["lr 0.1, seed 0"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("model.init_args.widht: [4, 5]", "unknown key 'model.init_args.widht' (in bad.yaml). Nearest: width."),
        ("modle.init_args.width: [4, 5]", "unknown key 'modle' (in bad.yaml). Nearest: model."),
        ("model.init_args.mode: [sum, max]", "model.init_args.mode is 'max' (in bad.yaml)"),
        ("model.init_args.width: 4", "model.init_args.width has no list of values"),
        ("width: {four: 4}", "width has no list of values and no named levels"),
        ("{}", "grid bad.yaml is empty"),
        ("- a", "bad.yaml"),
        ("seed_everything: [1, 2]", "The seeds are given with --seeds."),
        ("model.init_args.width: [4, 4]", "lists 4 twice"),
        ("a: {b: {model.init_args.lr: 1.0}}\nmodel.init_args.lr: [0.1]", "a and model.init_args.lr both set"),
    ],
)
def test_a_wrong_grid_is_told_before_anything_runs(text, wanted, fails, fold_config, started, tmp_path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    assert wanted in fails(2, "ablate", "-c", fold_config, "--grid", "bad.yaml")
    assert not started


def test_other_mistakes(fails, fold_config, grid, started) -> None:
    assert "does not exist" in fails(2, "ablate", "-c", fold_config, "--grid", "gird.yaml")
    assert "--seeds is [1, 1]" in fails(2, "ablate", "-c", fold_config, "--grid", grid, "--seeds", "[1,1]")
    assert "grid must be given" in fails(2, "ablate", "-c", fold_config)


def test_folders_of_cells_are_readable_and_differ_when_their_settings_do() -> None:
    (cell,) = cells_of(read_factors({"model.init_args.knn_k": [20], "head": {"a b": {"x.y": 1}}}, "g"))
    assert cell.folder.rpartition("_")[0] == "knn-k-20_head-a-b"
    cells = cells_of(read_factors({"a.b": ["x/y", "x y", None, [1, 2]]}, "g"))
    assert len({cell.folder for cell in cells}) == 4
    assert all(set(cell.folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.+") for cell in cells)
    first, second = (read_factors({"head": {"knn": {"m.k": k}}}, "g") for k in (10, 20))
    assert cells_of(first)[0].folder != cells_of(second)[0].folder


def test_levels_are_compared_over_the_same_cells() -> None:
    factors = [Factor("a", [(n, {"a": n}) for n in (1, 2)]), Factor("b", [(n, {"b": n}) for n in "xy"])]
    cells = cells_of(factors)  # 1x 1y 2x 2y
    keys = [(cell.folder, seed) for cell in cells for seed in (0, 1)]
    values = dict(zip(keys, [1, 2, 3, 4, 5, 6, 9, None], strict=True))
    one, two = marginal(factors[0], cells, [0, 1], values)
    # seed 0: both cells count; seed 1: only x, as 2y is missing
    assert (one["mean"], two["mean"]) == (np.mean([(1 + 3) / 2, 2]), np.mean([(5 + 9) / 2, 6]))
    assert (one["n"], one["combinations"]) == (2, 2)


@pytest.mark.parametrize("factors", [1, 2])
def test_the_words_of_the_figure_are_within_it(tmp_path, factors: int) -> None:
    content = write_ablation(tmp_path)
    names = list(content["factors"])[:factors]
    content["marginals"] = {name: content["marginals"][name][:2] for name in names}
    for cell in content["cells"]:
        cell["settings"] = {name: content["marginals"][name][0]["value"] for name in names}
    figure = marginals_figure(content)
    figure.savefig(tmp_path / "figure.png")  # settles the layout
    box = figure.get_tightbbox()  # of all that is drawn, in inches
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_the_shipped_sweeps_are_the_shipped_grids(file: Path, run_cli, capsys) -> None:
    sweep = yaml.safe_load((CONFIGS / "sweep" / file.name).read_text())
    parameters = {key: entry["values"] for key, entry in sweep["parameters"].items()}
    assert parameters.pop("seed_everything") == [0, 1, 2]
    assert sweep["metric"]["name"] in file.read_text() + "fold/soft_map_macro"
    words = [[f"--{key}={value}" for key, value in zip(parameters, values, strict=True)]  # as W&B writes them
             for values in itertools.product(*parameters.values())]  # fmt: skip
    cells = cells_of(read_factors(yaml.safe_load(file.read_text()), file.name))
    assert [overrides_of(part) for part in words] == [cell.overrides for cell in cells]
    with pytest.raises(SystemExit) as stop:
        run_cli("fit", "-c", CONFIGS / "multilabel" / "world.yaml", *words[-1], "--print_config")
    assert stop.value.code == 0
    merged = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert all(merged[key.rpartition(".")[2]] == value for key, value in cells[-1].overrides.items())


def overrides_of(words: list[str]) -> dict:
    """Dotted keys and values of options; a ``--config`` holds several."""
    found = {}
    for key, _, value in (word.removeprefix("--").partition("=") for word in words):
        content = yaml.safe_load(value)
        found |= dict(leaves(content)) if key == "config" else {key: content}
    return found
