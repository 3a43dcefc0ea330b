"""Draws label maps in colours, over pictures and with a legend; it knows no model and no file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from callbacks.box_pictures import typeface
from callbacks.panels import INK

Colour = tuple[int, int, int]
Pixels = NDArray[np.uint8]  # (..., 3) RGB

# Chosen so that the smallest distance of two in OKLab is large to full colour vision, protanopia and deuteranopia: 0.11
# where Okabe and Ito's eight have 0.08. Black and white are as far from all, so both stay free.
DOZEN = (
    *(0xF0E100, 0x2D3CB4, 0xD287FF, 0xB47800, 0x693C00, 0x0F7896),
    *(0x69E1FF, 0x781E69, 0x78C33C, 0x7869E1, 0xFFC3A5, 0xC32D5A),
)
DISTINCT = 255  # colours; nobody tells more apart, so they come again
BACKGROUND = "background"  # a class of this name is black
GREY, PALE = (128, 128, 128), (176, 176, 176)  # stripes of pixels without a class
STRIPE = 5  # pixels, width of a stripe
FINE = 320  # pixels, side of a picture whose boundaries are a pixel wide
OPACITY = 0.5  # of the colours over a picture
LONGEST = 28  # characters of a name in a legend
LMS = ((0.4122215, 0.5363325, 0.0514460), (0.2119035, 0.6806995, 0.1073970), (0.0883025, 0.2817188, 0.6299787))
LAB = ((0.2104543, 0.7936178, -0.0040720), (1.9779985, -2.4285922, 0.4505937), (0.0259040, 0.7827718, -0.8086758))


def oklab(colours: NDArray[np.generic]) -> NDArray[np.float64]:
    """Colours in a space where distances are what eyes see.

    Args:
        colours: (..., 3) sRGB, 0 to 255.

    Returns:
        (..., 3) lightness from 0 to 1, green to red, blue to yellow.

    Reference:
        Ottosson, "A perceptual color space for image processing", 2020.

    >>> oklab(np.array([255, 255, 255])).round(3).tolist()
    [1.0, -0.0, 0.0]
    """
    values = np.asarray(colours, np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    lab: NDArray[np.float64] = np.cbrt(linear @ np.array(LMS).T) @ np.array(LAB).T
    return lab


@cache
def distinct_colours(count: int) -> Pixels:
    """Colours that are told apart: a dozen that are so for the colour-blind too, then each far from all before it.

    Args:
        count: How many; from 256 on they repeat.

    Returns:
        (count, 3), the same at each call; fewer colours are the first of more.

    >>> distinct_colours(300)[[0, 1, 255]].tolist()
    [[240, 225, 0], [45, 60, 180], [240, 225, 0]]
    """
    dozen = [(colour >> 16, colour >> 8 & 255, colour & 255) for colour in DOZEN]
    steps = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)  # (4096, 3)
    chroma = np.linalg.norm(oklab(grid)[:, 1:], axis=1)
    grid = grid[(chroma > 0.06) & (chroma < 0.22) & (oklab(grid)[:, 0] > 0.35)]  # none that is grey, garish or dark
    places, chosen = oklab(grid), [*dozen]
    taken = oklab(np.array([*dozen, (0, 0, 0), (255, 255, 255), GREY, PALE]))
    gap = np.linalg.norm(places[:, None] - taken, axis=-1).min(1)  # of each to its nearest
    while len(chosen) < min(count, DISTINCT):
        furthest = int(gap.argmax())
        chosen.append(tuple(grid[furthest].tolist()))
        gap = np.minimum(gap, np.linalg.norm(places - places[furthest], axis=-1))
    colours = np.array(chosen, np.uint8)[np.arange(count) % DISTINCT]
    colours.flags.writeable = False  # the cache hands out this array again
    return colours


def class_colours(names: Sequence[str]) -> Pixels:
    """A colour for each class: background is black, the others take ``distinct_colours`` in their order.

    Args:
        names: C classes.

    Returns:
        (C, 3).

    >>> class_colours(["background", "cat"]).tolist()
    [[0, 0, 0], [240, 225, 0]]
    """
    coloured = np.array([name != BACKGROUND for name in names], bool)
    colours = np.zeros((len(names), 3), np.uint8)
    colours[coloured] = distinct_colours(int(coloured.sum()))
    return colours


def region_colours(count: int) -> Pixels:
    """Colours for regions, of which those with close numbers differ most; they mean nothing.

    Args:
        count: How many.

    Returns:
        (count, 3), the same at each call.
    """
    from matplotlib.colors import hsv_to_rgb

    number = np.arange(count)
    hue = number * 0.618034 % 1  # by the golden section, so that each falls into a wide gap
    saturation, value = np.array([0.45, 0.75, 0.6])[number % 3], np.array([0.95, 0.8, 0.6])[number // 3 % 3]
    colours: Pixels = (hsv_to_rgb(np.stack([hue, saturation, value], axis=-1)) * 255).round().astype(np.uint8)
    return colours


def indexed_picture(labels: NDArray[np.integer], colours: Pixels) -> Image.Image:
    """A label map whose pixels are the labels: with a palette of 8 bits, or grey of 16 bits for more than 255 classes.

    Args:
        labels: (H, W), from 0.
        colours: (C, 3) of the classes; the palette has grey beyond them.

    >>> picture = indexed_picture(np.array([[1, 0]]), class_colours(["background", "cat"]))
    >>> picture.mode, picture.getpixel((0, 0)), picture.convert("RGB").getpixel((0, 0))
    ('P', 1, (240, 225, 0))
    """
    if len(colours) > 255:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    palette = np.full((256, 3), GREY, np.uint8)
    palette[: len(colours)] = colours
    picture.putpalette(palette.tobytes())
    return picture


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with the longest side brought to ``side`` pixels.

    >>> fitted((200, 100), 50), fitted((1, 3000), 50)
    ((50, 25), (1, 50))
    """
    width, height = (max(1, round(length * side / max(size))) for length in size)
    return width, height


def painted(labels: NDArray[np.integer], colours: Pixels) -> Pixels:
    """A label map in colours, with grey stripes where a label has none.

    Args:
        labels: (H, W).
        colours: (C, 3).

    Returns:
        (H, W, 3).
    """
    diagonal = np.add.outer(np.arange(labels.shape[0]), np.arange(labels.shape[1]))
    stripes = np.array([GREY, PALE], np.uint8)[diagonal // STRIPE % 2]
    known = (labels >= 0) & (labels < len(colours))
    table = np.concatenate([colours, np.array([GREY], np.uint8)])  # one row more, as there may be no colour
    return np.where(known[..., None], table[np.where(known, labels, len(colours))], stripes)


def boundaries(labels: NDArray[np.integer], width: int) -> NDArray[np.bool_]:
    """Lines where a label map changes.

    Args:
        labels: (H, W).
        width: Of the lines in pixels, half of it on each side; an odd one is wider on the right and lower side.

    Returns:
        (H, W).

    >>> boundaries(np.array([[4, 4, 7, 7]]), 2).tolist(), boundaries(np.array([[4, 4, 7, 7]]), 1).tolist()
    ([[False, True, True, False]], [[False, False, True, False]])
    """
    found, half = np.zeros(labels.shape, bool), width // 2
    for lines, values in zip((found, found.T), (labels, labels.T), strict=True):  # rows, then columns
        changes = values[width:] != values[:-width]
        lines[width - half : width - half + len(changes)] |= changes
    return found


def label_picture(
    labels: NDArray[np.integer], colours: Pixels, side: int, image: Pixels | None = None, opacity: float = OPACITY
) -> Image.Image:
    """A label map in colours with white boundaries, alone or over its picture.

    Args:
        labels: (H, W).
        colours: (C, 3); a label without one gets grey stripes.
        side: Longest side of the result in pixels.
        image: (H, W, 3) to see through the colours.
        opacity: Of the colours, where there is a picture.
    """
    height, width = labels.shape
    size = fitted((width, height), side)
    large = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    drawn = painted(large, colours)
    if image is not None:
        below = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        drawn = np.array(Image.blend(below, Image.fromarray(drawn), opacity))
    drawn[boundaries(large, max(1, side // FINE))] = 255
    return Image.fromarray(drawn)


def legend(entries: Sequence[tuple[str, Colour | None]], width: int, size: int = 13) -> Image.Image:
    """Names beside their colours, in as many columns as the width holds.

    Args:
        entries: Each a text and its colour; None = the grey stripes.
        width: Of the result in pixels.
        size: Of the font in pixels.

    Returns:
        A white picture; higher for more entries.
    """
    font, box, line = typeface(size), size, round(1.7 * size)
    texts = [text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text, _ in entries]
    column = max((int(font.getlength(text)) for text in texts), default=0) + round(2.9 * box)
    columns = max(1, min(len(entries), width // column))
    drawn = Image.new("RGB", (width, line * -(-len(entries) // columns)), "white")
    pen = ImageDraw.Draw(drawn)
    for number, (text, (_, colour)) in enumerate(zip(texts, entries, strict=True)):
        left, top = number % columns * (width // columns), number // columns * line + (line - box) // 2
        swatch = np.full((box, box), -1 if colour is None else 0)
        drawn.paste(Image.fromarray(painted(swatch, np.array([colour or GREY], np.uint8))), (left, top))
        pen.text((left + 1.5 * box, top + box / 2), text, fill=INK, font=font, anchor="lm")
    return drawn
