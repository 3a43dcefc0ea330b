"""Threshold-free looks at a map: its pixels against the boxes, and its boxes under every threshold."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_modules.heatmap.boxes import component_boxes
from lightning_modules.metrics.boxes import box_iou

STEPS = 50  # thresholds of the stretched map, from 0 to 1 exclusive


def inside_pixels(boxes: Tensor, labels: Tensor, num_classes: int, size: tuple[float, float], side: int) -> Tensor:
    """Pixels of a squashed picture whose centre lies inside a box of each class.

    Args:
        boxes: ``(n, 4)`` xyxy in pixels of the picture.
        labels: ``(n,)``.
        num_classes: Number of classes K.
        size: Height and width of the picture.
        side: Rows and columns of the squashed one.

    Returns:
        ``(K, side, side)`` bool.
    """
    centres = (torch.arange(side) + 0.5) / side
    x, y = centres * size[1], centres * size[0]
    across = (x >= boxes[:, 0, None]) & (x < boxes[:, 2, None])  # (n, side)
    down = (y >= boxes[:, 1, None]) & (y < boxes[:, 3, None])
    found = torch.zeros(num_classes, side, side, dtype=torch.bool)
    for label, rows, columns in zip(labels.tolist(), down, across, strict=True):
        found[label] |= rows[:, None] & columns[None]
    return found


def best_overlaps(pixels: Tensor, boxes: Tensor, labels: Tensor, size: tuple[float, float]) -> tuple[list[int], Tensor]:
    """The best box that each threshold of a map could give.

    Args:
        pixels: Enlarged maps ``(K, side, side)``.
        boxes: ``(n, 4)`` xyxy in pixels of the picture.
        labels: ``(n,)``.
        size: Height and width of the picture.

    Returns:
        The P classes that have a box, and ``(P, STEPS)``: for each threshold of the map stretched to 0..1 the highest
        IoU of a component's box with a box of the class, 0 where there is none.
    """
    side = pixels.shape[-1]
    classes = [int(label) for label in labels.unique()]
    scale = np.array([size[1] / side, size[0] / side] * 2)
    found = torch.zeros(len(classes), STEPS)
    for place, label in enumerate(classes):
        each = pixels[label]
        low, high = float(each.min()), float(each.max())
        if low == high:
            continue
        limits = low + (high - low) * torch.arange(STEPS, dtype=torch.float64) / STEPS
        parts = component_boxes(each.expand(STEPS, side, side), limits)
        overlaps = box_iou((parts.boxes.numpy() * scale)[:, None], boxes[labels == label].double().numpy()[None]).max(1)
        found[place].scatter_reduce_(0, parts.maps, torch.from_numpy(overlaps).float(), "amax")
    return classes, found
