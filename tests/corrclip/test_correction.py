"""Map correction against a loop over regions that counts every class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_modules.corrclip.correction import LARGE, correct_map


def region_by_region(prediction: list[int], ids: list[int]) -> list[int]:
    """One image, pixel after pixel."""
    found = list(prediction)
    for each in sorted(set(ids))[1:]:
        inside = [value for value, number in zip(prediction, ids, strict=True) if number == each]
        most = max(inside.count(value) for value in inside)
        winner = min(value for value in inside if inside.count(value) == most)
        found = [winner if number == each else value for value, number in zip(found, ids, strict=True)]
    return found


@pytest.mark.parametrize("seed", range(30))
def test_every_region_has_its_commonest_class(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes, regions, side = 1 + seed % 7, 1 + seed % 11, 3 + seed % 6
    prediction = torch.randint(0, classes, (3, side, 5), generator=generator)
    mask = torch.randint(0, 65536, (regions,), generator=generator)[
        torch.randint(0, regions, (3, side, 5), generator=generator)
    ]
    naive = [
        region_by_region(p.flatten().tolist(), m.flatten().tolist()) for p, m in zip(prediction, mask, strict=True)
    ]
    assert correct_map(prediction, mask).flatten(1).tolist() == naive
    assert correct_map(prediction[1], mask[1]).flatten().tolist() == naive[1]


def test_many_regions_of_thousands_of_classes_take_no_table_of_both() -> None:
    generator = torch.Generator().manual_seed(5)
    prediction = torch.randint(0, 3, (2, 60, 60), generator=generator) * 20_000  # of 40,001 classes, three occur
    mask = (torch.arange(3600) // 3).view(1, 60, 60).expand(2, -1, -1)
    counted = [
        region_by_region(p.flatten().tolist(), m.flatten().tolist()) for p, m in zip(prediction, mask, strict=True)
    ]
    assert LARGE < 2 * 1200 * 40_001
    assert correct_map(prediction, mask).flatten(1).tolist() == counted


def test_ties_go_to_the_smallest_class_and_the_smallest_id_stays() -> None:
    prediction = torch.tensor([[9, 3, 3, 9, 7, 1]])
    assert correct_map(prediction, torch.tensor([[4, 4, 4, 6, 6, 6]])).tolist() == [[9, 3, 3, 1, 1, 1]]
    assert torch.equal(correct_map(prediction, torch.full((1, 6), 8)), prediction)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_type_and_input_stay(dtype) -> None:
    prediction = torch.tensor([[255, 2, 2, 7]]).to(torch.int16 if dtype == torch.int16 else dtype)
    mask = torch.tensor([[0, 1, 1, 1]], dtype=dtype)
    before = prediction.clone()
    found = correct_map(prediction, mask)
    assert found.dtype == prediction.dtype
    assert found.tolist() == [[255, 2, 2, 2]]
    assert torch.equal(prediction, before)
    assert correct_map(prediction[:, :0], mask[:, :0]).shape == (1, 0)


def test_what_is_no_map() -> None:
    prediction = torch.zeros(2, 2).long()
    with pytest.raises(ValueError, match=r"instance_mask has shape \(2, 3\), but .* \(2, 2\)"):
        correct_map(prediction, torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match="ids from -1"):
        correct_map(prediction, prediction - 1)
    with pytest.raises(ValueError, match="ids from 0 to 70000"):
        correct_map(prediction, torch.tensor([[0, 0], [0, 70000]]))
    with pytest.raises(ValueError, match="class -1"):
        correct_map(prediction - 1, prediction)


LARGE_PHOTO = """
import re, torch
from pathlib import Path
from lightning_modules.corrclip.correction import correct_map
from lightning_modules.corrclip.stitching import PictureLogits, decide_classes, enlarging, label_map

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

torch.manual_seed(0)
logits = PictureLogits(torch.randn(171, 42, 56), enlarging(42, 336), enlarging(56, 448))
ids = (torch.arange(1000)[:, None] // 200 * 4 + torch.arange(1200) // 300).contiguous()
before = peak()
found = label_map(logits, (1000, 1200), lambda part: decide_classes(part, torch.arange(171), 0.1))
assert len(correct_map(found, ids)[ids > 0].unique()) <= 19
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_the_logits_of_a_large_photo_are_never_held() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", LARGE_PHOTO], cwd=root, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300  # MiB; the logits have 783
