"""Crops of single errors with both boxes and what they are, and sheets of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from callbacks.box_pictures import Boxes, draw_boxes, typeface
from callbacks.mining_report.mined import CORNERS, Columns, MiningRound
from callbacks.panels import INK, QUIET
from lightning_modules.metrics.tide import TYPES

CELL, STRIP, GAP, MARGIN, HEAD = 256, 70, 14, 22, 74  # pixels
COLUMNS = 6  # crops in a row of a sheet
CONTEXT = 1.8  # side of the crop, by the longer side of what it shows
LEAST = 48  # pixels of the picture that a crop shows at least
PREDICTED, TRUE = "#d55e00", "#0072b2"  # orange and blue, which everybody tells apart


class Crop(NamedTuple):
    """A crop of an error.

    Args:
        name: Of its file: rank, type, class and image.
        image: The crop with its lines of text below.
    """

    name: str
    image: Image.Image


def crops_of(mined: MiningRound, table: Columns, number: int, suspected: bool = False) -> list[Crop]:
    """Crops of the hardest errors, or of the errors that may be missing annotations.

    Args:
        mined: The round, with pictures.
        table: Of ``mined_table``.
        number: How many at most.
        suspected: Whether to show the suspected label errors instead of the others.

    Returns:
        The crops by rank.
    """
    rows = [row for row, suspect in enumerate(table["suspected_label_error"]) if suspect == suspected]
    rows.sort(key=lambda row: table["rank"][row])
    return [_crop(mined, {name: column[row] for name, column in table.items()}) for row in rows[:number]]


def _crop(mined: MiningRound, error: dict[str, Any]) -> Crop:
    """The crop of one row of the table."""
    assert mined.picture is not None
    picture = mined.picture(error["image_index"]).convert("RGB")
    boxes = {
        colour: [error[f"{of}_{corner}"] for corner in CORNERS]
        for of, colour in (("prediction", PREDICTED), ("truth", TRUE))
        if error[f"{of}_index"] is not None
    }
    corners = np.array(list(boxes.values()), np.float64)
    left, top, right, bottom = crop_window(corners, picture.size)
    shifted = Boxes(corners - np.array([left, top, left, top]), list(boxes))
    cell = Image.new("RGB", (CELL, CELL + STRIP), "white")
    drawn = draw_boxes(picture.crop((left, top, right, bottom)), shifted, CELL)
    cell.paste(drawn, ((CELL - drawn.width) // 2, (CELL - drawn.height) // 2))
    pen, y = ImageDraw.Draw(cell), CELL + 12
    heading = f"#{error['rank']} {error['type']}"
    pen.text((0, y), heading, fill=INK, font=typeface(13, bold=True), anchor="lm")
    start = typeface(13, bold=True).getlength(heading) + 10
    _write(pen, start, y, PurePath(error["file_name"]).name, QUIET, 11)
    for text, colour in lines_of(error):
        y += 19
        pen.rectangle((0, y - 5, 9, y + 5), fill=colour)
        _write(pen, 16, y, text, INK, 12)
    return Crop(crop_name(error), cell)


def crop_window(corners: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of a picture that shows some boxes with what is around them, a square where the picture has room.

    Args:
        corners: (n, 4) xyxy, n at least 1; may leave the picture.
        size: Width and height of the picture.

    Returns:
        Left, top, right and bottom in whole pixels of the picture.

    >>> crop_window(np.array([[40.0, 40, 60, 50]]), (100, 100)), crop_window(np.array([[0.0, 0, 90, 9]]), (100, 40))
    ((26, 21, 74, 69), (0, 0, 100, 40))
    """
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    side = max(LEAST, CONTEXT * float((high - low).max()))
    spans = []
    for centre, length in zip((low + high) / 2, size, strict=True):
        taken = min(round(side), length)
        start = int(np.clip(round(float(centre) - taken / 2), 0, length - taken))
        spans.append((start, start + taken))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def lines_of(error: dict[str, Any]) -> list[tuple[str, str]]:
    """What is written below a crop, with the colour of the box that it is about."""
    if error["type"] == "missed":
        return [(f"missed: {error['class_name']}", TRUE)]
    lines = [(f"predicted: {error['class_name']} {error['confidence']:.2f}", PREDICTED)]
    if error["truth_index"] is None:
        return [*lines, (f"no annotated object (IoU {error['iou']:.2f})", "#ffffff")]
    return [*lines, (f"true: {error['truth_class_name']}, IoU {error['iou']:.2f}", TRUE)]


def crop_name(error: dict[str, Any]) -> str:
    """The name of a crop's file.

    >>> crop_name({"rank": 7, "type": "class", "class_name": "storage tank", "file_name": "part/a b.jpg"})
    '0007_class_storage_tank_a_b.png'
    """
    words = [error["type"], error["class_name"], PurePath(error["file_name"]).stem[-60:]]
    return "_".join([f"{error['rank']:04d}", *(re.sub(r"[^\w-]+", "_", word) for word in words)]) + ".png"


def is_crop_name(name: str) -> bool:
    """Whether a file may have been named by :func:`crop_name`."""
    return re.fullmatch(rf"\d{{4,}}_({'|'.join(TYPES)})_.*\.png", name) is not None


def crop_sheet(crops: Sequence[Crop], title: str) -> Image.Image:
    """Crops beside and below each other, by rank.

    Args:
        crops: At least one.
        title: Above them.
    """
    across, down = min(COLUMNS, len(crops)), -(-len(crops) // COLUMNS)
    width = 2 * MARGIN + max(3, across) * (CELL + GAP) - GAP
    sheet = Image.new("RGB", (width, HEAD + down * (CELL + STRIP + GAP) - GAP + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 24), title, fill=INK, font=typeface(21, bold=True), anchor="lm")
    x = MARGIN
    for text, colour in (("prediction", PREDICTED), ("truth", TRUE)):
        pen.rectangle((x, 44, x + 17, 57), outline=colour, width=3)
        pen.text((x + 25, 51), text, fill=QUIET, font=typeface(14), anchor="lm")
        x += 45 + int(typeface(14).getlength(text))
    for place, crop in enumerate(crops):
        row, column = divmod(place, COLUMNS)
        sheet.paste(crop.image, (MARGIN + column * (CELL + GAP), HEAD + row * (CELL + STRIP + GAP)))
    return sheet


def _write(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: str, size: int) -> None:
    """A line of text, cut where the crop ends."""
    font: ImageFont.FreeTypeFont = typeface(size)
    if font.getlength(text) > CELL - x:
        while text and font.getlength(f"{text}…") > CELL - x:
            text = text[:-1]
        text += "…"
    pen.text((x, y), text, fill=colour, font=font, anchor="lm")
