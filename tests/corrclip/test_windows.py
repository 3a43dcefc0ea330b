"""Sizes, windows and padding, against values worked out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_modules.corrclip import windows as w


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [((375, 500), 336, (336, 448)), ((500, 375), 336, (448, 336)), ((512, 683), 448, (448, 598)), ((9, 3), 6, (18, 6))],
)
def test_the_shorter_side_gets_its_length(size, short, expected) -> None:
    assert w.resized_size(size, short) == expected


def test_the_longer_side_is_bounded_and_no_side_vanishes() -> None:
    assert w.resized_size((100, 4000), 336) == (51, 2048)
    assert w.resized_size((1, 9000), 336) == (1, 2048)


@pytest.mark.parametrize(
    ("size", "crop", "stride", "number"),
    [((336, 448), 336, 112, 2), ((336, 450), 336, 112, 3), ((448, 598), 336, 112, 8), ((448, 896), 224, 112, 21),
     ((100, 100), 336, 112, 1), ((784, 1568), 224, 112, 78), ((336, 336), 336, 112, 1)],
)  # fmt: skip
def test_windows_cover_the_picture_and_end_at_its_border(size, crop, stride, number) -> None:
    starts = [w.window_starts(side, crop, stride) for side in size]
    assert len(starts[0]) * len(starts[1]) == number
    for side, first in zip(size, starts, strict=True):
        length = min(crop, side)
        assert first[0] == 0
        assert first[-1] + length == side
        assert all(0 < later - earlier <= stride for earlier, later in itertools.pairwise(first))


@pytest.mark.parametrize("multiple", [4, 7, 16])
def test_padding_is_centred_and_can_be_cut_off(multiple) -> None:
    images = torch.randn(2, 3, 10, 13)
    padded = w.pad_to_multiple(images, multiple, value=5.0)
    (top, height), (left, width) = w.padding(10, multiple), w.padding(13, multiple)
    assert padded.shape == (2, 3, height, width)
    assert height % multiple == width % multiple == 0
    assert torch.equal(padded[..., top : top + 10, left : left + 13], images)
    assert padded.sum() - images.sum() == pytest.approx(5.0 * (padded.numel() - images.numel()), rel=1e-4)
    assert height - 10 - 2 * top in (0, 1)


def test_resizing_rounds_to_bytes() -> None:
    image = torch.tensor([[[0, 255]]], dtype=torch.uint8).expand(3, 1, 2)
    assert w.resize_picture(image, (1, 4))[0, 0].tolist() == [0, 64, 191, 255]
