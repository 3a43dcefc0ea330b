"""DIOR in its real layout: twenty classes of objects in aerial images, with horizontal or oriented boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from datamodules.annotation_files import read_text
from datamodules.box_dataset import check_size, read_sizes
from datamodules.box_records import BoxRecords, Entry, check_objects, class_columns, find_class, gather, normalise
from datamodules.detection import DetectionData

DISPLAY_NAMES = {
    "airplane": "airplane",
    "airport": "airport",
    "baseballfield": "baseball field",
    "basketballcourt": "basketball court",
    "bridge": "bridge",
    "chimney": "chimney",
    "dam": "dam",
    "Expressway-Service-area": "expressway service area",
    "Expressway-toll-station": "expressway toll station",
    "golffield": "golf field",
    "groundtrackfield": "ground track field",
    "harbor": "harbor",
    "overpass": "overpass",
    "ship": "ship",
    "stadium": "stadium",
    "storagetank": "storage tank",
    "tenniscourt": "tennis court",
    "trainstation": "train station",
    "vehicle": "vehicle",
    "windmill": "windmill",
}
CLASSES = tuple(DISPLAY_NAMES)  # in this order everywhere; other code orders them after lower-casing, which differs
NOVEL = ("airport", "basketballcourt", "groundtrackfield", "windmill")  # never seen in training, in zero-shot detection
FOLDERS = {"horizontal": "Horizontal Bounding Boxes", "oriented": "Oriented Bounding Boxes"}
SIDES = ("xmin", "ymin", "xmax", "ymax")
CORNERS = tuple(
    f"{axis}_{corner}" for corner in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy"
)


def read_entries(path: Path, size: Sequence[int], annotations: str, columns: dict[str, int]) -> list[Entry]:
    """The objects of one annotation file; its numbers are used as they are, neither from 1 nor inclusive.

    Args:
        path: XML file.
        size: Height and width of the picture, which must be those in the file if it has any.
        annotations: ``horizontal`` reads ``bndbox``, ``oriented`` reads the corners of ``robndbox``.
        columns: Column of each normalised class name; -1 = not wanted.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not XML, a number is missing, a class is not known, or the picture has another size; names
            file and object.
    """
    tag, fields = ("bndbox", SIDES) if annotations == "horizontal" else ("robndbox", CORNERS)
    text = read_text(path)
    try:
        root = ElementTree.fromstring(text)
        stated = [int(root.findtext(f"size/{side}") or 0) for side in ("height", "width")]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"Annotation file {path} is not DIOR's XML ({error}). Unpack it again.") from error
    if any(stated):
        check_size(stated, size, f"Annotation file {path}")
    entries = []
    for number, item in enumerate(root.iterfind("object"), 1):
        where, name = f"Annotation file {path}, object {number}", (item.findtext("name") or "").strip()
        column = find_class(name, columns, where)
        try:
            numbers = [float(item.findtext(f"{tag}/{field}") or "") for field in fields]
        except ValueError as error:
            raise ValueError(
                f"{where} ({name}): {tag} lacks {', '.join(fields)}, or one is no number. Check that annotations: "
                f"{annotations} fits the folder, or unpack it again."
            ) from error
        entries.append(Entry(name, column, numbers, (item.findtext("difficult") or "0").strip() not in ("0", "")))
    return entries


class DIOR(DetectionData):
    """DIOR or DIOR-R: 23,463 aerial images of 800 x 800 pixels with objects of twenty classes.

    Layout of ``root``: ``JPEGImages-trainval/<id>.jpg``, ``JPEGImages-test/<id>.jpg``, ``Annotations/Horizontal
    Bounding Boxes/<id>.xml`` or ``Annotations/Oriented Bounding Boxes/<id>.xml``, and
    ``ImageSets/Main/{train,val,test}.txt`` (5862, 5863 and 11,738 ids). Papers train on both with ``train_on:
    trainval`` and test on test. Difficult objects, where a file marks some, are ignored: as COCO's crowds they absorb
    detections by the share of the detection that lies on them, where VOC's rule asks for their IoU.

    Classes are ``CLASSES``, in this order; names in files match without regard to case, ``-``, ``_`` and spaces.
    ``xmin`` to ``ymax`` and the corners are used as the XML has them.

    Args:
        root: Folder of the dataset.
        annotations: ``horizontal`` boxes, or ``oriented``: four corners as ``polygons`` and the boxes around them.
        classes: Names of the classes of another set in DIOR's layout, spelled as they are to be shown; None = DIOR's
            twenty.
        class_split: The objects of all classes, or of the 16 ``base`` or the 4 ``novel`` classes of zero-shot
            detection. Objects of the others are left out; their pictures stay, as background.
        **kwargs: Arguments of ``DetectionData``: ``image_size``, ``train_on``, ``num_folds``, ``tile`` and the others.

    Reference:
        Li et al., Object Detection in Optical Remote Sensing Images: A Survey and a New Benchmark, ISPRS 2020.
        Cheng et al., Anchor-Free Oriented Proposal Generator for Object Detection, TGRS 2022 (oriented boxes).
    """

    def __init__(
        self,
        root: str,
        annotations: Literal["horizontal", "oriented"] = "horizontal",
        classes: list[str] | None = None,
        class_split: Literal["all", "base", "novel"] = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        if annotations not in FOLDERS:
            raise ValueError(f"annotations is {annotations}; known: {', '.join(FOLDERS)}.")
        if class_split not in ("all", "base", "novel"):
            raise ValueError(f"class_split is {class_split}; known: all, base, novel.")
        if classes is not None and class_split != "all":
            raise ValueError(f"class_split {class_split} splits DIOR's twenty classes. Leave out classes.")
        self.annotations = annotations
        self.class_split = class_split
        self._known = list(classes) if classes is not None else list(CLASSES)
        self._columns = class_columns(self._known)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of ``box_labels``."""
        if self.class_split == "all":
            return self._known
        return [name for name in self._known if (name in NOVEL) == (self.class_split == "novel")]

    @property
    def display_names(self) -> list[str]:
        """The class names as words: ``ground track field``."""
        words = {normalise(name): display for name, display in DISPLAY_NAMES.items()}
        own = super().display_names
        return [words.get(normalise(name), display) for name, display in zip(self.class_names, own, strict=True)]

    def read_part(self, part: str) -> BoxRecords:
        """The pictures of one list, with their objects."""
        names = read_text(self.root / "ImageSets" / "Main" / f"{part}.txt").split()
        folder = self.root / ("JPEGImages-test" if part == "test" else "JPEGImages-trainval")
        paths = [folder / f"{name}.jpg" for name in names]
        sizes = read_sizes(paths)
        wanted = class_columns(self.class_names)
        columns = {name: wanted.get(name, -1) for name in self._columns}
        files = [self.root / "Annotations" / FOLDERS[self.annotations] / f"{name}.xml" for name in names]
        objects = [
            check_objects(read_entries(file, size, self.annotations, columns), size, f"Annotation file {file}")
            for file, size in zip(files, sizes.tolist(), strict=True)
        ]
        return gather(names, paths, sizes, objects, self.class_names, oriented=self.annotations == "oriented")
