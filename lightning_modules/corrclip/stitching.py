"""Logits of overlapping windows as one linear map to any size, and the class of each pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 2**22  # values of the enlarged logits that are held at once


class PictureLogits(NamedTuple):
    """Logits of a picture on the grids of its windows.

    Enlarging a grid to its window, the mean over windows and enlarging that to the picture are linear, rows and columns
    apart, so that logits at any size are ``rows @ grids[q] @ columns.T``: nothing is held between.

    Args:
        grids: (Q, R, C): the grids of all windows, side by side as the windows are.
        rows: (h, R) from there to the rows of the resized picture.
        columns: (w, C) likewise.
    """

    grids: Tensor
    rows: Tensor
    columns: Tensor

    def resized(self, size: tuple[int, int]) -> Tensor:
        """Logits (Q, *size), from the resized picture by bilinear interpolation."""
        return label_map(self, size, lambda logits: logits)


def enlarging(cells: int, length: int) -> Tensor:
    """The matrix (length, cells) of bilinear interpolation along one side, without aligned corners.

    >>> enlarging(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    return F.interpolate(torch.eye(cells, dtype=torch.float32)[None], length, mode="linear", align_corners=False)[0].T


def stitching(starts: Sequence[int], length: int, side: int, cells: int, before: int, padded: int) -> Tensor:
    """The matrix from the grids of windows to a side of the picture: enlarge, cut the padding off, take the mean.

    Args:
        starts: First pixel of each of n windows along this side.
        length: Pixels of a window.
        side: Pixels of the picture.
        cells: Cells of a window's grid.
        before: Pixels of padding before the window.
        padded: Pixels of a window with its padding.

    Returns:
        (side, n * cells).

    >>> stitching([0, 1], 2, 3, cells=2, before=0, padded=2).tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    window = enlarging(cells, padded)[before : before + length]
    matrix = torch.zeros(side, len(starts), cells, dtype=torch.float32)
    for number, start in enumerate(starts):
        matrix[start : start + length, number] = window
    covered = matrix.sum((1, 2))[:, None, None]  # each row of a window's own matrix sums to 1
    return (matrix / covered).flatten(1)


def label_map(logits: PictureLogits, size: tuple[int, int], decide: Callable[[Tensor], Tensor]) -> Tensor:
    """What is decided of logits enlarged to a picture's size, which are never held as a whole.

    Args:
        logits: Of the picture.
        size: Height and width of the picture.
        decide: From logits (Q, H, n) of some columns to values (..., H, n).

    Returns:
        (..., H, W), as from all columns at once.
    """
    grids, device = logits.grids.float(), logits.grids.device
    with torch.autocast(device.type, enabled=False):
        rows = (enlarging(len(logits.rows), size[0]) @ logits.rows).to(device)  # (H, R)
        columns = (enlarging(len(logits.columns), size[1]) @ logits.columns).T.to(device)  # (C, W)
        wide = max(8, STRIP // (len(grids) * size[0]))
        found = [decide(rows @ (grids @ part)) for part in columns.split(wide, dim=1)]
    return torch.cat(found, dim=-1)


def decide_classes(logits: Tensor, class_of: Tensor, threshold: float = 0.0) -> Tensor:
    """The class of each pixel: that of the likeliest query.

    Args:
        logits: (Q, h, w), as they go into the softmax over all queries.
        class_of: (Q,) class of each query.
        threshold: Probability of the likeliest query below which a pixel becomes class 0.

    Returns:
        int64 (h, w).

    >>> decide_classes(torch.tensor([8.0, 4.0, 36.0])[:, None, None], torch.tensor([0, 0, 1]))
    tensor([[1]])
    """
    largest, best = logits.max(dim=0)
    labels = class_of[best]
    if threshold > 0:
        odds = (logits - largest).exp_().sum(dim=0)  # the softmax gives the likeliest 1 / odds
        labels = labels.masked_fill(1 / odds < threshold, 0)
    return labels
