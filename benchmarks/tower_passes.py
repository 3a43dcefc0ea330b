"""Passes through the frozen towers in a cross-validation of the multi-label head, with the feature cache and without.

python benchmarks/tower_passes.py [--small]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from multilabel_epoch import TEXTS, fit
from table import print_table, write_section
from torch import Tensor

from datamodules import FeatureCache, MultilabelData


class CountingEncoder:
    """Towers that count what passes through them."""

    name, embed_dim, preprocessing = "counting", 8, "none"

    def __init__(self) -> None:
        self.images = self.texts = 0

    def fingerprint(self) -> str:
        """As if of weights."""
        return "0" * 64

    def preprocess(self, image: Tensor) -> Tensor:
        """The image as it is."""
        return image

    def encode_image(self, images: Tensor) -> Tensor:
        """Random embeddings."""
        self.images += len(images)
        return torch.randn(len(images), self.embed_dim)

    def encode_text(self, texts: list[str]) -> Tensor:
        """Random embeddings."""
        self.texts += len(texts)
        return torch.randn(len(texts), self.embed_dim)


class SmallData:
    """What FeatureCache needs of a dataset: ``pool`` and ``test`` items with five captions each."""

    def __init__(self, folder: Path, pool: int, test: int) -> None:
        self.protocol, self.split_dir, self.class_names = "holdout", folder, ["a", "b"]
        self.batch_size, self.num_workers = 16, 0
        self.splits = {"development": [f"d{i}" for i in range(pool)], "test": [f"t{i}" for i in range(test)]}

    def fingerprint(self) -> str:
        """As if of files."""
        return "0" * 64

    def dataset(self, part: str) -> Any:
        """Items of a part."""
        labels = np.arange(2 * len(self.splits[part])).reshape(-1, 2) // 2 % 3 > 0  # both classes in two of three
        captions, pixels = ["a photo."] * TEXTS, torch.zeros(3, 2, 2)
        items = [{"image": pixels, "captions": captions, "labels": torch.from_numpy(row)} for row in labels]
        return Items(items, SimpleNamespace(ids=self.splits[part], labels=labels.astype(np.uint8)))


class Items(list[Any]):
    """Items with their records."""

    def __init__(self, items: list[Any], records: Any) -> None:
        super().__init__(items)
        self.records = records


def passes(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """Tower passes of a run of five folds: counted on a small dataset, then in COCO's numbers.

    The loop to compare with encodes each image and one caption of it in every epoch: the training folds to learn from
    and the held-out fold to validate. The cache encodes each image and every caption once, those of the test too.
    """
    pool, test = 60, 12
    encoder = CountingEncoder()
    cache: Any = FeatureCache(SmallData(folder, pool, test), encoder, str(folder / "cache"))  # type: ignore[arg-type]
    for fold in range(5):
        data = MultilabelData(cache, fold=fold, stratified=False, batch_size=32)
        fit(data, folder, epochs, hidden=8, width=8, bits=8)
    assert (encoder.images, encoder.texts) == (pool + test, TEXTS * (pool + test))
    rows = []
    for name, loop, images, texts in (
        (
            f"counted: {pool} + {test} items, 5 folds x {epochs} epochs",
            5 * epochs * pool,
            encoder.images,
            encoder.texts,
        ),
        ("COCO: 118,287 + 5,000 images, 616,767 captions, 5 folds x 20 epochs", 5 * 20 * 118_287, 123_287, 616_767),
    ):
        for what, before, after in (
            ("images", loop, images),
            ("captions", loop, texts),
            ("both together", 2 * loop, images + texts),
            ("both, one caption an image in the cache", 2 * loop, 2 * images),
        ):
            row = {"run": name, "what": what, "encoded in the loop": f"{before:,}", "for the cache": f"{after:,}"}
            rows.append({**row, "x fewer": round(before / after, 1)})
    return rows


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of the table.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="some seconds; prints only")
    small = parser.parse_args(arguments).small
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        rows = passes(Path(name), epochs=1 if small else 20)
    title = "Multi-label head: tower passes of 5 folds x 20 epochs (aim: 80 x fewer)"
    if small:
        print_table(f"{title} (small)", rows)
    else:
        write_section(title, "python benchmarks/tower_passes.py", rows)
    return rows


if __name__ == "__main__":
    main()
