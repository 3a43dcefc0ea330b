"""Ablation: a grid of settings times seeds, one fresh process each; a table and the marginal means of the factors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from callbacks.experiments.grid import Cell, Factor, cells_of, read_factors, show
from callbacks.experiments.runs import (
    Plan,
    Run,
    alone_in,
    check_folder,
    experiment_name,
    finished_of,
    options,
    perform,
    read_state,
    write_json,
    write_yaml,
)
from callbacks.experiments.summary import CONFIDENCE, shared_notes, statistics
from callbacks.experiments.wandb_runs import log_summary


def run_ablation(
    fit_config: Callable[..., dict[str, Any]], plan: Plan, grid: Mapping[str, Any], grid_file: str,
    seeds: Sequence[int], metric: str,
) -> int:  # fmt: skip
    """Run the cells that are missing, then write and print the table of all that are there.

    Args:
        fit_config: Gives the configuration of ``fit``, with further options where given; raises what the user has to
            read when an option does not exist.
        plan: How to start the runs.
        grid: Content of the grid file, see :mod:`callbacks.experiments.grid`.
        grid_file: Its name.
        seeds: Seeds of each cell.
        metric: Metric to compare.

    Returns:
        Exit code: 1 when a run has no result or lacks the metric, else 0.

    Raises:
        ValueError: The grid or the seeds cannot be used; no finished run has the metric; a finished run had other
            settings; another experiment runs in the folder or a cross-validation stands there; or the first run to
            end said what the user has to change.
    """
    factors = read_factors(grid, grid_file)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds is {list(seeds)}; give at least one seed, and each once.")
    config = fit_config()
    folder = Path(config["trainer"]["default_root_dir"])
    check_folder(folder, "ablate")
    cells = cells_of(factors)
    runs = {}
    for cell in cells:
        merged = fit_config(options(cell.overrides), grid_file)  # before any run, so that a wrong key costs nothing
        for seed in seeds:
            settings = {**cell.overrides, "seed_everything": seed}
            place = folder / "cells" / cell.folder / f"seed_{seed}"
            runs[cell.folder, seed] = Run(
                f"{cell.text}, seed {seed}", place, settings, {**merged, "seed_everything": seed}
            )
    with alone_in(folder):
        lacking = partial(lacking_metric, list(runs.values()), metric)
        if not lacking():
            saved_as = folder / "base.yaml"
            started = perform(list(runs.values()), config, saved_as, plan, (metric,), hopeless=lacking)
        if cause := lacking():
            raise ValueError(cause)
        write_yaml(folder / "grid.yaml", dict(grid))
        record = tabulate(cells, factors, seeds, metric, runs) | {"name": experiment_name(config), "grid": grid_file}
        write_files(folder, record)
        if started:
            values = {
                f"{metric}/{cell.text}": entry["mean"] for cell, entry in zip(cells, record["cells"], strict=True)
            }
            log_summary(config["trainer"].get("logger"), record["name"], folder, config, values)
    return int(bool(record["missing"]))


def lacking_metric(runs: Sequence[Run], metric: str) -> str:
    """That no finished run has the metric, and which are the nearest; empty when one has it or none is finished."""
    known = [read_state(run).block.get("metrics") or {} for run in finished_of(runs)]
    if not known or any(metric in metrics for metrics in known):
        return ""
    names = dict.fromkeys(name for metrics in known for name in metrics)
    return f"no finished run has the --metric {metric}. Nearest: {nearest(metric, names)}."


def nearest(metric: str, names: Iterable[str]) -> str:
    """The names most like that of a metric, or else the main ones.

    >>> nearest("fold/mapp", ["test/f1", "fold/map", "fold/f1"])
    'fold/map, fold/f1'
    """
    known = sorted(names)
    alike = difflib.get_close_matches(metric, known, n=3)
    return ", ".join(alike or [name for name in known if name.endswith("map_macro")] or known[:5])


def tabulate(
    cells: Sequence[Cell], factors: Sequence[Factor], seeds: Sequence[int], metric: str, runs: Mapping[Any, Run]
) -> dict[str, Any]:
    """What the runs found.

    Args:
        cells: Combinations.
        factors: Factors.
        seeds: Seeds.
        metric: Metric to compare.
        runs: (folder of the cell, seed) to its run.

    Returns:
        Content of ``ablation.json``.
    """
    states = {key: read_state(run) for key, run in runs.items()}
    missing, entries, values = [], [], {}
    for cell in cells:
        entry: dict[str, Any] = {"settings": cell.settings, "overrides": cell.overrides, "seeds": {}}
        for seed in seeds:
            state, run = states[cell.folder, seed], runs[cell.folder, seed]
            metrics = state.block.get("metrics") or {}
            error = state.error
            if state.status == "done" and metrics.get(metric) is None:
                error = f"it has no {metric}; --metric could be {nearest(metric, metrics)}"
            entry["seeds"][str(seed)] = {
                "status": state.status, "folder": f"cells/{cell.folder}/{run.folder.name}", "seconds": state.seconds,
                "metrics": metrics, **({"error": error} if error else {}),
            }  # fmt: skip
            values[cell.folder, seed] = metrics.get(metric)
            if values[cell.folder, seed] is None:
                missing.append(f"{run.name} {'' if state.block else state.status}: {error}".replace(" :", ":"))
        floors = [(states[cell.folder, seed].block.get("floors") or {}).get(metric) for seed in seeds]
        found = statistics(values[cell.folder, seed] for seed in seeds)
        entries.append({**entry, **found, "floor": statistics(floors)["mean"]})
    notes = shared_notes({place: state.block for place, state in enumerate(states.values()) if state.block})
    return {
        "kind": "ablation",
        "metric": metric,
        "factors": {factor.name: [value for value, _ in factor.levels] for factor in factors},
        "seeds": list(seeds),
        "confidence": CONFIDENCE,
        "convention": notes.get("convention"),
        "notes": notes,
        "cells": entries,
        "marginals": {factor.name: marginal(factor, cells, seeds, values) for factor in factors},
        "missing": missing,
    }


def marginal(
    factor: Factor, cells: Sequence[Cell], seeds: Sequence[int], values: Mapping[tuple[str, int], float | None]
) -> list[dict[str, Any]]:
    """The mean of each level over the other factors.

    Args:
        factor: The factor.
        cells: All combinations.
        seeds: Seeds.
        values: (folder of the cell, seed) to the metric.

    Returns:
        For each level ``value``, the statistics over seeds of the mean over the other factors, and ``combinations``,
        how many of those count. A combination counts for a seed when all levels of the factor have a value in it, so
        that all levels are compared over the same ones.
    """
    others: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        rest = show({name: show(value) for name, value in cell.settings.items() if name != factor.name})
        others.setdefault(rest, {})[show(cell.settings[factor.name])] = cell
    by_level: dict[str, list[float]] = {show(value): [] for value, _ in factor.levels}
    counts = 0
    for seed in seeds:
        whole = [
            row for row in others.values() if all(values.get((cell.folder, seed)) is not None for cell in row.values())
        ]
        counts = max(counts, len(whole))
        for level in by_level if whole else ():
            numbers = [values[row[level].folder, seed] for row in whole]
            by_level[level].append(sum(number for number in numbers if number is not None) / len(numbers))
    return [{"value": value, **statistics(by_level[show(value)]), "combinations": counts} for value, _ in factor.levels]


def write_files(folder: Path, record: dict[str, Any]) -> None:
    """Write ``ablation.json``, ``.md``, ``.tex`` and, with any value, ``marginals.png``; print the table."""
    from callbacks.experiments.ablation_tables import ablation_tables, marginals_figure, print_ablation
    from callbacks.experiments.tables import to_latex, to_markdown
    from callbacks.run_files import write_text

    written = ["ablation.json", "ablation.md", "ablation.tex"]
    write_json(folder / written[0], record)
    tables = ablation_tables(record)
    write_text(folder / "ablation.md", "\n".join(map(to_markdown, tables)))
    write_text(folder / "ablation.tex", "\n".join(map(to_latex, tables)))
    figure = marginals_figure(record)
    if figure is not None:
        figure.savefig(folder / "marginals.png")
        written.append("marginals.png")
    print_ablation(record, folder, written)
