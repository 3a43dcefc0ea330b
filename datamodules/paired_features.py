"""Paired image and text features for retrieval: from published feature files, or from a feature cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from torch.utils.data import DataLoader

from datamodules.base import BaseDataModule
from datamodules.feature_batches import BatchSampler, FeatureBatches, batch_loader
from datamodules.feature_files import FeatureSplit, check_split
from datamodules.feature_readers import read_arrays, read_folder, splits_from_arrays
from datamodules.features import FeatureCache
from datamodules.folds import check_fold, make_folds, warn_missing


def holdout_rows(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeded, disjoint (kept, held out) rows, both ascending; nothing is held out for fraction 0 alone.

    Example:
        >>> kept, held = holdout_rows(10, 0.2, seed=0)
        >>> len(kept), len(held), sorted([*kept, *held]) == list(range(10))
        (8, 2, True)
    """
    held = round(count * fraction)
    if not 0 <= held < count or (held == 0) != (fraction == 0):
        raise ValueError(
            f"val_fraction {fraction} of {count} training items leaves {count - held} to train on and {held} to "
            "validate on; both need at least one. Change val_fraction (0 = no validation) or give more items."
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


class PairedFeatures(BaseDataModule):
    """Image and text features of the same items, with labels for scoring.

    A batch is a dict: ``image`` (B, Di), ``text`` (B, Dt), ``labels`` (B, C), all float32, and ``index`` (B,), the
    position in the split. Validation is cut from the training part alone: the held-out items query the other training
    items, and the test part is never seen in selection. Validation, test and predict have two loaders each: 0 = query,
    1 = database. Where a training item has several texts, each epoch draws one; everything else uses the first.

    Args:
        source: A feature file (.pkl folder, .mat, .npz, .h5; the README lists the keys), or a feature cache.
        val_fraction: Part of the training items held out for validation, in [0, 1); 0 = no validation, to train on
            everything once the settings are chosen.
        num_folds: Cut the training items into that many folds with the same share of every label, and validate on one
            instead of on ``val_fraction``; None = no folds.
        fold: The fold that validates, from 0.
        split_seed: Seed of either cut, and of the splits of a file that has none.
        query_size: Queries cut from a file without splits of its own; the rest is the database.
        train_size: Database items to train on, for such a file.
        batch_size: Pairs a step and process.
        num_workers: Loader processes; features need none.
        pin_memory: Copy batches to page-locked memory, for a GPU.
        persistent_workers: Keep the loader processes between epochs.

    Raises:
        FileNotFoundError: No such source.
        ValueError: Features that cannot be used; the message names the file, the cause and the cure.
    """

    def __init__(
        self,
        source: str | FeatureCache,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        query_size: int = 2000,
        train_size: int = 5000,
        batch_size: int = 128,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        num_folds: int | None = None,
        fold: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, persistent_workers)
        check_fold(num_folds, fold)
        self.source = source
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.query_size = query_size
        self.train_size = train_size
        self.num_folds = num_folds
        self.fold = fold
        self.splits: dict[str, FeatureSplit] = {}

    @property
    def image_dim(self) -> int:
        """Width of the image features; known after setup."""
        return int(self.splits["train"].image.shape[1])

    @property
    def text_dim(self) -> int:
        """Width of the text features; known after setup."""
        return int(self.splits["train"].text.shape[2])

    @property
    def num_classes(self) -> int:
        """Number of labels; known after setup."""
        return int(self.splits["train"].labels.shape[1])

    @property
    def class_names(self) -> list[str]:
        """Names of the labels: the dataset's, or numbers where a file has none."""
        if isinstance(self.source, FeatureCache):
            return self.source.class_names
        return [str(i) for i in range(self.num_classes)]

    def examples(self, split: str, rows: Sequence[int]) -> list[tuple[Image | None, str]]:
        """Picture and text of some items, for people to look at.

        Args:
            split: ``train``, ``query`` or ``database``.
            rows: Positions in the split.

        Returns:
            From a cache the picture and its first caption; a feature file has neither: None, and the item's id with
            its labels.
        """
        if isinstance(self.source, FeatureCache):
            return list(self.source.examples(split, rows))
        names, part = self.class_names, self.splits[split]
        labels = [", ".join(names[i] for i in np.flatnonzero(part.labels[row])) for row in rows]
        return [(None, f"{part.ids[row]} (label {found})") for row, found in zip(rows, labels, strict=True)]

    def setup(self, stage: str) -> None:
        """Read the features, check them, cut the validation part. A cache builds itself here, on all processes."""
        if self.splits:
            return
        splits = self._read()
        for name, split in splits.items():
            for part, width, expected in (
                ("image", split.image.shape[1], splits["train"].image.shape[1]),
                ("text", split.text.shape[2], splits["train"].text.shape[2]),
                ("label", split.labels.shape[1], splits["train"].labels.shape[1]),
            ):
                if width != expected:
                    raise ValueError(
                        f"{self.source}: {part} width is {width} in {name} and {expected} in train. "
                        "Extract all splits with the same model and classes."
                    )
        shared = splits["query"].labels.any(axis=0) & splits["database"].labels.any(axis=0)
        if not shared.any():
            raise ValueError(
                f"{self.source}: no query has a relevant item, because no label occurs in both query and database. "
                "Check the label columns of the two splits."
            )
        self.train_rows, self.val_rows = self._cut(splits["train"])
        self.splits = splits

    def _cut(self, train: FeatureSplit) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows to validate on."""
        if self.num_folds is None:
            return holdout_rows(len(train), self.val_fraction, self.split_seed)
        folds = make_folds(train.labels, self.num_folds, self.split_seed)
        warn_missing(train.labels, folds, self.source.class_names if isinstance(self.source, FeatureCache) else None)
        return np.flatnonzero(folds != self.fold), np.flatnonzero(folds == self.fold)

    def _read(self) -> dict[str, FeatureSplit]:
        if isinstance(self.source, FeatureCache):
            splits = {name: self.source.open(name) for name in ("train", "query", "database")}
            for name, split in splits.items():
                check_split(split, f"feature cache ({name})")
            return splits
        path = Path(self.source).expanduser()
        arrays = read_folder(path) if path.is_dir() else read_arrays(path)
        pool = {"query_size": self.query_size, "train_size": self.train_size, "seed": self.split_seed}
        return splits_from_arrays(arrays, str(path), **pool)

    def _loader(self, name: str, rows: np.ndarray | None = None, **order: Any) -> DataLoader[Any]:
        dataset = FeatureBatches(self.splits[name], rows)
        sampler = BatchSampler(dataset, self.splits[name].text.shape[1], self.batch_size, **order)
        if self.trainer is not None:  # Lightning tells the epoch only after loader processes have their first indices
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return batch_loader(dataset, sampler, self.num_workers, self.pin_memory, self.persistent_workers)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training pairs, full batches only: contrastive losses depend on the batch size."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        return self._loader("train", self.train_rows, shuffle=True, drop_last=True, seed=seed)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Held-out training items as query, the other training items as database."""
        if not len(self.val_rows):
            return []
        return [self._loader("train", rows) for rows in (self.val_rows, self.train_rows)]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Query and database."""
        return [self._loader(name) for name in ("query", "database")]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Query and database."""
        return self.test_dataloader()
