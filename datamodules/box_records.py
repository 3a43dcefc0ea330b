"""Detection sets as columns: pictures, boxes, classes and what to ignore; whole pictures or tiles of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SLACK = 1.0  # pixels by which a box may leave its picture; rounding does that
MIN_VISIBLE = 0.5  # share of a box that a tile must hold for the object to count there
LISTS = ("ids", "paths", "boxes", "box_labels", "ignore", "polygons", "windows", "image_ids")  # columns that are lists
Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class BoxRecords:
    """A detection set as columns; nothing is decoded.

    Args:
        ids: N different names.
        paths: N image files.
        sizes: Height and width of each item in pixels, ``(N, 2)`` int64.
        boxes: For each item ``(K, 4)`` float32 boxes ``xyxy`` in pixels of the item.
        box_labels: For each item ``(K,)`` int64 class indices.
        ignore: For each item ``(K,)`` bool: objects that count neither as found nor as missed.
        class_names: C names.
        polygons: For each item ``(K, 4, 2)`` float32 corners ``xy``, where the set has oriented boxes. Corners may lie
            outside the item.
        windows: For each item the part ``(left, top, right, bottom)`` of its file that it is; None = whole files.
        image_ids: The id of each item in the one COCO file that all come from; None = there is no such file.
        category_ids: The id of each class there.
    """

    ids: list[str]
    paths: list[Path]
    sizes: np.ndarray
    boxes: list[np.ndarray]
    box_labels: list[np.ndarray]
    ignore: list[np.ndarray]
    class_names: list[str]
    polygons: list[np.ndarray] | None = None
    windows: list[Window] | None = None
    image_ids: list[Any] | None = None
    category_ids: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | np.ndarray) -> BoxRecords:
        """The records of some rows, in that order."""
        columns = {name: getattr(self, name) for name in LISTS}
        picked = {name: [column[i] for i in rows] for name, column in columns.items() if column is not None}
        return replace(self, sizes=self.sizes[np.asarray(rows, np.int64)], **picked)

    def presence(self) -> np.ndarray:
        """Which classes each item holds an object of, ``(N, C)`` uint8; ignored objects do not count."""
        present = np.zeros((len(self), len(self.class_names)), np.uint8)
        for row, (labels, ignore) in enumerate(zip(self.box_labels, self.ignore, strict=True)):
            present[row, labels[~ignore]] = 1
        return present


def join_records(parts: Sequence[BoxRecords]) -> BoxRecords:
    """Several parts of one set, one after another; they have the same columns and classes.

    The ``image_ids`` go, as two files may have the same.
    """
    columns = {name: [getattr(part, name) for part in parts] for name in LISTS if name != "image_ids"}
    joined = {name: [v for values in lists for v in values] for name, lists in columns.items() if lists[0] is not None}
    return replace(parts[0], sizes=np.concatenate([part.sizes for part in parts]), image_ids=None, **joined)


class Entry(NamedTuple):
    """An object as an annotation file states it.

    Args:
        name: Its class, for messages.
        column: Index of the class; -1 = the class is known, but not wanted.
        numbers: ``xmin, ymin, xmax, ymax``, or 4 corners ``x1, y1, ... x4, y4``.
        ignore: Whether it counts neither as found nor as missed.
    """

    name: str
    column: int
    numbers: Sequence[float]
    ignore: bool


class Objects(NamedTuple):
    """The checked objects of one picture, as in :class:`BoxRecords`; ``polygons`` is empty without corners."""

    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    polygons: np.ndarray


def normalise(name: str) -> str:
    """A class name without case, hyphens, underscores and spaces, in which copies of one data set differ.

    Example:
        >>> normalise("Expressway-toll-station") == normalise("expressway toll_station")
        True
    """
    return name.lower().translate(str.maketrans("", "", "-_ "))


def class_columns(names: Sequence[str]) -> dict[str, int]:
    """The column of each normalised class name.

    Raises:
        ValueError: There is no name, or two are of one class.

    Example:
        >>> class_columns(["storage tank", "Ship"])
        {'storagetank': 0, 'ship': 1}
    """
    if not names:
        raise ValueError("classes is empty. Name the classes of the data set, or set null for its own.")
    columns: dict[str, int] = {}
    for column, name in enumerate(names):
        if columns.setdefault(normalise(name), column) != column:
            raise ValueError(f"classes has {name} twice; case, '-', '_' and ' ' do not matter. Name every class once.")
    return columns


def find_class(name: str, columns: dict[str, int], where: str) -> int:
    """The column of a class by its name in an annotation file; ``where`` begins the message.

    Raises:
        ValueError: There is no such class; lists the nearest names.
    """
    if normalise(name) in columns:
        return columns[normalise(name)]
    near = get_close_matches(normalise(name), columns, n=3, cutoff=0.4) or sorted(columns)
    raise ValueError(f"{where}: unknown class '{name}'. Nearest: {', '.join(near)}. Rename it there, or set classes.")


def check_objects(entries: Sequence[Entry], size: Sequence[int], where: str) -> Objects:
    """Turn the objects that an annotation file states into columns, and refuse what cannot be right.

    The box of an object with corners is the one around them, clipped to the picture: a turned rectangle around an
    object at the edge reaches over it. A box of 4 numbers may leave the picture by a pixel, and is clipped too.

    Args:
        entries: The objects of one picture.
        size: Height and width of the picture.
        where: File, and picture if the file is about many; begins the messages.

    Returns:
        The objects of wanted classes.

    Raises:
        ValueError: A box that is not finite, empty, inverted or outside the picture.
    """
    height, width = size
    kept: list[tuple[np.ndarray, Entry]] = []
    for number, entry in enumerate(entries, 1):
        this, cure = f"{where}, object {number} ({entry.name})", "Correct the object, or take it out of the file."
        corners = np.array(entry.numbers, np.float64).reshape(-1, 2)
        box = np.concatenate([corners.min(0), corners.max(0)]) if len(corners) == 4 else corners.ravel()
        said = f"box [{', '.join(f'{value:g}' for value in box)}]"
        if not np.isfinite(box).all():
            raise ValueError(f"{this}: {said} is not finite. {cure}")
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(f"{this}: {said} is empty or inverted; xmin < xmax and ymin < ymax are needed. {cure}")
        clipped = box.clip(0, [width, height, width, height])
        too_far = len(corners) == 2 and np.abs(clipped - box).max() > SLACK
        if too_far or clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            raise ValueError(f"{this}: {said} is outside the picture of {width} x {height} pixels. {cure}")
        if entry.column >= 0:
            kept.append((clipped, entry))
    return Objects(
        np.array([box for box, _ in kept], np.float32).reshape(-1, 4),
        np.array([entry.column for _, entry in kept], np.int64),
        np.array([entry.ignore for _, entry in kept], bool),
        np.array([entry.numbers for _, entry in kept if len(entry.numbers) == 8], np.float32).reshape(-1, 4, 2),
    )


def gather(
    ids: list[str],
    paths: list[Path],
    sizes: np.ndarray,
    objects: Sequence[Objects],
    class_names: list[str],
    oriented: bool,
) -> BoxRecords:
    """The columns of a set from the objects of its pictures; ``oriented`` sets have corners."""
    boxes, labels, ignore, polygons = ([found[i] for found in objects] for i in range(4))
    return BoxRecords(ids, paths, sizes, boxes, labels, ignore, class_names, polygons if oriented else None)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles of one side begin; the last one ends with the side, and so overlaps more.

    Example:
        >>> tile_starts(10, 4, 1), tile_starts(8, 4, 0), tile_starts(3, 4, 0)
        ([0, 3, 6], [0, 4], [0])
    """
    return [0] if length <= tile else [*range(0, length - tile, tile - overlap), length - tile]


def clip_to_window(boxes: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as a window shows them.

    Args:
        boxes: ``(K, 4)`` xyxy.
        window: ``(left, top, right, bottom)`` in the same pixels.

    Returns:
        Clipped boxes in pixels of the window, ``(K, 4)`` float64, and the share of each area that is inside, ``(K,)``.

    Example:
        >>> clip_to_window(np.array([[2.0, 0, 6, 2]]), (4, 0, 8, 4))
        (array([[0., 0., 2., 2.]]), array([0.5]))
    """
    left, top, right, bottom = window
    boxes = boxes.astype(np.float64)
    clipped = boxes.clip([left, top, left, top], [right, bottom, right, bottom])
    area, visible = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, clipped))
    return clipped - [left, top, left, top], visible / area


def tile_records(records: BoxRecords, tile: int, overlap: int) -> BoxRecords:
    """Cut pictures into square tiles of ``tile`` pixels; each tile is an item, named ``<id>_x<left>_y<top>``.

    A picture whose sides are no longer than a tile stays whole, and a shorter side is not padded. Boxes are clipped to
    the tile; an object with less than half its area there is ignored, one without any is left out. Corners are moved
    with their tile, but not clipped.

    Args:
        records: Whole pictures.
        tile: Side of a tile in pixels.
        overlap: Pixels that neighbouring tiles share, less than ``tile``.

    Returns:
        The tiles of each picture, row by row, with their ``windows`` and without ``image_ids``.
    """
    columns: dict[str, list[Any]] = {name: [] for name in LISTS if name != "image_ids"}
    for row, (height, width) in enumerate(records.sizes.tolist()):
        lefts, tops = (tile_starts(length, tile, overlap) for length in (width, height))
        for left, top in [(left, top) for top in tops for left in lefts]:
            window = (left, top, min(left + tile, width), min(top + tile, height))
            boxes, share = clip_to_window(records.boxes[row], window)
            inside = share > 0
            whole = len(lefts) == len(tops) == 1
            columns["ids"].append(records.ids[row] if whole else f"{records.ids[row]}_x{left}_y{top}")
            columns["paths"].append(records.paths[row])
            columns["boxes"].append(boxes[inside].astype(np.float32))
            columns["box_labels"].append(records.box_labels[row][inside])
            columns["ignore"].append((records.ignore[row] | (share < MIN_VISIBLE))[inside])
            if records.polygons is not None:
                columns["polygons"].append(records.polygons[row][inside] - np.array([left, top], np.float32))
            columns["windows"].append(window)
    windows = np.array(columns["windows"], np.int64).reshape(-1, 4)
    if records.polygons is None:
        del columns["polygons"]
    return replace(records, sizes=(windows[:, 2:] - windows[:, :2])[:, ::-1].copy(), image_ids=None, **columns)
