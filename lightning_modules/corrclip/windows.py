"""From a picture to overlapping windows: its size, where they lie, and how they are padded."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PADDED = 65535  # id of the region that pads a window; no source of masks gives it


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


def window_starts(side: int, crop: int, stride: int) -> list[int]:
    """First pixels of the windows along one side of a picture; the last window ends at the border.

    Args:
        side: Pixels of the picture.
        crop: Pixels of a window; one window where the picture has no more.
        stride: Pixels from one window to the next.

    >>> window_starts(448, 336, 112), window_starts(400, 336, 112), window_starts(90, 336, 112)
    ([0, 112], [0, 64], [0])
    """
    steps = max(side - crop + stride - 1, 0) // stride + 1
    return [min(step * stride, max(side - crop, 0)) for step in range(steps)]


def padding(length: int, multiple: int) -> tuple[int, int]:
    """Pixels before a window that is padded on both ends to a multiple, and its length with them.

    >>> padding(10, 4), padding(12, 4)
    ((1, 12), (0, 12))
    """
    padded = math.ceil(length / multiple) * multiple
    return (padded - length) // 2, padded


def pad_to_multiple(images: Tensor, multiple: int, value: float = 0.0) -> Tensor:
    """Pad windows on all sides alike, so that both sides are multiples; see :func:`padding`.

    Args:
        images: (..., H, W).
        multiple: Of which H and W shall be multiples.
        value: What is padded with.

    Returns:
        (..., H', W').

    >>> pad_to_multiple(torch.ones(1, 3, 4), 4)[0].sum(1).tolist()
    [4.0, 4.0, 4.0, 0.0]
    """
    height, width = images.shape[-2:]
    (top, rows), (left, columns) = padding(height, multiple), padding(width, multiple)
    return F.pad(images, (left, columns - width - left, top, rows - height - top), value=value)
