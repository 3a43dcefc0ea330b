"""What a report says beside its tables: title, numbers of items, convention, floors, settings, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from callbacks.experiments.report.documents import Chart
from callbacks.experiments.report.figures import Spread, spread_figure
from callbacks.experiments.report.metric_tables import SCORING_NAMES, table_of
from callbacks.experiments.result_files import PARTS, SCORINGS, Experiment, Run, how_to_test_again
from callbacks.experiments.scored_classes import means_over
from callbacks.experiments.tables import Table, number, span

KINDS = {"crossval": "Cross-validation", "ablation": "Ablation", "run": "Run"}
# beginnings of the names of notes with a place of their own
STATED = ("n_", "convention", "random_codes_map_macro", "num_classes", "unlabelled_")
UNEQUAL = 2e-4  # between a score in results.json and the same from predictions.npz, which are float32


def title_of(experiment: Experiment, blocks: Sequence[Mapping[str, Any]]) -> str:
    """The heading: what was done, to which model, on which data."""
    name = experiment.record.get("name") or experiment.folder.resolve().name
    what = " on ".join(str(blocks[0][key]) for key in ("model", "data") if blocks[0].get(key)) if blocks else ""
    return f"{KINDS[experiment.kind]} {name}" + (f": {what}" if what else "")


def facts(experiment: Experiment) -> list[tuple[str, str]]:
    """Short numbers under the heading."""
    record = experiment.record
    if experiment.kind == "ablation":
        seeds = [entry for cell in record["cells"] for entry in (cell.get("seeds") or {}).values()]
        done = sum(entry.get("status") == "done" for entry in seeds)
        return [(str(len(record["cells"])), "cells"), (f"{done} of {len(seeds)}", "runs finished")]
    found = []
    if experiment.kind == "crossval":
        found.append((f"{len(experiment.runs)} of {record.get('num_folds')}", "folds finished"))
    words = {
        "fold": "items in folds" if experiment.kind == "crossval" else "items of the fold",
        "test": "hold-out items",
    }
    counts = {part: items(experiment.runs, part) for part in words}
    found += [(f"{counts[part]:,}", what) for part, what in words.items() if counts[part]]
    names = next((run.predictions.class_names for run in experiment.runs.values() if run.predictions), [])
    found += [(str(len(names)), "classes")] if names else []
    seconds = [entry.get("seconds") for entry in (record.get("folds") or {}).values() if entry.get("seconds")]
    return found + ([(f"{sum(seconds) / 60:.1f}", "minutes of training and testing")] if seconds else [])


def items(runs: Mapping[int, Run], part: str) -> int:
    """Items scored: of all folds together, or of the hold-out part, which all runs share."""
    counts = []
    for run in runs.values():
        noted = (run.block.get("notes") or {}).get(f"n_{part}")
        scored = run.predictions.parts.get(part) if run.predictions else None
        counts.append(int(noted) if noted is not None else len(scored.ids) if scored else 0)
    return sum(counts) if part == "fold" else max(counts, default=0)


def statements(experiment: Experiment, part: str) -> list[str]:
    """What stands beneath the main table of a part: n, convention, floors, and the folds that are not in it."""
    runs, record = experiment.runs, experiment.record
    said, count = [], items(runs, part)
    notes = [run.block.get("notes") or {} for run in runs.values()]
    train = [int(entry["n_train"]) for entry in notes if entry.get("n_train") is not None]
    if count:
        once = ", each scored once" if part == "fold" and len(runs) > 1 else ", scored by the model of every fold"
        said.append(f"n = {count:,} items{once if experiment.kind == 'crossval' else ''}.")
    if train:
        said.append(f"Trained on {span(train)} items.")
    said += unlabelled(notes, part, count)
    said += [f"{over}."] if (over := means_over(record, part)) else []
    if convention := record.get("convention") or next((e["convention"] for e in notes if e.get("convention")), None):
        said.append(f"Convention: {str(convention).rstrip('.')}.")
    said.append(
        "Floor: predicting for every item the frequency of each label in the training rows; of mAP the expectation of "
        "a random order of the items (micro: the larger of the two)."
    )
    key = f"random_codes_map_macro_{part}"
    random = [float(entry[key]) for entry in notes if entry.get(key) is not None]
    if random:
        said.append(f"Random codes reach a mAP macro of {number(float(np.mean(random)))}.")
    count = int(record.get("num_folds") or 0)
    absent = [str(fold) for fold in range(count) if fold not in runs]
    if absent:
        said.append(f"Missing: fold{'s' if len(absent) > 1 else ''} {', '.join(absent)}.")
    return said


def unlabelled(notes: Sequence[Mapping[str, Any]], part: str, count: int) -> list[str]:
    """A sentence on the items without any label, where there are some.

    Args:
        notes: Those of each run.
        part: ``fold`` or ``test``.
        count: Items that were scored.

    >>> unlabelled([{"unlabelled_train": 8, "unlabelled_fold": 2}, {"unlabelled_train": 7}], "fold", 20)
    ['Without any label, so negatives of every class: 2 of the 20 scored items and 7 to 8 of the training items.']
    """
    each = [int(entry.get(f"unlabelled_{part}") or 0) for entry in notes]
    train = [int(entry.get("unlabelled_train") or 0) for entry in notes]
    if not any(each + train):
        return []
    scored = sum(each) if part == "fold" else max(each)
    return [
        f"Without any label, so negatives of every class: {scored:,} of the {count:,} scored items and {span(train)} "
        "of the training items."
    ]


def scored_items(record: Mapping[str, Any]) -> list[str]:
    """A sentence on the items that the metric of an ablation was scored on; none where the runs noted no number.

    Args:
        record: ablation.json.

    >>> scored_items({"metric": "test/soft_map_macro", "notes": {"n_fold": 120, "n_test": 2400}})
    ['Scored on 2,400 items.']
    """
    count = (record.get("notes") or {}).get(f"n_{record['metric'].partition('/')[0]}")
    if not isinstance(count, int | float):
        return []
    # runs on different folds differ by an item or so, then the file holds the mean
    return [f"Scored on {count:,.0f} items{'' if count == int(count) else ' on average'}."]


def spread_chart(record: Mapping[str, Any]) -> Chart | None:
    """The mean average precision of each part and scoring, a ring for each fold."""
    spreads = {}
    for part, words in zip(PARTS, ("folds", "hold-out"), strict=True):
        entries = table_of(record["metrics"], part).get("map_macro", {})
        for scoring in SCORINGS:
            if entry := entries.get(scoring):
                values = [float(value) for value in entry["values"].values() if value is not None]
                rest = (float(entry["mean"]), entry.get("low"), entry.get("high"), entry.get("floor"))
                spreads[f"{words}, {SCORING_NAMES[scoring]}"] = Spread(values, *rest)
    if not spreads:
        return None
    caption = "Rings: single folds; point and line: mean with its t-interval. Grey tick: floor."
    picture = spread_figure(spreads, "mAP macro")
    return Chart(picture, "mAP macro on the folds and on the hold-out part, by fold and as mean with interval", caption)


def notes_table(record: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> Table | None:
    """The remaining notes of the runs: what the model and the division were."""
    notes = record.get("notes") or (blocks[0].get("notes") if blocks else None) or {}
    rows = []
    for name, value in notes.items():
        if name.startswith(STATED) or isinstance(value, dict | list) or value is None:
            continue
        text = (
            number(value)
            if isinstance(value, float) and value != int(value)
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
        )
        rows.append(
            [name.replace("_", " "), text[:16] + "\N{HORIZONTAL ELLIPSIS}" if name.endswith("sha256") else text]
        )
    return Table("settings", "What the runs say of themselves", ["", "Value"], rows, "lp") if rows else None


def disagreements(experiment: Experiment) -> list[str]:
    """Sentences on runs whose predictions do not give the score that their results.json holds."""
    import torch

    from lightning_modules.metrics.multilabel_curves import average_precision

    found = []
    for run in experiment.runs.values():
        for part, scored in (run.predictions.parts if run.predictions else {}).items():
            for scoring, probabilities in scored.probabilities.items():
                noted = (run.block.get("metrics") or {}).get(f"{part}/{scoring}_map_macro")
                if noted is None or not scored.labels.any():
                    continue
                own = float(
                    average_precision(torch.from_numpy(probabilities), torch.from_numpy(scored.labels)).nanmean()
                )
                if abs(own - noted) > UNEQUAL:
                    found.append(
                        f"{run.folder}: predictions.npz gives {part}/{scoring}_map_macro {own:.4f}, results.json says "
                        f"{noted:.4f}, so they are of different tests. {how_to_test_again(run.folder, 'both')}"
                    )
    return found


def footer(experiment: Experiment, blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Versions, commit, and where the report was made from."""
    lines = []
    if blocks:
        versions = " \N{MIDDLE DOT} ".join(
            f"{name} {value}" for name, value in (blocks[0].get("versions") or {}).items()
        )
        commits = {str(block["git_commit"]) for block in blocks if block.get("git_commit")}
        shown = ", ".join(c[:12] + (" with changes" if c.endswith("+changes") else "") for c in sorted(commits))
        finished = [str(block["finished"]) for block in blocks if block.get("finished")]
        lines += [versions] if versions else []
        lines += [f"commit {shown}"] if shown else []
        lines += [f"finished {max(finished)[:16].replace('T', ' ')} UTC"] if finished else []
    names = {
        "crossval": "crossval.json and the folders of the folds",
        "ablation": "ablation.json",
        "run": "results.json",
    }
    return [*lines, f"made from {names[experiment.kind]} alone; nothing was trained for it"]
