"""What the detection datasets share: parts, folds, tiles and the loaders."""

from __future__ import annotations

import os
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Sampler

from datamodules.base import BaseDataModule
from datamodules.box_dataset import DetectionDataset, collate_boxes, collate_squashed, read_sizes
from datamodules.box_records import BoxRecords, check_objects, gather, join_records, tile_records
from datamodules.folder import find_images
from datamodules.folds import check_fold, check_holdout, fold_hash, read_or_make_folds
from datamodules.samplers import UnpaddedSampler, WeightedDistributedSampler

PARTS = ("train", "val", "test")


class DetectionData(BaseDataModule):
    """A detection set on disk, in the parts train, val and test.

    A batch is a dict: ``image`` uint8 ``(B, 3, S, S)``, or a list of ``(3, H, W)`` without ``image_size``; lists of B
    tensors ``boxes`` (float32 ``(K, 4)``, xyxy in pixels of the picture or tile before it is squashed), ``box_labels``
    (int64 ``(K,)``), ``ignore`` (bool ``(K,)``) and, where the set has them, ``polygons`` (float32 ``(K, 4, 2)``);
    ``size`` int64 ``(B, 2)``, height and width in the same pixels; ``index`` int64 ``(B,)``, the position in the part;
    and ``id``, a list of str.

    With ``num_folds`` train and val together are cut into folds, which hold whole pictures: ``val`` is fold ``fold``
    and ``train`` are the others, whatever ``train_on`` says; test stays apart. A subclass reads its layout in
    ``read_part``.

    Args:
        root: Folder of the dataset.
        image_size: Side in pixels that pictures are squashed to (bicubic); None = as they are.
        train_on: ``trainval`` trains on both parts, as is usual where test is scored; val then is no judge.
        tile: Cut pictures into square tiles of that many pixels, see ``box_records.tile_records``; None = do not.
        tile_overlap: Pixels that neighbouring tiles share.
        num_folds: Number of folds; None = the published parts.
        fold: The fold that validates, from 0.
        split_seed: Seed of the folds.
        stratified: Give each fold the same share of pictures with each class, instead of drawing at random.
        split_dir: Where the folds are saved.
        predict_images: A folder of pictures without boxes for ``predict``; None = the test part.
        **kwargs: ``batch_size``, ``num_workers`` and the other arguments of ``BaseDataModule``.

    Raises:
        ValueError: Arguments that do not fit together; the message names the cure.
    """

    def __init__(
        self,
        root: str,
        image_size: int | None = 224,
        train_on: Literal["train", "trainval"] = "train",
        tile: int | None = None,
        tile_overlap: int = 0,
        num_folds: int | None = None,
        fold: int = 0,
        split_seed: int = 42,
        stratified: bool = True,
        split_dir: str = "cache/splits",
        predict_images: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fold(num_folds, fold)
        if train_on not in ("train", "trainval"):
            raise ValueError(f"train_on is {train_on}; known: train, trainval.")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size is {image_size}; it must be at least 1, or null for pictures as they are.")
        if tile is None and tile_overlap:
            raise ValueError(f"tile_overlap is {tile_overlap}, but there are no tiles. Set tile.")
        if tile is not None and not 0 <= tile_overlap < tile:
            raise ValueError(f"tile is {tile} and tile_overlap {tile_overlap}; they must be 0 <= tile_overlap < tile.")
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.train_on = train_on
        self.tile = tile
        self.tile_overlap = tile_overlap
        self.num_folds = num_folds
        self.fold = fold
        self.split_seed = split_seed
        self.stratified = stratified
        self.split_dir = Path(split_dir)
        self.predict_images = predict_images
        self._published: dict[str, BoxRecords] = {}
        self._records: dict[str, BoxRecords] = {}

    @abstractmethod
    def read_part(self, part: str) -> BoxRecords:
        """Read the published part ``train``, ``val`` or ``test``: whole pictures."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of ``box_labels``."""

    @property
    def display_names(self) -> list[str]:
        """The class names as words, for prompts and people."""
        return [name.replace("-", " ").replace("_", " ") for name in self.class_names]

    @property
    def parts(self) -> tuple[str, ...]:
        """The published parts."""
        return PARTS

    def published(self, part: str) -> BoxRecords:
        """A part as the dataset publishes it, read once.

        Raises:
            FileNotFoundError: The folder of the dataset does not exist.
            ValueError: There is no such part, it is empty, or it has a picture twice.
        """
        if part not in self._published:
            if not self.root.is_dir():
                raise FileNotFoundError(f"Dataset folder {self.root} does not exist. Set root to the dataset's folder.")
            if part not in self.parts:
                raise ValueError(f"{self.root} has no part '{part}'; known: {', '.join(self.parts)}. Use one of them.")
            records = self.read_part(part)
            if not len(records):
                raise ValueError(f"The {part} part of {self.root} has no picture. Unpack the lists again.")
            check_holdout(*(([], records.ids) if part == "test" else (records.ids, [])))
            self._published[part] = records
        return self._published[part]

    @cached_property
    def pool(self) -> BoxRecords:
        """The published train and val together."""
        records = join_records([self.published("train"), self.published("val")])
        check_holdout(records.ids, [])
        return records

    @cached_property
    def folds(self) -> np.ndarray:
        """The fold of each picture of ``pool``, ``(N,)`` int64.

        Raises:
            ValueError: There are no folds without ``num_folds``.
        """
        if self.num_folds is None:
            raise ValueError(f"{type(self).__name__} has no folds. Set num_folds.")
        how = (self.num_folds, self.split_seed, self.stratified)
        test = self.published("test").ids if "test" in self.parts else []
        return read_or_make_folds(self.split_dir, self.pool.ids, self.pool.presence(), *how, test, self.class_names)

    @property
    def folds_sha256(self) -> str:
        """The hash of the folds, the same for all runs that used the same ones."""
        return fold_hash(self.pool.ids, self.folds)

    def pictures(self, part: str) -> BoxRecords:
        """The whole pictures of ``train``, ``val`` or ``test``, or with ``predict_images`` of ``predict``."""
        if part == "predict" and self.predict_images:
            return self._read_folder(Path(self.predict_images).expanduser())
        if self.num_folds is not None and part in ("train", "val"):
            return self.pool.take(np.flatnonzero((self.folds == self.fold) == (part == "val")))
        return self.pool if part == "train" and self.train_on == "trainval" else self.published(part)

    def _read_folder(self, folder: Path) -> BoxRecords:
        paths = find_images(folder)
        ids, nothing = [path.relative_to(folder).as_posix() for path in paths], check_objects([], (0, 0), str(folder))
        sizes = read_sizes(paths, upright=True)
        return gather(ids, paths, sizes, [nothing] * len(paths), self.class_names, oriented=False)

    def records(self, part: str) -> BoxRecords:
        """The items of a part as columns: its pictures, or with ``tile`` their tiles."""
        if part not in self._records:
            records = self.pictures(part)
            tiled = records if self.tile is None else tile_records(records, self.tile, self.tile_overlap)
            self._records[part] = tiled
        return self._records[part]

    def dataset(self, part: str) -> DetectionDataset:
        """The items of a part; ``index`` is the position here."""
        return DetectionDataset(self.records(part), self.image_size, labelled=part != "predict")

    def picture(self, part: str, index: int) -> Image.Image:
        """The picture or tile at ``index`` of a part, in its own size, for people to look at."""
        return self.dataset(part).picture(index)

    def export_coco(self, folder: str) -> None:
        """Write ``train.json``, ``val.json`` and ``test.json`` with whole pictures, for tools that read COCO's JSON.

        With folds, train and val are those of ``fold``. The ``file_name`` of a picture begins in ``root``.
        """
        from datamodules.coco_boxes import write_coco_json  # which is itself built on this file

        for part in self.parts:
            write_coco_json(self.pictures(part), Path(folder).expanduser() / f"{part}.json", self.root)

    @cached_property
    def sampler(self) -> WeightedDistributedSampler:
        """What draws the training items, by their ``index``; every training loader takes it, so its weights stay."""
        return WeightedDistributedSampler(self.dataset("train"), seed=int(os.environ.get("PL_GLOBAL_SEED", "0")))

    def _loader(self, part: str, sampler: Sampler[int] | None = None) -> DataLoader[Any]:
        return DataLoader(
            self.dataset(part),
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
            collate_fn=collate_boxes if self.image_size is None else collate_squashed,
        )

    def _scored_loader(self, part: str) -> DataLoader[Any]:
        return self._loader(part, UnpaddedSampler(self.dataset(part)))

    def train_dataloader(self) -> DataLoader[Any]:
        """The training part, drawn by ``sampler``: shuffled, as long as nobody sets weights."""
        if self.trainer is not None:  # Lightning tells the epoch after loader processes have started
            self.sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return self._loader("train", self.sampler)

    def mining_dataloader(self) -> DataLoader[Any]:
        """The training part in order, each item in one process, to be looked at between epochs."""
        return self._scored_loader("train")

    def gallery_dataloader(self) -> DataLoader[Any]:
        """The training part in order, all of it on every process, for what is fitted to it."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation part; every process takes its share."""
        return self._scored_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test part; every process takes its share."""
        return self._scored_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The folder of pictures, or the test part; every process takes its share."""
        return self._scored_loader("predict" if self.predict_images else "test")
