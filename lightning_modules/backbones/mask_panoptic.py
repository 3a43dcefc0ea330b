"""Panoptic models of transformers as mask sources: Mask2Former and EoMT."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.backbones.encoder import AUTOCAST, Precision
from lightning_modules.backbones.mask_weights import (
    check_precision,
    folder_hash,
    from_folder,
    hub_folder,
    resolve_device,
    transformers_class,
)
from lightning_modules.backbones.masks import MaskSource, check_image, number_by_area

THRESHOLDS = {"mask2former": 0.5, "eomt": 0.8, "eomt_dinov3": 0.8}  # of a segment's score: transformers' own
FILES = ("config.json", "preprocessor_config.json")


class PanopticModel(MaskSource):
    """The segments of a panoptic model, things and stuff alike; their classes are not used.

    These models were trained with the masks of their data set: on COCO's own benchmarks their regions are not free of
    annotation.

    Args:
        path: Hub id, or a local folder with config.json, model.safetensors and preprocessor_config.json, such as
            ``facebook/mask2former-swin-large-coco-panoptic`` or ``tue-mps/coco_panoptic_eomt_large_640``.
        threshold: Lowest score of a segment; None = the family's usual one, 0.5 for Mask2Former and 0.8 for EoMT.
        mask_threshold: Lowest probability of a pixel.
        overlap_threshold: A segment goes of which others cover more than one minus this share.
        precision: ``32-true``, or autocast to ``16-mixed`` or ``bf16-mixed``.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Reference:
        Cheng et al., Masked-attention Mask Transformer for Universal Image Segmentation, CVPR 2022;
        Kerssies et al., Your ViT is Secretly an Image Segmentation Model, CVPR 2025.
    """

    def __init__(
        self,
        path: str = "facebook/mask2former-swin-large-coco-panoptic",
        threshold: float | None = None,
        mask_threshold: float = 0.5,
        overlap_threshold: float = 0.8,
        precision: Precision = "32-true",
        device: str = "auto",
    ) -> None:
        check_precision(precision)
        self.path, self.precision, self.device_name = path, precision, device
        self.threshold, self.mask_threshold, self.overlap_threshold = threshold, mask_threshold, overlap_threshold

    @property
    def name(self) -> str:
        """Name of the checkpoint."""
        return Path(self.path).name

    @cached_property
    def folder(self) -> Path:
        """The folder of the checkpoint."""
        return hub_folder(self.path, FILES)

    @cached_property
    def _hash(self) -> str:
        return folder_hash(self.folder)

    def settings(self) -> dict[str, Any]:
        """Thresholds, precision and the hash of the checkpoint."""
        thresholds = (self.threshold, self.mask_threshold, self.overlap_threshold)
        return {"thresholds": thresholds, "precision": self.precision, "weights": self._hash}

    @cached_property
    def model(self) -> Any:
        """The model, loaded at first use.

        Raises:
            ValueError: A model of another kind, or weights that do not fit.
        """
        from transformers import AutoConfig

        kind = AutoConfig.from_pretrained(self.folder).model_type
        if kind not in THRESHOLDS:
            raise ValueError(
                f"{self.path} holds a model of the kind '{kind}'; masks are made with {', '.join(THRESHOLDS)}."
            )
        model = from_folder(transformers_class("AutoModelForUniversalSegmentation", "4.56"), self.folder)
        return model.eval().requires_grad_(False).to(resolve_device(self.device_name))

    @cached_property
    def processor(self) -> Any:
        """What scales pictures and reads segments from the network's outputs."""
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(self.folder)

    @torch.no_grad()
    def masks(self, image: Tensor, stem: str | None = None) -> Tensor:
        """The segments, numbered by ascending area, see :class:`MaskSource`."""
        check_image(image)
        device, dtype, kind = self.model.device, AUTOCAST[self.precision], self.model.config.model_type
        inputs = self.processor(images=image, return_tensors="pt")
        kept = {key: inputs[key].to(device) for key in ("pixel_values", "pixel_mask") if key in inputs}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            outputs = self.model(**kept)
        outputs.class_queries_logits = outputs.class_queries_logits.float()
        outputs.masks_queries_logits = outputs.masks_queries_logits.float()
        found = self.processor.post_process_panoptic_segmentation(
            outputs,
            threshold=THRESHOLDS[kind] if self.threshold is None else self.threshold,
            mask_threshold=self.mask_threshold,
            overlap_mask_area_threshold=self.overlap_threshold,
            target_sizes=[(image.shape[1], image.shape[2])],
            **({"label_ids_to_fuse": set()} if kind == "mask2former" else {}),  # each instance by itself
        )[0]
        segments = torch.zeros(image.shape[1:], dtype=torch.long)
        for number, each in enumerate(sorted({info["id"] for info in found["segments_info"]}), start=1):
            segments[(found["segmentation"] == each).cpu()] = number
        return number_by_area(segments)
