"""The tables of scores: mean and spread of each metric, the metrics by fold, the ensembles on the hold-out part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from callbacks.experiments.result_files import SCORINGS
from callbacks.experiments.scored_classes import COUNT
from callbacks.experiments.tables import NOTHING, Cell, Table, interval, number

NAMES = {
    "map_macro": "mAP macro",
    "map_micro": "mAP micro",
    "map_weighted": "mAP weighted",
    "f1_macro": "F1 macro",
    "f1_micro": "F1 micro",
    "precision_macro": "Precision macro",
    "precision_micro": "Precision micro",
    "recall_macro": "Recall macro",
    "recall_micro": "Recall micro",
    "auroc_macro": "AUROC macro",
    "auroc_micro": "AUROC micro",
    "lrap": "LRAP",
    "exact_match": "Exact match",
    "hamming_loss": "Hamming loss",
    "ranking_loss": "Ranking loss",
    "coverage_error": "Coverage error",
    "mae": "MAE",
}
LOWER = ("hamming_loss", "ranking_loss", "coverage_error", "mae")
BY_FOLD = ("map_macro", "map_micro", "f1_macro_fitted", "f1_micro_fitted", "auroc_macro", "lrap")
SCORING_NAMES = {"soft": "soft codes", "binary": "binary codes"}
KEYS = ("map_macro", "f1_macro_fitted")  # of an ensemble
ARROW = "\N{DOWNWARDS ARROW}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
DAGGER = "\N{DAGGER}"


class Key(NamedTuple):
    """The parts of a metric's name, ``fold/soft_map_macro``."""

    part: str
    scoring: str
    metric: str


def parse(name: str) -> Key | None:
    """The parts of a metric's name; None for one of another shape.

    >>> parse("fold/soft_map_macro")
    Key(part='fold', scoring='soft', metric='map_macro')
    >>> parse("train/loss")
    """
    part, _, rest = name.partition("/")
    scoring, _, metric = rest.partition("_")
    return Key(part, scoring, metric) if scoring in SCORINGS and metric else None


def readable(metric: str, thresholded: bool = False) -> str:
    """A metric's name for people.

    Args:
        metric: Its name in the files.
        thresholded: Whether both thresholds are shown, so that 0.5 is worth saying.

    >>> readable("f1_macro_fitted"), readable("map_macro"), readable("f1_macro", thresholded=True)
    ('F1 macro, fitted', 'mAP macro', 'F1 macro, at 0.5')
    """
    base = metric.removesuffix("_fitted")
    end = ", fitted" if metric.endswith("_fitted") else ", at 0.5" if thresholded else ""
    arrow = f" {ARROW}" if base in LOWER else ""
    return f"{NAMES.get(base, base.replace('_', ' '))}{end}{arrow}"


def table_of(metrics: Mapping[str, Mapping[str, Any]], part: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The metrics of a part: metric to scoring to its entry, in the order of a paper."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, entry in metrics.items():
        key = parse(name)
        if key and key.part == part and key.metric != COUNT and entry.get("mean") is not None:
            found.setdefault(key.metric, {})[key.scoring] = entry
    order = [name + end for name in NAMES for end in ("", "_fitted")]
    return dict(sorted(found.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order)))


def main_table(record: Mapping[str, Any], part: str, title: str, notes: Sequence[str]) -> Table | None:
    """Metrics as rows, soft and binary scoring as columns, the floor beside them.

    Args:
        record: crossval.json.
        part: ``fold`` or ``test``.
        title: Above the table.
        notes: Beneath it, after what the signs mean.

    Returns:
        The table; None when the part has no metrics.
    """
    rows = table_of(record["metrics"], part)
    scorings = [scoring for scoring in SCORINGS if any(scoring in entries for entries in rows.values())]
    if not rows:
        return None
    lines, beaten, spread = [], False, False
    for metric, entries in rows.items():
        digits = 3 if metric == "coverage_error" else 4
        sign = -1 if metric.removesuffix("_fitted") in LOWER else 1
        best = max(round(sign * float(entry["mean"]), digits) for entry in entries.values())
        floor = next((entry["floor"] for entry in entries.values() if entry.get("floor") is not None), None)
        cells: list[Cell | str] = [readable(metric, f"{metric}_fitted" in rows)]
        for scoring in scorings:
            entry = entries.get(scoring)
            if entry is None:
                cells.append(NOTHING)
                continue
            mean, sd = float(entry["mean"]), entry.get("sd")
            below_floor = floor is not None and sign * mean <= sign * floor
            text = number(mean, digits) + (f" {PLUS_MINUS} {number(sd, digits)}" if sd is not None else "")
            leads = len(entries) > 1 and round(sign * mean, digits) == best
            ends = interval(entry.get("low"), entry.get("high"), digits)
            cells.append(Cell(text + (f" {DAGGER}" if below_floor else ""), ends, leads))
            beaten, spread = beaten or below_floor, spread or sd is not None
        lines.append([*cells, number(floor, digits)])
    runs = max(int(entry.get("n") or 1) for entries in rows.values() for entry in entries.values())
    level = 100 * float(record.get("confidence") or 0.95)
    said = []
    if spread:
        said.append(
            f"Mean {PLUS_MINUS} standard deviation over {runs} folds; in brackets the {level:.0f} % t-interval of the "
            "mean. Folds share training items, so the interval is somewhat too narrow."
        )
    said += ["Bold: the better scoring of the row."] if len(scorings) > 1 else []
    said += [f"{ARROW}: lower is better."] if any(ARROW in str(row[0]) for row in lines) else []
    said += [f"{DAGGER}: no better than the floor."] if beaten else []
    head = ["Metric", *(SCORING_NAMES[scoring].capitalize() for scoring in scorings), "Floor"]
    return Table(f"scores-{part}", title, head, lines, "l" + "r" * (len(head) - 1), [*said, *notes])


def fold_tables(record: Mapping[str, Any], part: str, title: str, folds: Sequence[int]) -> list[Table]:
    """For each scoring folds as rows, the main metrics as columns; mean and standard deviation at the end.

    Args:
        record: crossval.json.
        part: ``fold`` or ``test``.
        title: Above the tables, the scoring is added.
        folds: All folds there should be; one without a value shows a dash.
    """
    found, metrics = [], table_of(record["metrics"], part)
    for scoring in SCORINGS:
        columns = [(metric, metrics[metric][scoring]) for metric in BY_FOLD if scoring in metrics.get(metric, {})]
        if not columns:
            continue
        rows = [[f"Fold {k}", *(number(entry["values"].get(str(k))) for _, entry in columns)] for k in folds]
        rows += [[name, *(number(e.get(key)) for _, e in columns)] for name, key in (("Mean", "mean"), ("Std", "sd"))]
        head = ["", *(readable(metric) for metric, _ in columns)]
        notes = ["Std: sample standard deviation (divisor: folds less one). Fitted: thresholds of the training rows."]
        whole = f"{title}, {SCORING_NAMES[scoring]}"
        found.append(Table(f"by-{part}-{scoring}", whole, head, rows, "l" + "r" * len(columns), notes, closing=2))
    return found


def ensemble_table(record: Mapping[str, Any]) -> Table | None:
    """The rows of the ensembles on the hold-out part, each with its difference to the best single model."""
    ensemble = record.get("ensemble") or {}
    rows = ensemble.get("rows") or []
    if not rows:
        return None
    best = {key: max((round(float(r[key]), 4) for r in rows if r.get(key) is not None), default=None) for key in KEYS}
    lines = []
    for row in rows:
        cells: list[Cell | str] = [str(row["name"])]
        for key in KEYS:
            value = row.get(key)
            ends = interval(row.get("low"), row.get("high")) if key == "map_macro" else ""
            cells.append(Cell(number(value), ends, value is not None and round(float(value), 4) == best[key]))
        ends = interval(row.get("difference_low"), row.get("difference_high"))
        cells.append(Cell(number(row.get("difference"), signed=True), ends))
        lines.append(cells)
    said = [f"n = {int(ensemble['n']):,} hold-out items."] if ensemble.get("n") else []
    said += [
        "Difference: in mAP macro to the single model that its own selection rows prefer, of the same scoring and on "
        "the same redrawn items; an interval without 0 speaks for a difference on such items. Bold: the highest of the "
        "column."
    ]
    notes = [*said, *(f"{str(note)[:1].upper()}{str(note)[1:].rstrip('.')}." for note in ensemble.get("notes") or [])]
    head = ["Model", "mAP macro", "F1 macro, fitted", "Difference"]
    return Table("ensembles", "Single models and ensembles on the hold-out part", head, lines, "lrrr", notes)
