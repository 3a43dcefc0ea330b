"""What the image-text datasets share: the protocols and their parts, the loaders, the fingerprint."""

from __future__ import annotations

import re
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader

from datamodules.annotation_files import read_text
from datamodules.base import BaseDataModule
from datamodules.folds import check_fold, check_holdout, draw_holdout, read_or_make_folds
from datamodules.records import (
    ImageTextDataset,
    Records,
    collate_items,
    concatenate,
    find_corrupt,
    fingerprint_records,
    load_image,
)
from datamodules.splits import Splits, draw_splits, hash_splits, read_splits, save_splits

__all__ = [
    "ImageTextData",
    "ImageTextDataset",
    "Records",
    "collate_items",
    "concatenate",
    "find_corrupt",
    "fingerprint_records",
    "load_image",
    "read_text",
]


class ImageTextData(BaseDataModule):
    """An image-text dataset on disk, in one of two protocols.

    ``retrieval`` has the parts train / query / database; items without a label are left out, because nothing is
    relevant to them. ``holdout`` has the parts development / test, for learning labels: items without one stay, with a
    row of zeros. With ``num_folds`` the development pool is in addition cut into folds: ``val`` is fold ``fold``,
    ``train`` are the others.

    Parts are drawn by a hash of the ids (the same on every machine) or come with the dataset; they and the folds are
    saved to ``split_dir`` as JSON with their sha256, and read from there afterwards. A subclass reads its layout in
    ``read``.

    Loaders give decoded items in batches: a dict with ``image`` (list of RGB PIL images), ``captions`` (list of lists
    of str), ``labels`` (float32 ``(B, C)``), ``index`` (position in the part, ``(B,)``), ``id`` (list of str), and
    lists ``boxes``, ``box_labels`` where the layout has them.

    Args:
        root: Folder of the dataset.
        num_query: Size of the query part; in protocol ``holdout`` of a test part that has to be drawn.
        num_train: Size of the training part of protocol ``retrieval``.
        split_seed: Seed of parts and folds.
        split_dir: Where parts and folds are saved.
        skip_corrupt: Leave out images that cannot be decoded (all are read once, the count is printed) instead of
            stopping at the first.
        protocol: ``retrieval`` or ``holdout``.
        num_folds: Number of folds of the development pool; None = none.
        fold: The fold that validates, from 0.
        stratified: Give each fold the same share of every label, instead of drawing folds at random.
        **kwargs: ``batch_size``, ``num_workers`` and the other arguments of ``BaseDataModule``.
    """

    def __init__(
        self,
        root: str,
        num_query: int,
        num_train: int,
        split_seed: int = 0,
        split_dir: str = "cache/splits",
        skip_corrupt: bool = False,
        protocol: Literal["retrieval", "holdout"] = "retrieval",
        num_folds: int | None = None,
        fold: int = 0,
        stratified: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if protocol not in ("retrieval", "holdout"):
            raise ValueError(f"protocol is {protocol}; known: retrieval, holdout.")
        check_fold(num_folds, fold)
        if num_folds is not None and protocol != "holdout":
            raise ValueError(f"num_folds {num_folds} needs protocol: holdout; {protocol} has no pool to cut.")
        self.root = Path(root).expanduser()
        self.num_query = num_query
        self.num_train = num_train
        self.split_seed = split_seed
        self.split_dir = Path(split_dir)
        self.skip_corrupt = skip_corrupt
        self.protocol = protocol
        self.num_folds = num_folds
        self.fold = fold
        self.stratified = stratified

    @abstractmethod
    def read(self) -> Records:
        """Read the layout: all items that the protocol counts, decoded or not."""

    def draw(self, records: Records) -> Splits:
        """The parts of protocol ``retrieval``."""
        return draw_splits(records.ids, self.num_query, self.num_train, self.split_seed)

    def draw_holdout(self, records: Records) -> Splits:
        """The parts of protocol ``holdout``: development first, then test."""
        return draw_holdout(records.ids, self.num_query, self.split_seed)

    @property
    def holdout_name(self) -> str:
        """What a hold-out depends on beside the items, for the name of the saved file; asked for after ``read``."""
        return f"query{self.num_query}-seed{self.split_seed}"

    @property
    def parts_name(self) -> str:
        """What the parts depend on beside the items, for the name of the saved file; asked for after ``read``."""
        if self.protocol == "holdout":
            return f"holdout-{self.holdout_name}"
        return f"query{self.num_query}-train{self.num_train}-seed{self.split_seed}"

    @property
    def splits_file(self) -> Path:
        """The file of the saved parts; its name changes with the items and with what the parts depend on."""
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()
        corrupt = "-skipped" if self.skip_corrupt else ""
        items = fingerprint_records(self._all)[:12]
        return self.split_dir / f"{kind}-{self.parts_name}{corrupt}-{items}.json"

    @cached_property
    def _all(self) -> Records:
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"Dataset folder {self.root} does not exist. Set root to the folder of the dataset."
            )
        return self.read()

    @cached_property
    def _saved(self) -> dict[str, Any]:
        """The parts and the skipped images: read, or drawn and saved."""
        path = self.splits_file
        if path.is_file():
            return read_splits(path)
        skipped = find_corrupt(self._all.paths) if self.skip_corrupt else []
        kept = self._all.take(sorted(set(range(len(self._all))) - set(skipped)))
        if self.protocol == "holdout":
            splits = self.draw_holdout(kept)
            check_holdout(splits["development"], splits["test"])
            if empty := [name for name, part in splits.items() if not part]:
                raise ValueError(f"The {empty[0]} part of {self.root} is empty; protocol holdout needs items in both.")
        else:
            splits = self.draw(kept)
        save_splits(
            path, splits, seed=self.split_seed, root=str(self.root), skipped=[self._all.ids[i] for i in skipped]
        )
        return read_splits(path)

    @cached_property
    def records(self) -> Records:
        """All items of the protocol, less the skipped ones."""
        if not self.skip_corrupt:
            return self._all
        skipped = set(self._saved["skipped"])
        print(f"{self.root}: {len(skipped)} corrupt image(s) left out of {len(self._all)}.")
        return self._all.take([i for i, name in enumerate(self._all.ids) if name not in skipped])

    @cached_property
    def _row(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.records.ids)}

    @property
    def class_names(self) -> list[str]:
        """Names of the labels, in their order."""
        return self._all.class_names

    @cached_property
    def folds(self) -> np.ndarray:
        """The fold of each item of the development pool, ``(N,)`` int64.

        Raises:
            ValueError: There are no folds without ``num_folds``.
        """
        if self.num_folds is None:
            raise ValueError(f"{type(self).__name__} has no folds. Set num_folds.")
        ids, test = self._saved["splits"]["development"], self._saved["splits"]["test"]
        labels = self.records.labels[[self._row[name] for name in ids]]
        how = (self.num_folds, self.split_seed, self.stratified)
        return read_or_make_folds(self.split_dir, ids, labels, *how, test, self.class_names)

    @property
    def splits(self) -> Splits:
        """The ids of each part."""
        parts: Splits = self._saved["splits"]
        if self.num_folds is None:
            return parts
        ids = np.array(parts["development"], dtype=object)
        held = self.folds == self.fold
        return {**parts, "train": ids[~held].tolist(), "val": ids[held].tolist()}

    @property
    def splits_hash(self) -> str:
        """The sha256 of the parts."""
        return hash_splits(self.splits)

    def dataset(self, split: str) -> ImageTextDataset:
        """The items of a part.

        Raises:
            ValueError: There is no such part.
        """
        splits = self.splits
        if split not in splits:
            raise ValueError(f"There is no split '{split}'; known: {', '.join(splits)}.")
        return ImageTextDataset(self.records.take([self._row[name] for name in splits[split]]))

    def fingerprint(self) -> str:
        """The sha256 over ids, file sizes, captions and labels; another fingerprint means other features."""
        return fingerprint_records(self.records)

    def train_dataloader(self) -> DataLoader[Any]:
        """Items to train on, shuffled: ``train``, or the whole development pool where nothing is cut from it."""
        part = "train" if "train" in self.splits else "development"
        return self.loader(self.dataset(part), shuffle=True, collate_fn=collate_items)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The fold that validates; no loader without folds."""
        return [self.loader(self.dataset(part), collate_fn=collate_items) for part in self.splits if part == "val"]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """The hold-out part, or query and database."""
        parts = ("test",) if self.protocol == "holdout" else ("query", "database")
        return [self.loader(self.dataset(part), collate_fn=collate_items) for part in parts]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """The items of the test loaders."""
        return self.test_dataloader()
