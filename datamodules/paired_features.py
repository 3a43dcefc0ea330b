"""Paired image and text features for retrieval: from published feature files, or from a feature cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.base import BaseDataModule
from datamodules.feature_files import FeatureSplit, check_split
from datamodules.feature_readers import read_arrays, read_folder, splits_from_arrays
from datamodules.features import FeatureCache


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


class PairedDataset(Dataset[dict[str, Tensor]]):
    """Rows of a :class:`FeatureSplit` as batches.

    Args:
        split: The features.
        rows: Positions in the split that belong to the dataset; None = all.
    """

    def __init__(self, split: FeatureSplit, rows: np.ndarray | None = None) -> None:
        self.split = split
        self.rows = np.arange(len(split)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int | tuple[int, int]) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([position]).items()}

    def __getitems__(self, positions: Sequence[int | tuple[int, int]]) -> dict[str, Tensor]:
        """A collated batch: one indexing of each array instead of one for each item.

        Args:
            positions: Positions in the dataset, each alone (its first text) or with the number of its text.

        Returns:
            The batch.
        """
        pairs = [position if isinstance(position, tuple) else (position, 0) for position in positions]
        chosen, texts = np.array(pairs, dtype=np.int64).T
        rows = self.rows[chosen]
        return {
            "image": torch.from_numpy(self.split.image[rows].astype(np.float32)),
            "text": torch.from_numpy(self.split.text[rows, texts].astype(np.float32)),
            "labels": torch.from_numpy(self.split.labels[rows].astype(np.float32)),
            "index": torch.from_numpy(rows.astype(np.int64)),
        }


class EpochSampler(DistributedSampler[Any]):
    """Shuffled positions, each with a drawn text, from the seed and the epoch alone.

    A resumed run so repeats the order that an undisturbed run would have had, whatever the state of the global
    generator and the number of loader processes. It is a DistributedSampler, so Lightning tells it the epoch and does
    not replace it; every process takes its share.

    Args:
        dataset: What to sample.
        seed: Seed of the order and of the texts.
    """

    def __init__(self, dataset: PairedDataset, seed: int) -> None:
        many = dist.is_available() and dist.is_initialized()
        super().__init__(
            dataset,
            num_replicas=dist.get_world_size() if many else 1,
            rank=dist.get_rank() if many else 0,
            shuffle=True,
            seed=seed,
            drop_last=True,  # padding would repeat a pair, which a contrastive loss takes for a negative
        )
        self.texts = dataset.split.text.shape[1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        texts = torch.randint(self.texts, (len(self.dataset),), generator=generator).tolist()
        order = super().__iter__()
        return ((position, texts[position]) for position in order)


def _already_collated(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


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
        split_seed: Seed of that cut, and of the splits of a file that has none.
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
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, persistent_workers)
        self.source = source
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.query_size = query_size
        self.train_size = train_size
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
        self.train_rows, self.val_rows = holdout_rows(len(splits["train"]), self.val_fraction, self.split_seed)
        self.splits = splits

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

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training pairs, full batches only: contrastive losses depend on the batch size."""
        dataset = PairedDataset(self.splits["train"], self.train_rows)
        sampler = EpochSampler(dataset, seed=int(os.environ.get("PL_GLOBAL_SEED", "0")))
        if self.trainer is not None:  # Lightning tells the epoch only after loader processes have their first indices
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=len(sampler) >= self.batch_size,  # one small batch is better than none
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
            collate_fn=_already_collated,
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Held-out training items as query, the other training items as database."""
        if not len(self.val_rows):
            return []
        train = self.splits["train"]
        parts = (PairedDataset(train, self.val_rows), PairedDataset(train, self.train_rows))
        return [self.loader(part, collate_fn=_already_collated) for part in parts]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Query and database."""
        parts = (PairedDataset(self.splits["query"]), PairedDataset(self.splits["database"]))
        return [self.loader(part, collate_fn=_already_collated) for part in parts]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Query and database."""
        return self.test_dataloader()
