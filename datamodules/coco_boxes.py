"""Detection sets in COCO's JSON: reading any, and writing any detection set as one."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.annotation_files import read_json
from datamodules.box_dataset import check_size, read_sizes
from datamodules.box_records import BoxRecords, Entry, check_objects, gather
from datamodules.detection import PARTS, DetectionData
from datamodules.splits import write_json


class Listing(NamedTuple):
    """What a COCO file lists.

    Args:
        pictures: ``file_name``, height and width of each picture, by its id.
        columns: Class index of each category, by its id.
        class_names: C names.
        entries: Objects of each picture that has some, by its id.
    """

    pictures: dict[Any, tuple[str, int, int]]
    columns: dict[Any, int]
    class_names: list[str]
    entries: dict[Any, list[Entry]]


def list_coco_json(file: Path) -> Listing:
    """The pictures and boxes of one COCO file, from that file alone; boxes are not checked against pictures.

    Boxes without any width or height, of which COCO 2017 itself has a few, are left out and counted in a printed line.

    Args:
        file: JSON with ``images``, ``annotations`` and ``categories``.

    Returns:
        Pictures and categories in the order of the file.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: An entry is damaged, or an id stands for two.
    """
    content = read_json(file, ("images", "annotations", "categories"))
    try:
        columns = {category["id"]: i for i, category in enumerate(content["categories"])}
        names = [category["name"] for category in content["categories"]]
        pictures = {image["id"]: (image["file_name"], image["height"], image["width"]) for image in content["images"]}
        for what, ids in (("images", pictures), ("categories", columns)):
            if len(ids) < len(content[what]):
                raise ValueError(f"Annotation file {file}: two of its {what} have the same id. Export the file again.")
        entries: dict[Any, list[Entry]] = defaultdict(list)
        empty = 0
        for item in content["annotations"]:
            if item["image_id"] not in pictures or item["category_id"] not in columns:
                lost = "image" if item["image_id"] not in pictures else "category"
                raise ValueError(
                    f"Annotation file {file}: annotation {item['id']} is of {lost} {item[f'{lost}_id']}, which is not "
                    "listed. Add it to the file, or take the annotation out."
                )
            if len(item["bbox"]) != 4:
                raise ValueError(
                    f"Annotation file {file}: annotation {item['id']} (image {pictures[item['image_id']][0]}) has bbox "
                    f"{item['bbox']}; it must be x, y, width, height. Correct it, or take the annotation out."
                )
            x, y, width, height = item["bbox"]
            if 0 in (width, height):
                empty += 1
                continue
            corners, crowd = (x, y, x + width, y + height), bool(item.get("iscrowd", 0))
            found = columns[item["category_id"]]
            entries[item["image_id"]].append(Entry(names[found], found, corners, crowd))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"An entry of {file} is damaged or lacks {error}. Export the file again.") from error
    if empty:
        print(f"{file}: {empty} box(es) without width or height left out of {len(content['annotations'])}.")
    return Listing(pictures, columns, names, entries)


def read_coco_json(file: Path, folder: Path, root: Path) -> BoxRecords:
    """The pictures and boxes of one COCO file; crowd regions are ignored, masks and other shapes are not read.

    Args:
        file: See ``list_coco_json``.
        folder: Where the ``file_name`` of the pictures begin.
        root: Ids are the paths of the pictures from here.

    Returns:
        Pictures and categories in the order of the file, with their ids there.

    Raises:
        FileNotFoundError: The file or a picture is missing.
        ValueError: An entry is damaged or a box wrong; names file and picture.
    """
    listing = list_coco_json(file)
    paths = [folder / name for name, _, _ in listing.pictures.values()]
    sizes = read_sizes(paths)
    objects = []
    for (key, (name, height, width)), size in zip(listing.pictures.items(), sizes.tolist(), strict=True):
        where = f"Annotation file {file}, image {name}"
        check_size((height, width), size, where)
        objects.append(check_objects(listing.entries.get(key, []), size, where))
    ids = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    records = gather(ids, paths, sizes, objects, listing.class_names, oriented=False)
    return replace(records, image_ids=list(listing.pictures), category_ids=list(listing.columns))


def _areas(boxes: np.ndarray, polygons: np.ndarray | None) -> np.ndarray:
    """Areas of boxes ``(K, 4)``, or of the polygons ``(K, 4, 2)`` in them by the shoelace formula."""
    if polygons is None:
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    x, y = polygons[..., 0], polygons[..., 1]
    return np.abs((x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1)) / 2


def write_coco_json(records: BoxRecords, path: Path, image_root: Path) -> None:
    """Write a detection set as COCO's JSON.

    Pictures and categories keep the ids of the COCO file that they come from; else, and those of annotations, ids count
    from 1. Ignored objects become crowd regions, which COCO's evaluation ignores. Oriented boxes are written
    as ``segmentation`` beside the box around them.

    Args:
        records: Whole pictures.
        path: The file to write.
        image_root: ``file_name`` is the path of a picture from here; tools ask for it as the folder of images.

    Raises:
        ValueError: The records are tiles.
    """
    if records.windows is not None:
        raise ValueError(f"{path}: tiles are parts of files, which COCO's JSON cannot name. Export whole pictures.")
    names = [Path(os.path.relpath(file, image_root)).as_posix() for file in records.paths]
    sizes = zip(names, records.sizes.tolist(), strict=True)
    numbers = records.image_ids or range(1, len(names) + 1)
    kinds = records.category_ids or range(1, len(records.class_names) + 1)
    images = [
        {"id": number, "file_name": name, "width": width, "height": height}
        for number, (name, (height, width)) in zip(numbers, sizes, strict=True)
    ]
    annotations: list[dict[str, Any]] = []
    for row, image in enumerate(images):
        boxes = records.boxes[row].astype(np.float64)
        polygons = None if records.polygons is None else records.polygons[row].astype(np.float64)
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        for k, area in enumerate(_areas(boxes, polygons).tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": kinds[int(records.box_labels[row][k])],
                    "bbox": xywh[k].tolist(),
                    "area": area,
                    "iscrowd": int(records.ignore[row][k]),
                    "segmentation": [] if polygons is None else [polygons[k].ravel().tolist()],
                }
            )
    categories = [{"id": number, "name": name} for number, name in zip(kinds, records.class_names, strict=True)]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})


class CocoBoxes(DetectionData):
    """Any detection set in COCO's JSON: a file and a folder of images for each part.

    Crowd regions are ignored. Ids are the paths of the pictures in ``root``. COCO 2017 itself, whose test part has no
    public boxes, reads with ``annotations: {train: annotations/instances_train2017.json, val:
    annotations/instances_val2017.json}`` and ``images: {train: train2017, val: val2017}``.

    Args:
        root: Folder of the dataset.
        annotations: The file of each part, from ``root``; None = ``annotations/{train,val,test}.json``.
        images: The folder of each part, from ``root``, where the ``file_name`` of the pictures begin; None =
            ``images/{train,val,test}``. ``val2017`` is found in ``images`` too.
        **kwargs: Arguments of ``DetectionData``: ``image_size``, ``train_on``, ``num_folds``, ``tile`` and the others.
    """

    def __init__(
        self,
        root: str,
        annotations: dict[str, str] | None = None,
        images: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.annotations = annotations or {part: f"annotations/{part}.json" for part in PARTS}
        self.images = images or {part: f"images/{part}" for part in self.annotations}
        if wrong := sorted((set(self.annotations) ^ set(self.images)) | (set(self.annotations) - set(PARTS))):
            raise ValueError(
                f"annotations and images must name the same parts out of {', '.join(PARTS)}; {wrong[0]} is in one "
                "alone or is none of them."
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that have a file."""
        return tuple(self.annotations)

    @property
    def class_names(self) -> list[str]:
        """Names of the categories, in the order of the file."""
        read = next(iter(self._published), None)
        return self.published(read or next(iter(self.annotations))).class_names

    def read_part(self, part: str) -> BoxRecords:
        """The pictures of one file, with their boxes."""
        file = self.root / self.annotations[part]
        given, inside = self.root / self.images[part], self.root / "images" / self.images[part]
        records = read_coco_json(file, inside if inside.is_dir() and not given.is_dir() else given, self.root)
        for other, known in self._published.items():
            if known.class_names != records.class_names:
                raise ValueError(f"{file} has other categories than the {other} part. Export them with the same ones.")
        return records
