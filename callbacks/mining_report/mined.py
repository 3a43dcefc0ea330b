"""What a round of mining gave, and its hard negatives as a table with boxes and names, ranked."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from PIL import Image

from lightning_modules.detection.records import overlooked_score
from lightning_modules.metrics.detection_matching import DetectionSet
from lightning_modules.metrics.tide import TYPES

FIELDS = (  # of a record
    "image_index",
    "image_id",
    "type",
    "prediction_index",
    "truth_index",
    "iou",
    "confidence",
    "label",
    "truth_label",
    "suspected_label_error",
)
CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = {  # of the table -> type in Parquet
    "rank": "int64",
    "image_index": "int64",
    "image_id": "string",
    "file_name": "string",
    "type": "string",
    "prediction_index": "int64",
    "truth_index": "int64",
    "iou": "float64",
    "confidence": "float64",
    "label": "int64",
    "class_name": "string",
    "truth_label": "int64",
    "truth_class_name": "string",
    "suspected_label_error": "bool",
    **{f"{of}_{corner}": "float64" for of in ("prediction", "truth") for corner in CORNERS},
}
SUSPECTS = {  # columns of the list of suspected label errors
    **{name: COLUMNS[name] for name in ("rank", "image_index", "image_id", "file_name", "class_name", "confidence")},
    **{"iou": "float64", "overlooked_score": "float64"},
    **{f"prediction_{corner}": "float64" for corner in CORNERS},
}
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class MiningRound:
    """A round of mining.

    Args:
        report: Of the miner's ``generate_report``: ``statistics`` and ``metrics``.
        records: Hard negatives (R). Each has ``image_index``, ``image_id``, ``type`` (of ``tide.TYPES``),
            ``prediction_index`` and ``truth_index`` (rows among those of the image; None without), ``iou``,
            ``confidence``, ``label``, ``truth_label`` (None without) and ``suspected_label_error``.
        data: All predictions and truths of N images; ``image_index`` is the position there.
        class_names: C names.
        image_ids: (N,) name of each image for people, its file.
        picture: Gives an image by its ``image_index``; None = no crops.
        title: Heading of the page.
        settings: What was mined with, for the page: ``strategy``, ``iou_threshold``, ``confidence_threshold`` (one, or
            one of each class), ``hard_negative_ratio`` and whatever else.
    """

    report: dict[str, Any]
    records: Sequence[Any]
    data: DetectionSet
    class_names: Sequence[str]
    image_ids: Sequence[str]
    picture: Callable[[int], Image.Image] | None
    title: str
    settings: Mapping[str, Any]


def mined_table(mined: MiningRound) -> Columns:
    """The hard negatives with their names, boxes and ranks, in the order of the records.

    Args:
        mined: The round.

    Returns:
        A list of R for each of ``COLUMNS``; None where there is no prediction or truth.
    """
    rows = list(map(attrgetter(*FIELDS), mined.records))
    table: Columns = {name: [row[place] for row in rows] for place, name in enumerate(FIELDS)}
    data, names = mined.data, mined.class_names
    table["file_name"] = [mined.image_ids[index] for index in table["image_index"]]
    table["class_name"] = [names[label] for label in table["label"]]
    table["truth_class_name"] = [None if label is None else names[label] for label in table["truth_label"]]
    table |= _box_columns("prediction", table, data.boxes, np.searchsorted(data.image, np.arange(data.num_images)))
    starts = np.searchsorted(data.truth_image, np.arange(data.num_images))
    table |= _box_columns("truth", table, data.truth_boxes, starts)
    table["rank"] = ranks(table)
    return {name: table[name] for name in COLUMNS}


def _box_columns(of: str, table: Columns, boxes: np.ndarray, starts: np.ndarray) -> Columns:
    """The corners of predictions or truths: four columns."""
    pairs = zip(table["image_index"], table[f"{of}_index"], strict=True)
    corners = [[None] * 4 if row is None else boxes[starts[image] + row].tolist() for image, row in pairs]
    columns = zip(*corners, strict=True) if corners else [()] * 4
    return {f"{of}_{corner}": list(column) for corner, column in zip(CORNERS, columns, strict=True)}


def ranks(table: Columns) -> list[int]:
    """The place of each hard negative among all, hardest first, counted from 1.

    Types take turns, so that the first few show every type. Within a type confident predictions come first, of missed
    truths the largest. Suspected label errors come after all others, as they may be right.

    Args:
        table: ``type``, ``confidence``, ``suspected_label_error`` and the corners of truths (R).

    Returns:
        (R,).

    >>> box = {f"truth_{corner}": [None, None, 4.0] for corner in ("x2", "y2")}
    >>> box |= {f"truth_{corner}": [None, None, 0.0] for corner in ("x1", "y1")}
    >>> table = {"type": ["background", "background", "missed"], "confidence": [0.6, 0.9, 0.0], **box}
    >>> ranks({**table, "suspected_label_error": [False] * 3})
    [3, 1, 2]
    """
    kind = np.array([TYPES.index(name) for name in table["type"]], np.int64)
    x1, y1, x2, y2 = (np.array(table[f"truth_{corner}"], np.float64) for corner in CORNERS)  # None becomes NaN
    missed = np.array([name == "missed" for name in table["type"]], bool)
    key = np.where(missed, (x2 - x1) * (y2 - y1), np.array(table["confidence"], np.float64))
    suspected = np.array(table["suspected_label_error"], bool)
    order = np.lexsort((-key, kind, suspected))
    group = (kind + len(TYPES) * suspected)[order]
    turn = np.arange(len(order)) - np.searchsorted(group, group)
    order = order[np.lexsort((kind[order], turn, suspected[order]))]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(1, len(order) + 1)
    return place.tolist()


def suspects(table: Columns) -> Columns:
    """The hard negatives that may be objects without annotation, most suspicious first.

    Args:
        table: Of ``mined_table``.

    Returns:
        Columns of ``SUSPECTS``; ``overlooked_score`` is ``confidence * (1 - iou)``.
    """
    scores = overlooked_score(np.array(table["confidence"]), np.array(table["iou"])).tolist()
    whole = {**table, "overlooked_score": scores}
    chosen = [row for row, suspected in enumerate(table["suspected_label_error"]) if suspected]
    chosen.sort(key=lambda row: -scores[row])
    return {name: [whole[name][row] for row in chosen] for name in SUSPECTS}


def to_csv(columns: Mapping[str, Sequence[Any]]) -> bytes:
    r"""Columns as CSV; numbers keep all digits, None is empty.

    >>> to_csv({"name": ["a", "b"], "score": [0.1, None]})
    b'name,score\na,0.1\nb,\n'
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def to_parquet(columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> bytes:
    """Columns as Parquet.

    Args:
        columns: Equally long.
        types: Name -> type, as ``int64``.
    """
    import pyarrow as pa
    from pyarrow import parquet

    arrays = {name: pa.array(values, pa.type_for_alias(types[name])) for name, values in columns.items()}
    target = io.BytesIO()
    parquet.write_table(pa.table(arrays), target)
    return target.getvalue()
