"""SAM 2 and SAM 3 of transformers as mask sources."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.backbones.encoder import AUTOCAST, Precision
from lightning_modules.backbones.mask_points import PointGrid, PointMasks
from lightning_modules.backbones.mask_weights import (
    check_precision,
    folder_hash,
    from_folder,
    hub_folder,
    resolve_device,
    transformers_class,
)
from lightning_modules.backbones.masks import Order

SAM2_POINTS = PointGrid(points_per_side=8, pred_iou_thresh=0.4, stability_score_thresh=0.4, multimask=False)


class TransformersSam(PointMasks):
    """What SAM 2 and SAM 3 of transformers share; see :class:`Sam2` and :class:`Sam3`."""

    label: str
    published: str  # hub id
    licence = ""

    def __init__(
        self,
        path: str | None = None,
        points: PointGrid = SAM2_POINTS,
        order: Order = "ascending",
        precision: Precision = "32-true",
        device: str = "auto",
    ) -> None:
        super().__init__(points, order)
        check_precision(precision)
        self.path, self.precision, self.device_name = path or self.published, precision, device

    @property
    def name(self) -> str:
        """The model, its checkpoint and the points along a side."""
        return f"{self.label} {Path(self.path).name} {self.points.points_per_side}"

    @abstractmethod
    def classes(self) -> tuple[Any, Any]:
        """Classes of the model and of its image processor."""

    @cached_property
    def folder(self) -> Path:
        """The folder of the checkpoint."""
        return hub_folder(self.path, ("config.json",), self.licence)

    @cached_property
    def model(self) -> Any:
        """The model, loaded at first use."""
        model = from_folder(self.classes()[0], self.folder)
        return model.eval().requires_grad_(False).to(resolve_device(self.device_name))

    @cached_property
    def _hash(self) -> str:
        return folder_hash(self.folder)

    @property
    def _side(self) -> int:
        side = self.model.prompt_encoder.input_image_size
        return side if isinstance(side, int) else side[0]

    def settings(self) -> dict[str, Any]:
        """Thresholds, painting order, precision and the hash of the checkpoint."""
        return {**self.point_settings(), "precision": self.precision, "weights": self._hash}

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST[self.precision]
        return torch.autocast(self.model.device.type, dtype=dtype, enabled=dtype is not None)

    def embed(self, image: Tensor) -> list[Tensor]:
        """Feature maps of a picture ``(3, H, W)`` uint8, which is squeezed into a square."""
        processor = self.classes()[1](size={"height": self._side, "width": self._side})
        pixels = processor(images=image, return_tensors="pt")["pixel_values"].to(self.model.device)
        with self._autocast():
            return self.model.get_image_embeddings(pixels)

    def decode(self, embedding: list[Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of points, see :class:`PointMasks`."""
        place = (points * self._side).to(self.model.device, torch.float32)[None, :, None]  # (1, P, 1, 2)
        with self._autocast():
            found = self.model(image_embeddings=embedding, input_points=place, multimask_output=self.points.multimask)
        return found.pred_masks[0].float(), found.iou_scores[0].float()

    def inside(self, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
        """There is no padding."""
        return grid

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits at the picture's size, bilinear."""
        return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


class Sam2(TransformersSam):
    """Automatic masks of SAM 2 or 2.1 through transformers.

    The points and thresholds are those of CorrCLIP's code (SAM2_8). Its paper's table has 32 points a side (SAM2_32);
    those thresholds are not published, the nearest known are 0.7 and 0.7 with three masks a point.

    Args:
        path: Hub id, or a local folder with config.json and model.safetensors; None = ``facebook/sam2-hiera-large``.
        points: The grid of points and all thresholds.
        order: Painting order by area; ``ascending`` lets large masks cover small ones, as CorrCLIP does.
        precision: ``32-true``, or autocast to ``16-mixed`` or ``bf16-mixed``.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Reference:
        Ravi et al., SAM 2: Segment Anything in Images and Videos, ICLR 2025.
    """

    label, published = "sam2", "facebook/sam2-hiera-large"

    def classes(self) -> tuple[Any, Any]:
        """``Sam2Model`` and its processor."""
        return transformers_class("Sam2Model", "4.56"), transformers_class("Sam2ImageProcessor", "5.0")


class Sam3(TransformersSam):
    """Automatic masks of SAM 3 through transformers, by its part that takes points (its tracker).

    Args:
        path: Hub id, or a local folder with config.json and model.safetensors; None = ``facebook/sam3``.
        points: The grid of points and all thresholds.
        order: Painting order by area; ``ascending`` lets large masks cover small ones, as CorrCLIP does.
        precision: ``32-true``, or autocast to ``16-mixed`` or ``bf16-mixed``.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Reference:
        Carion et al., SAM 3: Segment Anything with Concepts, 2025.
    """

    label, published = "sam3", "facebook/sam3"
    licence = "(its licence has to be accepted on that page first)"

    def classes(self) -> tuple[Any, Any]:
        """``Sam3TrackerModel`` and its processor."""
        return transformers_class("Sam3TrackerModel", "5.0"), transformers_class("Sam3ImageProcessor", "5.0")
