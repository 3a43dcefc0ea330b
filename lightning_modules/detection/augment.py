"""Light augmentation of whole batches, on whatever device they are; no mosaics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.detection.batches import Target
from lightning_modules.detection.records import HardNegatives
from lightning_modules.metrics.boxes import Floats
from lightning_modules.metrics.detection_matching import DetectionSet
from lightning_modules.metrics.tide import BACKGROUND

PLACES = 20  # places that are tried for a patch before the image goes without


def flip_half(images: Tensor, targets: Sequence[Target]) -> tuple[Tensor, list[Target]]:
    """Mirror each image left to right with probability one half.

    Args:
        images: uint8 (B, 3, H, W).
        targets: B targets.

    Returns:
        Both, as new tensors.
    """
    chosen = torch.rand(len(images)) < 0.5
    mirrored = torch.where(chosen[:, None, None, None].to(images.device), images.flip(-1), images)
    return mirrored, [_mirror(t) if turn else dict(t) for t, turn in zip(targets, chosen.tolist(), strict=True)]


def _mirror(target: Target) -> Target:
    left, top, right, bottom = target["boxes"].unbind(dim=1)
    return {**target, "boxes": torch.stack([1 - right, top, 1 - left, bottom], dim=1)}


def jitter(images: Tensor, strength: float) -> Tensor:
    """Change brightness and contrast of each image by its own factors.

    Args:
        images: uint8 (B, 3, H, W).
        strength: Factors are drawn from ``1 - strength`` to ``1 + strength``; 0 leaves the images as they are.

    Returns:
        uint8 of the same shape.
    """
    if strength == 0:
        return images
    factors = 1 + strength * (2 * torch.rand(2, len(images), 1, 1, 1, device=images.device) - 1)
    values = images.float()
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    return ((values - mean) * factors[0] + mean * factors[1]).round().clamp(0, 255).to(torch.uint8)


def cut_patches(
    dataset: Sequence[dict[str, Any]], records: HardNegatives, data: DetectionSet, most: int
) -> list[Tensor]:
    """Cut out what was surely taken for objects where none is, at the scale at which the network sees it.

    Args:
        dataset: Items with ``image`` uint8 (3, S, S) and ``size``, height and width of the picture, by position.
        records: Hard negatives; used are background errors that are no suspected label errors and touch no truth, not
            even an ignored one.
        data: What they were mined in: all images of ``dataset``, in their order.
        most: Most patches.

    Returns:
        uint8 (3, h, w) each, the surest first.
    """
    candidates = records.take((records.kind == BACKGROUND) & ~records.suspected_label_error)
    candidates = candidates.take(np.argsort(-candidates.confidence, kind="stable"))
    images = candidates.image_index
    boxes = data.boxes[np.searchsorted(data.image, images) + candidates.prediction_index]
    patches: list[Tensor] = []
    for image, box in zip(images.tolist(), boxes, strict=True):
        if len(patches) == most:
            break
        truths = slice(*np.searchsorted(data.truth_image, [image, image + 1]))
        if _touches(box, data.truth_boxes[truths]):
            continue
        item = dataset[image]
        (rows, columns), (height, width) = item["image"].shape[-2:], item["size"].tolist()
        corners = (box * np.array([columns / width, rows / height] * 2)).round().astype(int)
        left, top, right, bottom = corners.tolist()
        left, top = min(left, columns - 1), min(top, rows - 1)  # a sliver at the edge gives a pixel too
        patches.append(item["image"][:, top : max(bottom, top + 1), left : max(right, left + 1)].clone())
    return patches


def _touches(box: Floats, others: Floats) -> bool:
    """Whether a box (4,) and one of others (n, 4) overlap."""
    return bool(((box[:2] < others[:, 2:]) & (box[2:] > others[:, :2])).all(axis=1).any())


def paste_patches(images: Tensor, targets: Sequence[Target], patches: Sequence[Tensor]) -> Tensor:
    """Paste a patch that was taken for an object into each image, where none of its objects is.

    Args:
        images: uint8 (B, 3, H, W).
        targets: B targets; a patch touches none of their boxes.
        patches: uint8 (3, h, w) pieces of pictures of the same scale, without objects. One that is larger than half of
            the image is not used.

    Returns:
        uint8 (B, 3, H, W), a new tensor. An image without a free place stays as it is.
    """
    height, width = images.shape[-2:]
    usable = [patch for patch in patches if 2 * patch.shape[-2] <= height and 2 * patch.shape[-1] <= width]
    images = images.clone()
    if not usable:
        return images
    for image, target in zip(images, targets, strict=True):
        patch = usable[int(torch.randint(len(usable), ()))]
        h, w = patch.shape[-2:]
        top = torch.randint(height - h + 1, (PLACES,))
        left = torch.randint(width - w + 1, (PLACES,))
        boxes = target["boxes"].cpu() * torch.tensor([width, height, width, height])
        free = ~(
            (left[:, None] < boxes[:, 2])
            & (left[:, None] + w > boxes[:, 0])
            & (top[:, None] < boxes[:, 3])
            & (top[:, None] + h > boxes[:, 1])
        ).any(dim=1)
        for place in torch.nonzero(free).flatten()[:1].tolist():
            y, x = int(top[place]), int(left[place])
            image[:, y : y + h, x : x + w] = patch.to(image.device)
    return images
