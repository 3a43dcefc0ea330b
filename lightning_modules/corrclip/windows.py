"""From a picture to overlapping windows, and from the logits of windows to a label map in the picture's size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 2**24  # values of the enlarged logits that are held at once
PADDED = 65535  # id of the region that pads a window; no source of masks gives it


class Window(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def resized_size(size: tuple[int, int], short: int, long: int = 2048) -> tuple[int, int]:
    """Height and width of a picture whose shorter side becomes ``short``, unless the longer one would exceed ``long``.

    >>> resized_size((375, 500), 336), resized_size((100, 1000), 336)
    ((336, 448), (205, 2048))
    """
    factor = min(long / max(size), short / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def resize_picture(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture in another size, bilinear without smoothing and rounded to bytes, as the reference resizes.

    Args:
        image: uint8 (3, H, W).
        size: Height and width.

    Returns:
        uint8 (3, height, width).
    """
    resized = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def windows(size: tuple[int, int], crop: int, stride: int) -> list[Window]:
    """Windows that cover a picture, row after row; the last of a row ends at the border.

    Args:
        size: Height and width of the picture.
        crop: Side of a window; a picture with a shorter side gives windows of that side.
        stride: Pixels from one to the next.

    Returns:
        At least one, all of one size.

    >>> [window[:2] for window in windows((336, 448), crop=336, stride=112)]
    [(0, 0), (0, 112)]
    """
    height, width = min(crop, size[0]), min(crop, size[1])
    starts = [
        [min(step * stride, side - length) for step in range(max(side - crop + stride - 1, 0) // stride + 1)]
        for side, length in zip(size, (height, width), strict=True)
    ]
    return [Window(top, left, height, width) for top in starts[0] for left in starts[1]]


def pad_to_multiple(images: Tensor, multiple: int, value: float = 0.0) -> tuple[Tensor, tuple[int, int]]:
    """Pad windows on all sides alike, so that both sides are multiples.

    Args:
        images: (..., H, W).
        multiple: Of which H and W shall be multiples.
        value: What is padded with.

    Returns:
        (..., H', W'), and how many rows and columns stand before the window.

    >>> pad_to_multiple(torch.ones(1, 3, 4), 4)[0].shape
    torch.Size([1, 4, 4])
    """
    height, width = images.shape[-2:]
    more = [math.ceil(side / multiple) * multiple - side for side in (height, width)]
    top, left = more[0] // 2, more[1] // 2
    return F.pad(images, (left, more[1] - left, top, more[0] - top), value=value), (top, left)


def stitch(logits: Sequence[Tensor], parts: Sequence[Window], size: tuple[int, int]) -> Tensor:
    """The mean over windows of the logits at each pixel.

    Args:
        logits: (Q, height, width) of each window.
        parts: Where they lie.
        size: Height and width of the picture.

    Returns:
        (Q, H, W).
    """
    total = logits[0].new_zeros(len(logits[0]), *size)
    count = logits[0].new_zeros(size)
    for values, (top, left, height, width) in zip(logits, parts, strict=True):
        total[:, top : top + height, left : left + width] += values
        count[top : top + height, left : left + width] += 1
    return total / count


def in_strips(logits: Tensor, size: tuple[int, int], decide: Callable[[Tensor], Tensor]) -> Tensor:
    """What is decided of logits enlarged to a picture's size, which are never held as a whole.

    Args:
        logits: (Q, h, w).
        size: Height and width of the picture.
        decide: From bilinearly enlarged logits (Q, rows, W) to values (rows, W).

    Returns:
        (H, W), as from all rows at once.
    """
    height = logits.shape[1]
    rows = max(1, STRIP // (len(logits) * size[1]))
    position = ((torch.arange(size[0], device=logits.device) + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
    lower = position.floor().long().clamp(max=height - 1)
    upper = (lower + 1).clamp(max=height - 1)
    share = (position - lower).to(logits.dtype)[:, None]
    found = []
    for start in range(0, size[0], rows):
        part = slice(start, start + rows)
        between = torch.lerp(logits[:, lower[part]], logits[:, upper[part]], share[part])  # (Q, rows, w)
        wide = F.interpolate(between[None], (between.shape[1], size[1]), mode="bilinear", align_corners=False)[0]
        found.append(decide(wide))
    return torch.cat(found)


def decide_classes(logits: Tensor, class_of: Tensor, num_classes: int, scale: float, threshold: float) -> Tensor:
    """The class of each pixel.

    Args:
        logits: (Q, h, w) cosine similarities to the queries.
        class_of: (Q,) class of each query, ascending; each class has one at least.
        num_classes: Number of classes C.
        scale: Factor of the similarities before the softmax over all queries.
        threshold: Probability below which a pixel becomes class 0; a class has that of its likeliest query.

    Returns:
        int64 (h, w).

    >>> logits = torch.tensor([0.2, 0.1, 0.9])[:, None, None]
    >>> decide_classes(logits, torch.tensor([0, 0, 1]), 2, scale=40.0, threshold=0.0)
    tensor([[1]])
    """
    probability = (logits * scale).softmax(dim=0)
    if len(class_of) == num_classes:
        best, label = probability.max(dim=0)
    else:
        index = class_of[:, None, None].expand_as(probability)
        by_class = probability.new_zeros(num_classes, *probability.shape[1:])
        best, label = by_class.scatter_reduce(0, index, probability, "amax").max(dim=0)
    return label.masked_fill(best < threshold, 0)
