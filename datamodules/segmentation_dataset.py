"""Images with label maps and regions as a Dataset, decoded when asked for, and their batches."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.mask_cache import MaskCache
from datamodules.pictures import read_picture
from datamodules.segmentation_files import load_label_map
from datamodules.segmentation_layouts import SegmentationFiles


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Images, with label maps or without, decoded when asked for; items as :class:`SegmentationData` describes them.

    Args:
        files: The images; those without label maps are turned upright by their EXIF tag.
        num_classes: Number of classes.
        masks: Gives the region ids of a picture.
    """

    def __init__(self, files: SegmentationFiles, num_classes: int, masks: MaskCache | None = None) -> None:
        self.files = files
        self.num_classes = num_classes
        self.masks = masks

    def __len__(self) -> int:
        return len(self.files.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        files = self.files
        picture = read_picture(files.images[index], upright=files.labels is None)
        size = (picture.image.height, picture.image.width)
        ids = torch.zeros(size, dtype=torch.int64) if self.masks is None else self.masks(picture)
        item: dict[str, Any] = {"image": picture.pixels, "instance_mask": ids}
        if files.labels is not None and files.table is not None:
            labels = load_label_map(files.labels[index], files.table, size, self.num_classes, files.decode)
            item["target"] = torch.from_numpy(labels)
        return {**item, "index": index, "id": files.ids[index], "size": torch.tensor(size)}


def collate_segmentation(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items as a batch: ``size`` and ``index`` are stacked, all else is a list of B."""
    batch: dict[str, Any] = {name: [item[name] for item in items] for name in items[0]}
    return {**batch, "size": torch.stack(batch["size"]), "index": torch.tensor(batch["index"])}
