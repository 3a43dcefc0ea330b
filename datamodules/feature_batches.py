"""Batches of cached features, each sliced from the arrays at once: no work is done item by item."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.feature_files import FeatureSplit
from datamodules.ranks import rank_and_world

Picked = tuple[np.ndarray, np.ndarray]  # positions in the dataset, and the number of the text of each


class FeatureBatches(Dataset[dict[str, Tensor]]):
    """Rows of a :class:`~datamodules.feature_files.FeatureSplit`, read a batch at a time.

    A batch is a dict: ``image`` (B, Di) and ``text`` (B, Dt), ``labels`` (B, C), all float32, and ``index`` (B,), the
    position in the split.

    Args:
        split: The features; memory-mapped arrays stay on disk.
        rows: Positions in the split that belong to the dataset; None = all.
    """

    def __init__(self, split: FeatureSplit, rows: np.ndarray | None = None) -> None:
        self.split = split
        self.rows = np.arange(len(split)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, picked: Picked) -> dict[str, Tensor]:
        positions, texts = picked
        rows = self.rows[positions]
        return {
            "image": torch.from_numpy(self.split.image[rows].astype(np.float32)),
            "text": torch.from_numpy(self.split.text[rows, texts].astype(np.float32)),
            "labels": torch.from_numpy(self.split.labels[rows].astype(np.float32)),
            "index": torch.from_numpy(rows.astype(np.int64)),
        }


class BatchSampler(DistributedSampler[Any]):
    """Positions of whole batches, each with the number of a text.

    Shuffled, the order and the drawn texts follow from the seed and the epoch alone, whatever the state of the global
    generator and the number of loader processes: a resumed run repeats what an undisturbed one would have seen.
    Unshuffled, every item comes once, with its first text, and no process repeats an item of another. It is a
    DistributedSampler, so Lightning tells it the epoch and does not replace it; every process takes its share.

    Args:
        dataset: What to sample.
        texts: Texts of an item; one of them is drawn.
        batch_size: Items a batch and process; the last batch may be smaller.
        shuffle: Draw another order and other texts in each epoch, for training.
        seed: Seed of both.
        drop_last: Leave out a last smaller batch, unless it is the only one.
        shared: Each process takes its share; False = every process takes all.
    """

    def __init__(
        self,
        dataset: Sized,
        texts: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        shared: bool = True,
    ) -> None:
        rank, world = rank_and_world() if shared else (0, 1)
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.texts = texts
        self.batch_size = batch_size
        self.count = len(dataset)
        # In training all processes take the same number of steps, so up to world - 1 items wait for another epoch.
        self.num_samples = self.count // world if shuffle else len(range(rank, self.count, world))
        if drop_last and self.num_samples > batch_size:
            self.num_samples -= self.num_samples % batch_size

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Picked]:
        order, texts = np.arange(self.count), np.zeros(self.count, np.int64)
        if self.shuffle:
            seed = 100_003 * self.seed + self.epoch  # so that no epoch of a seed is an epoch of the next seed
            order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed)).numpy()
            texts = torch.randint(self.texts, (self.count,), generator=torch.Generator().manual_seed(seed)).numpy()
        mine = order[self.rank :: self.num_replicas][: self.num_samples]
        for start in range(0, len(mine), self.batch_size):
            positions = mine[start : start + self.batch_size]
            yield positions, texts[positions]


def batch_loader(
    dataset: Dataset[Any],
    sampler: BatchSampler,
    num_workers: int = 0,
    pin_memory: bool = False,
    persistent_workers: bool = False,
) -> DataLoader[Any]:
    """A loader that takes whole batches: ``dataset[picked]`` is a batch."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers and num_workers > 0,
    )
