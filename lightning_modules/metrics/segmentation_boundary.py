"""Boundary regions of label maps: pixels near to where their class ends."""

from __future__ import annotations

import torch
from torch import Tensor

RATIO = 0.02  # of the image's diagonal


def boundary_distance(height: int, width: int, ratio: float = RATIO) -> int:
    """Width of boundary regions in an image.

    Args:
        height: In pixels.
        width: In pixels.
        ratio: Share of the diagonal.

    Returns:
        Whole pixels, at least 1.

    Reference:
        Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021: 2 % of the
        diagonal for COCO.

    >>> boundary_distance(480, 640)
    16
    """
    return max(1, round(ratio * (height**2 + width**2) ** 0.5))


def boundary_region(labels: Tensor, distance: int) -> Tensor:
    """Pixels at most ``distance`` away from a pixel of another label, or from the outside of the image.

    The distance is the larger one of the two axes'. So it is, for all classes at once, what eroding each class's mask
    ``distance`` times by 3 x 3 pixels takes away. The time grows with the logarithm of
    ``distance``.

    Args:
        labels: (H, W) integers.
        distance: In pixels, at least 1.

    Returns:
        (H, W) bool.

    Reference:
        Cheng et al., "Boundary IoU", CVPR 2021, section 4.

    >>> boundary_region(torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1]] * 5), 1)[2].int().tolist()
    [1, 0, 0, 0, 0, 1, 1, 0, 1]
    """
    across = labels[:, 1:] != labels[:, :-1]  # (H, W - 1)
    along = labels[1:] != labels[:-1]  # (H - 1, W)
    # a window holds one label if its rows do, and its middle column does
    mixed = _any_within(_any_within(across, distance, 1, pairs=True), distance, 0, pairs=False)
    region = mixed | _any_within(along, distance, 0, pairs=True)
    for dim in range(2):
        length = labels.shape[dim]
        near = min(distance, length)
        region.narrow(dim, 0, near).fill_(True)
        region.narrow(dim, length - near, near).fill_(True)
    return region


def _any_within(marks: Tensor, distance: int, dim: int, pairs: bool) -> Tensor:
    """Whether a mark (H, W) lies at most ``distance`` away along ``dim``; ``pairs``: marks stand between two pixels."""
    pad = (distance, distance) if dim == 1 else (0, 0, distance, distance)
    found, covered = torch.nn.functional.pad(marks, pad), 1
    window = 2 * distance + (not pairs)
    while 2 * covered <= window:  # windows of 1, 2, 4, ... marks
        length = found.shape[dim] - covered
        found = found.narrow(dim, 0, length) | found.narrow(dim, covered, length)
        covered *= 2
    length = marks.shape[dim] + pairs
    return found.narrow(dim, 0, length) | found.narrow(dim, window - covered, length)
