"""Sums up a cross-validation from the result files of its folds: crossval.json and a printed table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from callbacks.experiments.runs import Run, State, experiment_name, read_state, write_json
from callbacks.experiments.scored_classes import classes_without, means_over, named
from callbacks.experiments.tables import interval, number, span
from callbacks.experiments.wandb_runs import log_summary

CONFIDENCE = 0.95
COMMON = {  # what all folds of one mean must have alike, though no setting tells, and what it is
    "folds_sha256": "divisions of the data", "features": "features or labels", "processes": "numbers of processes",
    "precision": "precisions",
}  # fmt: skip
MAIN = ("map_macro", "map_micro", "f1_macro_fitted", "f1_micro_fitted", "auroc_macro", "lrap", "hamming_loss")


def summarise(folder: Path, config: dict[str, Any], runs: Sequence[Run], announce: bool) -> dict[str, Any]:
    """Write ``crossval.json`` and print it as a table.

    Args:
        folder: The experiment's folder.
        config: Its configuration.
        runs: The runs of all folds, in their order.
        announce: Whether to send the summary to W&B, if that is used.

    Returns:
        What was written.

    Raises:
        ValueError: The folds were cut or run differently, their hold-out parts are not the same items, or predictions
            of one are damaged; then what an earlier call wrote is left as it was.
    """
    from callbacks.experiments.ensemble_summary import ensemble_block, left_out

    states = {fold: read_state(run) for fold, run in enumerate(runs)}
    done = {fold: state.block for fold, state in states.items() if state.status == "done"}
    check_division(done)
    notes = shared_notes(done)
    record = {
        "kind": "crossval",
        "name": experiment_name(config),
        "num_folds": len(runs),
        "folds": {str(fold): fold_entry(fold, state) for fold, state in states.items()},
        "metrics": {} if not done else metric_statistics(done),
        "confidence": CONFIDENCE,
        "convention": notes.get("convention"),
        "notes": notes,
        "n": item_counts(done),
        "classes_without": classes_without(done),
        "seed": config.get("seed_everything"),
    }
    lines = []
    if len(done) > 1:
        files = {fold: folder / f"fold_{fold}" / "predictions.npz" for fold in done}
        lines = left_out(files)
        ensemble = ensemble_block({fold: file for fold, file in files.items() if file.is_file()})
        record |= {"ensemble": ensemble} if ensemble else {}
    write_json(folder / "crossval.json", record)
    print_summary(record, folder, lines)
    if announce and done:
        log_summary(config["trainer"].get("logger"), record["name"], folder, config, summary_values(record))
    return record


def fold_entry(fold: int, state: State) -> dict[str, Any]:
    """What the file says of a fold beside its metrics."""
    entry = {"status": state.status, "folder": f"fold_{fold}", "seconds": state.seconds}
    return entry | ({"error": state.error} if state.error else {})


def metric_statistics(blocks: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, spread, interval and floor of each metric over the folds.

    Args:
        blocks: Fold to its block of results. Floors and the interval ends of single runs are no metrics.

    Returns:
        Metric name to ``values`` by fold, ``mean``, ``sd``, ``low``, ``high``, ``n`` and ``floor``.
    """
    names = dict.fromkeys(name for block in blocks.values() for name in block["metrics"])
    ends = {f"{name}{end}" for name in names for end in ("_low", "_high")}
    found = {}
    for name in names:
        if name in ends or name.rpartition("/")[2].startswith("random_"):
            continue
        values = {str(fold): block["metrics"].get(name) for fold, block in blocks.items()}
        floors = statistics((block.get("floors") or {}).get(name) for block in blocks.values())
        found[name] = {"values": values, **statistics(values.values()), "floor": floors["mean"]}
    return found


def statistics(values: Iterable[float | None]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and 95 % t-interval of the values that are known.

    Args:
        values: Numbers; None and what is not finite does not count.

    Returns:
        ``mean``, ``sd``, ``low``, ``high``, ``n``; None where the number of values does not allow one.

    Example:
        >>> found = statistics([1.0, 2.0, 3.0, None])
        >>> [round(float(found[key]), 3) for key in ("mean", "sd", "low", "high", "n")]
        [2.0, 1.0, -0.484, 4.484, 3.0]
    """
    from lightning_modules.metrics.intervals import t_interval

    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if len(known) < 2:
        mean = known[0] if known else None
        return {"mean": mean, "sd": None, "low": None, "high": None, "n": len(known)}
    found = (float(value) for value in t_interval(known, CONFIDENCE))
    return {**dict(zip(("mean", "sd", "low", "high"), found, strict=True)), "n": len(known)}


def check_division(blocks: Mapping[int, Mapping[str, Any]]) -> None:
    """See that all folds stem from one division of the same data and were run alike.

    Raises:
        ValueError: They do not.
    """
    for name, words in COMMON.items():
        values = {fold: {**(block.get("notes") or {}), **block}.get(name) for fold, block in blocks.items()}
        if len(set(values.values())) > 1:
            named = ", ".join(f"fold {fold}: {str(value)[:60]}" for fold, value in values.items())
            raise ValueError(
                f"the folds were run with different {words} ({name} in their results.json; {named}), so their mean "
                "means nothing. Delete the folders of the folds that differ, and run crossval again."
            )


def shared_notes(blocks: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The notes that all runs agree on, and the mean of the numbers on which they do not."""
    notes = [block.get("notes") or {} for block in blocks.values()]
    shared: dict[str, Any] = {}
    for name in dict.fromkeys(name for entry in notes for name in entry):
        values = [entry.get(name) for entry in notes]
        if all(value == values[0] for value in values):
            shared[name] = values[0]
        elif all(isinstance(value, int | float) for value in values):
            shared[name] = sum(values) / len(values)
    return shared


def summary_values(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Means and standard deviations, and the ensembles' scores, by flat names."""
    metrics = record["metrics"].items()
    flat = {f"{name}_{part}": entry[part] for name, entry in metrics for part in ("mean", "sd")}
    rows = (record.get("ensemble") or {}).get("rows", [])
    return flat | {f"ensemble/{row['name']}": row["map_macro"] for row in rows}


def print_summary(record: Mapping[str, Any], folder: Path, left_out: Iterable[str]) -> None:
    """Print the main metrics, the ensembles, and what is missing and where its log is, or what makes it."""
    from rich.table import Table

    metrics = record["metrics"]
    main = [name for name in metrics if name.rpartition("/")[2].removeprefix("soft_").removeprefix("binary_") in MAIN]
    table = Table()
    table.add_column("metric", no_wrap=True)
    for name in ("mean", "sd", "95 % interval", "floor", "folds"):
        table.add_column(name, justify="right")
    for name in main or metrics:
        entry = metrics[name]
        ends = interval(entry["low"], entry["high"])
        table.add_row(name, number(entry["mean"]), number(entry["sd"]), ends, number(entry["floor"]), str(entry["n"]))
    console = wide_console()
    done = [fold for fold, entry in record["folds"].items() if entry["status"] == "done"]
    console.print(f"Cross-validation {record['name']}: {len(done)} of {record['num_folds']} folds", style="bold")
    if metrics:
        console.print(table)
    if record.get("ensemble"):
        print_ensemble(record["ensemble"], console)
    lines = [f"n: {', '.join(f'{span(ends)} {part}' for part, ends in record['n'].items())}"] if record["n"] else []
    for part, words in (("fold", "folds"), ("test", "hold-out")):
        lines += [f"{words}: {said}"] if (said := means_over(record, part)) else []
    lines += [said] if (said := named(record["classes_without"], len(done))) else []
    lines += [f"convention: {record['convention']}"] if record["convention"] else []
    lines += ["interval: t-distribution over folds; folds share training items, so it is rather narrow"]
    lines += [f"fold {fold} failed: {e['error']}" for fold, e in record["folds"].items() if e["status"] == "failed"]
    missing = [fold for fold, entry in record["folds"].items() if entry["status"] == "missing"]
    lines += [f"not run yet: fold {', '.join(missing)}"] if missing else []
    lines += [*left_out, f"written to {folder / 'crossval.json'}"]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def wide_console() -> Any:
    """A console as wide as the terminal; in a file the tables have room, as nothing asks for 80 columns there."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=140)


def print_ensemble(block: Mapping[str, Any], console: Any) -> None:
    """Print the models and ensembles on the hold-out part."""
    from rich.table import Table

    table = Table(title=f"hold-out, {block['n']} items", title_justify="left")
    table.add_column("model")
    for name in ("mAP macro", "95 % interval", "F1 macro", "minus the best single", "95 % interval"):
        table.add_column(name, justify="right")
    for row in block["rows"]:
        words = [number(row["map_macro"]), interval(row["low"], row["high"]), number(row["f1_macro_fitted"])]
        gain = [number(row["difference"], signed=True), interval(row["difference_low"], row["difference_high"])]
        table.add_row(row["name"], *words, *(gain if row["difference"] is not None else ["", ""]))
    console.print(table)
    for line in block["notes"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def item_counts(blocks: Mapping[int, Mapping[str, Any]]) -> dict[str, list[int]]:
    """The numbers of items that the runs noted: part to the least and the largest.

    >>> item_counts({0: {"notes": {"n_train": 41}}, 1: {"notes": {"n_train": 42, "bits": 64}}})
    {'train': [41, 42]}
    """
    found: dict[str, list[int]] = {}
    for block in blocks.values():
        for name, value in (block.get("notes") or {}).items():
            if name.startswith("n_") and isinstance(value, int | float):
                found.setdefault(name[2:], []).append(int(value))
    return {part: [min(values), max(values)] for part, values in found.items()}
