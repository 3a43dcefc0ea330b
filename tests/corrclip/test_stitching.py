"""Stitching, enlarging in strips and the decision, against the plain way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.corrclip import stitching as st
from lightning_modules.corrclip.windows import padding, window_starts


def picture_logits(size, crop, stride, multiple, grid, seed=0) -> tuple[st.PictureLogits, torch.Tensor]:
    """Random window logits as one map, and the same by windows: each enlarged, cut, added, divided by their number."""
    starts = [window_starts(side, crop, stride) for side in size]
    lengths = [min(crop, side) for side in size]
    pads = [padding(length, multiple) for length in lengths]
    g = torch.Generator().manual_seed(seed)
    grids = torch.randn(len(starts[0]), len(starts[1]), 3, *grid, generator=g)
    matrices = [
        st.stitching(first, length, side, cells, *pad)
        for first, length, side, cells, pad in zip(starts, lengths, size, grid, pads, strict=True)
    ]
    total, count = torch.zeros(3, *size), torch.zeros(size)
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            window = F.interpolate(grids[i, j][None], [pad[1] for pad in pads], mode="bilinear", align_corners=False)[0]
            place = (slice(top, top + lengths[0]), slice(left, left + lengths[1]))
            inside = [slice(pad[0], pad[0] + length) for pad, length in zip(pads, lengths, strict=True)]
            total[:, place[0], place[1]] += window[:, inside[0], inside[1]]
            count[place] += 1
    mosaic = grids.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return st.PictureLogits(mosaic, *matrices), total / count


@pytest.mark.parametrize(
    ("size", "crop", "stride", "multiple", "grid"),
    [((11, 17), 7, 3, 4, (4, 2)), ((8, 8), 8, 4, 8, (4, 4)), ((5, 30), 12, 5, 7, (2, 3)), ((1, 1), 6, 2, 3, (1, 3))],
)
@pytest.mark.parametrize("strip", [1, 200, 2**22])
def test_one_linear_map_is_what_windows_one_by_one_give(size, crop, stride, multiple, grid, strip, monkeypatch) -> None:
    monkeypatch.setattr(st, "STRIP", strip)
    logits, plain = picture_logits(size, crop, stride, multiple, grid)
    torch.testing.assert_close(logits.resized(size), plain, atol=1e-5, rtol=1e-5)
    for target in ((40, 31), (4, 6), (1, 1)):
        whole = F.interpolate(plain[None], target, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(logits.resized(target), whole, atol=1e-5, rtol=1e-5)
        first = st.label_map(logits, target, lambda part: part[1] > 0)
        assert (first != (whole[1] > 0)).sum() <= (whole[1].abs() < 1e-5).sum()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("synonyms", [[0, 1, 2, 3], [0, 0, 1, 2, 2, 3], [3, 1, 0, 2, 1]])
def test_the_decision_is_that_of_plain_loops(threshold, synonyms) -> None:
    logits = 0.1 * torch.randn(len(synonyms), 6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = st.decide_classes(40 * logits, torch.tensor(synonyms), threshold)
    for y in range(6):
        for x in range(5):
            odds = (40 * logits[:, y, x]).exp()
            p = (odds / odds.sum()).tolist()
            of_class = [max((p[q] for q, c in enumerate(synonyms) if c == k), default=0.0) for k in range(4)]
            best = max(range(4), key=lambda k: of_class[k])
            assert found[y, x] == (best if of_class[best] >= threshold else 0)


def test_equally_likely_classes_give_the_first() -> None:
    logits = torch.zeros(3, 1, 2)
    assert st.decide_classes(logits, torch.tensor([0, 1, 2])).tolist() == [[0, 0]]


def test_precision_bf16_true_stitches_in_float32() -> None:
    logits, _ = picture_logits((24, 31), 16, 8, 8, (2, 2))
    expected = logits.resized((40, 31))
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does under that precision
    try:
        matrix, found = st.stitching([0, 8], 16, 24, 2, 0, 16), logits.resized((40, 31))
    finally:
        torch.set_default_dtype(torch.float32)
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
