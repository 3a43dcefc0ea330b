"""The section about errors: what is taken for what, what is missed by size, the worst items."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from callbacks.experiments.report.documents import Chart, Gallery, Item, Section, Text
from callbacks.experiments.report.figures import ratio_matrix_figure
from callbacks.experiments.report.pooled import Pooled
from callbacks.experiments.result_files import Run
from callbacks.experiments.tables import NOTHING, Table, number

PAIRS = 15
ITEMS = 12
PICTURE = 360  # pixels, the longer side of a picture on the page
COCO_IMAGE = 640 * 480
AREA_EDGES = (32**2 / COCO_IMAGE, 96**2 / COCO_IMAGE)  # COCO's small, medium and large in an image of usual size
AREA_NAMES = ("small", "medium", "large")


def error_section(pooled: Pooled | None, runs: Mapping[int, Run]) -> Section:
    """The section; empty when there are neither predictions nor worst items."""
    parts: list[Text | Table | Chart | Gallery] = []
    if pooled is not None:
        parts += [*confusion_parts(pooled), *area_parts(pooled)]
    gallery = worst_gallery(runs)
    return Section("Errors", [*parts, *([gallery] if gallery else [])])


def confusion_parts(pooled: Pooled) -> list[Table | Chart]:
    """The most frequent false positives by the class they were confused with, and the normalised matrix."""
    import torch

    from lightning_modules.metrics.multilabel_errors import confused_with, cooccurrence_confusion

    pair = torch.from_numpy(pooled.decisions), torch.from_numpy(pooled.labels)
    matrix = np.asarray(cooccurrence_confusion(*pair), dtype=float)
    caption = (
        "How the presence of a class draws false alarms of another: P(row predicted | column there, row not there) / "
        "P(row predicted | row not there). At 1 (white) it has no influence, at 4 (red) there are four times as many. "
        "Grey: the diagonal, fewer than ten such items, or no false alarm of the row at all."
    )
    parts: list[Table | Chart] = [pair_table(np.asarray(confused_with(*pair), dtype=float), pooled)]
    if np.isfinite(matrix).any():
        alt = "Co-occurrence-normalised confusion matrix"
        parts.append(Chart(ratio_matrix_figure(matrix, pooled.class_names, "wrongly predicted", "there"), alt, caption))
    return parts


def pair_table(shares: np.ndarray, pooled: Pooled) -> Table:
    """The most frequent pairs of a wrongly predicted class and the class it was confused with.

    Args:
        shares: (C, C) rows of shares, as confused_with gives them.
        pooled: The predictions.
    """
    false = pooled.decisions & ~pooled.labels
    wrong, blamed = false.sum(axis=0), false[pooled.labels.any(axis=1)].sum(axis=0)
    masses = shares * blamed[:, None]  # (C, C) false positives
    rows = []
    for place in np.argsort(-masses, axis=None, kind="stable")[:PAIRS]:
        i, j = divmod(int(place), len(blamed))
        if masses[i, j] > 0:
            amounts = [number(float(masses[i, j]), 1), f"{100 * shares[i, j]:.1f} %", f"{wrong[i]:,}"]
            rows.append([pooled.class_names[i], pooled.class_names[j], *amounts])
    notes = [
        "A false positive counts 1, spread evenly over the true classes of the item that the model missed, or over all "
        "its true classes if it missed none; items without labels count for no pair. Share: of the false positives of "
        "the wrongly predicted class on items with labels."
    ]
    head = ["Wrongly predicted", "Confused with", "False positives", "Share", "All of the class"]
    return Table("confused", "False positives by the class they were confused with", head, rows, "llrrr", notes)


def area_parts(pooled: Pooled) -> list[Table]:
    """What was missed by the size of the object; nothing where the data has no boxes."""
    import torch

    from lightning_modules.metrics.multilabel_errors import misses_by_area

    if pooled.areas is None or not np.isfinite(pooled.areas).any():
        return []
    arrays = (pooled.decisions, pooled.labels, pooled.areas)
    found = misses_by_area(*map(torch.from_numpy, arrays), [0, *AREA_EDGES, 1])
    rows = []
    for name, entry in zip(AREA_NAMES, found, strict=True):
        low, high = (f"{100 * entry[end]:.2f} %" for end in ("low", "high"))
        size = f"below {high}" if entry["low"] == 0 else f"{low} and more" if entry["high"] == 1 else f"{low} to {high}"
        rate = f"{100 * entry['rate']:.1f} %" if entry["objects"] else NOTHING
        rows.append([name, size, f"{entry['objects']:,}", f"{entry['missed']:,}", rate])
    total, missed = (sum(int(entry[key]) for entry in found) for key in ("objects", "missed"))
    rows.append(["all", "", f"{total:,}", f"{missed:,}", f"{100 * missed / max(1, total):.1f} %"])
    notes = [
        "A label's size is the area of its largest object, as a share of the image. The limits are COCO's, 32 and 96 "
        "pixels squared in an image of 640 by 480 pixels. Labels without a box are left out."
    ]
    head = ["Largest object", "Share of the image", "Labels", "Missed", "Miss rate"]
    return [Table("missed-area", "False negatives by the size of the object", head, rows, "llrrr", notes, closing=1)]


def worst_gallery(runs: Mapping[int, Run]) -> Gallery | None:
    """The worst items of all runs with picture, truth and prediction; None when there are none."""
    entries = [(run, entry) for run in runs.values() for entry in run.worst]
    own = [pair for pair in entries if pair[1].get("part") == "fold"] or entries
    own = sorted(own, key=lambda pair: (float(pair[1].get("lrap") or 0), int(pair[1].get("rank") or 0)))[:ITEMS]
    if not own:
        return None
    items, rows = [], []
    for run, entry in own:
        truth = [str(name) for name in entry.get("truth") or []]
        predicted = [(str(name), float(value)) for name, value in entry.get("predicted") or []]
        score = number(entry.get("lrap"), 3)
        png = small_picture(run.folder / "worst" / str(entry.get("picture") or "none"))
        items.append(Item(f"{entry.get('id')}, {run.name}", f"LRAP {score}", truth, predicted, png))
        said = ", ".join(f"{name} {value:.2f}" for name, value in predicted)
        rows.append([str(entry.get("id")), run.name, score, ", ".join(truth) or "none", said or "none"])
    notes = [
        "LRAP: label ranking average precision, 1 when every true label is ranked above every other. Predicted: the "
        "most probable classes with their probability."
    ]
    head = ["Item", "Run", "LRAP", "Truth", "Predicted"]
    return Gallery(items, Table("worst", "The worst-ranked items", head, rows, "llrpp", notes))


def small_picture(file: Path) -> bytes | None:
    """A picture, made small enough for a page; None where it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            small = picture.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError):
        return None
    small.thumbnail((PICTURE, PICTURE))
    target = io.BytesIO()
    small.save(target, format="PNG")
    return target.getvalue()
