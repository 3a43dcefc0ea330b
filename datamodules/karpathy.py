"""Karpathy's parts of COCO: 113,287 images to train on, 5000 to validate, 5000 to test."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from datamodules.annotation_files import read_text
from datamodules.splits import Splits

PARTS = {"train": "development", "restval": "development", "val": "development", "test": "test"}
ANOTHER = (
    "It is not Karpathy's dataset_coco.json (neuraltalk2's cocotalk.json is another file); unpack that of "
    "caption_datasets.zip, or set holdout: val2017."
)


def file_hash(path: Path) -> str:
    """The sha256 of Karpathy's file.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Karpathy's file {path} does not exist. Unpack dataset_coco.json of caption_datasets.zip there, or set "
            "holdout: val2017."
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _part_of_number(path: Path) -> dict[int, str]:
    """Development or test, by COCO's image number."""
    parts: dict[int, str] = {}
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}). {ANOTHER}") from error
    images = content.get("images") if isinstance(content, dict) else None
    if not images:
        raise ValueError(f"{path} has no images. {ANOTHER}")
    for row, entry in enumerate(images if isinstance(images, list) else [images]):
        try:
            number, part = int(entry["cocoid"]), PARTS[entry["split"]]
        except (KeyError, TypeError, ValueError) as error:
            found = f"no {error}" if isinstance(entry, dict) and isinstance(error, KeyError) else f"{error}"
            raise ValueError(
                f"{path}: image {row} has no cocoid with a split train, restval, val or test ({found}). {ANOTHER}"
            ) from error
        if number in parts:
            raise ValueError(f"{path}: COCO image {number} is in it twice. Unpack the file again.")
        parts[number] = part
    return parts


def read_karpathy(path: Path, ids: Sequence[str]) -> Splits:
    """Development and test part of COCO 2017's images, by Karpathy's file.

    Args:
        path: ``dataset_coco.json``. Its captions are not read; an image is known by its COCO number.
        ids: Names ``train2017/000000000009.jpg``; the number is the file's.

    Returns:
        ``development`` (his train, restval and val) and ``test``, both in the order of ``ids``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or another one, or it has images that ``ids`` lack.

    Reference:
        Karpathy and Fei-Fei, Deep Visual-Semantic Alignments for Generating Image Descriptions, CVPR 2015.
    """
    parts = _part_of_number(path)
    try:
        number_of = {name: int(Path(name).stem) for name in ids}
    except ValueError as error:
        raise ValueError(
            f"An image file of the annotations is not named by its COCO number ({error}), so {path.name} cannot tell "
            "its part. Set holdout: val2017."
        ) from error
    known = set(number_of.values())
    if lost := sorted(parts.keys() - known):
        raise ValueError(
            f"{path}: {len(lost)} of its {len(parts)} images are not in the annotations, first {lost[0]}. It needs the "
            "whole COCO 2017, train and val: unpack both annotation files, or cut the images from this file too."
        )
    if left := len(known - parts.keys()):
        warnings.warn(f"{path} tells no part of {left} of the {len(ids)} images; they are left out.", stacklevel=2)
    splits: Splits = {"development": [], "test": []}
    for name, number in number_of.items():
        if number in parts:
            splits[parts[number]].append(name)
    return splits
