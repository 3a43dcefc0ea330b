"""All published benchmarks of semantic segmentation that lie in one folder, to be scored by one command."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from datamodules.base import BaseDataModule
from datamodules.mask_cache import MaskSource
from datamodules.ranks import rank_and_world
from datamodules.segmentation import Benchmark, SegmentationBenchmark
from datamodules.segmentation_classes import Names

EIGHT: tuple[Benchmark, ...] = (
    "voc21",
    "voc20",
    "context59",
    "context60",
    "cityscapes",
    "ade20k",
    "coco_stuff",
    "coco_object",
)


class SegmentationBenchmarks(BaseDataModule):
    """Several benchmarks, each with its own classes, threshold and sizes; missing ones are named and left out.

    ``sets`` holds a :class:`SegmentationBenchmark` for each that is there; the loaders come in that order.

    Args:
        root: Folder that holds the sets under their common names.
        benchmarks: Which; None = the eight of the paper, in its order.
        names: What is prompted, ``reference`` or ``plain``; see :class:`SegmentationBenchmark`.
        masks: What splits an image into regions; None = no regions.
        mask_cache: Folder in which regions are kept.
        batch_size: Images a step and process.
        **kwargs: ``num_workers`` and the other arguments of ``BaseDataModule``.

    Raises:
        ValueError: One benchmark twice, or none.
    """

    def __init__(
        self,
        root: str,
        benchmarks: list[Benchmark] | None = None,
        names: Names = "reference",
        masks: MaskSource | None = None,
        mask_cache: str = "cache/masks",
        batch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        chosen = list(EIGHT if benchmarks is None else benchmarks)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"benchmarks is {chosen}; name each set once, one at least, or null for all eight.")
        shared = {"masks": masks, "mask_cache": mask_cache, "batch_size": batch_size, **kwargs}
        self._asked = [SegmentationBenchmark(root, name, names, **shared) for name in chosen]
        self.root, self.masks = Path(root).expanduser(), masks

    @cached_property
    def sets(self) -> list[SegmentationBenchmark]:
        """The sets that are there; a printed line names each other one with the reason.

        Raises:
            FileNotFoundError: None is there.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(f"Dataset folder {self.root} does not exist. Set root to the folder of the sets.")
        found, missing = [], []
        for each in self._asked:
            try:
                each.setup("test")
                found.append(each)
            except FileNotFoundError as error:
                missing.append(f"{each.benchmark} is left out: {error}")
        if not found:
            names = ", ".join(each.benchmark for each in self._asked)
            raise FileNotFoundError(f"None of the benchmarks {names} is in {self.root}. The first: {missing[0]}")
        if rank_and_world()[0] == 0:
            print(*missing, sep="\n", end="\n" * bool(missing))
        return found

    def build_masks(self) -> None:
        """Make all masks that the cache lacks."""
        for each in self.sets:
            each.build_masks()

    def setup(self, stage: str) -> None:
        """Let the sets know the trainer, whose limits say which masks are needed."""
        for each in self.sets:
            each.trainer = self.trainer

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One of each set."""
        return [each.val_dataloader() for each in self.sets]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One of each set."""
        return [each.test_dataloader() for each in self.sets]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Of no use: a picture is predicted with one list of classes.

        Raises:
            ValueError: Always.
        """
        raise ValueError("predict needs one list of classes: take SegmentationBenchmark or SegmentationFolder.")
