"""Sources of region masks, one id map a picture: the protocol, the painting, and the sources without weights."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Order = Literal["ascending", "descending"]
VERSION = 1  # raise it when the code here makes other masks of the same picture: caches are then made anew


class MaskSource(ABC):
    """What splits a picture into regions.

    A subclass says its ``name``, its ``settings`` and the ``masks`` of a picture.
    """

    in_processes: ClassVar[bool] = False  # whether several processes may make masks: neither a model nor a GPU
    by_name: ClassVar[bool] = False  # whether masks are files, found by the name of the picture's file

    @property
    @abstractmethod
    def name(self) -> str:
        """The source in a few words, for tables and for the folder of a cache."""

    @abstractmethod
    def settings(self) -> dict[str, Any] | None:
        """All that the masks depend on beside the picture, the weights' hash too; None where a cache saves nothing."""

    @abstractmethod
    def masks(self, image: Tensor, stem: str | None = None) -> Tensor:
        """The regions of a picture.

        Args:
            image: ``(3, H, W)`` uint8, RGB.
            stem: Name of the picture's file without its ending; sources that read files need it.

        Returns:
            Id map ``(H, W)`` int64 on the CPU; 0 = in no region.
        """

    def fingerprint(self) -> str | None:
        """The sha256 of the kind of source, its settings and the version of the code; None without settings."""
        settings = self.settings()
        if settings is None:
            return None
        what = {"source": type(self).__name__, "version": VERSION, **settings}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def check_image(image: Tensor) -> None:
    """Refuse what is no RGB picture of bytes.

    Raises:
        ValueError: Another shape or type, or a picture without pixels.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or not image.numel():
        raise ValueError(
            f"The picture has shape {tuple(image.shape)} and type {image.dtype}; masks are made of (3, H, W) uint8."
        )


def check_order(order: str) -> None:
    """Refuse an unknown painting order.

    Raises:
        ValueError: It is neither ``ascending`` nor ``descending``.
    """
    if order not in ("ascending", "descending"):
        raise ValueError(
            f"order is {order!r}; known: ascending (large masks over small ones, as in CorrCLIP), descending."
        )


def painting_order(areas: Tensor, order: Order = "ascending") -> Tensor:
    """The order in which masks are painted over each other.

    Args:
        areas: Pixels of each mask, ``(K,)``.
        order: ``ascending``: small ones first, so that large ones cover them; ``descending``: the reverse.

    Returns:
        Positions ``(K,)``, first painted first; masks of one area keep their order.

    Example:
        >>> areas = torch.tensor([5, 9, 5])
        >>> painting_order(areas).tolist(), painting_order(areas, "descending").tolist()
        ([0, 2, 1], [1, 0, 2])
    """
    check_order(order)
    return areas.sort(stable=True, descending=order == "descending").indices


def paint(masks: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
    """Masks painted over each other; a later one covers an earlier one.

    Args:
        masks: K masks ``(H, W)`` bool, first painted first; they may come one after the other.
        size: H and W.

    Returns:
        Id map ``(H, W)`` int64: 1 + position of the last mask on a pixel, 0 where there is none. A mask that is covered
        whole leaves a gap in the ids.

    Example:
        >>> paint([torch.tensor([[1, 1, 0, 0]]).bool(), torch.tensor([[0, 1, 1, 0]]).bool()], (1, 4)).tolist()
        [[1, 2, 2, 0]]
    """
    ids: Tensor | None = None
    for number, mask in enumerate(masks, start=1):
        ids = torch.zeros(size, dtype=torch.long, device=mask.device) if ids is None else ids
        ids.masked_fill_(mask, number)
    return torch.zeros(size, dtype=torch.long) if ids is None else ids.cpu()


def number_by_area(segments: Tensor) -> Tensor:
    """Regions that do not overlap, numbered 1 to K by ascending area, as painted masks are; 0 stays.

    CorrCLIP takes the smallest id of a window for its unsegmented part, so the numbers matter.

    Args:
        segments: ``(H, W)`` of any ids, 0 = in no region; regions of one area keep the order of their ids.

    Returns:
        ``(H, W)`` int64.

    Example:
        >>> number_by_area(torch.tensor([[7, 7, 3, 0, 9, 9, 9]])).tolist()
        [[2, 2, 1, 0, 3, 3, 3]]
    """
    values, inverse, areas = segments.unique(return_inverse=True, return_counts=True)
    areas = areas.masked_fill(values == 0, -1)  # first of all
    ranks = torch.empty_like(areas)
    ranks[areas.sort(stable=True).indices] = torch.arange(len(areas), device=areas.device)
    return ranks[inverse] + int(not (values == 0).any())


class NoMasks(MaskSource):
    """No regions: every pixel is unsegmented."""

    @property
    def name(self) -> str:
        """``none``."""
        return "none"

    def settings(self) -> None:
        """Nothing to cache."""
        return

    def masks(self, image: Tensor, stem: str | None = None) -> Tensor:
        """An id map of zeros, see :class:`MaskSource`."""
        check_image(image)
        return torch.zeros(image.shape[1:], dtype=torch.long)


class Felzenszwalb(MaskSource):
    """Regions of like colour by a graph of pixels; needs no weights. Every pixel is in a region.

    Args:
        scale: Larger gives larger regions; in units of the colours 0..255, as in the paper's code.
        sigma: Deviation of the Gaussian that smooths the picture first, pixels.
        min_size: Smallest region, pixels.
        longest: Larger pictures are resized to this longest side in pixels, and their regions back by nearest
            neighbours; ``sigma`` and ``min_size`` then count pixels of the resized one. A photo of 4000 x 3000 as it is
            would take two minutes and 3 GiB.

    Raises:
        ValueError: A negative value, or ``longest`` below 1.

    Reference:
        Felzenszwalb & Huttenlocher, Efficient Graph-Based Image Segmentation, IJCV 2004.
    """

    in_processes = True

    def __init__(self, scale: float = 100.0, sigma: float = 0.8, min_size: int = 50, longest: int = 2048) -> None:
        if scale < 0 or sigma < 0 or min_size < 0:
            raise ValueError(f"scale {scale}, sigma {sigma} and min_size {min_size} must not be negative.")
        if longest < 1:
            raise ValueError(f"longest is {longest}; it must be at least 1 pixel.")
        self.scale, self.sigma, self.min_size, self.longest = scale, sigma, min_size, longest

    @property
    def name(self) -> str:
        """``felzenszwalb`` and its scale."""
        return f"felzenszwalb {self.scale:g}"

    def settings(self) -> dict[str, Any]:
        """The four parameters."""
        return {"scale": self.scale, "sigma": self.sigma, "min_size": self.min_size, "longest": self.longest}

    def masks(self, image: Tensor, stem: str | None = None) -> Tensor:
        """The regions, numbered by ascending area, see :class:`MaskSource`."""
        from skimage.segmentation import felzenszwalb

        check_image(image)
        pixels = shrink(image, self.longest).permute(1, 2, 0).cpu().numpy()
        segments = felzenszwalb(pixels, scale=self.scale, sigma=self.sigma, min_size=self.min_size, channel_axis=-1)
        ids = number_by_area(torch.from_numpy(segments).long() + 1)
        size = tuple(image.shape[1:])
        if ids.shape == size:
            return ids
        # ids are exact in float32: there are fewer regions than 2 ** 24
        return F.interpolate(ids[None, None].float(), size, mode="nearest-exact")[0, 0].long()


def shrink(image: Tensor, longest: int) -> Tensor:
    """A picture that is larger, resized to a longest side; others as they are.

    Args:
        image: ``(3, H, W)`` uint8.
        longest: Side in pixels.

    Returns:
        ``(3, h, w)`` uint8.

    Example:
        >>> shrink(torch.zeros(3, 30, 40, dtype=torch.uint8), 20).shape
        torch.Size([3, 15, 20])
    """
    height, width = image.shape[1:]
    ratio = longest / max(height, width)
    if ratio >= 1:
        return image
    size = (max(round(height * ratio), 1), max(round(width * ratio), 1))
    small = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8)
