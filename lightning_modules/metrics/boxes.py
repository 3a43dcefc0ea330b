"""Overlap of boxes, for whichever metric needs it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def box_iou(boxes: Floats, truths: Floats, crowd: Bools | bool = False) -> Floats:
    """Intersection over union of boxes and truths that broadcast against each other.

    Args:
        boxes: (..., 4) as ``x1, y1, x2, y2``, ends exclusive.
        truths: (..., 4).
        crowd: (...,) truths that stand for many objects: there the intersection is divided by the area of the box
            alone, as COCO does.

    Returns:
        (...,) between 0 and 1; 0 where both are empty. Give ``boxes[:, None]`` and ``truths[None]`` for all pairs.

    >>> box_iou(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2], [5, 5, 6, 6]])).round(4)
    array([0.3333, 0.    ])
    """
    left, top, right, bottom = (boxes[..., side] for side in range(4))
    other_left, other_top, other_right, other_bottom = (truths[..., side] for side in range(4))
    width = np.minimum(right, other_right) - np.maximum(left, other_left)
    height = np.minimum(bottom, other_bottom) - np.maximum(top, other_top)
    shared = width.clip(0) * height.clip(0)
    area = (right - left) * (bottom - top)
    other_area = (other_right - other_left) * (other_bottom - other_top)
    union = np.where(crowd, area, area + other_area - shared)
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
