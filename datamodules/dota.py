"""DOTA in its real layout, and sets labelled like it: four corners, class and difficulty a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from datamodules.annotation_files import read_text
from datamodules.box_dataset import read_sizes
from datamodules.box_records import BoxRecords, Entry, check_objects, class_columns, find_class, gather
from datamodules.detection import PARTS, DetectionData
from datamodules.folder import find_images

FIRST = (
    "plane",
    "baseball-diamond",
    "bridge",
    "ground-track-field",
    "small-vehicle",
    "large-vehicle",
    "ship",
    "tennis-court",
    "basketball-court",
    "storage-tank",
    "soccer-ball-field",
    "roundabout",
    "harbor",
    "swimming-pool",
    "helicopter",
)
CLASSES = {
    "v1.0": FIRST,
    "v1.5": (*FIRST, "container-crane"),
    "v2.0": (*FIRST, "container-crane", "airport", "helipad"),
}
HEADINGS = ("imagesource:", "gsd:")


def read_entries(path: Path, columns: dict[str, int]) -> list[Entry]:
    """The objects of one ``labelTxt`` file; difficult ones are ignored.

    Args:
        path: Lines ``x1 y1 x2 y2 x3 y3 x4 y4 class difficult``, after up to two headings; without the last number no
            object is difficult.
        columns: Column of each normalised class name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line of another form, or a class that is not known; names file and line.
    """
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields, where = line.split(), f"Annotation file {path}, line {number}"
        if not fields or fields[0].lower().startswith(HEADINGS):
            continue
        try:
            corners, difficult = [float(value) for value in fields[:8]], int(fields[9]) if len(fields) == 10 else 0
        except ValueError:
            corners, difficult = [], 0
        if len(corners) != 8 or len(fields) not in (9, 10):
            raise ValueError(f"{where}: '{line.strip()}' is not 'x1 y1 x2 y2 x3 y3 x4 y4 class difficult'. Correct it.")
        entries.append(Entry(fields[8], find_class(fields[8], columns, where), corners, difficult != 0))
    return entries


class DOTA(DetectionData):
    """DOTA, or a set labelled like it: oriented boxes in large aerial images.

    Layout of ``root``: ``{train,val,test}/images/<id>.png`` and ``{train,val,test}/labelTxt/<id>.txt``. Boxes are those
    around the four corners, which stay as ``polygons``. Difficult objects are ignored: as COCO's crowds they absorb
    detections by the share of the detection that lies on them, where DOTA's rule asks for their IoU. DOTA's images are
    up to thousands of pixels wide: set ``tile``. DOTA publishes no labels of its test part.

    Args:
        root: Folder of the dataset.
        version: Whose classes: 15 in ``v1.0``, 16 in ``v1.5``, 18 in ``v2.0``.
        classes: Names of the classes of another set; None = those of ``version``.
        **kwargs: Arguments of ``DetectionData``: ``image_size``, ``train_on``, ``num_folds``, ``tile`` and the others.

    Reference:
        Xia et al., DOTA: A Large-Scale Dataset for Object Detection in Aerial Images, CVPR 2018.
    """

    def __init__(
        self,
        root: str,
        version: Literal["v1.0", "v1.5", "v2.0"] = "v1.0",
        classes: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        if version not in CLASSES:
            raise ValueError(f"version is {version}; known: {', '.join(CLASSES)}.")
        self._classes = list(CLASSES[version] if classes is None else classes)
        self._columns = class_columns(self._classes)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of ``box_labels``."""
        return self._classes

    @property
    def parts(self) -> tuple[str, ...]:
        """Train and val, and test if somebody has its labels."""
        return (*PARTS[:2], *(PARTS[2:] if (self.root / PARTS[2] / "labelTxt").is_dir() else ()))

    def read_part(self, part: str) -> BoxRecords:
        """The pictures of one part's folder, with their objects."""
        folder, labels = self.root / part / "images", self.root / part / "labelTxt"
        if not labels.is_dir():
            raise FileNotFoundError(f"Label folder {labels} does not exist. Unpack the labels of this part there.")
        paths = find_images(folder)
        ids = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
        if alone := sorted({file.stem for file in labels.glob("*.txt")} - set(ids)):
            raise FileNotFoundError(
                f"{len(alone)} of the labels in {labels} have no image in {folder}, first {alone[0]}. Unpack the "
                "images again, or take the labels out."
            )
        sizes = read_sizes(paths)
        objects = []
        for name, size in zip(ids, sizes.tolist(), strict=True):
            file = labels / f"{name}.txt"
            objects.append(check_objects(read_entries(file, self._columns), size, f"Annotation file {file}"))
        return gather(ids, paths, sizes, objects, self._classes, oriented=True)
