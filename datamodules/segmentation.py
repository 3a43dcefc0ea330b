"""Benchmarks of semantic segmentation: images with label maps, in the layouts in which they are published."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch.utils.data import DataLoader

from datamodules.base import BaseDataModule
from datamodules.folder import find_images
from datamodules.mask_cache import MaskCache, MaskSource, check_stems
from datamodules.ranks import rank_and_world
from datamodules.samplers import UnpaddedSampler, first_of_shares
from datamodules.segmentation_classes import PLAIN, Names, class_lines, first_name, read_class_lines
from datamodules.segmentation_dataset import SegmentationDataset, collate_segmentation
from datamodules.segmentation_layouts import LAYOUTS, SegmentationFiles, find_benchmark

Benchmark = Literal[
    "voc21", "voc20", "context60", "context59", "coco_stuff", "coco_object", "ade20k", "cityscapes", "world"
]


class SegmentationData(BaseDataModule):
    """Images with label maps, each in its own size, to be scored; nothing is trained on them.

    A batch is a dict: lists of B tensors ``image`` (uint8 ``(3, H, W)``), ``instance_mask`` (int64 ``(H, W)`` region
    ids, 0 = in no region) and ``target`` (int64 ``(H, W)``, classes from 0 and ``ignore_index``; none in ``predict``);
    ``size`` int64 ``(B, 2)``, height and width; ``index`` int64 ``(B,)``, the position in the set; and ``id``, a list
    of str. Label maps belong to the pixels as stored, so EXIF tags turn only the pictures of ``predict_images``.

    Args:
        root: Folder of the set.
        predict_images: A picture or a folder of them, without label maps, for ``predict``; None = the set itself.
        masks: What splits an image into regions, see ``lightning_modules.backbones.masks``; None = no regions.
        mask_cache: Folder in which regions are kept, one that all machines see. What it lacks is made before the
            loaders start, or by ``python cli.py masks``.
        batch_size: Images a step and process.
        **kwargs: ``num_workers`` and the other arguments of ``BaseDataModule``.
    """

    ignore_index: int = 255
    probability_threshold: float = 0.0  # below it CorrCLIP's reference makes a pixel class 0, background
    window_sizes: Mapping[str, int] = MappingProxyType({})  # ``short`` and ``crop`` of the reference, where it has them

    def __init__(
        self,
        root: str,
        predict_images: str | None = None,
        masks: MaskSource | None = None,
        mask_cache: str = "cache/masks",
        batch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        self.root = Path(root).expanduser()
        self.predict_images = predict_images
        self.masks = masks
        self.mask_cache = mask_cache

    @abstractmethod
    def read(self) -> SegmentationFiles:
        """Find the images and label maps of the set."""

    @property
    @abstractmethod
    def class_lines(self) -> list[str]:
        """What to prompt for each class, ways to name it separated by ``"; "``, in the order of the labels."""

    @property
    def class_names(self) -> list[str]:
        """One name a class, for tables and pictures."""
        return [first_name(line) for line in self.class_lines]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_lines)

    @cached_property
    def files(self) -> SegmentationFiles:
        """The images and label maps, looked for once.

        Raises:
            FileNotFoundError: The folder does not exist, or images, lists or label maps are missing.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(f"Dataset folder {self.root} does not exist. Set root to the dataset's folder.")
        return self.read()

    @cached_property
    def predict_files(self) -> SegmentationFiles:
        """The pictures of ``predict_images``, looked for once; without label maps.

        Raises:
            FileNotFoundError: There is no such picture or folder, or no picture in it.
        """
        place = Path(str(self.predict_images)).expanduser()
        folder, images = (place.parent, [place]) if place.is_file() else (place, find_images(place))
        return SegmentationFiles([path.relative_to(folder).as_posix() for path in images], images)

    def setup(self, stage: str) -> None:
        """Look for the files of a stage, before networks are loaded and masks are made."""
        self.files_of(stage)

    def files_of(self, part: str) -> SegmentationFiles:
        """The files of the set, or with ``predict_images`` and part ``predict`` those of that folder.

        Raises:
            ValueError: Two pictures would share one file of masks.
        """
        files = self.files if part != "predict" or self.predict_images is None else self.predict_files
        if self.masks is not None and self.masks.by_name:
            check_stems(files.images, self.masks.name)
        return files

    def dataset(self, part: str = "test") -> SegmentationDataset:
        """The set, or with ``predict_images`` and part ``predict`` that folder; ``index`` is the position here."""
        return SegmentationDataset(self.files_of(part), self.num_classes, self._regions)

    def build_masks(self) -> None:
        """Make all masks that ``test`` or ``predict`` would: of the set, if it is there, and of ``predict_images``."""
        regions, first = self._regions, rank_and_world()[0] == 0
        if regions is None or regions.folder is None:
            source = "no mask source" if self.masks is None else f"the mask source '{self.masks.name}'"
            if first:
                print(f"With {source} in data.init_args.masks there is nothing to make beforehand.")
            return
        has_folder = self.predict_images is not None
        parts = ["test"] if self.root.is_dir() or not has_folder else []
        for part in [*parts, "predict"] if has_folder else parts:
            files = self.dataset(part).files
            made = regions.build(files.images, files.labels is None, self.num_workers)
            if first:
                print(f"{regions.folder}: masks of {len(files.images)} images, {made} of them made now.")

    @cached_property
    def _regions(self) -> MaskCache | None:
        return None if self.masks is None else MaskCache(self.masks, self.mask_cache)

    def _scored_loader(self, part: str) -> DataLoader[Any]:
        dataset = self.dataset(part)
        if self._regions is not None:
            batches = getattr(self.trainer, f"limit_{part}_batches", 1.0)
            images = [dataset.files.images[index] for index in first_of_shares(len(dataset), batches, self.batch_size)]
            self._regions.build(images, dataset.files.labels is None, self.num_workers)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=UnpaddedSampler(dataset),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
            collate_fn=collate_segmentation,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """The set; every process takes its share."""
        return self._scored_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The set; every process takes its share."""
        return self._scored_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The folder of pictures, or the set; every process takes its share."""
        return self._scored_loader("predict")


class SegmentationBenchmark(SegmentationData):
    """The validation part of a published benchmark, as open-vocabulary segmentation is scored on it.

    ``root`` is the folder of the set or one that holds it under a common name, so one ``root`` serves all:

    - ``voc21``, ``voc20``: ``VOC2012`` or ``VOCdevkit/VOC2012``; with background, or with background ignored.
    - ``context60``, ``context59``: ``VOC2010`` or ``VOCdevkit/VOC2010`` with ``SegmentationClassContext``; likewise.
    - ``coco_stuff``, ``coco_object``: ``coco``, ``coco_stuff164k`` or ``coco2017``; the stuffthingmaps as they are,
      or converted (``*_labelTrainIds.png``, ``*_instanceTrainIds.png``). Objects with all else as background.
    - ``ade20k``: ``ADEChallengeData2016``, also in ``ade``; 150 classes.
    - ``cityscapes``: ``cityscapes``; ``*_labelIds.png`` as they are, or ``*_labelTrainIds.png``.
    - ``world``: generated scenes, of ``python -m datamodules.scenes voc ROOT``.

    Args:
        root: Folder of the set, or one that holds it.
        benchmark: Which set, and which classes of it.
        names: What ``class_lines`` prompts: ``reference`` as CorrCLIP's code does, with its synonyms of background, or
            ``plain`` the set's own names; see ``segmentation_classes.class_lines``.
        classes: A file with one line a class to prompt instead, ways to name it separated by ``"; "``.
        **kwargs: ``predict_images``, ``batch_size`` and the other arguments of ``SegmentationData``.

    Raises:
        ValueError: An unknown ``benchmark`` or ``names``, or a class file of another number of classes.
    """

    def __init__(
        self,
        root: str,
        benchmark: Benchmark = "voc21",
        names: Names = "reference",
        classes: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self._lines = class_lines(benchmark, names)
        if classes is not None:
            lines = read_class_lines(Path(classes).expanduser())
            if len(lines) != len(self._lines):
                raise ValueError(
                    f"Class file {classes} has {len(lines)} lines, but {benchmark} has {len(self._lines)} classes. "
                    f"Write one line a class in the order of the labels, from '{PLAIN[benchmark][0]}' to "
                    f"'{PLAIN[benchmark][-1]}'."
                )
            self._lines = lines
        self.benchmark = benchmark
        layout = LAYOUTS[benchmark]
        self.probability_threshold = layout.threshold
        self.window_sizes = {"short": layout.short, "crop": layout.crop}

    @property
    def class_lines(self) -> list[str]:
        """What to prompt for each class, ways to name it separated by ``"; "``, in the order of the labels."""
        return self._lines

    @property
    def class_names(self) -> list[str]:
        """The set's own names, whatever is prompted."""
        return list(PLAIN[self.benchmark])

    def read(self) -> SegmentationFiles:
        """Find the images and label maps of the set."""
        return find_benchmark(self.root, self.benchmark)
