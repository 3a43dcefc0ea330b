"""Automatic masks of a promptable model: a grid of points, and the thresholds that few of its masks pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from lightning_modules.backbones.masks import MaskSource, Order, check_image, check_order, paint, painting_order

CHUNK_PIXELS = 2**25  # of masks at the picture's size that are in memory together: 128 MiB of logits


@dataclass(frozen=True)
class PointGrid:
    """The points and thresholds of automatic masks; the values are those of segment-anything's own generator.

    Args:
        points_per_side: Points along each side of the picture.
        points_per_batch: Points that the decoder takes together; masks do not depend on it, memory does.
        pred_iou_thresh: Masks go whose quality, in the model's own estimate, is not above this; 0 keeps all.
        stability_score_thresh: Masks go that change more than this when the cut moves; 0 keeps all.
        stability_score_offset: How far the cut moves to both sides, in logits.
        box_nms_thresh: Of two masks whose boxes have an IoU above this, the one of lower quality goes.
        min_mask_region_area: Holes and islands below this many pixels are filled and cut off; 0 leaves them.
        multimask: Three masks a point (part, object, whole) instead of one.
        full_resolution: Enlarge all masks to the picture before they are judged, as the original does. False judges
            at the decoder's own resolution, a quarter of the encoder's, and enlarges only what is left: a score of
            stability moves by about the share of the mask that lies on its rim, a box by up to one low-resolution
            pixel, so masks close to a threshold may fare otherwise; the masks that both keep are the same.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    min_mask_region_area: int = 0
    multimask: bool = True
    full_resolution: bool = False

    def __post_init__(self) -> None:
        if self.points_per_side < 1 or self.points_per_batch < 1:
            raise ValueError(
                f"points_per_side is {self.points_per_side} and points_per_batch {self.points_per_batch}; both must be "
                "at least 1."
            )


def point_grid(points_per_side: int) -> Tensor:
    """Evenly spaced points, each in the middle of its cell.

    Args:
        points_per_side: n.

    Returns:
        ``(n * n, 2)`` x and y as fractions of the picture, float64, row by row.

    Example:
        >>> point_grid(2).tolist()
        [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    line = (torch.arange(points_per_side, dtype=torch.float64) + 0.5) / points_per_side
    return torch.cartesian_prod(line, line).flip(1)


def stability(logits: Tensor, offset: float) -> Tensor:
    """IoU of a mask cut ``offset`` above zero with itself cut ``offset`` below.

    Args:
        logits: ``(K, h, w)``.
        offset: Distance of both cuts from 0.

    Returns:
        ``(K,)`` in 0..1; 0 for a mask without pixels.

    Example:
        >>> stability(torch.tensor([[[-5.0, 0.5, 3.0, 4.0]]]), 1.0).tolist()
        [0.6666666865348816]
    """
    inner, outer = (logits > offset).sum((1, 2)), (logits > -offset).sum((1, 2))
    return inner / outer.clamp(min=1)


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes around masks, from the first to the last pixel.

    Args:
        masks: ``(K, h, w)`` bool.

    Returns:
        ``(K, 4)`` xyxy, int64; zeros for a mask without pixels.

    Example:
        >>> mask_boxes(torch.tensor([[[0, 0, 0], [0, 1, 1]], [[0, 0, 0], [0, 0, 0]]]).bool()).tolist()
        [[1, 1, 2, 1], [0, 0, 0, 0]]
    """

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        line = line.to(torch.uint8)
        return line.argmax(1), line.shape[1] - 1 - line.flip(1).argmax(1)

    rows, columns = masks.any(2), masks.any(1)  # (K, h), (K, w)
    (top, bottom), (left, right) = ends(rows), ends(columns)
    return torch.stack([left, top, right, bottom], dim=1) * rows.any(1, keepdim=True)


def without_small_regions(mask: np.ndarray, area: int) -> np.ndarray:
    """A mask with its small holes filled, and then its small islands cut off; the largest island always stays.

    Args:
        mask: ``(H, W)`` bool; regions touch over corners too.
        area: Holes and islands below this many pixels go.

    Returns:
        ``(H, W)`` bool; the same array where nothing changes.

    Example:
        >>> ring_and_speck = np.array([[1, 1, 1, 0, 0, 1], [1, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]], dtype=bool)
        >>> without_small_regions(ring_and_speck, 2).sum(1).tolist()
        [3, 3, 3]
    """
    from scipy.ndimage import label

    for filled in (False, True):  # holes are regions of what is not in the mask
        regions, count = label(mask == filled, structure=np.ones((3, 3)))
        areas = np.bincount(regions.ravel(), minlength=count + 1)
        small = areas < area
        small[0] = False
        if not small.any():
            continue
        if filled and small[1:].all():
            small[1 + areas[1:].argmax()] = False
        mask = mask ^ small[regions]
    return mask


class PointMasks(MaskSource, ABC):
    """Automatic masks of a model that turns a point into masks. A subclass loads the model and runs its parts.

    Args:
        points: The grid of points and all thresholds.
        order: Painting order by area; ``ascending`` lets large masks cover small ones, as CorrCLIP does.
    """

    def __init__(self, points: PointGrid, order: Order) -> None:
        check_order(order)
        self.points, self.order = points, order

    @abstractmethod
    def embed(self, image: Tensor) -> Any:
        """What the decoder needs of a picture ``(3, H, W)`` uint8."""

    @abstractmethod
    def decode(self, embedding: Any, points: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of points.

        Args:
            embedding: Of ``embed``.
            points: ``(P, 2)`` x and y as fractions of the picture.

        Returns:
            Logits ``(P, M, h, w)`` float32 and their estimated quality ``(P, M)``.
        """

    @abstractmethod
    def inside(self, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of low-resolution logits of h x w that hold the picture of H x W; the rest is padding."""

    @abstractmethod
    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits ``(K, h, w)`` at the picture's size, ``(K, H, W)``."""

    def point_settings(self) -> dict[str, Any]:
        """All settings that change masks."""
        return {**asdict(self.points), "points_per_batch": None, "order": self.order}

    def _cleaned(self, logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, bool]]:
        """Masks ``(H, W)`` of logits ``(K, h, w)`` one after the other, and whether they lost small regions."""
        least = self.points.min_mask_region_area
        for part in logits.split(max(1, CHUNK_PIXELS // (size[0] * size[1]))):
            for mask in self.enlarge(part, size) > 0:
                if not least:
                    yield mask, False
                    continue
                before = mask.cpu().numpy()
                after = without_small_regions(before, least)
                yield torch.from_numpy(after).to(mask.device), after is not before

    def _candidates(self, image: Tensor) -> Tensor:
        """Low-resolution logits ``(K, h, w)`` of the masks that pass the thresholds, best first."""
        size, settings = (image.shape[1], image.shape[2]), self.points
        embedding = self.embed(image)
        kept: list[tuple[Tensor, ...]] = []
        for points in point_grid(settings.points_per_side).split(settings.points_per_batch):
            logits, quality = (part.flatten(0, 1) for part in self.decode(embedding, points))
            if settings.pred_iou_thresh > 0:
                good = quality > settings.pred_iou_thresh
                logits, quality = logits[good], quality[good]
            for few, few_quality in zip(*self._parts(logits, quality, size), strict=True):
                kept.append(self._judge(few, few_quality, size))
        logits, quality, boxes = (torch.cat(parts) for parts in zip(*kept, strict=True))
        return logits[nms(boxes.float(), quality.float(), settings.box_nms_thresh)]

    def _parts(self, logits: Tensor, quality: Tensor, size: tuple[int, int]) -> tuple[tuple[Tensor, ...], ...]:
        """Logits and qualities in parts that fit in memory when they are judged at full resolution."""
        few = max(1, CHUNK_PIXELS // (size[0] * size[1])) if self.points.full_resolution else max(1, len(logits))
        return logits.split(few), quality.split(few)

    def _judge(self, logits: Tensor, quality: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """What is left of logits ``(K, h, w)`` after the threshold of stability, its quality, and its boxes."""
        settings = self.points
        if settings.full_resolution:
            judged = self.enlarge(logits, size) if len(logits) else logits
        else:
            rows, columns = self.inside(size, (logits.shape[1], logits.shape[2]))
            judged = logits[:, :rows, :columns]
        if settings.stability_score_thresh > 0:
            good = stability(judged, settings.stability_score_offset) >= settings.stability_score_thresh
            logits, quality, judged = logits[good], quality[good], judged[good]
        boxes = mask_boxes(judged > 0)
        if not settings.full_resolution:
            boxes[:, 2:] += 1  # at this resolution the last pixel's own width counts
        return logits, quality, boxes

    @torch.no_grad()
    def masks(self, image: Tensor, stem: str | None = None) -> Tensor:
        """The painted masks, see :class:`MaskSource`.

        Masks at the picture's size are made twice, for their areas and for the painting, instead of being kept: those
        of a large photo would take gigabytes.
        """
        check_image(image)
        size = (image.shape[1], image.shape[2])
        logits = self._candidates(image)
        found = [(mask.sum(), mask_boxes(mask[None])[0], changed) for mask, changed in self._cleaned(logits, size)]
        if not found:
            return torch.zeros(size, dtype=torch.long)
        areas, boxes = (torch.stack(parts) for parts in list(zip(*found, strict=True))[:2])
        if self.points.min_mask_region_area:  # cleaned masks may double others; untouched ones are preferred
            untouched = torch.tensor([float(not changed) for *_, changed in found], device=boxes.device)
            left = nms(boxes.float(), untouched, self.points.box_nms_thresh)
            logits, areas = logits[left], areas[left]
        order = painting_order(areas, self.order)
        return paint((mask for mask, _ in self._cleaned(logits[order], size)), size)
