"""Reads and checks what runs left behind: results.json, predictions.npz, worst/, crossval.json, ablation.json."""

from __future__ import annotations

import json
import shlex
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

SCORINGS = ("soft", "binary")
PARTS = ("fold", "test")
CURES = {
    "crossval.json": "Delete it and give the crossval command again: finished folds are kept, this file is made anew.",
    "ablation.json": "Delete it and give the ablate command again: finished cells are kept, this file is made anew.",
    "results.json": "Delete it and give the command of the run again, or that of its crossval.",
}
AGAIN = "Give the crossval command again; it runs only what is missing."
UNREADABLE = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)
COMMANDS = """\
  crossval.json    python cli.py crossval -c CONFIG --num_folds 5
  ablation.json    python cli.py ablate -c CONFIG --grid GRID.yaml
  predictions.npz  python cli.py test -c CONFIG --ckpt_path best"""


@dataclass(frozen=True)
class Part:
    """The items of a part of the data as one model scored them.

    Args:
        ids: (N,) names.
        labels: (N, C) bool.
        probabilities: Scoring (soft, binary) to (N, C) float32.
        areas: (N, C) area of the largest object of the class as a fraction of the image; None without boxes.
    """

    ids: np.ndarray
    labels: np.ndarray
    probabilities: dict[str, np.ndarray]
    areas: np.ndarray | None


@dataclass(frozen=True)
class Predictions:
    """A ``predictions.npz``.

    Args:
        class_names: C names.
        parts: ``fold`` and ``test``, whichever are there.
        thresholds: Scoring to (C,) thresholds fitted on the training rows; empty where none were.
    """

    class_names: list[str]
    parts: dict[str, Part]
    thresholds: dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """The files of one run.

    Args:
        name: For people.
        folder: Where they are.
        block: The block ``test`` of results.json; empty when it is not there.
        predictions: None when they are missing or damaged.
        worst: Entries of worst/worst.json.
    """

    name: str
    folder: Path
    block: dict[str, Any]
    predictions: Predictions | None
    worst: list[dict[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """The files of an experiment.

    Args:
        kind: What it is.
        folder: Where it is.
        record: crossval.json or ablation.json; of a single run the same shape as crossval.json.
        runs: Number of the fold to its run; empty for an ablation.
        missing: What is not there or cannot be read, in sentences with their cure.
    """

    kind: Literal["crossval", "ablation", "run"]
    folder: Path
    record: dict[str, Any]
    runs: dict[int, Run]
    missing: list[str] = field(default_factory=list)


def read_experiment(folder: Path) -> Experiment:
    """The experiment in a folder.

    Args:
        folder: Of a cross-validation, an ablation or a single run.

    Raises:
        FileNotFoundError: There is none of them.
        ValueError: The file that says what happened is damaged, or folds overlap.
    """
    if (folder / "crossval.json").is_file():
        return read_crossval(folder)
    if (folder / "ablation.json").is_file():
        record = read_record(folder / "ablation.json", ("metric", "factors", "seeds", "cells", "marginals", "missing"))
        again = [AGAIN.replace("crossval", "ablate")] if record["missing"] else []
        return Experiment("ablation", folder, record, {}, [*record["missing"], *again])
    if (folder / "results.json").is_file() or (folder / "predictions.npz").is_file():
        missing: list[str] = []
        run = read_run(folder, "the run", missing)
        return Experiment("run", folder, record_of_run(run), {0: run}, missing)
    begun = [name for name, inside in (("crossval", "fold_*"), ("ablate", "cells")) if list(folder.glob(inside))]
    hint = f"\nA {begun[0]} was begun here: give its command again, it goes on where it stopped." if begun else ""
    raise FileNotFoundError(
        f"{folder}: there is nothing to report on. A report is made of one of these files, in this order; the command "
        f"beside each makes it:\n{COMMANDS}{hint}"
    )


def read_crossval(folder: Path) -> Experiment:
    """A cross-validation: its record, the runs of the folds that finished, and what is missing.

    Raises:
        ValueError: crossval.json is damaged, or an item was scored in two folds or is in the hold-out too.
    """
    record = read_record(folder / "crossval.json", ("folds", "metrics"))
    runs, missing, absent = {}, [], []
    count = int(record.get("num_folds") or len(record["folds"]))
    for fold in range(count):
        entry = record["folds"].get(str(fold), {"status": "missing"})
        place = folder / str(entry.get("folder") or f"fold_{fold}")
        if entry.get("status") == "done" and (place / "results.json").is_file():
            run = read_run(place, f"fold {fold}", missing)
            runs |= {fold: run} if run.block else {}
        elif entry.get("status") == "failed":
            error = str(entry.get("error") or "").strip()
            said = f" It said: {error.splitlines()[-1]}" if error else ""
            missing.append(f"Fold {fold} failed.{said} {AGAIN}")
        else:
            absent.append(str(fold))
    if absent:
        which = f"Fold {absent[0]} is" if len(absent) == 1 else f"Folds {', '.join(absent)} are"
        missing.append(f"{which} missing. {AGAIN}")
    check_apart(runs)
    return Experiment("crossval", folder, of_the_files(record, runs, missing), runs, missing)


def of_the_files(record: dict[str, Any], runs: dict[int, Run], missing: list[str]) -> dict[str, Any]:
    """crossval.json, its figures made anew where files of folds are gone or newer; without ensembles then."""
    from callbacks.experiments.summary import metric_statistics

    entries, blocks = record["metrics"], {fold: run.block for fold, run in runs.items()}
    gone = {fold for entry in entries.values() for fold in entry["values"]} - set(map(str, blocks))
    values = {name: entry["values"] for name, entry in entries.items()}
    newer = [fold for fold, b in blocks.items() if any(values[n].get(str(fold)) != b["metrics"].get(n) for n in values)]
    if newer:
        which = ", ".join(f"fold {fold}" for fold in newer)
        missing.append(f"The ensembles: crossval.json differs from the results.json of {which}. {AGAIN}")
    kept = {name: value for name, value in record.items() if name != "ensemble"}
    return kept | {"metrics": metric_statistics(blocks)} if gone or newer else record


def check_apart(runs: dict[int, Run]) -> None:
    """See that no item was scored in two folds and none of a fold is in the hold-out part.

    Raises:
        ValueError: One was; the runs are not folds of one division.
    """
    seen: dict[str, str] = {}
    known = {fold: run.predictions.parts for fold, run in runs.items() if run.predictions}
    held = {name for parts in known.values() if "test" in parts for name in parts["test"].ids.tolist()}
    names = {tuple(run.predictions.class_names) for run in runs.values() if run.predictions}
    if len(names) > 1:
        raise ValueError("The folds' predictions.npz have different classes: they are not of one experiment.")
    for fold, parts in known.items():
        for name in parts["fold"].ids.tolist() if "fold" in parts else ():
            other = "the hold-out part" if name in held else seen.get(name)
            if other:
                raise ValueError(
                    f"Item {name} of fold {fold} is in {other} too, so the folds are not of one division and their "
                    "mean means nothing. Delete the fold that stems from another division and run crossval again."
                )
            seen[name] = f"fold {fold}"


def read_record(file: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    """A JSON file that must hold certain keys.

    Raises:
        ValueError: It does not; the message names the file and the cure.
    """
    cause = ""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        lacking = [key for key in needed if key not in record]
        cause = f"it lacks {', '.join(lacking)}" if lacking else ""
    except (ValueError, TypeError) as error:
        cause = str(error)
    if cause:
        raise ValueError(f"{file} is damaged: {cause}. {CURES[file.name]}")
    return record


def read_run(folder: Path, name: str, missing: list[str]) -> Run:
    """The files of a run; what cannot be read is named in ``missing`` and left out."""
    block, predictions, worst = {}, None, []
    try:
        block = read_record(folder / "results.json", ("test",))["test"]
        if not isinstance(block, dict) or not isinstance(block.get("metrics"), dict):
            block = {}
            raise ValueError(f"{folder / 'results.json'} is damaged: no metrics. {CURES['results.json']}")
    except (OSError, ValueError) as error:
        missing.append(f"The scores of {name}: {error}")
    try:
        predictions = read_predictions(folder / "predictions.npz")
    except FileNotFoundError:
        file, cure = folder / "predictions.npz", how_to_test_again(folder)
        missing.append(f"The predictions of {name}: {file} is not there. {cure}")
    except ValueError as error:
        missing.append(f"The predictions of {name}: {error}")
    try:
        worst = json.loads((folder / "worst" / "worst.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass  # a run without pictures writes none
    except ValueError as error:
        missing.append(f"The worst items of {name}: {folder / 'worst/worst.json'} is damaged: {error}.")
    return Run(name, folder, block, predictions, worst)


def read_predictions(file: Path) -> Predictions:
    """A ``predictions.npz``.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is damaged, or its arrays do not fit together; the message names the cure.
    """
    cure = how_to_test_again(file.parent)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays.files if not name.endswith("_codes")}
    except FileNotFoundError:
        raise
    except UNREADABLE as error:  # what numpy says of such files is about pickles and misleads
        raise ValueError(f"{file} is damaged: it is cut short or no npz file. {cure}") from error
    names = [str(name) for name in content.get("class_names", ())]
    parts = {part: _part(content, part) for part in PARTS if {f"{part}_ids", f"{part}_labels"} <= set(content)}
    thresholds = {
        scoring: content[f"{scoring}_thresholds"] for scoring in SCORINGS if f"{scoring}_thresholds" in content
    }
    wrong = [f"{part}: {text}" for part, entry in parts.items() if (text := _misfit(entry, len(names)))]
    wrong += [f"{scoring}_thresholds" for scoring, values in thresholds.items() if values.shape != (len(names),)]
    if wrong or not parts:
        raise ValueError(f"{file} is damaged: {'; '.join(wrong) or 'it has no scored part'}. {cure}")
    return Predictions(names, parts, thresholds)


def how_to_test_again(folder: Path, what: str = "it") -> str:
    """The sentence on how the predictions of a run are made anew."""
    command = f"python cli.py test -c {shlex.quote(str(folder / 'config.yaml'))} --ckpt_path best"
    return f"`{command}` writes {what} again."


def record_of_run(run: Run) -> dict[str, Any]:
    """A single run as a record of one fold.

    Returns:
        The shape of crossval.json, with a value where it has a mean and nothing where it has a spread.
    """
    floors, metrics = run.block.get("floors") or {}, {}
    for name, value in (run.block.get("metrics") or {}).items():
        spread = {"sd": None, "low": None, "high": None, "n": 1}
        metrics[name] = {"values": {"0": value}, "mean": value, **spread, "floor": floors.get(name)}
    notes = run.block.get("notes") or {}
    return {"kind": "run", "metrics": metrics, "notes": notes, "convention": notes.get("convention")}


def _part(content: dict[str, np.ndarray], part: str) -> Part:
    probabilities = {scoring: content[f"{part}_{scoring}"] for scoring in SCORINGS if f"{part}_{scoring}" in content}
    ids = content[f"{part}_ids"].astype(str)
    return Part(ids, content[f"{part}_labels"].astype(bool), probabilities, content.get(f"{part}_areas"))


def _misfit(part: Part, classes: int) -> str:
    """What does not fit in a part; empty when all does."""
    shape = (len(part.ids), classes)
    arrays = {"labels": part.labels, **part.probabilities} | ({} if part.areas is None else {"areas": part.areas})
    wrong = [f"{name} are {array.shape}" for name, array in arrays.items() if array.shape != shape]
    if not part.probabilities:
        return "it has neither soft nor binary probabilities"
    if any(not np.isfinite(values).all() for values in part.probabilities.values()):
        return "a probability is not a number"
    return f"{', '.join(wrong)}, but there are {shape[0]} ids and {shape[1]} class names" if wrong else ""
