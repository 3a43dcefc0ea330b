"""A detection batch as the networks and the metrics take it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Batch = dict[str, Any]  # of datamodules.detection.DetectionData
Target = dict[str, Tensor]  # boxes (n, 4) xyxy as fractions of the picture, labels (n,), ignore (n,)


def stacked(batch: Batch) -> Tensor:
    """The images of a batch as one tensor, uint8 (B, 3, S, S)."""
    if isinstance(batch["image"], Tensor):
        return batch["image"]
    raise ValueError(
        "Pictures of different sizes make no batch for this detector. Set data.init_args.image_size, as 640."
    )


def truths_of(batch: Batch) -> list[dict[str, Tensor]]:
    """``boxes`` in pixels, ``labels`` and ``ignore`` of each image."""
    columns = zip(*(batch[name] for name in ("boxes", "box_labels", "ignore")), strict=True)
    return [{"boxes": boxes, "labels": labels, "ignore": ignore} for boxes, labels, ignore in columns]


def targets_of(batch: Batch) -> list[Target]:
    """As ``truths_of``, with boxes as fractions of the picture."""
    sides = batch["size"].flip(1).repeat(1, 2)  # (B, 4): width, height, width, height
    return [{**truth, "boxes": truth["boxes"] / side} for truth, side in zip(truths_of(batch), sides, strict=True)]
