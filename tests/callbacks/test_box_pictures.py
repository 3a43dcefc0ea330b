"""Boxes, heatmaps and sheets, by the colours of pixels whose place is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image, ImageColor

from callbacks.box_pictures import (
    CELL,
    COLOUR_MAP,
    GAP,
    HEAD,
    HEADINGS,
    MARGIN,
    OPACITY,
    Boxes,
    Cell,
    contact_sheet,
    draw_boxes,
    enlarged,
    heatmap_overlay,
    heatmap_row,
)

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def colour_of(value: float, grey: int = 0) -> tuple[int, ...]:
    """What a pixel of a grey picture looks like under a stretched value."""
    return tuple(round(OPACITY * 255 * c + (1 - OPACITY) * grey) for c in colormaps[COLOUR_MAP](value)[:3])


def close(found, wanted, by=2) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= by


def test_a_box_is_drawn_on_the_pixels_at_its_inner_edge() -> None:
    drawn = draw_boxes(Image.new("RGB", (100, 50)), Boxes(np.array([[20.0, 10, 60, 40]]), ["red"]), side=200)
    assert drawn.size == (200, 100)
    # twice enlarged: columns 40 to 119, rows 20 to 79, three pixels wide, a white line around
    row = [drawn.getpixel((x, 50)) for x in range(200)]
    assert [x for x, pixel in enumerate(row) if pixel == RED] == [40, 41, 42, 117, 118, 119]
    assert [x for x, pixel in enumerate(row) if pixel == WHITE] == [39, 120]
    column = [drawn.getpixel((80, y)) for y in range(100)]
    assert [y for y, pixel in enumerate(column) if pixel == RED] == [20, 21, 22, 77, 78, 79]
    assert set(row + column) == {RED, WHITE, BLACK}


def test_earlier_boxes_lie_over_later_ones() -> None:
    same = np.array([[10, 10, 90, 90], [10, 10, 90, 90]])
    assert draw_boxes(Image.new("RGB", (100, 100)), Boxes(same, ["red", "blue"]), 100).getpixel((10, 50)) == RED
    assert draw_boxes(Image.new("RGB", (100, 100)), Boxes(same, ["blue", "red"]), 100).getpixel((10, 50)) == BLUE


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((20, 40, 80, 90), (21, 39)),  # above the box
        ((20, 0, 80, 90), (21, 1)),  # in it, where the picture ends
        ((95, 50, 100, 90), (98, 48)),  # moved to the left
        ((-30, -20, 50, 90), (1, 1)),
    ],
)
def test_texts_stand_where_they_can_be_read(box, inside) -> None:
    drawn = draw_boxes(Image.new("RGB", (100, 100)), Boxes(np.array([box]), ["red"], ["0.5"]), 100)
    assert drawn.getpixel(inside) == RED
    bare = draw_boxes(Image.new("RGB", (100, 100)), Boxes(np.array([box]), ["red"]), 100)
    changed = np.argwhere((np.array(drawn) != np.array(bare)).any(axis=-1))
    assert len(changed) > 100
    assert (np.array(drawn)[tuple(changed.T)] == WHITE).all(axis=-1).any()


def test_boxes_without_area_and_no_boxes_at_all() -> None:
    picture = Image.new("L", (30, 30))
    assert draw_boxes(picture, Boxes(np.zeros((0, 4)), []), 60).getcolors() == [(3600, BLACK)]
    drawn = draw_boxes(picture, Boxes(np.array([[10, 10, 10, 10], [-9, -9, -5, -5]]), ["red", "blue"]), 60)
    assert drawn.getpixel((20, 20)) == RED


@pytest.mark.parametrize(("size", "expected"), [((96, 96), (256, 256)), ((800, 400), (256, 128)), ((3, 6), (128, 256))])
def test_pictures_are_brought_to_one_side(size, expected) -> None:
    assert enlarged(Image.new("RGB", size), CELL).size == expected


def test_a_heatmap_is_stretched_and_shows_the_picture() -> None:
    picture = Image.new("RGB", (80, 40), (100, 100, 100))
    drawn = heatmap_overlay(picture, np.array([[-0.25, 0.75], [0.25, 0.25]]))
    assert drawn.size == (80, 40)
    assert close(drawn.getpixel((0, 0)), colour_of(0.0, 100))
    assert close(drawn.getpixel((79, 0)), colour_of(1.0, 100))
    assert close(drawn.getpixel((0, 39)), colour_of(0.5, 100))
    inverted = heatmap_overlay(picture, -np.array([[-0.25, 0.75], [0.25, 0.25]]))
    assert close(inverted.getpixel((0, 0)), colour_of(1.0, 100))
    assert close(inverted.getpixel((79, 0)), colour_of(0.0, 100))


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-30])
def test_a_constant_map_is_all_lowest(value) -> None:
    with np.errstate(all="raise"):
        drawn = heatmap_overlay(Image.new("RGB", (20, 20)), np.full((4, 4), value, np.float32))
    ((count, pixel),) = drawn.getcolors()
    assert count == 400
    assert close(pixel, colour_of(0.0))


def test_colours_grow_lighter_with_the_value() -> None:
    ramp = heatmap_overlay(Image.new("RGB", (64, 1)), np.arange(64, dtype=np.float32)[None])
    lightness = np.array(ramp.convert("L"))[0].astype(int)
    assert (np.diff(lightness) >= 0).all()
    assert lightness[-1] - lightness[0] > 100


def test_a_row_shows_truths_both_maps_and_what_was_found() -> None:
    heatmap = np.array([[0.0, 0.4], [0.0, 0.4]], dtype=np.float32)
    truths, found = Boxes(np.array([[0, 0, 10, 10]]), ["red"]), Boxes(np.array([[10, 10, 20, 20]]), ["blue"])
    row = heatmap_row(Image.new("RGB", (20, 20)), heatmap, truths, found, "x" * 40, "nothing")
    assert len(row) == len(HEADINGS)
    assert {cell.picture.size for cell in row} == {(CELL, CELL)}
    assert [cell.caption for cell in row] == ["…" + "x" * 35, "0.0 to 0.40", "-0.40 to 0.0", "nothing"]
    assert row[0].picture.getpixel((0, 60)) == RED
    assert row[3].picture.getpixel((128, 200)) == BLUE
    assert close(row[1].picture.getpixel((255, 9)), colour_of(1.0))
    assert close(row[2].picture.getpixel((255, 9)), colour_of(0.0))


def test_a_sheet_has_its_pictures_in_columns_under_headings() -> None:
    colours = ["red", "lime", "blue", "black"]
    rows = [[Cell(Image.new("RGB", (CELL, height), colour), "below") for colour in colours] for height in (256, 100)]
    sheet = contact_sheet(rows, "title")
    second = HEAD + 256 + 22 + GAP
    assert sheet.size == (2 * MARGIN + 4 * CELL + 3 * GAP, second + 100 + 22 + MARGIN)
    pixels = np.array(sheet)
    for column, colour in enumerate(colours):
        left = MARGIN + column * (CELL + GAP)
        for top, height in ((HEAD, 256), (second, 100)):
            block = pixels[top : top + height, left : left + CELL]
            assert (block == ImageColor.getrgb(colour)).all()
            assert (pixels[top + height : top + height + 22, left : left + CELL] < 255).any()  # a line below it
        assert (pixels[HEAD - 26 : HEAD - 6, left : left + CELL] < 255).any()
    assert (pixels[:, :MARGIN] == 255).all()
    assert (pixels[:, -MARGIN:] == 255).all()


def test_a_narrow_picture_stands_in_the_middle_of_its_cell() -> None:
    sheet = contact_sheet([[Cell(Image.new("RGB", (100, CELL), "red"))] * 4], "")
    row = np.array(sheet)[HEAD + 5, MARGIN : MARGIN + CELL]
    assert np.flatnonzero((row == RED).all(axis=-1)).tolist() == list(range(78, 178))
