"""Labelled features with a planted signal, in the shape of a feature cache, for tests of multi-label hashing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from datamodules import MultilabelData
from datamodules.feature_files import FeatureSplit
from datamodules.records import Records

CLASSES = ["cat", "dog", "ship", "tree"]
WIDTH = 12


class PlantedItems:
    """Items with a grey picture each."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": Image.new("RGB", (300, 200)), "captions": self.records.captions[row]}


class PlantedSource:
    """What MultilabelData needs of a FeatureCache: parts with ids, labels and features that hold the labels.

    Args:
        folder: Where folds are saved.
        sizes: Items of ``development`` and ``test``.
        noise: Standard deviation of the noise on the features.
        seed: Seed of labels and features.
    """

    def __init__(self, folder: Path, sizes: tuple[int, int] = (120, 60), noise: float = 0.5, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        means = {"image": rng.normal(size=(len(CLASSES), WIDTH)), "text": rng.normal(size=(len(CLASSES), WIDTH))}
        self.encoder: Any = None
        self.path = Path("planted")
        self.class_names = CLASSES
        self.parts: dict[str, FeatureSplit] = {}
        for part, count in zip(("development", "test"), sizes, strict=True):
            labels = (rng.random((count, len(CLASSES))) < (0.5, 0.3, 0.2, 0.1)).astype(np.float32)
            image = labels @ means["image"] + noise * rng.normal(size=(count, WIDTH))
            text = (labels @ means["text"])[:, None] + noise * rng.normal(size=(count, 2, WIDTH))
            ids = [f"{part}/{i}" for i in range(count)]
            self.parts[part] = FeatureSplit(image.astype(np.float16), text.astype(np.float16), labels, ids)
        splits = {part: split.ids for part, split in self.parts.items()}
        self.data = SimpleNamespace(protocol="holdout", split_dir=folder, splits=splits, dataset=self._dataset)

    def _dataset(self, part: str) -> Any:
        split = self.parts[part]
        records = Records(
            ids=split.ids,
            paths=[Path(name) for name in split.ids],
            captions=[["a", "b"] for _ in split.ids],
            labels=split.labels.astype(np.uint8),
            class_names=CLASSES,
        )
        return PlantedItems(records)

    def open(self, part: str) -> FeatureSplit:
        return self.parts[part]

    def change(self, part: str, rows: np.ndarray) -> None:
        """Replace features and labels of some items by noise."""
        rng = np.random.default_rng(99)
        split = self.parts[part]
        image, text, labels = split.image.copy(), split.text.copy(), split.labels.copy()
        image[rows] = rng.normal(size=image[rows].shape)
        text[rows] = rng.normal(size=text[rows].shape)
        labels[rows] = rng.random(labels[rows].shape) < 0.5
        self.parts[part] = replace(split, image=image, text=text, labels=labels)


def planted_data(folder: Path, source: PlantedSource | None = None, **arguments: Any) -> MultilabelData:
    """A MultilabelData over planted features, not yet set up."""
    return MultilabelData(source or PlantedSource(folder), **{"num_folds": 3, "batch_size": 16, **arguments})
