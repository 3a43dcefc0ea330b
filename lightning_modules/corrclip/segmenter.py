"""A picture and its regions to a label map: windows through CLIP and the guide, logits, decision, correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.backbones.vit import VisionTransformer
from lightning_modules.corrclip.correction import correct_map
from lightning_modules.corrclip.features import corrclip_features
from lightning_modules.corrclip.prompts import Classes
from lightning_modules.corrclip.stitching import PictureLogits, decide_classes, label_map, stitching
from lightning_modules.corrclip.windows import (
    PADDED,
    pad_to_multiple,
    padding,
    resize_picture,
    resized_size,
    window_starts,
)


class PatchGuide(Protocol):
    """Patch features that tell which patches belong together; see ``backbones.guide``."""

    mean: Sequence[float]
    std: Sequence[float]
    patch_size: tuple[int, int]

    def features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised pictures (B, 3, H, W) to unit features (B, N, C) and the grid, rows and columns."""


class Cut(NamedTuple):
    """One window of one picture.

    Args:
        picture: Number of the picture.
        pixels: uint8 (3, h, w).
        ids: (h, w).
        guide: Features (N, C) where the guide saw the whole picture; else None.
    """

    picture: int
    pixels: Tensor
    ids: Tensor
    guide: Tensor | None


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
        batch: Windows that go through the networks at once, of one picture or of several.
        features: Settings of ``corrclip_features``: ``alpha``, ``beta``, ``tau``, ``eps``, ``similarity``, ...
        scale: Factor of the cosine similarities before the softmax.
        threshold: Probability below which a pixel becomes class 0.
        correction: Give each region the class of most of its pixels.
        guide_once: The guide sees the whole resized picture, once, in place of each window.

    Raises:
        ValueError: ``stride`` above ``crop``.

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
    guide_once: bool = False

    def __post_init__(self) -> None:
        """Refuse windows that leave pixels between them."""
        if self.stride > self.crop:
            raise ValueError(
                f"stride is {self.stride} and crop {self.crop}: windows would leave pixels out. Set stride to at most "
                f"{self.crop}."
            )

    def __call__(self, image: Tensor, instance_mask: Tensor, classes: Classes) -> Tensor:
        """The class of each pixel of a picture: ``logits``, then ``decide``.

        Args:
            image: uint8 (3, H, W).
            instance_mask: Region ids (H, W); the smallest id is the part in no region.
            classes: What is looked for.

        Returns:
            int64 (H, W).
        """
        (logits,) = self.logits([image], [instance_mask], classes.text)
        return self.decide(logits, instance_mask, classes)

    def decide(self, logits: PictureLogits, instance_mask: Tensor, classes: Classes) -> Tensor:
        """The class of each pixel, int64 (H, W), one for each region of ``instance_mask`` (H, W) where corrected."""
        size = (int(instance_mask.shape[0]), int(instance_mask.shape[1]))
        scaled = logits._replace(grids=logits.grids * self.scale)
        found = label_map(scaled, size, lambda part: decide_classes(part, classes.class_of, self.threshold))
        return correct_map(found, instance_mask.to(found.device)) if self.correction else found

    def logits(self, images: Sequence[Tensor], instance_masks: Sequence[Tensor], text: Tensor) -> list[PictureLogits]:
        """Cosine similarities to queries; the windows of all pictures share batches.

        Args:
            images: B pictures uint8 (3, H, W), each of its own size.
            instance_masks: Their region ids (H, W).
            text: Unit embeddings of the queries (Q, D).

        Returns:
            B.

        Raises:
            ValueError: Regions have another size than their picture.
        """
        sizes, cuts = [], []
        for number, (image, ids) in enumerate(zip(images, instance_masks, strict=True)):
            if tuple(ids.shape) != tuple(image.shape[-2:]):
                raise ValueError(
                    f"The regions are {tuple(ids.shape)} pixels and the picture {tuple(image.shape[-2:])}. Make them "
                    "anew for it."
                )
            sizes.append(resized_size((int(image.shape[-2]), int(image.shape[-1])), self.short))
            cuts.extend(self._cuts(number, image.to(text.device), ids.to(text.device), sizes[-1]))
        found: list[list[Tensor]] = [[] for _ in images]
        for shape in dict.fromkeys(cut.pixels.shape for cut in cuts):  # one, unless a picture is small
            alike = [cut for cut in cuts if cut.pixels.shape == shape]
            for start in range(0, len(alike), self.batch):
                some = alike[start : start + self.batch]
                guides = [cut.guide for cut in some if cut.guide is not None]
                pixels, ids = torch.stack([cut.pixels for cut in some]), torch.stack([cut.ids for cut in some])
                grids = self.window_logits(pixels, ids, text, torch.stack(guides) if guides else None)
                for cut, grid in zip(some, grids, strict=True):
                    found[cut.picture].append(grid)
        return [self._joined(grids, size) for grids, size in zip(found, sizes, strict=True)]

    def _cuts(self, number: int, image: Tensor, ids: Tensor, size: tuple[int, int]) -> list[Cut]:
        """The windows of a picture, row after row."""
        picture = resize_picture(image, size)
        regions = F.interpolate(ids[None, None].double(), size, mode="nearest")[0, 0].long()
        height, width = (min(self.crop, side) for side in size)
        tops, lefts = (window_starts(side, self.crop, self.stride) for side in size)
        places = [(slice(y, y + height), slice(x, x + width)) for y in tops for x in lefts]
        guides = self._shared_guide(picture, places) if self.guide_once else [None] * len(places)
        return [
            Cut(number, picture[:, rows, columns], regions[rows, columns], guide)
            for (rows, columns), guide in zip(places, guides, strict=True)
        ]

    def _shared_guide(self, picture: Tensor, places: Sequence[tuple[slice, slice]]) -> list[Tensor]:
        """Guide features (N, C) of each window, from those of the whole picture, bilinear between its patches."""
        whole = pad_to_multiple(self._centred(picture[None]), self._multiple)
        features, grid = self.guide.features(self._for_guide(whole))
        plane = features.transpose(1, 2).unflatten(2, grid).float()  # (1, C, rows, columns)
        found = []
        for place in places:
            points = [
                self._patch_centres(part, int(picture.shape[axis]), self.guide.patch_size[axis - 1])
                for axis, part in enumerate(place, 1)
            ]
            y, x = torch.meshgrid(*points, indexing="ij")
            where = torch.stack([x, y], dim=-1)[None].to(plane.device)  # (1, rows, columns, 2)
            sampled = F.grid_sample(plane, where, padding_mode="border", align_corners=False)
            found.append(F.normalize(sampled[0].flatten(1).T, dim=-1))
        return found

    def _patch_centres(self, part: slice, side: int, patch: int) -> Tensor:
        """Centres of a window's guide patches along one side of the padded picture, which goes from -1 to 1."""
        (inside, padded), (outside, whole) = (padding(n, self._multiple) for n in (part.stop - part.start, side))
        return (torch.arange(padded // patch) * patch + patch / 2 - inside + part.start + outside) * 2 / whole - 1

    @property
    def _multiple(self) -> int:
        return math.lcm(*self.visual.patch_size, *self.guide.patch_size)

    def _centred(self, pixels: Tensor) -> Tensor:
        """Bytes as values in 0..1 less CLIP's mean colour, which is what windows are padded with."""
        return pixels / 255 - channels(self.mean, pixels)

    def _for_guide(self, centred: Tensor) -> Tensor:
        return (centred + channels(self.mean, centred) - channels(self.guide.mean, centred)) / channels(
            self.guide.std, centred
        )

    def window_logits(self, pixels: Tensor, ids: Tensor, text: Tensor, guide: Tensor | None = None) -> Tensor:
        """Cosine similarities of windows to the queries.

        Args:
            pixels: uint8 (B, 3, h, w).
            ids: (B, h, w) region ids.
            text: (Q, D).
            guide: Features (B, N, C); None = the guide sees the windows.

        Returns:
            (B, Q, rows, columns) on the guide's patches of the padded windows.
        """
        centred = pad_to_multiple(self._centred(pixels), self._multiple)
        regions = pad_to_multiple(ids, self._multiple, value=PADDED)
        grid = tuple(side // patch for side, patch in zip(centred.shape[-2:], self.guide.patch_size, strict=True))
        if guide is None:
            guide = self.guide.features(self._for_guide(centred))[0]
        clip = centred / channels(self.std, centred)
        features = corrclip_features(self.visual, clip, guide, (grid[0], grid[1]), regions, **self.features)
        with torch.autocast(text.device.type, enabled=False):
            logits = text @ F.normalize(features.float(), dim=-1).transpose(1, 2)  # (B, Q, N)
        return logits.unflatten(2, grid)

    def _joined(self, grids: Sequence[Tensor], size: tuple[int, int]) -> PictureLogits:
        """The windows of a picture as one map."""
        starts = [window_starts(side, self.crop, self.stride) for side in size]
        matrices = []
        for side, first, cells in zip(size, starts, grids[0].shape[1:], strict=True):
            length = min(self.crop, side)
            before, padded = padding(length, self._multiple)
            matrices.append(stitching(first, length, side, cells, before, padded))
        rows = torch.stack(list(grids)).unflatten(0, (len(starts[0]), len(starts[1])))  # (y, x, Q, rows, columns)
        mosaic = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        return PictureLogits(mosaic, matrices[0], matrices[1])


def channels(values: Sequence[float], pixels: Tensor) -> Tensor:
    """One number a channel, to be added to or multiplied with pixels (..., 3, H, W)."""
    return torch.tensor(list(values), device=pixels.device).view(3, 1, 1)
