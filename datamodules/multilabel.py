"""Labelled image-text items in folds: features from a cache, or live images for towers that are trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.base import BaseDataModule
from datamodules.feature_batches import BatchSampler, FeatureBatches, batch_loader
from datamodules.feature_files import FeatureSplit, check_split
from datamodules.features import FeatureCache
from datamodules.folder import ImageFolder
from datamodules.folds import check_fold, fold_hash, read_or_make_folds, select_rows
from datamodules.image_text import ImageTextDataset
from datamodules.live_images import LiveBatches, light_augmentation
from datamodules.splits import hash_splits

USED = ("train", "fold", "test")  # parts that are trained on or scored


class MultilabelData(BaseDataModule):
    """Items with labels: a development pool in folds, and a hold-out part.

    In the run of a fold its items are scored once, at the end, and so are those of the hold-out. The other folds are
    the training pool; a part of it, ``select_fraction``, is kept from training and decides on early stopping and the
    best checkpoint. So nothing that is fitted or chosen has seen what is scored.

    A batch is a dict: ``image`` (B, Di) and ``text`` (B, Dt) features, ``labels`` (B, C), all float32, and ``index``
    (B,), the position in the development pool or in the hold-out. With ``live`` the images are pixels (B, 3, H, W)
    and the texts B strings. Training draws one of an item's captions in each epoch; everything else takes the first.
    Test has two loaders: 0 = the fold, 1 = the hold-out.

    Args:
        source: A feature cache over a dataset with ``protocol: holdout``; ``live`` takes its dataset and its encoder.
        num_folds: Number of folds.
        fold: The fold that is scored, from 0.
        split_seed: Seed of folds and selection.
        stratified: Give each fold the same share of every label, instead of drawing folds at random.
        select_fraction: Part of the training pool kept for selection, in (0, 1).
        live: Decode images in every epoch instead of reading the cache, for towers that are trained.
        augment: Light augmentation of the training images; needs ``live``.
        predict_images: A folder of images for ``predict``; None = the test items.
        predict_captions: CSV with the columns ``file`` and ``caption`` for that folder.
        batch_size: Items a step and process.
        num_workers: Loader processes; cached features need none.
        pin_memory: Copy batches to page-locked memory, for a GPU.
        persistent_workers: Keep the loader processes between epochs.

    Raises:
        ValueError: Arguments that do not fit together; the message names the cure.
    """

    def __init__(
        self,
        source: FeatureCache,
        num_folds: int = 5,
        fold: int = 0,
        split_seed: int = 42,
        stratified: bool = True,
        select_fraction: float = 0.1,
        live: bool = False,
        augment: bool = False,
        predict_images: str | None = None,
        predict_captions: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, persistent_workers)
        check_fold(num_folds, fold)
        if not 0 < select_fraction < 1:
            raise ValueError(f"select_fraction is {select_fraction}; it must lie between 0 and 1, as 0.1 does.")
        if predict_captions and not predict_images:
            raise ValueError("predict_captions belongs to a folder of images: set predict_images too.")
        if augment and not live:
            raise ValueError("augment needs live: true, because cached features were made from the images as they are.")
        self.source = source
        self.num_folds = num_folds
        self.fold = fold
        self.split_seed = split_seed
        self.stratified = stratified
        self.select_fraction = select_fraction
        self.live = live
        self.augment = augment
        self.predict_images = predict_images
        self.predict_captions = predict_captions
        self.rows: dict[str, np.ndarray] = {}

    @property
    def encoder(self) -> Any:
        """The towers that made the features, or that pixels go through."""
        return self.source.encoder

    @property
    def image_dim(self) -> int:
        """Width of the image features; known after setup."""
        return int(self.encoder.embed_dim if self.live else self.features["development"].image.shape[1])

    @property
    def text_dim(self) -> int:
        """Width of the text features; known after setup."""
        return int(self.encoder.embed_dim if self.live else self.features["development"].text.shape[2])

    @property
    def num_classes(self) -> int:
        """Number of labels; known after setup."""
        return int(self.labels["development"].shape[1])

    @property
    def class_names(self) -> list[str]:
        """Names of the labels."""
        return self.source.class_names

    def setup(self, stage: str) -> None:
        """Read features or labels, and cut the folds. A cache builds itself here, on all processes."""
        if self.rows or (stage == "predict" and self.predict_images):
            return  # a folder of images needs no training data: the checkpoint knows what was fitted
        self._read()
        ids, labels = self.ids["development"], self.labels["development"]
        if not labels.any():
            raise ValueError("No item of the development pool has a label, so there is nothing to learn.")
        self.folds = read_or_make_folds(
            self.source.data.split_dir,
            ids,
            labels,
            self.num_folds,
            self.split_seed,
            self.stratified,
            self.ids["test"],
            self.class_names,
        )
        pool = np.flatnonzero(self.folds != self.fold)
        train, select = select_rows(ids, pool, self.select_fraction, self.split_seed)
        self.rows = {
            "train": train,
            "select": select,
            "fold": np.flatnonzero(self.folds == self.fold),
            "test": np.arange(len(self.ids["test"])),
        }

    def _read(self) -> None:
        parts, data = ("development", "test"), self.source.data
        if getattr(data, "protocol", None) != "holdout":
            raise ValueError(
                f"{type(data).__name__} must give a development and a test part. Set its protocol: holdout."
            )
        self.items: dict[str, ImageTextDataset] = {part: data.dataset(part) for part in parts}
        self.ids = {part: items.records.ids for part, items in self.items.items()}
        self.labels = {part: items.records.labels for part, items in self.items.items()}
        self.features_name = self.source.path.name  # now, as towers that are trained become others
        self.features: dict[str, FeatureSplit] = {}
        if not self.live:
            self.features = {part: self.source.open(part) for part in parts}
            for part, split in self.features.items():
                check_split(split, f"feature cache ({part})")

    @property
    def folds_sha256(self) -> str:
        """The hash of the folds, the same for all runs that used the same ones."""
        return fold_hash(self.ids["development"], self.folds)

    @property
    def split_sha256(self) -> str:
        """The hash of the items that are trained on and selected by."""
        return hash_splits({part: self.ids_of(part, self.rows[part]) for part in ("train", "select")})

    def part_of(self, name: str) -> str:
        """Where the items of ``train``, ``select``, ``fold`` and ``test`` come from."""
        return "test" if name == "test" else "development"

    def unlabelled(self) -> dict[str, int]:
        """How many items of ``train``, ``fold`` and ``test`` have no label at all: negatives of every class."""
        labelled = {name: self.labels[self.part_of(name)][self.rows[name]].any(axis=1) for name in USED}
        return {f"unlabelled_{name}": int((~rows).sum()) for name, rows in labelled.items()}

    def ids_of(self, name: str, positions: Tensor | np.ndarray) -> list[str]:
        """The ids of items of ``train``, ``select``, ``fold`` or ``test`` by their ``index``."""
        ids = self.ids[self.part_of(name)]
        return [ids[row] for row in positions.tolist()]

    def examples(self, name: str, positions: Sequence[int]) -> list[tuple[Image.Image, str]]:
        """Picture and first text of some items, for people to look at.

        Args:
            name: ``train``, ``select``, ``fold`` or ``test``.
            positions: The items' ``index``.

        """
        items = [self.items[self.part_of(name)][row] for row in positions]
        return [(item["image"], item["captions"][0]) for item in items]

    def object_areas(self, name: str, positions: Sequence[int]) -> np.ndarray | None:
        """The largest object of each class in some items, as a fraction of the image.

        Args:
            name: ``train``, ``select``, ``fold`` or ``test``.
            positions: The items' ``index``.

        Returns:
            Shape ``(N, C)`` float32, NaN where there is no such object; None when the data has no boxes.
        """
        records = self.items[self.part_of(name)].records
        if records.boxes is None or records.box_labels is None:
            return None
        areas = np.full((len(positions), self.num_classes), np.nan, np.float32)
        for place, row in enumerate(positions):
            boxes, classes = records.boxes[row], records.box_labels[row]
            if len(boxes):
                with Image.open(records.paths[row]) as image:  # reads the header alone
                    pixels = image.width * image.height
                sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / pixels
                np.fmax.at(areas[place], classes, sizes)
        return areas

    def _loader(self, name: str, training: bool = False, shared: bool = True) -> DataLoader[Any]:
        part, rows = self.part_of(name), self.rows[name]
        dataset: Dataset[Any]
        if self.live:
            self._load_encoder()
            augment = light_augmentation() if training and self.augment else None
            dataset = LiveBatches(self.items[part], rows, self.encoder.preprocess, augment)
            texts = max(len(captions) for captions in self.items[part].records.captions)
        else:
            dataset = FeatureBatches(self.features[part], rows)
            texts = self.features[part].text.shape[1]
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        sampler = BatchSampler(dataset, texts, self.batch_size, shuffle=training, seed=seed, shared=shared)
        if training and self.trainer is not None:  # Lightning tells the epoch after loader processes have started
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return batch_loader(dataset, sampler, self.num_workers, self.pin_memory, self.persistent_workers)

    @property
    def predict_parts(self) -> tuple[str, ...]:
        """What the loaders of ``predict`` hold."""
        return () if self.predict_images else ("fold", "test")

    def _load_encoder(self) -> None:
        """Load the encoder in this process, or else every loader process would load the towers for their transform."""
        _ = self.encoder.preprocessing

    def train_dataloader(self) -> DataLoader[Any]:
        """Training items, shuffled."""
        if self.trainer is not None and self.trainer.overfit_batches:
            raise ValueError("trainer.overfit_batches replaces the sampler of batches; take limit_train_batches.")
        return self._loader("train", training=True)

    def gallery_dataloader(self) -> DataLoader[Any]:
        """All training items, on every process, in order and without augmentation: for what is fitted to them."""
        return self._loader("train", shared=False)

    def val_dataloader(self) -> DataLoader[Any]:
        """The items that selection looks at."""
        return self._loader("select")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """The fold and the hold-out."""
        return [self._loader("fold"), self._loader("test")]

    def predict_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The folder of images, or the fold and the hold-out."""
        if not self.predict_images:
            return self.test_dataloader()
        self._load_encoder()
        folder = ImageFolder(self.predict_images, self.predict_captions, self.encoder.preprocess)
        return self.loader(folder)
