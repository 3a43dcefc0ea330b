"""Pictures of what was retrieved, hits framed green and misses red."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIT, MISS = "#1a9641", "#d7301f"
HIT_TINT, MISS_TINT = "#e6f4e9", "#fdebe8"
INK, QUIET = "#222222", "#777777"
CELL = 1.0  # inches, the side of a picture
LINE = 0.205  # inches, a line of a list of captions
DPI = 150


@dataclass(frozen=True)
class Example:
    """An item as people see it.

    Args:
        picture: The image, where the data has one.
        text: Caption, or id and labels.
    """

    picture: Image.Image | None
    text: str


@dataclass(frozen=True)
class Found:
    """An item at a rank.

    Args:
        example: The item.
        distance: Hamming distance to the query.
        hit: Whether it shares a label with the query.
    """

    example: Example
    distance: int
    hit: bool


Answer = tuple[Example, list[Found]]  # a query and its nearest items, nearest first


def images_figure(answers: list[Answer], title: str) -> Figure:
    """A row for each query text: the text, then the images found.

    Args:
        answers: Queries with what was found.
        title: Above the figure.

    Returns:
        The figure, one inch a picture.
    """
    from matplotlib.figure import Figure

    columns, left, gap, top = max(len(found) for _, found in answers), 2.5, 0.1, 0.75
    pitch = CELL + 0.32
    width, height = left + columns * (CELL + gap) + 0.1, top + len(answers) * pitch
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    _heading(figure, title, width, height)
    for column in range(columns):
        x = left + column * (CELL + gap) + CELL / 2
        figure.text(x / width, 1 - (top - 0.07) / height, str(column + 1), ha="center", size=8, color=QUIET)
    for row, (query, found) in enumerate(answers):
        bottom = height - top - row * pitch - CELL
        words = textwrap.fill(f"“{_short(query.text, 150)}”", 33)
        figure.text(0.1 / width, (bottom + CELL / 2) / height, words, va="center", size=8.5, color=INK, linespacing=1.3)
        for column, entry in enumerate(found):
            x = left + column * (CELL + gap)
            axes = figure.add_axes((x / width, bottom / height, CELL / width, CELL / height))
            _picture(axes, entry.example, frame=HIT if entry.hit else MISS)
            mark = f"{_mark(entry)} d={entry.distance}"
            axes.set_xlabel(mark, size=7.5, color=HIT if entry.hit else MISS, labelpad=3)
    return figure


def texts_figure(answers: list[Answer], title: str) -> Figure:
    """A row for each query image: the image, then the captions found, in two columns.

    Args:
        answers: Queries with what was found.
        title: Above the figure.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    side, left, column_width, top = 1.25, 1.6, 5.0, 0.6
    lines = -(-max(len(found) for _, found in answers) // 2)
    pitch = max(side, lines * (LINE + 0.045)) + 0.22
    width, height = left + 2 * column_width + 0.1, top + len(answers) * pitch
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    _heading(figure, title, width, height)
    for row, (query, found) in enumerate(answers):
        ceiling = height - top - row * pitch
        axes = figure.add_axes((0.1 / width, (ceiling - side) / height, side / width, side / height))
        _picture(axes, query, frame="#bbbbbb")
        for rank, entry in enumerate(found):
            x, y = left + rank // lines * column_width, ceiling - (rank % lines + 1) * (LINE + 0.045)
            axes = figure.add_axes((x / width, y / height, (column_width - 0.12) / width, LINE / height))
            axes.set(xticks=[], yticks=[], facecolor=HIT_TINT if entry.hit else MISS_TINT)
            colour = HIT if entry.hit else MISS
            axes.spines[:].set(color=colour, linewidth=0.9, visible=True)
            line = {"va": "center_baseline", "transform": axes.transAxes, "size": 8}
            axes.text(0.035, 0.47, f"{rank + 1}", ha="right", color=QUIET, **line)
            axes.text(0.045, 0.47, _mark(entry), color=colour, **line)
            axes.text(0.08, 0.47, _short(entry.example.text, 70), color=INK, **line)
            axes.text(0.99, 0.47, f"d={entry.distance}", ha="right", color=QUIET, **{**line, "size": 7})
    return figure


def _heading(figure: Figure, title: str, width: float, height: float) -> None:
    figure.text(0.1 / width, 1 - 0.27 / height, title, size=11, weight="bold", color=INK)
    legend = ((f"{_TICK} hit: shares a label", HIT), (f"{_CROSS} miss", MISS), ("d: Hamming distance", QUIET))
    for place, (words, colour) in enumerate(legend):
        x = (width - 4.0 + (0, 1.65, 2.45)[place]) / width
        figure.text(x, 1 - 0.27 / height, words, size=8, color=colour)


def _picture(axes: Axes, example: Example, frame: str) -> None:
    """The picture cut to a square, or the text where there is no picture, in a frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=frame, linewidth=2.6, visible=True)
    if example.picture is None:
        words = textwrap.fill(_short(example.text, 60), 15)
        axes.text(0.5, 0.5, words, ha="center", va="center", size=7, color=INK, transform=axes.transAxes)
        return
    pixels = int(CELL * DPI * 1.25)
    axes.imshow(ImageOps.fit(example.picture, (pixels, pixels), Image.Resampling.LANCZOS), aspect="auto")


_TICK, _CROSS = "\N{CHECK MARK}", "\N{BALLOT X}"


def _mark(entry: Found) -> str:
    """A sign beside the colour, for readers who do not tell red from green."""
    return _TICK if entry.hit else _CROSS


def _short(text: str, length: int) -> str:
    return textwrap.shorten(text, length, placeholder=" …").replace("$", r"\$")  # else read as mathematics
