"""Windows, stitching, strips and the decision, against the plain way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

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
    parts = w.windows(size, crop, stride)
    assert len(parts) == number
    seen = torch.zeros(size, dtype=torch.int64)
    for top, left, height, width in parts:
        assert (height, width) == (min(crop, size[0]), min(crop, size[1]))
        assert top + height <= size[0]
        assert left + width <= size[1]
        seen[top : top + height, left : left + width] += 1
    assert seen.min() == 1 or len(parts) > 1
    assert bool((seen > 0).all())


def test_stitching_is_the_mean_of_what_lies_over_a_pixel() -> None:
    g = torch.Generator().manual_seed(0)
    parts = w.windows((11, 17), 7, 3)
    logits = [torch.randn(4, 7, 7, generator=g) for _ in parts]
    found = w.stitch(logits, parts, (11, 17))
    for y in range(11):
        for x in range(17):
            over = [
                values[:, y - part.top, x - part.left]
                for values, part in zip(logits, parts, strict=True)
                if part.top <= y < part.top + 7 and part.left <= x < part.left + 7
            ]
            torch.testing.assert_close(found[:, y, x], torch.stack(over).mean(dim=0))


@pytest.mark.parametrize("size", [(5, 7), (40, 31), (13, 9), (1, 1)])
@pytest.mark.parametrize("strip", [1, 500, 2**24])
def test_strips_give_what_all_rows_at_once_give(size, strip, monkeypatch) -> None:
    monkeypatch.setattr(w, "STRIP", strip)
    logits = torch.randn(3, 13, 9, generator=torch.Generator().manual_seed(1))
    whole = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(w.in_strips(logits, size, lambda rows: rows[1]), whole[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("multiple", [4, 7, 16])
def test_padding_is_centred_and_can_be_cut_off(multiple) -> None:
    images = torch.randn(2, 3, 10, 13)
    padded, (top, left) = w.pad_to_multiple(images, multiple, value=5.0)
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert torch.equal(padded[..., top : top + 10, left : left + 13], images)
    assert padded.sum() - images.sum() == pytest.approx(5.0 * (padded.numel() - images.numel()), rel=1e-4)
    after = padded.shape[-2] - 10 - top
    assert after - top in (0, 1)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("synonyms", [[0, 1, 2, 3], [0, 0, 1, 2, 2, 3], [3, 1, 0, 2, 1]])
def test_the_decision_is_that_of_plain_loops(threshold, synonyms) -> None:
    logits = 0.1 * torch.randn(len(synonyms), 6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = w.decide_classes(logits, torch.tensor(synonyms), 4, scale=40.0, threshold=threshold)
    for y in range(6):
        for x in range(5):
            odds = (40 * logits[:, y, x]).exp()
            p = (odds / odds.sum()).tolist()
            of_class = [max((p[q] for q, c in enumerate(synonyms) if c == k), default=0.0) for k in range(4)]
            best = max(range(4), key=lambda k: of_class[k])
            assert found[y, x] == (best if of_class[best] >= threshold else 0)


def test_resizing_rounds_to_bytes() -> None:
    image = torch.tensor([[[0, 255]]], dtype=torch.uint8).expand(3, 1, 2)
    assert w.resize_picture(image, (1, 4))[0, 0].tolist() == [0, 64, 191, 255]
