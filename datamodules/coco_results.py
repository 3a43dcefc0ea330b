"""Predictions in COCO's list of results beside the truths of a COCO file, with or without the pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from datamodules.annotation_files import read_json
from datamodules.box_dataset import check_size, read_sizes
from datamodules.box_records import check_objects, normalise
from datamodules.coco_boxes import Listing, list_coco_json
from datamodules.pictures import read_picture

RESULT = ("image_id", "category_id", "bbox", "score")
AGAIN = "Write the file again, or take the entry out."


@dataclass(frozen=True)
class CocoResults:
    """Predictions beside the truths of a COCO file, both in the order of its pictures.

    Args:
        image_ids: Id of each of the N pictures, as the file has it.
        file_names: ``file_name`` of each.
        class_names: C names of the categories, in the order of the file.
        predictions: For each picture ``boxes`` (n, 4) float64 xyxy in pixels, ``scores`` (n,) and ``labels`` (n,).
        truths: For each picture ``boxes`` (m, 4), ``labels`` (m,), ``ignore`` (m,) and ``index``, its position.
        images: Folder of the pictures; None = only the files of boxes are there.
    """

    image_ids: list[Any]
    file_names: list[str]
    class_names: list[str]
    predictions: list[dict[str, Any]]
    truths: list[dict[str, Any]]
    images: Path | None

    def picture(self, index: int) -> Image.Image:
        """The RGB picture at a position.

        Raises:
            ValueError: There is no folder of pictures, or the file cannot be decoded.
        """
        if self.images is None:
            raise ValueError("These results have no pictures. Name the folder that holds them.")
        return read_picture(self.images / self.file_names[index]).image


def read_coco_results(predictions: Path, annotations: Path, images: Path | None = None) -> CocoResults:
    """Read predictions and truths, and refuse what a score or a match cannot be made of.

    Pictures are not decoded; their sizes are compared with the annotations where there is a folder of them. Printed
    lines say that there is no prediction at all, or that scores lie outside 0 to 1.

    Args:
        predictions: JSON list of ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels) and ``score``.
            Beside a ``results.json`` that ``predict`` wrote, its ``boxes.json`` tells what the ids stand for.
        annotations: JSON with ``images``, ``annotations`` and ``categories``; crowd regions are ignored truths.
        images: Folder where the ``file_name`` of the pictures begin; None = sizes are those of the file.

    Returns:
        Both, in the order of ``images`` in the annotations.

    Raises:
        FileNotFoundError: A file or a picture is missing.
        ValueError: A file or an entry of it is damaged; names the file, the entry (counted from 1) and the picture. Or
            an id stands for another picture or class in ``boxes.json``.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> truth = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 4, 2]}
        >>> image = {"id": 7, "file_name": "a.jpg", "height": 9, "width": 9}
        >>> whole = {"images": [image], "categories": [{"id": 3, "name": "ship"}], "annotations": [truth]}
        >>> _ = (folder / "truth.json").write_text(json.dumps(whole))
        >>> _ = (folder / "found.json").write_text(json.dumps([{**truth, "score": 0.5}]))
        >>> results = read_coco_results(folder / "found.json", folder / "truth.json")
        >>> results.predictions[0]["boxes"].tolist(), results.truths[0]["labels"].tolist()
        ([[0.0, 0.0, 4.0, 2.0]], [0])
    """
    listing = list_coco_json(annotations)
    _check_names(predictions, annotations, listing)
    truths = _truths(annotations, listing, images)
    entries = _read_list(predictions)
    columns = _columns(entries, listing)
    if columns is None:
        raise ValueError(f"Predictions file {predictions}, {_first_problem(entries, listing)}")
    _say(predictions, columns[2])
    order = np.argsort(columns[0], kind="stable")
    ends = np.searchsorted(columns[0][order], np.arange(1, len(listing.pictures)))
    parts = [np.split(column[order], ends) for column in columns[1:]]
    found = [dict(zip(("boxes", "scores", "labels"), one, strict=True)) for one in zip(*parts, strict=True)]
    names = [name for name, _, _ in listing.pictures.values()]
    return CocoResults(list(listing.pictures), names, listing.class_names, found, truths, images)


def _check_names(predictions: Path, annotations: Path, listing: Listing) -> None:
    """Refuse results whose ids stand for other pictures or classes, by the ``boxes.json`` beside them."""
    beside = predictions.parent / "boxes.json"
    if predictions.name != "results.json" or not beside.is_file():
        return
    content = read_json(beside, ("images", "categories"))
    pictures = {key: name for key, (name, _, _) in listing.pictures.items()}
    classes = dict(zip(listing.columns, listing.class_names, strict=True))
    said = [("image_id", image["id"], image["file_name"], pictures, _same_picture) for image in content["images"]]
    said += [("category_id", kind["id"], kind["name"], classes, _same_class) for kind in content["categories"]]
    for what, key, name, known, same in said:
        if key in known and not same(name, known[key]):
            raise ValueError(
                f"Predictions file {predictions}: by boxes.json beside it {what} {key} is {name}, but in {annotations} "
                f"it is {known[key]}. Give the annotations that were predicted on, or those that the data's "
                "export_coco writes; boxes of tiles have none."
            )


def _same_picture(a: str, b: str) -> bool:
    """Whether two names can be of one file; first folders and the ending may be left out."""
    (*above, last), (*over, end) = PurePosixPath(a).parts, PurePosixPath(b).parts
    depth = min(len(above), len(over))
    names = {last, PurePosixPath(last).stem} & {end, PurePosixPath(end).stem}
    return bool(names) and above[len(above) - depth :] == over[len(over) - depth :]


def _same_class(a: str, b: str) -> bool:
    return normalise(a) == normalise(b)


def _truths(file: Path, listing: Listing, folder: Path | None) -> list[dict[str, Any]]:
    """The checked truths of each picture."""
    names = [name for name, _, _ in listing.pictures.values()]
    stated = [(height, width) for _, height, width in listing.pictures.values()]
    if folder is not None:
        if not folder.is_dir():
            raise FileNotFoundError(f"Folder of images {folder} does not exist. Leave it out to mine without pictures.")
        for name, size, real in zip(names, stated, read_sizes([folder / n for n in names]).tolist(), strict=True):
            check_size(size, real, f"Annotation file {file}, image {name}")
    truths: list[dict[str, Any]] = []
    for index, (key, name, size) in enumerate(zip(listing.pictures, names, stated, strict=True)):
        objects = check_objects(listing.entries.get(key, []), size, f"Annotation file {file}, image {name}")
        boxes = objects.boxes.astype(np.float64)
        truths.append({"boxes": boxes, "labels": objects.labels, "ignore": objects.ignore, "index": index})
    if all(truth["ignore"].all() for truth in truths):
        raise ValueError(
            f"Annotation file {file} holds no object that counts in its {len(names)} images, so nothing can be found "
            "or missed. Give the file with the true boxes, not the one of a test part without answers."
        )
    return truths


def _read_list(path: Path) -> list[Any]:
    """The entries of a file of results."""
    if not path.is_file():
        raise FileNotFoundError(f"Predictions file {path} does not exist. `predict` writes results.json.")
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise ValueError(f"Predictions file {path} is empty. Write it again; no prediction at all is the list [].")
        content = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"Predictions file {path} is not text ({error.reason}). Write it again.") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"Predictions file {path} is not whole JSON ({error}). It was cut off or damaged; write or copy it again."
        ) from error
    if not isinstance(content, list):
        whole = isinstance(content, dict) and "images" in content
        near = " boxes.json is a data set; the list stands in results.json beside it." if whole else ""
        raise ValueError(
            f"Predictions file {path} holds {_kind(content)}; COCO's results are a list of entries with "
            f"{', '.join(RESULT)}.{near}"
        )
    return content


def _columns(entries: list[Any], listing: Listing) -> tuple[np.ndarray, ...] | None:
    """Position of the picture (n,), box (n, 4) xyxy, score (n,) and class (n,) of all entries; None if one is wrong.

    It takes all at once, as a detector's results are hundreds of thousands.
    """
    place = {key: row for row, key in enumerate(listing.pictures)}
    try:
        images = np.array([place[entry["image_id"]] for entry in entries], np.int64)
        labels = np.array([listing.columns[entry["category_id"]] for entry in entries], np.int64)
        scores, boxes = [entry["score"] for entry in entries], [entry["bbox"] for entry in entries]
        sides = list(chain.from_iterable(boxes))
        if set(map(type, chain(scores, sides))) - {int, float} or set(map(len, boxes)) - {4}:
            return None
        numbers, values = np.array(sides, np.float64).reshape(-1, 4), np.array(scores, np.float64)
    except (KeyError, TypeError, OverflowError):
        return None
    if not np.isfinite(values).all() or not np.isfinite(numbers).all() or (numbers[:, 2:] < 0).any():
        return None
    return images, np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]], axis=1), values, labels


def _first_problem(entries: list[Any], listing: Listing) -> str:
    """Which entry is wrong, and how."""
    problems = ((number, _problem(entry, listing)) for number, entry in enumerate(entries, 1))
    return next(f"entry {number}{text}" for number, text in problems if text)


def _problem(entry: Any, listing: Listing) -> str:
    """What is wrong with an entry, as the end of a message; empty if nothing is."""
    if not isinstance(entry, Mapping):
        return f" is {_kind(entry)}; it needs {', '.join(RESULT)}. {AGAIN}"
    if lost := [name for name in RESULT if name not in entry]:
        return f" lacks {', '.join(lost)}; it needs {', '.join(RESULT)}. {AGAIN}"
    key, category, box, score = (entry[name] for name in RESULT)
    if not _is_in(key, listing.pictures):
        return (
            f": image_id {key!r} is not in the annotations, whose {len(listing.pictures)} ids begin "
            f"{_some(listing.pictures)}. Give the annotations of the same pictures; `predict` keeps the ids of a COCO "
            "file that it reads, and else counts images from 1, as the files of the data's export_coco do."
        )
    where = f" (image {listing.pictures[key][0]})"
    if not _is_in(category, listing.columns):
        return (
            f"{where}: category_id {category!r} is not in the annotations, whose {len(listing.columns)} ids begin "
            f"{_some(listing.columns)}. Give the annotations with the same categories; `predict` keeps those of a "
            "COCO file that it reads, and else writes label + 1."
        )
    if not _is_number(score):
        return f"{where}: score {score!r} is no finite number. {AGAIN}"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"{where}: bbox {box!r} is not four finite numbers x, y, width, height. {AGAIN}"
    if min(box[2:]) < 0:
        return (
            f"{where}: bbox {box} has a negative width or height. COCO's bbox is x, y, width, height; convert boxes "
            "that were written as corners, and put inverted corners in order."
        )
    return ""


def _say(path: Path, scores: np.ndarray) -> None:
    """Print what is allowed, but seldom meant."""
    if not len(scores):
        print(f"{path}: no predictions, so every truth counts as missed.")
    outside = int(((scores < 0) | (scores > 1)).sum())
    if outside:
        print(
            f"{path}: {outside} of {len(scores)} scores lie outside 0 to 1. Set the confidence threshold on their "
            "scale; suspected label errors suppose probabilities."
        )


def _is_in(key: Any, known: Mapping[Any, Any]) -> bool:
    return isinstance(key, int | float | str) and key in known


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number; a NaN compares with nothing."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _some(ids: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, list(ids)[:3]))


def _kind(value: Any) -> str:
    """What a value of JSON is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
