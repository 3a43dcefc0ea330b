"""PASCAL VOC in its real layout: the 20 classes as labels, boxes, no captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from datamodules.annotation_files import read_text
from datamodules.image_text import ImageTextData, Records
from datamodules.splits import Splits

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
TEXT = "a photo."  # the same for all: VOC has no captions, and a text that names classes would give the labels away


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Args:
        labels: Whether each class occurs, ``(20,)`` uint8; objects marked difficult count.
        boxes: ``(K, 4)`` float32 boxes ``xyxy`` in pixels of the objects that are not difficult.
        box_labels: Their classes, ``(K,)`` int64.
    """

    labels: np.ndarray
    boxes: np.ndarray
    box_labels: np.ndarray


def read_objects(path: Path) -> Objects:
    """The objects that an annotation file lists.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not VOC's XML, or an object is of no class of VOC.
    """
    labels, boxes, box_labels = np.zeros(len(CLASSES), np.uint8), [], []
    try:
        for item in ElementTree.fromstring(read_text(path)).iterfind("object"):
            column = CLASSES.index((item.findtext("name") or "").strip())
            labels[column] = 1
            if int(item.findtext("difficult") or 0):
                continue
            corners = [float(item.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax")]
            if not np.isfinite(corners).all():
                raise ValueError("an object has no bndbox")
            # VOC counts pixels from 1 and its corners belong to the box.
            boxes.append([corners[0] - 1, corners[1] - 1, corners[2], corners[3]])
            box_labels.append(column)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(
            f"Annotation file {path} cannot be read ({error}). It must list objects of VOC's {len(CLASSES)} classes in "
            "VOC's XML; unpack it again."
        ) from error
    return Objects(labels, np.array(boxes, np.float32).reshape(-1, 4), np.array(box_labels, np.int64))


class VOC(ImageTextData):
    """PASCAL VOC 2007 or 2012: 20 classes as labels, boxes, and one constant text for every image.

    Layout of ``root`` (the folder of one year): ``ImageSets/Main/{train,val,trainval,test}.txt``,
    ``Annotations/<id>.xml``, ``JPEGImages/<id>.jpg``.

    Protocol ``holdout`` develops on trainval and tests on test where the annotations of test are there (2007: 5011
    and 4952 images). They were never published for 2012, which so develops on train and tests on val (5717 and 5823).
    Protocol ``retrieval`` draws its parts from both together, less images without an object.

    An object marked difficult gives its image the label but no box.

    Args:
        root: Folder of one year.
        num_query: Size of the query part, in protocol ``retrieval``.
        num_train: Size of the training part, in protocol ``retrieval``.
        split_seed: Seed of parts and folds.
        split_dir: Where parts and folds are saved.
        skip_corrupt: Leave out images that cannot be decoded instead of stopping at the first.
        **kwargs: ``protocol``, ``num_folds``, ``fold`` and ``stratified`` of ``ImageTextData``; ``batch_size``,
            ``num_workers`` and the other arguments of ``BaseDataModule``.

    Reference:
        Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010.
    """

    def __init__(
        self,
        root: str,
        num_query: int = 1000,
        num_train: int = 5000,
        split_seed: int = 0,
        split_dir: str = "cache/splits",
        skip_corrupt: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, num_query, num_train, split_seed, split_dir, skip_corrupt, **kwargs)
        self._lists: Splits = {}

    def read(self) -> Records:
        """The images of the development list, then those of the test list."""
        self._lists = self._read_lists()
        ids = [name for names in self._lists.values() for name in names]
        objects = [read_objects(self._annotation(name)) for name in ids]
        records = Records(
            ids=ids,
            paths=[self.root / "JPEGImages" / f"{name}.jpg" for name in ids],
            captions=[[TEXT] for _ in ids],
            labels=np.stack([found.labels for found in objects]),
            class_names=list(CLASSES),
            boxes=[found.boxes for found in objects],
            box_labels=[found.box_labels for found in objects],
        )
        if self.protocol == "holdout":
            return records
        return records.take(np.flatnonzero(records.labels.any(axis=1)).tolist())

    def _annotation(self, name: str) -> Path:
        return self.root / "Annotations" / f"{name}.xml"

    def _read_lists(self) -> Splits:
        folder = self.root / "ImageSets" / "Main"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no {folder}. Set root to the folder of one year, as VOCdevkit/VOC2012, and unpack its image "
                "lists there."
            )
        pair = ("train", "val")
        if (folder / "test.txt").is_file():
            test = read_text(folder / "test.txt").split()
            if any(self._annotation(name).is_file() for name in test):
                pair = ("trainval", "test")
        files = {part: folder / f"{name}.txt" for part, name in zip(("development", "test"), pair, strict=True)}
        lists = {part: read_text(file).split() for part, file in files.items()}
        if empty := [str(files[part]) for part, names in lists.items() if not names]:
            raise ValueError(f"{empty[0]} lists no image. Unpack the image lists again.")
        return lists

    @property
    def holdout_name(self) -> str:
        """The sizes of the two lists, because a name may move from one to the other."""
        return "-".join(f"{part}{len(names)}" for part, names in self._lists.items())

    def draw_holdout(self, records: Records) -> Splits:
        """The published parts."""
        kept = set(records.ids)
        return {part: [name for name in names if name in kept] for part, names in self._lists.items()}
