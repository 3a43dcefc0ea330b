"""Images with label maps and regions as a Dataset, decoded when asked for, and their batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datamodules.box_dataset import ORIENTATION
from datamodules.mask_cache import CachedMasks
from datamodules.segmentation_files import load_label_map, load_rgb
from datamodules.segmentation_layouts import SegmentationFiles


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Images, with label maps or without, decoded when asked for; items as :class:`SegmentationData` describes them.

    Args:
        files: The images; those without label maps are turned upright by their EXIF tag.
        num_classes: Number of classes.
        masks: Gives the region ids of an image file.
    """

    def __init__(self, files: SegmentationFiles, num_classes: int, masks: CachedMasks | None = None) -> None:
        self.files = files
        self.num_classes = num_classes
        self.masks = masks

    def __len__(self) -> int:
        return len(self.files.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        files = self.files
        pixels = np.array(load_rgb(files.images[index], upright=files.labels is None))
        size = pixels.shape[:2]
        item: dict[str, Any] = {"image": torch.from_numpy(pixels).permute(2, 0, 1).contiguous()}  # (3, H, W)
        if files.labels is not None and self.masks is not None:
            require_upright(files.images[index])
        ids = torch.zeros(size, dtype=torch.int64) if self.masks is None else self.masks(files.images[index])
        item["instance_mask"] = check_regions(ids, size, files.images[index])
        if files.labels is not None and files.table is not None:
            labels = load_label_map(files.labels[index], files.table, size, self.num_classes)
            item["target"] = torch.from_numpy(labels)
        return {**item, "index": index, "id": files.ids[index], "size": torch.tensor(size)}


def require_upright(path: Path) -> None:
    """Refuse an image that its EXIF tag turns: regions are made of it upright, label maps of its pixels as stored."""
    with Image.open(path) as image:
        if image.getexif().get(ORIENTATION, 1) != 1:
            raise ValueError(
                f"Image {path} has an EXIF tag that turns it, so its regions would not lie on its label map. Store it "
                "without that tag."
            )


def check_regions(ids: torch.Tensor, size: tuple[int, int], path: Path) -> torch.Tensor:
    """Region ids of an image, refused where they are of another size."""
    if tuple(ids.shape) != tuple(size):
        raise ValueError(
            f"{path}: its regions have {tuple(ids.shape)} pixels and the image {tuple(size)}. Make the regions of this "
            "very image; one whose EXIF tag turns it has to be stored upright."
        )
    return ids


def collate_segmentation(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items as a batch: ``size`` and ``index`` are stacked, all else is a list of B."""
    batch: dict[str, Any] = {name: [item[name] for item in items] for name in items[0]}
    return {**batch, "size": torch.stack(batch["size"]), "index": torch.tensor(batch["index"])}
