"""Benchmarks of semantic segmentation: images with label maps, in the layouts in which they are published."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader

from datamodules.base import BaseDataModule
from datamodules.folder import find_images
from datamodules.mask_cache import MaskSource, cached_masks
from datamodules.samplers import UnpaddedSampler
from datamodules.segmentation_classes import PLAIN, Names, class_lines, first_name, read_class_lines
from datamodules.segmentation_dataset import SegmentationDataset, collate_segmentation
from datamodules.segmentation_files import label_table
from datamodules.segmentation_layouts import LAYOUTS, SegmentationFiles, find_benchmark, read_list, require_files

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
        predict_images: A folder of pictures without label maps for ``predict``; None = the set itself.
        masks: What splits an image into regions, see ``lightning_modules.backbones.masks``; None = no regions.
        mask_cache: Folder in which regions are kept.
        batch_size: Images a step and process.
        **kwargs: ``num_workers`` and the other arguments of ``BaseDataModule``.
    """

    ignore_index: int = 255
    probability_threshold: float = 0.0  # below it CorrCLIP's reference makes a pixel class 0, background

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

    def dataset(self, part: str = "test") -> SegmentationDataset:
        """The set, or with ``predict_images`` and part ``predict`` that folder; ``index`` is the position here."""
        files = self.files if part != "predict" or self.predict_images is None else self._folder(self.predict_images)
        masks = None if self.masks is None else cached_masks(self.masks, Path(self.mask_cache).expanduser())
        return SegmentationDataset(files, self.num_classes, masks)

    def _folder(self, name: str) -> SegmentationFiles:
        folder = Path(name).expanduser()
        images = find_images(folder)
        return SegmentationFiles([path.relative_to(folder).as_posix() for path in images], images)

    def _scored_loader(self, part: str) -> DataLoader[Any]:
        dataset = self.dataset(part)
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
        self.probability_threshold = LAYOUTS[benchmark].threshold

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


class SegmentationFolder(SegmentationData):
    """Any folder of images and label maps.

    The label map of ``images/a/b.jpg`` is ``labels/a/b.png``: of the same path, with ``label_suffix`` in place of the
    image's own. Its pixels are class indices: a palette PNG, or a grey one of 8 or 16 bits.

    Args:
        root: Folder of the set.
        images: Folder of images below it, with folders of any depth.
        labels: Folder of label maps below it.
        classes: Class file below it: one line a class in the order of the labels, ways to name it separated by
            ``"; "``.
        listed: File below it that names the images that count, as ``a/b``, one a line; None = all.
        label_suffix: End of a label map's name.
        ignore_index: Number of pixels that do not count.
        reduce_zero_label: Classes are numbered from 1, and 0 does not count either.
        probability_threshold: Probability below which a pixel becomes class 0, background.
        **kwargs: ``predict_images``, ``batch_size`` and the other arguments of ``SegmentationData``.
    """

    def __init__(
        self,
        root: str,
        images: str = "images",
        labels: str = "labels",
        classes: str = "classes.txt",
        listed: str | None = None,
        label_suffix: str = ".png",
        ignore_index: int = 255,
        reduce_zero_label: bool = False,
        probability_threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.images = images
        self.labels = labels
        self.classes = classes
        self.listed = listed
        self.label_suffix = label_suffix
        self.ignore_index = ignore_index
        self.reduce_zero_label = reduce_zero_label
        self.probability_threshold = probability_threshold

    @cached_property
    def class_lines(self) -> list[str]:
        """The lines of the class file."""
        return read_class_lines(self.root / self.classes)

    def read(self) -> SegmentationFiles:
        """Find the images and label maps of the set."""
        table = label_table(self.num_classes, self.ignore_index, self.reduce_zero_label)
        folder = self.root / self.images
        found: dict[str, Path] = {}
        for path in find_images(folder):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise ValueError(f"{found[name]} and {path} would share one label map. Keep one of them.")
            found[name] = path
        if self.listed is not None:
            listed = read_list(self.root / self.listed)
            if missing := [name for name in listed if name not in found]:
                raise FileNotFoundError(
                    f"{len(missing)} of {len(listed)} images that {self.root / self.listed} names are not in {folder}, "
                    f"first {missing[0]}. Name them by their path there, without the suffix."
                )
            found = {name: found[name] for name in listed}
        labels = [self.root / self.labels / f"{name}{self.label_suffix}" for name in found]
        require_files(labels, "label maps")
        return SegmentationFiles(list(found), list(found.values()), labels, table)
