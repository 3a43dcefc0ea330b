"""The page of a round: what was mined, what it costs, the figures, the classes, the hardest errors, the conventions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from callbacks.experiments.report.documents import Chart, Document, Section, Text
from callbacks.experiments.tables import NOTHING, Table, interval, number
from callbacks.mining_report.analysis import Analysis, class_rows, conventions, sizes
from callbacks.mining_report.figures import PRINT, Picture
from callbacks.mining_report.mined import Columns, MiningRound, suspects
from lightning_modules.metrics.detection_curves import class_means
from lightning_modules.metrics.tide import TYPES

PER_TABLE = 40  # classes
SHORT = dict(zip(TYPES, ("loc.", "class", "both", "dup.", "bkg.", "missed"), strict=True))
SCREEN = 170  # dots per inch of a figure on the page
SUSPECTED = 20  # suspected label errors on the page; the CSV has all
MEANINGS = {
    "localisation": "right class, box off its place",
    "class": "box in place, wrong class",
    "both": "wrong class and off place",
    "duplicate": "an object that a more confident prediction has found",
    "background": "no object there",
    "missed": "an object that no prediction is about",
}


def mining_document(
    mined: MiningRound,
    found: Analysis,
    table: Columns,
    pictures: Mapping[str, Picture],
    sheets: Mapping[str, Image.Image],
) -> Document:
    """The report of a round.

    Args:
        mined: The round.
        found: Its analysis.
        table: Of ``mined_table``.
        pictures: Of ``draw_figures``.
        sheets: ``hardest`` and ``label_errors``, as far as there are any.
    """
    n, statistics = sizes(mined), mined.report["statistics"]
    charts = {name: Chart(_on_screen(one.png), one.alt, one.caption) for name, one in pictures.items()}
    facts = [
        (f"{n['images']:,}", "images"),
        (f"{n['truths']:,}", f"true objects of {n['classes_with_truths']} classes"),
        (f"{n['predictions']:,}", "predictions"),
        (f"{statistics['hard_negatives']:,}", f"hard negatives ({mined.settings['strategy']})"),
    ]
    hardest = [_sheet(sheets["hardest"], "The hardest errors", HARDEST)] if "hardest" in sheets else []
    suspected = [_sheet(sheets["label_errors"], "Suspected label errors", "")] if "label_errors" in sheets else []
    sections = [
        Section("What was mined", [*mined_tables(mined, found), charts["types"]]),
        Section(
            "What the errors cost", [precision_text(mined, found), tide_table(mined, found, table), charts["tide"]]
        ),
        Section("Confidence and IoU", [charts[f] for f in ("confidence_iou", "confidence_histogram", "iou_histogram")]),
        Section("Classes", class_tables(class_rows(mined, found, table))),
        Section("The hardest errors", hardest),
        Section("Suspected label errors", [*suspect_parts(table), *suspected]),
        Section("Conventions and settings", [settings_table(mined), conventions_table(mined)]),
    ]
    lacking = [] if mined.picture else ["Crops of the hardest errors: no pictures were given (--images)."]
    return Document(mined.title, facts, lacking, sections, ["made from predictions and true boxes alone"])


HARDEST = (
    "Types take turns. Within a type confident predictions come first, of missed objects the largest. The number is "
    "the rank in hard_negatives.csv."
)


def _on_screen(png: bytes) -> bytes:
    """A figure for the page, so small that its letters have the size of those of other reports."""
    figure, target = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    size = [round(side * SCREEN / PRINT) for side in figure.size]
    figure.resize((size[0], size[1]), Image.Resampling.LANCZOS).save(target, "PNG", compress_level=3)
    return target.getvalue()


def _sheet(sheet: Image.Image, alt: str, caption: str) -> Chart:
    """A sheet for the page, in 256 colours, which a third of the bytes can hold."""
    target = io.BytesIO()
    sheet.quantize(256, Image.Quantize.FASTOCTREE).save(target, "PNG", compress_level=3)
    return Chart(target.getvalue(), alt, caption)


def mined_tables(mined: MiningRound, found: Analysis) -> list[Table]:
    """The miner's own report: counts and shares at the confidence threshold."""
    statistics, metrics = mined.report["statistics"], mined.report["metrics"]
    means = {
        "total_predictions": "all, whatever their confidence",
        "below_threshold": "predictions below the confidence threshold, set aside",
        "ignored": "predictions that ignored truths absorb",
        "true_positives": "confident predictions that find a truth",
        "false_positives": "confident predictions that find none",
        "false_negatives": "truths that no confident prediction finds",
        "hard_negatives": "errors that the strategy gives a weight",
        "suspected_label_errors": "of the hard negatives; they make no image hard",
    }
    rows = [[_words(name), f"{statistics[name]:,}", text] for name, text in means.items()]
    shares = {
        "precision": "true positives by confident predictions that count",
        "recall": "true positives by truths that count",
        "f1_score": "harmonic mean of precision and recall",
        "hard_negative_rate": "hard negatives by all predictions",
    }
    rates = [
        [_words(name), number(metrics[name]), interval(*found.rates.get(name, (None, None))), text]
        for name, text in shares.items()
    ]
    heads = (["Count", "Number", "What it is"], ["Rate", "Value", "Interval", "What it is"])
    images = f"{sizes(mined)['images']:,}"
    limit = f"At confidence threshold {_shown(mined.settings['confidence_threshold'])} and IoU threshold "
    limit += f"{mined.settings['iou_threshold']:g}."
    return [
        Table("statistics", "Statistics", heads[0], rows, "lrl", [limit]),
        Table(
            "metrics", "Metrics", heads[1], rates, "lrrl", [f"{limit} Intervals: 95 %, bootstrap over {images} images."]
        ),
    ]


def precision_text(mined: MiningRound, found: Analysis) -> Text:
    """Average precision with its interval and its floor, in a sentence."""
    value, low, high = (float(part[0]) for part in found.interval)
    n = sizes(mined)
    return Text(
        f"Mean AP at IoU 0.50 is {number(value)} {interval(low, high)} over {n['classes_with_truths']} classes and "
        f"{n['images']:,} images; of the same boxes with shuffled confidences it is {number(found.floor)}. What lies "
        "below the confidence threshold counts here too."
    )


def tide_table(mined: MiningRound, found: Analysis, table: Columns) -> Table:
    """Each type of error with its numbers and its price."""
    counts = found.errors.per_class().sum(axis=1).tolist()
    truths = ~found.errors.matches.truth_ignored
    gains = {name: 100 * float(class_means(gain)) for name, gain in found.gains.items()}
    rows = [
        [name, MEANINGS[name], f"{table['type'].count(name):,}", f"{count:,}", number(gains[name], 2)]
        for name, count in zip(TYPES, counts, strict=True)
    ]
    false, lost = int((found.errors.kind >= 0).sum()), int((truths & ~found.errors.found).sum())
    for name, key, count in (
        ("all false positives", "false_positive", false),
        ("all not found", "false_negative", lost),
    ):
        rows.append([name, "fixed at once", NOTHING, f"{count:,}", number(gains[key], 2)])
    iou = float(mined.settings["iou_threshold"])
    notes = [
        f"dAP: percentage points of AP at IoU {iou:g}, now {number(100 * float(class_means(found.ap)), 2)}, that would "
        "be gained if that type were fixed and all else left; the gains do not add up. Errors: of all predictions; "
        "hard negatives: those that were mined."
    ]
    head = ["Type", "What it is", "Hard negatives", "Errors", "dAP"]
    return Table("tide", "Types of error", head, rows, "llrrr", notes, closing=2)


def class_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The classes with a truth or a prediction, most hard negatives first, in tables that fit a printed page.

    Args:
        rows: Of ``class_rows``.
    """
    some = sorted((row for row in rows if row["truths"] or row["predictions"]), key=lambda row: -row["hard_negatives"])
    lines = []
    for row in some:
        kinds = row["types"]
        gains = {name: kinds[name]["gain"] for name in TYPES if kinds[name]["gain"] > 0}
        worst = max(gains, key=gains.__getitem__, default="")
        dear = f"{worst} {number(100 * gains[worst], 1)}" if gains else NOTHING
        amounts = [f"{kinds[name]['hard_negatives']:,}" for name in TYPES]
        numbers = [f"{row['truths']:,}", f"{row['predictions']:,}", number(row["ap_50"], 3)]
        mined = [f"{row['hard_negatives']:,}", *amounts, f"{row['suspected_label_errors']:,}"]
        lines.append([row["name"], *numbers, *mined, dear])
    head = ["Class", "Truths", "Pred.", "AP50", "Hard", *SHORT.values(), "Susp.", "Costliest, dAP"]
    notes = [
        f"Most hard negatives first. Pred.: predictions; Hard: hard negatives; of these "
        f"{', '.join(f'{short} {name}' for name, short in SHORT.items() if short != name)}; Susp.: suspected label "
        "errors. An error counts in the class that was predicted, a missed object in its own. Costliest: the type "
        "whose fixing would gain this class most, in percentage points. AP of few truths varies much from one set of "
        "images to another."
    ]
    absent = len(rows) - len(some)
    notes += [f"Without truth and prediction: {absent} of {len(rows)} classes."] if absent else []
    tables = []
    for start in range(0, len(lines), PER_TABLE):
        part = lines[start : start + PER_TABLE]
        title = "All classes" if len(lines) <= PER_TABLE else f"Classes {start + 1} to {start + len(part)}"
        last = start + len(part) == len(lines)
        align = "l" + "r" * (len(head) - 1)
        tables.append(Table(f"classes-{start + 1}", title, head, part, align, notes if last else ()))
    return tables


def suspect_parts(table: Columns) -> list[Text | Table]:
    """The first of the suspected label errors."""
    found = suspects(table)
    total = len(found["rank"])
    if not total:
        return [Text("None: no confident prediction stands where the annotations have nothing near.")]
    rows = []
    for place in range(min(SUSPECTED, total)):
        box = ", ".join(f"{found[f'prediction_{corner}'][place]:.0f}" for corner in ("x1", "y1", "x2", "y2"))
        values = [number(found[name][place], 3) for name in ("overlooked_score", "confidence", "iou")]
        rows.append([found["file_name"][place], found["class_name"][place], *values, box])
    head = ["Image", "Predicted class", "Score", "Confidence", "IoU", "Box x1, y1, x2, y2"]
    notes = [
        f"The first {len(rows)} of {total:,}; label_errors.csv has all. Score: confidence * (1 - highest IoU with any "
        "truth). It tells which boxes to look at, not whether annotation or prediction is wrong. Boxes in pixels."
    ]
    return [Table("suspects", "Objects that may lack their annotation", head, rows, "llrrrr", notes)]


def settings_table(mined: MiningRound) -> Table:
    """What was mined with."""
    rows = [[_words(name), _shown(value)] for name, value in mined.settings.items()]
    return Table("settings", "Settings", ["Setting", "Value"], rows, "lp")


def conventions_table(mined: MiningRound) -> Table:
    """What the numbers mean."""
    rows = [[name, text] for name, text in conventions(mined).items()]
    return Table("conventions", "Conventions", ["Subject", "Convention"], rows, "lp")


def _words(name: str) -> str:
    """A key in words; the first letter is a capital one.

    >>> _words("f1_score"), _words("iou_threshold")
    ('F1 score', 'IoU threshold')
    """
    text = name.replace("_", " ").replace("iou", "IoU")
    return text[:1].upper() + text[1:]


def _shown(value: Any) -> str:
    """A setting for people; of many values the least and the greatest."""
    values = np.asarray(value).tolist() if isinstance(value, list | tuple | np.ndarray) else value
    if isinstance(values, list):
        return f"{min(values):g} to {max(values):g} by class ({len(values)} values)"
    return f"{values:g}" if isinstance(values, float) else str(values)
