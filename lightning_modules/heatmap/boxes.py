"""From similarity maps to boxes: the connected components of what reaches a threshold."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SCORES = ("max", "mean", "mean_x_presence")
# Below this a thread costs more than it brings.
PIXELS_WORTH_A_THREAD = 2**18


class Components(NamedTuple):
    """Connected components of several maps: by map, then by their first pixel in reading order."""

    maps: Tensor  # (n,) int64, the map that a component lies in
    boxes: Tensor  # (n, 4) int64 xyxy, half-open: x2 and y2 are the last column and row plus one
    areas: Tensor  # (n,) int64, pixels
    maxima: Tensor  # (n,) float32
    means: Tensor  # (n,) float64


def component_boxes(maps: Tensor, thresholds: Tensor, connectivity: int = 8, min_area: int = 1) -> Components:
    """Boxes and statistics of the connected components of ``map >= threshold``.

    The boxes of ``scipy.ndimage.label`` and ``find_objects``, and the values of ``ndimage.maximum`` and ``mean``, from
    one pass over each map; maps are shared out among torch's number of threads.

    Args:
        maps: (M, H, W), compared as float32.
        thresholds: (M,); infinite = no component.
        connectivity: 8: pixels that touch at a corner are neighbours; 4: at an edge only.
        min_area: Pixels; smaller components are left out.

    Returns:
        The components, on the CPU.

    Raises:
        ValueError: Not one threshold a map, a NaN threshold, maps without pixels, or another connectivity.

    >>> found = component_boxes(torch.tensor([[[0.0, 3.0, 0.0, 1.0], [2.0, 0.0, 0.0, 1.0]]]), torch.tensor([0.5]))
    >>> found.boxes.tolist(), found.maxima.tolist(), found.means.tolist()
    ([[0, 0, 2, 2], [3, 0, 4, 2]], [3.0, 1.0], [2.5, 1.0])
    """
    if maps.ndim != 3 or 0 in maps.shape[1:] or thresholds.shape != maps.shape[:1] or thresholds.isnan().any():
        raise ValueError(
            f"There are thresholds {tuple(thresholds.shape)} for maps {tuple(maps.shape)}; maps (M, H, W) of at least "
            "one pixel need one number each, none of them NaN."
        )
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is {connectivity}; it must be 4 or 8.")
    from lightning_modules.heatmap import component_kernels

    pictures = maps.detach().cpu().float().contiguous().numpy()
    limits = _float32_limits(thresholds.detach().cpu().double().numpy())

    def table(index: int) -> NDArray[np.float64]:
        reach = int(connectivity == 8)
        return component_kernels.component_table(pictures[index], limits[index], reach, min_area)

    threads = min(torch.get_num_threads(), len(maps)) if maps.numel() > PIXELS_WORTH_A_THREAD else 1
    if threads == 1:
        tables = [table(index) for index in range(len(maps))]
    else:
        with ThreadPoolExecutor(threads) as pool:
            tables = list(pool.map(table, range(len(maps))))
    all_rows = torch.from_numpy(np.concatenate(tables or [np.empty((0, component_kernels.COLUMNS))]))
    return Components(
        torch.from_numpy(np.repeat(np.arange(len(maps)), [len(rows) for rows in tables])),
        all_rows[:, :4].long(),
        all_rows[:, 4].long(),
        all_rows[:, 5].float(),
        all_rows[:, 6] / all_rows[:, 4],
    )


def boxes_from_maps(
    maps: Tensor,
    thresholds: Tensor,
    size: tuple[int, int],
    score: str = "max",
    presence: Tensor | None = None,
    min_area: float = 1,
    max_detections: int = 100,
    nms_iou: float | None = None,
) -> dict[str, Tensor]:
    """Detections in one image: the boxes of the components of each class's map, best first.

    Scores are values of the maps as they are given. Give raw similarities, not maps stretched to 0..1: after a
    min-max of each image the best box of every image has the score 1, and average precision, which ranks boxes over
    all images, would rank by chance.

    Args:
        maps: (K, H, W) similarities of K classes; the token grid or the full-size map, the boxes are scaled.
        thresholds: (K,), see :func:`~lightning_modules.heatmap.thresholds.map_thresholds`.
        size: Height and width of the original picture in pixels.
        score: ``max`` or ``mean`` of the similarities inside the component, or ``mean_x_presence``: the mean times how
            probable the class is in the image (a negative mean stays as it is: a factor would reverse its order).
        presence: (K,) probabilities, for ``mean_x_presence`` only.
        min_area: Pixels of the original picture; components with less area are left out.
        max_detections: Of an image, all classes together.
        nms_iou: Of two boxes of a class whose IoU is above this, the one with the lower score is left out; None = both
            stay.

    Returns:
        ``boxes`` (n, 4) float32 xyxy in pixels of the original picture, ``scores`` (n,) float32 from high to low, and
        ``labels`` (n,) int64.

    Raises:
        ValueError: Unknown score, no presence for it, or what :func:`component_boxes` refuses.

    >>> found = boxes_from_maps(torch.tensor([[[0.0, 0.3], [0.2, 0.2]]]), torch.tensor([0.25]), size=(100, 200))
    >>> found["boxes"].tolist(), found["labels"].tolist()
    ([[100.0, 0.0, 200.0, 50.0]], [0])
    """
    height, width = size
    pixels, cells = height * width, maps.shape[-2:].numel()
    found = component_boxes(maps, thresholds, min_area=max(1, math.ceil(min_area * cells / pixels)))
    scores = _box_scores(found, score, presence, len(maps)).float()
    scale = torch.tensor([width / maps.shape[-1], height / maps.shape[-2]], dtype=torch.float64).repeat(2)
    boxes = (found.boxes * scale).float()
    order = scores.argsort(descending=True, stable=True)
    if nms_iou is not None:
        order = order[_kept_by_nms(boxes[order], scores[order], found.maps[order], nms_iou)]
    order = order[:max_detections]
    return {"boxes": boxes[order], "scores": scores[order], "labels": found.maps[order]}


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of another size, bilinear between the centres of the pixels.

    Give one image at a time: twenty maps of 800 x 800 take 51 MB.

    Args:
        maps: (B, K, h, w).
        size: Height and width.

    Returns:
        (B, K, height, width).

    >>> upsample(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).tolist()
    [[[[0.0, 0.25, 0.75, 1.0]]]]
    """
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _float32_limits(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The smallest float32 at or above each threshold: a float32 pixel reaches both or none of them."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest < thresholds, np.nextafter(nearest, np.float32(np.inf)), nearest)


def _box_scores(found: Components, score: str, presence: Tensor | None, classes: int) -> Tensor:
    if score not in SCORES:
        raise ValueError(f"The score of a box is {score!r}; choose one of {', '.join(SCORES)}.")
    if score == "max":
        return found.maxima
    if score == "mean":
        return found.means
    if presence is None or len(presence) != classes:
        raise ValueError(
            f"The score mean_x_presence needs the presence of each of the {classes} classes, its probability in the "
            f"image; it is {None if presence is None else tuple(presence.shape)}."
        )
    return torch.where(found.means > 0, found.means * presence.detach().cpu()[found.maps], found.means)


def _kept_by_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Which of the boxes (n, 4) greedy suppression inside each class leaves: (n,) bool."""
    from torchvision.ops import nms

    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for label in labels.unique():  # batched_nms moves the classes apart by offsets in float32, which rounds the boxes
        mine = (labels == label).nonzero()[:, 0]
        kept[mine[nms(boxes[mine], scores[mine], iou)]] = True
    return kept
