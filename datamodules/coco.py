"""COCO 2017 in its real layout: captions as text, the 80 classes as labels, boxes."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.image_text import ImageTextData, Records, read_text

PARTS = ("train2017", "val2017")


def read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object that has certain keys.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or a key is missing.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"Annotation file {path} is not JSON ({error}). Unpack it again.") from error
    if not isinstance(content, dict) or (lost := [k for k in keys if k not in content]):
        lost = list(keys) if not isinstance(content, dict) else lost
        raise ValueError(f"Annotation file {path} has no {' and no '.join(lost)}; is it a COCO file?")
    return content


def image_folder(root: Path, part: str) -> Path:
    """Where the images of a part lie: ``root/part`` or ``root/images/part``.

    Raises:
        FileNotFoundError: Neither exists.
    """
    for folder in (root / part, root / "images" / part):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"Images of {part} are neither in {root / part} nor in {root / 'images' / part}.")


def read_part(root: Path, part: str) -> Records:
    """The labelled images of ``train2017`` or ``val2017``.

    Args:
        root: Folder of the dataset.
        part: Name of the part.

    Returns:
        Images with at least one annotation, in the order of the file; labels count crowd regions, boxes do not.

    Raises:
        FileNotFoundError: An annotation file or the folder of images is missing.
        ValueError: An annotation file is damaged, or an image has no caption.
    """
    folder = image_folder(root, part)
    instances_file = root / "annotations" / f"instances_{part}.json"
    instances = read_json(instances_file, ("images", "annotations", "categories"))
    captions_json = read_json(root / "annotations" / f"captions_{part}.json", ("annotations",))
    captions: dict[int, list[str]] = defaultdict(list)
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        column = {category["id"]: i for i, category in enumerate(instances["categories"])}
        names = [category["name"] for category in instances["categories"]]
        for entry in captions_json["annotations"]:
            captions[entry["image_id"]].append(" ".join(entry["caption"].split()))
        for entry in instances["annotations"]:
            objects[entry["image_id"]].append(entry)
        images = [image for image in instances["images"] if image["id"] in objects]
        files = [image["file_name"] for image in images]
        for image in images:
            if image["id"] not in captions:
                raise ValueError(f"Image {image['file_name']} has no caption in captions_{part}.json of {root}.")
        labels = np.zeros((len(images), len(names)), np.uint8)
        boxes, box_labels = [], []
        for row, image in enumerate(images):
            labels[row, [column[o["category_id"]] for o in objects[image["id"]]]] = 1
            things = [o for o in objects[image["id"]] if not o.get("iscrowd", 0)]
            xywh = np.array([o["bbox"] for o in things], np.float32).reshape(-1, 4)
            boxes.append(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1))
            box_labels.append(np.array([column[o["category_id"]] for o in things], np.int64))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"An entry of {instances_file} or of its captions file lacks {error}; damaged?") from error
    return Records(
        ids=[f"{part}/{file}" for file in files],
        paths=[folder / file for file in files],
        captions=[captions[image["id"]] for image in images],
        labels=labels,
        class_names=names,
        boxes=boxes,
        box_labels=box_labels,
    )


def concatenate(parts: list[Records]) -> Records:
    """Several parts as one; all must have the same classes."""
    first = parts[0]
    if any(part.class_names != first.class_names for part in parts):
        raise ValueError("The annotation files of the parts list different categories.")
    lists = ("ids", "paths", "captions", "boxes", "box_labels")
    joined = {name: [value for part in parts for value in getattr(part, name)] for name in lists}
    return Records(labels=np.concatenate([p.labels for p in parts]), class_names=first.class_names, **joined)


class COCO(ImageTextData):
    """MS COCO 2017, train2017 and val2017 together, for retrieval: captions as text, 80 classes as labels.

    Layout: ``root/{train2017,val2017}`` or ``root/images/{train2017,val2017}``, and
    ``root/annotations/{instances,captions}_{train,val}2017.json``; a part without an instances file is left out.
    Images without a label are left out (122,218 of 123,287 stay). The literature's sizes are the default: 5000
    queries, 10,000 for training, all but the queries as database. Smaller sets need smaller numbers.

    Args:
        root: Folder of the dataset.
        num_query: Size of the query part.
        num_train: Size of the training part.
        split_seed: Seed of the parts.
        split_dir: Where the parts are saved.
        skip_corrupt: Leave out images that cannot be decoded instead of stopping at the first.
        **kwargs: ``batch_size``, ``num_workers`` and the other arguments of ``BaseDataModule``.

    Reference:
        Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014.
    """

    def __init__(
        self,
        root: str,
        num_query: int = 5000,
        num_train: int = 10_000,
        split_seed: int = 0,
        split_dir: str = "cache/splits",
        skip_corrupt: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, num_query, num_train, split_seed, split_dir, skip_corrupt, **kwargs)

    def read(self) -> Records:
        """Both parts, or the one that is there."""
        files = {part: self.root / "annotations" / f"instances_{part}.json" for part in PARTS}
        present = [part for part in PARTS if files[part].is_file()]
        if not present:
            raise FileNotFoundError(
                f"There is neither {files[PARTS[0]]} nor {files[PARTS[1]].name} beside it. Unpack COCO's "
                "annotations_trainval2017.zip there."
            )
        return concatenate([read_part(self.root, part) for part in present])
