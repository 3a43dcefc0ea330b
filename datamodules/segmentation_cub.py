"""CUB-200-2011 as a segmentation set: pictures of one bird each, whose kind the folder tells."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.annotation_files import read_text
from datamodules.segmentation import SegmentationData
from datamodules.segmentation_classes import read_class_lines
from datamodules.segmentation_colours import read_label_picture
from datamodules.segmentation_files import label_table
from datamodules.segmentation_layouts import SegmentationFiles, require_files

NUM_CLASSES = 201  # 200 kinds of birds, and background
MAJORITY = 128  # the grey of a pixel is the share of five annotators who saw the bird there, in 0 to 255


def load_votes(path: Path) -> NDArray[np.uint16]:
    """The classes in a segmentation of CUB: the bird's where most annotators saw it, else 0, background.

    Args:
        path: The file, ``.../017.Cardinal/Cardinal_0001_17057.png``: its folder begins with the number of the class.

    Returns:
        ``(H, W)``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded, or its folder has no number.
    """
    number = path.parent.name.partition(".")[0]
    if not number.isdecimal():
        raise ValueError(f"Label map {path}: its folder must begin with the number of its class, as 017.Cardinal.")
    return (read_label_picture(path, "L") > MAJORITY).astype(np.uint16) * np.uint16(number)


class Cub200(SegmentationData):
    """The test part of CUB-200-2011, 200 kinds of birds before a background.

    ``root`` is the folder ``CUB_200_2011`` as it is published, with ``images``, ``images.txt`` and
    ``train_test_split.txt``; ``segmentations``, an archive of its own, lies in it or beside it.

    Args:
        root: Folder of the set.
        classes: A file with one line a class to prompt, ways to name it separated by ``"; "``: background, then the 200
            kinds.
        **kwargs: ``predict_images``, ``batch_size`` and the other arguments of ``SegmentationData``.

    Raises:
        ValueError: Another number of classes.

    Reference:
        Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, 2011. As a segmentation set: Blumenstiel et al., What a
        MESS: Multi-Domain Evaluation of Zero-Shot Semantic Segmentation, NeurIPS 2023.
    """

    def __init__(self, root: str, classes: str, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.classes = classes

    @cached_property
    def class_lines(self) -> list[str]:
        """The lines of the class file."""
        lines = read_class_lines(Path(self.classes).expanduser())
        if len(lines) != NUM_CLASSES:
            raise ValueError(
                f"Class file {self.classes} has {len(lines)} lines; background and the 200 kinds make {NUM_CLASSES}."
            )
        return lines

    def read(self) -> SegmentationFiles:
        """Find the images that ``train_test_split.txt`` does not train on, and their segmentations."""
        trained = self._listed("train_test_split.txt")
        names = [name for number, name in self._listed("images.txt").items() if trained.get(number) == "0"]
        if not names:
            raise ValueError(f"{self.root / 'train_test_split.txt'} names no image to test. Unpack the lists again.")
        folders = (self.root / "segmentations", self.root.parent / "segmentations")
        folder = next((each for each in folders if each.is_dir()), folders[0])
        images = [self.root / "images" / name for name in names]
        labels = [folder / Path(name).with_suffix(".png") for name in names]
        require_files(images, "images")
        require_files(labels, "segmentations")
        ids = [Path(name).with_suffix("").as_posix() for name in names]
        return SegmentationFiles(ids, images, labels, label_table(NUM_CLASSES), load_votes)

    def _listed(self, name: str) -> dict[str, str]:
        """The lines ``number value`` of a list of the set."""
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(f"List {path} does not exist. Set root to the unpacked folder CUB_200_2011.")
        return dict(line.split(maxsplit=1) for line in read_text(path).splitlines() if line.strip())
