"""A picture and its regions to a label map: windows through CLIP and the guide, logits, decision, correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.backbones.vit import VisionTransformer
from lightning_modules.corrclip.correction import correct_map
from lightning_modules.corrclip.features import corrclip_features
from lightning_modules.corrclip.windows import (
    PADDED,
    decide_classes,
    in_strips,
    pad_to_multiple,
    resize_picture,
    resized_size,
    stitch,
    windows,
)


class PatchGuide(Protocol):
    """Patch features that tell which patches belong together; see ``backbones.guide``."""

    mean: Sequence[float]
    std: Sequence[float]
    patch_size: tuple[int, int]

    def features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised pictures (B, 3, H, W) to unit features (B, N, C) and the grid, rows and columns."""


@dataclass(frozen=True)
class Segmenter:
    """CorrCLIP on pictures of any size.

    Args:
        visual: Functional view of the CLIP image tower.
        guide: Guide.
        mean: Mean of the three channels in 0..1 that CLIP's pixels are normalised with.
        std: Their standard deviation.
        short: Shorter side of the resized picture.
        crop: Side of a window.
        stride: Pixels from one window to the next.
        batch: Windows that go through the networks at once.
        features: Settings of ``corrclip_features``: ``alpha``, ``beta``, ``tau``, ``eps``, ``similarity``, ...
        scale: Factor of the cosine similarities before the softmax.
        threshold: Probability below which a pixel becomes class 0.
        correction: Give each region the class of most of its pixels.

    Reference:
        Zhang et al., CorrCLIP, ICCV 2025, and the reference code's sizes.
    """

    visual: VisionTransformer
    guide: PatchGuide
    mean: Sequence[float]
    std: Sequence[float]
    short: int = 336
    crop: int = 336
    stride: int = 112
    batch: int = 8
    features: dict[str, Any] = field(default_factory=dict)
    scale: float = 40.0
    threshold: float = 0.0
    correction: bool = True

    def __call__(self, image: Tensor, instance_mask: Tensor, text: Tensor, class_of: Tensor, classes: int) -> Tensor:
        """The class of each pixel of a picture.

        Args:
            image: uint8 (3, H, W).
            instance_mask: Region ids (H, W); the smallest id is the part in no region.
            text: Unit embeddings of the queries (Q, D).
            class_of: (Q,) class of each query, ascending.
            classes: Number of classes C.

        Returns:
            int64 (H, W).

        Raises:
            ValueError: The regions have another size than the picture.
        """
        size = (int(image.shape[-2]), int(image.shape[-1]))
        if tuple(instance_mask.shape) != size:
            raise ValueError(
                f"The regions are {tuple(instance_mask.shape)} pixels and the picture {size}. Make them anew for it."
            )
        logits = self.logits(image, instance_mask, text)
        found = in_strips(
            logits, size, lambda rows: decide_classes(rows, class_of, classes, self.scale, self.threshold)
        )
        return correct_map(found, instance_mask.to(found.device)) if self.correction else found

    def logits(self, image: Tensor, instance_mask: Tensor, text: Tensor) -> Tensor:
        """Cosine similarities to the queries on the resized picture, (Q, h, w), the mean over windows."""
        size = resized_size((int(image.shape[-2]), int(image.shape[-1])), self.short)
        picture = resize_picture(image.to(text.device), size)
        ids = F.interpolate(instance_mask[None, None].to(text.device, torch.float64), size, mode="nearest")[0, 0].long()
        parts = windows(size, self.crop, self.stride)
        cuts = [(slice(p.top, p.top + p.height), slice(p.left, p.left + p.width)) for p in parts]
        found: list[Tensor] = []
        for start in range(0, len(cuts), self.batch):
            some = cuts[start : start + self.batch]
            pixels = torch.stack([picture[:, rows, columns] for rows, columns in some])
            regions = torch.stack([ids[rows, columns] for rows, columns in some])
            found.extend(self.window_logits(pixels, regions, text))
        return stitch(found, parts, size)

    def window_logits(self, pixels: Tensor, ids: Tensor, text: Tensor) -> Tensor:
        """Cosine similarities of windows to the queries.

        Args:
            pixels: uint8 (B, 3, h, w).
            ids: (B, h, w) region ids.
            text: (Q, D).

        Returns:
            (B, Q, h, w).
        """
        height, width = pixels.shape[-2:]
        multiple = math.lcm(*self.visual.patch_size, *self.guide.patch_size)
        mean, std, own_mean, own_std = (
            torch.tensor(list(values), device=pixels.device).view(3, 1, 1)
            for values in (self.mean, self.std, self.guide.mean, self.guide.std)
        )
        centred, (top, left) = pad_to_multiple(pixels / 255 - mean, multiple)  # padded with CLIP's mean colour
        regions, _ = pad_to_multiple(ids, multiple, value=PADDED)
        guide, grid = self.guide.features((centred + mean - own_mean) / own_std)
        features = corrclip_features(self.visual, centred / std, guide, grid, regions, **self.features)
        logits = F.normalize(features.float(), dim=-1) @ text.T  # (B, N, Q)
        maps = logits.transpose(1, 2).unflatten(2, grid)
        maps = F.interpolate(maps, centred.shape[-2:], mode="bilinear", align_corners=False)
        return maps[..., top : top + height, left : left + width]
