"""The section about classes: average precision with interval and support, best and worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from callbacks.experiments.report.documents import Chart, Section, Text
from callbacks.experiments.report.figures import classes_figure, support_figure
from callbacks.experiments.report.fold_analysis import fold_precisions
from callbacks.experiments.report.metric_tables import SCORING_NAMES
from callbacks.experiments.report.pooled import Pooled
from callbacks.experiments.tables import Table, interval, number

ENDS = 10  # classes at the top and at the bottom
WHOLE = 24  # classes up to which one table shows all


def class_section(pooled: Pooled | None) -> Section:
    """The section; empty without predictions."""
    if pooled is None:
        return Section("Classes", [])
    rows = class_rows(pooled)
    names = [row["name"] for row in rows]
    ap, low, high, support = (
        np.array([row[key] for row in rows], dtype=float) for key in ("drawn", "ap_low", "ap_high", "support")
    )
    alts = ["Average precision of every class, best first", "Average precision of the classes over their positives"]
    captions = [
        "Every class, best first.",
        "Average precision over the number of positives; names of the extremes where there is room.",
    ]
    if several(pooled):
        folds = np.array([row["values"] for row in rows]).T  # (K, C)
        pictures = [classes_figure(names, ap, folds=folds), support_figure(names, ap, support, folds)]
        alts = [f"{alt}: mean over folds, a ring for each fold" for alt in alts]
        captions = [f"{text} Points: mean over folds; rings: single folds." for text in captions]
    else:
        pictures = [classes_figure(names, ap, ends=(low, high)), support_figure(names, ap, support)]
        alts[0] += ", with 95 % intervals"
        captions[0] += " Bars: average precision; lines: 95 % intervals over items."
    charts = [Chart(*entry) for entry in zip(pictures, alts, captions, strict=True)]
    return Section("Classes", [Text(what_was_scored(pooled)), *class_tables(rows, pooled), *charts])


def class_rows(pooled: Pooled) -> list[dict[str, Any]]:
    """For each class name, support, average precision with interval; precision, recall and F1 of the decisions.

    ``values`` are its average precisions in the folds, NaN in one without a positive. ``drawn`` is what classes are
    sorted and drawn by: the mean of those, or the average precision itself of a single run; ``random`` is what a random
    order is expected to reach there.

    The decisions are those of the model that scored the item, with its own thresholds; class_table, which knows one
    set of thresholds, gives the rest.
    """
    import torch

    from lightning_modules.metrics.multilabel_errors import class_table

    thresholds = torch.full((len(pooled.class_names),), 0.5)
    pair = torch.from_numpy(pooled.probabilities), torch.from_numpy(pooled.labels)
    rows = class_table(*pair, thresholds, pooled.class_names)
    found = (pooled.decisions & pooled.labels).sum(axis=0)
    predicted, present = pooled.decisions.sum(axis=0), pooled.labels.sum(axis=0)
    folds = fold_precisions(pooled) if several(pooled) else None
    random = random_precisions(pooled)
    for c, row in enumerate(rows):
        row["values"] = [] if folds is None else folds[:, c].tolist()
        known = [value for value in row["values"] if value == value]
        row["drawn"] = row["ap"] if folds is None else float(np.mean(known)) if known else float("nan")
        row["random"] = random[c]
        row["precision"] = found[c] / max(1, predicted[c])
        row["recall"] = found[c] / max(1, present[c])
        row["f1"] = 2 * found[c] / max(1, predicted[c] + present[c])
    return rows


def random_precisions(pooled: Pooled) -> list[float]:
    """The expected average precision of a random order of each class, mean over the folds with a positive of it."""
    import torch

    from lightning_modules.metrics.ap_from_histogram import random_average_precision

    parts = [torch.from_numpy(pooled.labels[pooled.fold == fold]) for fold in pooled.folds]
    expected = [random_average_precision(part.sum(dim=0), len(part), empty="skip") for part in parts]
    return torch.stack(expected).nanmean(dim=0).tolist()


def several(pooled: Pooled) -> bool:
    """Whether items of several folds, and so scores of several models, are put together."""
    return len(pooled.folds) > 1


def what_was_scored(pooled: Pooled) -> str:
    """A sentence on whose predictions these are."""
    count = f"{len(pooled.labels):,}"
    if several(pooled):
        whose = (
            f"Predictions of {len(pooled.folds)} folds: {count} items, each scored by the one model that had not seen "
            "it. Classes are sorted and drawn by the mean of their AP within the folds."
        )
    else:
        whose = f"Predictions of {count} items of the {'fold' if pooled.part == 'fold' else 'hold-out part'}."
    limits = "thresholds fitted on the training rows of its own run" if pooled.fitted else "a threshold of 0.5"
    return f"{whose} Scored: {SCORING_NAMES[pooled.scoring]}. Decisions: {limits}."


def class_tables(rows: Sequence[dict[str, Any]], pooled: Pooled) -> list[Table]:
    """One table of all classes when they are few, else the best and the worst ten."""
    known = sorted((row for row in rows if row["ap"] == row["ap"]), key=lambda row: -row["drawn"])
    absent = [row["name"] for row in rows if row["ap"] != row["ap"]]
    if several(pooled):
        explained = (
            "Mean over folds: of the average precision (AP) in each fold with a positive of the class; best first by "
            "it. Pooled AP: of all folds' items in one list, with its 95 % bootstrap interval over items. Scores of "
            "different models are ranked against each other there, so it falls far below the mean where these are "
            "badly calibrated against each other."
        )
    else:
        explained = "AP: average precision with 95 % bootstrap interval over items."
    where = " in the same folds, on average over them" if several(pooled) else ""
    notes = [f"{explained} Support: items with the class. Random order: the AP that it is expected to reach{where}."]
    notes += [f"Without a positive, so without AP: {', '.join(absent)}."] if absent else []
    if len(known) <= WHOLE:
        return [_table("classes", "All classes, best first", known, notes, pooled)]
    return [
        _table("classes-top", f"The {ENDS} best classes", known[:ENDS], notes[:1], pooled),
        _table("classes-bottom", f"The {ENDS} worst classes", known[-ENDS:], notes, pooled),
    ]


def _table(name: str, title: str, rows: Sequence[dict[str, Any]], notes: Sequence[str], pooled: Pooled) -> Table:
    lines, means = [], several(pooled)
    for row in rows:
        ap = [number(row["drawn"])] if means else []
        ap += [number(row["ap"]), interval(row["ap_low"], row["ap_high"], 3)]
        rates = [number(float(row[key]), 3) for key in ("precision", "recall", "f1")]
        lines.append([str(row["name"]), f"{int(row['support']):,}", number(row["random"]), *ap, *rates])
    scores = ["Mean over folds", "Pooled AP"] if means else ["AP"]
    head = ["Class", "Support", "Random order", *scores, "Interval", "Precision", "Recall", "F1"]
    return Table(name, title, head, lines, "l" + "r" * (len(head) - 1), notes)
