"""What every DataModule of the suite shares: the arguments and the making of loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset


class BaseDataModule(LightningDataModule):
    """Common arguments of all DataModules.

    Args:
        batch_size: Samples a step and process.
        num_workers: Loader processes.
        pin_memory: Copy batches to page-locked memory, for a GPU.
        persistent_workers: Keep the loader processes between epochs.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}; it must be at least 0.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers

    def loader(
        self,
        dataset: Dataset[Any],
        shuffle: bool = False,
        drop_last: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> DataLoader[Any]:
        """A loader over ``dataset`` with the arguments of this DataModule."""
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
            collate_fn=collate_fn,
        )
