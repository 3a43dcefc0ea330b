"""Any folder of images and label maps as a set of semantic segmentation."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from datamodules.folder import find_images
from datamodules.segmentation import SegmentationData
from datamodules.segmentation_classes import read_class_lines
from datamodules.segmentation_colours import check_colours, load_colours
from datamodules.segmentation_files import label_table, load_indices
from datamodules.segmentation_layouts import SegmentationFiles, read_list, require_files


class SegmentationFolder(SegmentationData):
    """Any folder of images and label maps.

    The label map of ``images/a/b.jpg`` is ``labels/a/b.png``: of the same path, with ``label_suffix`` in place of the
    image's own. Its pixels are class indices: a palette PNG, or a grey one of 8 or 16 bits; or colours.

    Args:
        root: Folder of the set.
        images: Folder of images below it, with folders of any depth.
        labels: Folder of label maps below it.
        classes: Class file below it, or elsewhere: one line a class in the order of the labels, ways to name it
            separated by ``"; "``.
        listed: File below it that names the images that count, as ``a/b``, one a line; None = all.
        label_suffix: End of a label map's name.
        ignore_index: Number of pixels that do not count.
        reduce_zero_label: Classes are numbered from 1, and 0 does not count either.
        label_colours: Label maps are pictures of these colours, red, green and blue of each class; None = of indices.
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
        label_colours: list[list[int]] | None = None,
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
        self.label_colours = label_colours
        self.probability_threshold = probability_threshold

    @cached_property
    def class_lines(self) -> list[str]:
        """The lines of the class file."""
        below, elsewhere = self.root / self.classes, Path(self.classes).expanduser()
        return read_class_lines(elsewhere if elsewhere.is_file() and not below.is_file() else below)

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
            listed = read_list(self.root / self.listed, whole_lines=True)
            if missing := [name for name in listed if name not in found]:
                raise FileNotFoundError(
                    f"{len(missing)} of {len(listed)} images that {self.root / self.listed} names are not in {folder}, "
                    f"first {missing[0]}. Name them by their path there, without the suffix."
                )
            found = {name: found[name] for name in listed}
        labels = [self.root / self.labels / f"{name}{self.label_suffix}" for name in found]
        require_files(labels, "label maps")
        decode = load_indices
        if self.label_colours is not None:
            check_colours(self.label_colours, self.num_classes)
            decode = partial(load_colours, colours=self.label_colours)
        return SegmentationFiles(list(found), list(found.values()), labels, table, decode)
