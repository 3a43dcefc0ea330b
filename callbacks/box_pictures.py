"""Draws boxes and heatmaps of detectors on pictures, and sheets of them; it knows no model and no file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from callbacks.panels import HIT, INK, MISS, QUIET

CELL = 256  # longest side of a picture on a sheet, in pixels
MARGIN, GAP, CAPTION, HEAD = 20, 12, 22, 88
COLOUR_MAP, OPACITY = "inferno", 0.65  # of the heatmap over the grey picture; lightness rises with the value
IOU = 0.2  # overlap from which on a sheet calls a box a hit
HIT_SIGN, MISS_SIGN = "\N{CHECK MARK}", "\N{BALLOT X}"  # beside the colours, for those who do not tell red from green
HEADINGS = ("true boxes", "heatmap", "inverted heatmap", "predicted boxes, scores")
PALETTE = ("#d95f02", "#7570b3", "#1b9e77", "#e7298a", "#4c8a14", "#a6761d", "#1f78b4", "#666666")  # of classes


class Boxes(NamedTuple):
    """Boxes with what is drawn of each.

    Args:
        corners: (n, 4) xyxy in pixels of the picture, ends exclusive; the most important first.
        colours: n colours.
        texts: n texts on the boxes, or none.
    """

    corners: np.ndarray
    colours: Sequence[str]
    texts: Sequence[str] = ()


class Cell(NamedTuple):
    """A picture on a sheet, with the line below it."""

    picture: Image.Image
    caption: str = ""


@cache
def typeface(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it, which has more signs than Pillow's own font."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def short(value: float) -> str:
    """A score in two digits.

    Example:
        >>> short(0.4), short(-0.0312), short(-0.0), short(26.0)
        ('0.40', '-0.031', '0.0', '26')
    """
    return f"{value + 0:#.2g}".rstrip(".")  # + 0 takes the sign from a zero


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The picture in RGB, with its longest side brought to ``side`` pixels."""
    return ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)


def draw_boxes(image: Image.Image, boxes: Boxes, side: int = CELL) -> Image.Image:
    """The picture with boxes. It is enlarged first, so that lines and texts are sharp on small pictures.

    Args:
        image: The picture that the boxes are measured in.
        boxes: What to draw; earlier boxes lie over later ones, and texts over all boxes.
        side: Longest side of the result in pixels.
    """
    drawn = enlarged(image, side)
    pen, font, width = ImageDraw.Draw(drawn), typeface(max(11, side // 45)), max(3, side // 200)
    scale = np.array([drawn.width / image.width, drawn.height / image.height] * 2)
    corners = (np.asarray(boxes.corners, dtype=np.float64).reshape(-1, 4) * scale).round().astype(int).tolist()
    for (left, top, right, bottom), colour in reversed(list(zip(corners, boxes.colours, strict=True))):
        ends = (left, top, max(left, right - 1), max(top, bottom - 1))
        pen.rectangle((ends[0] - 1, ends[1] - 1, ends[2] + 1, ends[3] + 1), outline="white")
        pen.rectangle(ends, outline=colour, width=width)
    if boxes.texts:
        for corner, colour, text in reversed(list(zip(corners, boxes.colours, boxes.texts, strict=True))):
            _tag(pen, corner, colour, text, font, drawn.width)
    return drawn


def _tag(
    pen: ImageDraw.ImageDraw, corners: list[int], colour: str, text: str, font: ImageFont.FreeTypeFont, right: int
) -> None:
    """A text in white on the colour of its box: above it, or inside at the upper edge of the picture."""
    wide, high = int(font.getlength(text)) + 6, font.size + 3
    x, y = max(0, min(corners[0], right - wide)), corners[1] - high if corners[1] >= high else max(0, corners[1])
    pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=colour)
    pen.text((x + 3, y + high / 2), text, fill="white", font=font, anchor="lm")


def heatmap_overlay(image: Image.Image, heatmap: np.ndarray) -> Image.Image:
    """The map in colours over the grey picture, in the picture's size.

    Args:
        image: The picture.
        heatmap: (rows, columns), which covers the whole picture. It is stretched from its own lowest to its own highest
            value, so colours of two maps do not compare; a constant map is all lowest.
    """
    from matplotlib import colormaps

    values = np.asarray(heatmap, dtype=np.float64)
    low, high = values.min(), values.max()
    stretched = (values - low) / (high - low) if high > low else np.zeros_like(values)
    smooth = Image.fromarray(stretched.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    colours = Image.fromarray(colormaps[COLOUR_MAP](np.asarray(smooth), bytes=True)[..., :3])
    return Image.blend(image.convert("L").convert("RGB"), colours, OPACITY)


def heatmap_row(
    image: Image.Image, heatmap: np.ndarray, truths: Boxes, found: Boxes, name: str, outcome: str
) -> list[Cell]:
    """A picture beside its heatmap, the inverted heatmap, and the boxes that were found.

    Args:
        image: The picture in its own size.
        heatmap: (rows, columns) of one class.
        truths: True boxes of the class.
        found: Predicted boxes of the class.
        name: Name of the picture.
        outcome: What the predicted boxes amount to.

    Returns:
        A cell for each of :data:`HEADINGS`.
    """
    large = enlarged(image, CELL)
    return [
        Cell(draw_boxes(image, truths), name if len(name) <= 36 else f"…{name[-35:]}"),
        Cell(heatmap_overlay(large, heatmap), f"{short(heatmap.min())} to {short(heatmap.max())}"),
        Cell(heatmap_overlay(large, -heatmap), f"{short(-heatmap.max())} to {short(-heatmap.min())}"),
        Cell(draw_boxes(image, found), outcome),
    ]


def contact_sheet(rows: Sequence[Sequence[Cell]], title: str) -> Image.Image:
    """Rows of :func:`heatmap_row` below each other, with title, legend and headings.

    Args:
        rows: One row a picture, a cell for each of :data:`HEADINGS`, none wider than :data:`CELL`.
        title: Above the sheet.
    """
    tops = [HEAD]  # of each row; pictures of one row are of one height
    for cells in rows:
        tops.append(tops[-1] + max(cell.picture.height for cell in cells) + CAPTION + GAP)
    width = 2 * MARGIN + len(HEADINGS) * (CELL + GAP) - GAP
    sheet = Image.new("RGB", (width, tops[-1] + MARGIN - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 30), title, fill=INK, font=typeface(22, bold=True), anchor="lm")
    _legend(sheet, pen)
    for column, heading in enumerate(HEADINGS):
        left = MARGIN + column * (CELL + GAP)
        pen.text((left + CELL / 2, HEAD - 16), heading, fill=INK, font=typeface(15), anchor="mm")
        for top, cells in zip(tops[:-1], rows, strict=True):
            picture, caption = cells[column]
            sheet.paste(picture, (left + (CELL - picture.width) // 2, top))
            pen.text((left + CELL / 2, top + picture.height + 11), caption, fill=QUIET, font=typeface(12), anchor="mm")
    return sheet


def _legend(sheet: Image.Image, pen: ImageDraw.ImageDraw) -> None:
    """What the colours mean, in the upper right corner, from right to left."""
    from matplotlib import colormaps

    ramp = Image.linear_gradient("L").rotate(90).resize((110, 12))
    x, font = sheet.width - MARGIN, typeface(13)
    pen.text((x, 30), "high", fill=QUIET, font=font, anchor="rm")
    x -= int(font.getlength("high")) + 6 + ramp.width
    sheet.paste(Image.fromarray(colormaps[COLOUR_MAP](np.asarray(ramp), bytes=True)[..., :3]), (x, 24))
    x -= 6
    pen.text((x, 30), "low", fill=QUIET, font=font, anchor="rm")
    x -= int(font.getlength("low")) + 24
    for words, colour in ((f"{MISS_SIGN} miss", MISS), (f"{HIT_SIGN} hit: IoU ≥ {IOU}", HIT)):
        pen.text((x, 30), words, fill=colour, font=font, anchor="rm")
        x -= int(font.getlength(words)) + 24
