"""Batches of decoded images, for towers that are trained: read, augmented and preprocessed in the loader's workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datamodules.feature_batches import Picked


def light_augmentation() -> Callable[[Image.Image], Image.Image]:
    """Flips half of the images, changes brightness and contrast of a fifth, shifts, scales and turns three in ten.

    Returns:
        A function of a PIL image; it draws from torch's generator of the worker.
    """
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(brightness=0.2, contrast=0.2)], 0.2),
            v2.RandomApply([v2.RandomAffine(degrees=5, translate=(0.05, 0.05), scale=(0.95, 1.05))], 0.3),
        ]
    )


class LiveBatches(Dataset[dict[str, Any]]):
    """Items of an image-text dataset, decoded a batch at a time.

    A batch is a dict: ``image`` (B, 3, H, W) pixels as the tower takes them, ``text`` B strings, ``labels`` (B, C)
    float32 and ``index`` (B,), the position in the dataset.

    Args:
        items: A dataset of dicts with ``image``, ``captions`` and ``labels``.
        rows: Positions in it that belong here.
        preprocess: RGB image to pixels.
        augment: Applied before, in training.
    """

    def __init__(
        self,
        items: Dataset[dict[str, Any]],
        rows: np.ndarray,
        preprocess: Callable[[Image.Image], torch.Tensor],
        augment: Callable[[Image.Image], Image.Image] | None = None,
    ) -> None:
        self.items = items
        self.rows = rows
        self.preprocess = preprocess
        self.augment = augment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, picked: Picked) -> dict[str, Any]:
        positions, texts = picked
        rows = self.rows[positions]
        items = [self.items[int(row)] for row in rows]
        images = [item["image"] if self.augment is None else self.augment(item["image"]) for item in items]
        return {
            "image": torch.stack([self.preprocess(image) for image in images]),
            "text": [item["captions"][k % len(item["captions"])] for item, k in zip(items, texts, strict=True)],
            "labels": torch.stack([item["labels"] for item in items]),
            "index": torch.from_numpy(rows.astype(np.int64)),
        }
