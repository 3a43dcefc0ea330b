from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from datamodules.box_records import (
    BoxRecords,
    Entry,
    check_objects,
    class_columns,
    find_class,
    join_records,
    tile_records,
    tile_starts,
)


def entry(column, numbers, ignore=False):
    return Entry({0: "ship", 1: "storage-tank", 2: "dam"}.get(column, "other"), column, numbers, ignore)


def one_picture(boxes, size=(10, 12), polygons=None):
    boxes = np.array(boxes, np.float32)
    corners = None if polygons is None else [np.array(polygons, np.float32)]
    labels, ignore = np.arange(len(boxes)), np.zeros(len(boxes), bool)
    sizes = np.array([size])
    names = [str(i) for i in range(len(boxes))]
    return BoxRecords(["p"], [Path("p.png")], sizes, [boxes], [labels], [ignore], names, corners)


def test_tiles_clip_boxes_exactly():
    # 12 wide, 10 high, tiles of 8 that share 4: lefts 0, 4 and tops 0, 2
    square = [[6, 0], [8, 0], [8, 2], [6, 2]]
    tiles = tile_records(one_picture([[6, 0, 8, 2], [2, 1, 12, 3]], polygons=[square, square]), 8, 4)
    assert tiles.ids == ["p_x0_y0", "p_x4_y0", "p_x0_y2", "p_x4_y2"]
    assert tiles.windows == [(0, 0, 8, 8), (4, 0, 12, 8), (0, 2, 8, 10), (4, 2, 12, 10)]
    assert tiles.sizes.tolist() == [[8, 8]] * 4
    assert tiles.boxes[0].tolist() == [[6, 0, 8, 2], [2, 1, 8, 3]]
    assert tiles.boxes[1].tolist() == [[2, 0, 4, 2], [0, 1, 8, 3]]
    assert tiles.boxes[2].tolist() == [[2, 0, 8, 1]]  # of the first box nothing is left
    assert tiles.boxes[3].tolist() == [[0, 0, 8, 1]]
    assert [labels.tolist() for labels in tiles.box_labels] == [[0, 1], [0, 1], [1], [1]]
    # visible parts of the second box: 6 of 10 wide; 8 of 10; 6 of 10 in half its height; 8 of 10 in half
    assert [ignore.tolist() for ignore in tiles.ignore] == [[False, False], [False, False], [True], [True]]
    assert tiles.polygons[1][0].tolist() == [[2, 0], [4, 0], [4, 2], [2, 2]]
    assert tiles.presence().tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


def test_half_of_a_box_still_counts():
    tiles = tile_records(one_picture([[2, 0, 6, 4]], size=(4, 8)), 4, 0)
    assert [ignore.tolist() for ignore in tiles.ignore] == [[False], [False]]
    tiles = tile_records(one_picture([[2.1, 0, 6, 4]], size=(4, 8)), 4, 0)
    assert [ignore.tolist() for ignore in tiles.ignore] == [[True], [False]]


def test_small_pictures_stay_whole():
    records = one_picture([[1, 1, 3, 3]], size=(8, 8))
    tiles = tile_records(records, 8, 0)
    assert (tiles.ids, tiles.windows) == (["p"], [(0, 0, 8, 8)])
    assert np.array_equal(tiles.boxes[0], records.boxes[0])
    narrow = tile_records(one_picture([[1, 1, 3, 3]], size=(5, 20)), 8, 2)
    assert narrow.windows == [(0, 0, 8, 5), (6, 0, 14, 5), (12, 0, 20, 5)]
    assert narrow.sizes.tolist() == [[5, 8]] * 3


@pytest.mark.parametrize(("length", "tile", "overlap"), [(100, 30, 10), (90, 30, 0), (31, 30, 29), (1000, 512, 128)])
def test_tiles_cover_a_side_and_overlap(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    assert {pixel for start in starts for pixel in range(start, start + tile)} == set(range(length))
    assert all(before + tile - after >= overlap for before, after in pairwise(starts))
    assert starts[0] == 0
    assert starts[-1] == length - tile


def test_objects_are_clipped_by_a_pixel_and_corners_by_any_amount():
    found = check_objects(
        [entry(1, (-1, 0.5, 4, 13)), entry(-1, (0, 0, 1, 1)), entry(2, (1, 2, 3, 4), True)], (12, 9), "f"
    )
    assert found.boxes.tolist() == [[0, 0.5, 4, 12], [1, 2, 3, 4]]
    assert (found.labels.tolist(), found.ignore.tolist()) == ([1, 2], [False, True])
    assert (found.boxes.dtype, found.labels.dtype, found.ignore.dtype) == (np.float32, np.int64, bool)
    assert found.polygons.shape == (0, 4, 2)
    turned = check_objects([entry(0, (3, -4, 8, 1, 3, 6, -2, 1))], (12, 9), "f")
    assert turned.boxes.tolist() == [[0, 0, 8, 6]]
    assert turned.polygons.tolist() == [[[3, -4], [8, 1], [3, 6], [-2, 1]]]
    nothing = check_objects([], (12, 9), "f")
    assert (nothing.boxes.shape, nothing.polygons.shape) == ((0, 4), (0, 4, 2))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((4, 1, 2, 3), r"box \[4, 1, 2, 3\] is empty or inverted"),
        ((1, 3, 2, 3), "is empty or inverted"),
        ((1, 1, 2, 13.5), r"is outside the picture of 9 x 12 pixels"),
        ((-1.5, 1, 2, 3), "is outside the picture"),
        ((9, 1, 10, 3), "is outside the picture"),
        ((float("nan"), 1, 2, 3), "is not finite"),
        ((1, 1, float("inf"), 3), "is not finite"),
        ((20, 1, 22, 1, 22, 3, 20, 3), "is outside the picture"),
        ((2, 2, 2, 2, 2, 2, 2, 2), "is empty or inverted"),
    ],
)
def test_wrong_boxes_are_refused(numbers, message):
    with pytest.raises(ValueError, match=rf"^a\.xml, object 2 \(dam\): .*{message}.* Correct the object"):
        check_objects([entry(0, (0, 0, 1, 1)), entry(2, numbers)], (12, 9), "a.xml")


def test_class_names_match_without_case_and_hyphens():
    columns = class_columns(["ship", "Storage-Tank"])
    assert find_class("storage_tank", columns, "f") == find_class("STORAGETANK", columns, "f") == 1
    with pytest.raises(ValueError, match=r"^f: unknown class 'storagetanks'\. Nearest: storagetank\. Rename it"):
        find_class("storagetanks", columns, "f")
    with pytest.raises(ValueError, match="Nearest: ship, storagetank"):
        find_class("qqq", columns, "f")
    with pytest.raises(ValueError, match="classes has storage tank twice"):
        class_columns(["storage-tank", "ship", "storage tank"])
    with pytest.raises(ValueError, match="classes is empty"):
        class_columns([])


def test_take_and_join():
    a = one_picture([[1, 1, 3, 3], [2, 2, 4, 4]], polygons=[[[0, 0]] * 4] * 2)
    both = join_records([a, a])
    assert (both.ids, len(both.polygons), both.sizes.tolist()) == (["p", "p"], 2, [[10, 12]] * 2)
    assert both.windows is None
    assert both.take(np.array([1])).boxes[0].tolist() == a.boxes[0].tolist()
    assert len(both.take([])) == 0
    ignored = BoxRecords(**{**vars(a), "ignore": [np.array([True, False])]})
    assert ignored.presence().tolist() == [[0, 1]]
    assert ignored.presence().dtype == np.uint8
