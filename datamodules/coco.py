"""COCO 2017 in its real layout: captions as text, the 80 classes as labels, boxes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.annotation_files import read_json
from datamodules.image_text import ImageTextData, Records, concatenate
from datamodules.karpathy import file_hash, read_karpathy
from datamodules.splits import Splits

__all__ = ["COCO", "concatenate", "image_folder", "read_json", "read_part"]

PARTS = ("train2017", "val2017")


def image_folder(root: Path, part: str) -> Path:
    """Where the images of a part lie: ``root/part`` or ``root/images/part``.

    Raises:
        FileNotFoundError: Neither exists.
    """
    for folder in (root / part, root / "images" / part):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"Images of {part} are neither in {root / part} nor in {root / 'images' / part}.")


def read_part(root: Path, part: str, unlabelled: bool = False) -> Records:
    """The images of ``train2017`` or ``val2017``.

    Args:
        root: Folder of the dataset.
        part: Name of the part.
        unlabelled: Keep images without an annotation, with a row of zeros.

    Returns:
        Images in the order of the file; labels count crowd regions, boxes do not.

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
        images = [image for image in instances["images"] if unlabelled or image["id"] in objects]
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


class COCO(ImageTextData):
    """MS COCO 2017: captions as text, 80 classes as labels, boxes.

    Layout: ``root/{train2017,val2017}`` or ``root/images/{train2017,val2017}``, and
    ``root/annotations/{instances,captions}_{train,val}2017.json``.

    Protocol ``retrieval`` takes both parts together, or the one that has an instances file, without the images that
    have no label (122,218 of 123,287 stay). The literature's sizes are the default: 5000 queries, 10,000 for training,
    all but the queries as database. Smaller sets need smaller numbers.

    Protocol ``holdout`` keeps all 123,287 images. With ``val2017`` its 5000 images are the test part and train2017's
    118,287 the development pool. With ``karpathy`` the test part is Karpathy's, which has 5000 images too, and the
    pool is his train, restval and val; captions and labels are those of the 2017 files either way.

    Args:
        root: Folder of the dataset.
        num_query: Size of the query part, in protocol ``retrieval``.
        num_train: Size of the training part, in protocol ``retrieval``.
        split_seed: Seed of parts and folds.
        split_dir: Where parts and folds are saved.
        skip_corrupt: Leave out images that cannot be decoded instead of stopping at the first.
        holdout: ``val2017``, or ``karpathy``, which reads ``root/annotations/dataset_coco.json``.
        **kwargs: ``protocol``, ``num_folds``, ``fold`` and ``stratified`` of ``ImageTextData``; ``batch_size``,
            ``num_workers`` and the other arguments of ``BaseDataModule``.

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
        holdout: Literal["val2017", "karpathy"] = "val2017",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, num_query, num_train, split_seed, split_dir, skip_corrupt, **kwargs)
        if holdout not in ("val2017", "karpathy"):
            raise ValueError(f"holdout is {holdout}; known: val2017, karpathy.")
        self.holdout = holdout

    def read(self) -> Records:
        """Both parts, or the one that is there."""
        files = {part: self.root / "annotations" / f"instances_{part}.json" for part in PARTS}
        present = [part for part in PARTS if files[part].is_file()]
        if not present:
            raise FileNotFoundError(
                f"There is neither {files[PARTS[0]]} nor {files[PARTS[1]].name} beside it. Unpack COCO's "
                "annotations_trainval2017.zip there."
            )
        if self.protocol == "holdout" and self.holdout == "val2017" and len(present) < len(PARTS):
            lost = next(part for part in PARTS if part not in present)
            raise FileNotFoundError(
                f"Protocol holdout develops on train2017 and tests on val2017, but {files[lost]} does not exist. "
                "Unpack it, or use protocol: retrieval."
            )
        return concatenate([read_part(self.root, part, self.protocol == "holdout") for part in present])

    @property
    def holdout_name(self) -> str:
        """The name of the hold-out; Karpathy's with the hash of his file."""
        return self.holdout if self.holdout == "val2017" else f"karpathy-{file_hash(self._karpathy)[:12]}"

    @property
    def _karpathy(self) -> Path:
        return self.root / "annotations" / "dataset_coco.json"

    def draw_holdout(self, records: Records) -> Splits:
        """The published parts."""
        if self.holdout == "karpathy":
            kept = set(records.ids)  # the file is judged by all images, also by those that skip_corrupt leaves out
            splits = read_karpathy(self._karpathy, self._all.ids)
            return {name: [i for i in part if i in kept] for name, part in splits.items()}
        val = f"{PARTS[1]}/"
        return {
            "development": [name for name in records.ids if not name.startswith(val)],
            "test": [name for name in records.ids if name.startswith(val)],
        }
