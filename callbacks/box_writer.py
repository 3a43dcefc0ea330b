"""Writes the boxes that ``predict`` finds, in COCO's two forms and drawn on the pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from callbacks.box_pictures import PALETTE, Boxes, draw_boxes, short
from callbacks.run_files import replace_file, run_folder

READ = ("index", "id", "size", "names", "boxes", "scores", "labels")  # of what predict_step returns
RESULT = ("image_id", "category_id", "bbox", "score")  # of an entry in COCO's list of results
NAME_MAX = 255  # bytes of a file's name
SIDE = 640  # least longest side of a drawn picture, in pixels
STRONGEST = 20  # boxes drawn on a picture; the files have all


class BoxWriter(BasePredictionWriter):
    """Writes ``boxes.json``, ``results.json`` and ``pictures/<id>.png`` after ``predict``.

    ``boxes.json`` is a COCO data set: ``images`` (``file_name`` is the id of the image), ``categories`` and
    ``annotations``, with the ``score`` beside ``bbox`` (x, y, width, height in pixels) and ``area``. ``results.json``
    is COCO's list of results: ``image_id``, ``category_id``, ``bbox``, ``score``. Ids are those of the COCO file that
    was predicted on. Where there is none they count from 1: an ``image_id`` is the image's position in the part plus 1
    and a ``category_id`` the label plus 1. Both are as in the files of the datamodule's ``export_coco``. With ``tile``
    images are tiles, which no such file has; the printed line says so. Boxes of an image stand in the order of their
    scores. Several processes write one file, with each image once. A file is replaced in one step, when it is whole.

    The first ``max_pictures`` images are drawn with their 20 strongest boxes.

    The module's ``predict_step`` must return a list with a dict for each image: ``index``, ``id``, ``size`` (height,
    width), ``names`` of the classes, ``boxes`` (n, 4) xyxy in pixels, ``scores`` and ``labels`` (n,). Pictures come
    from ``datamodule.picture(part, index)`` and ids from ``datamodule.records(part)``; the part is ``predict`` where
    ``datamodule.predict_images`` is set, else ``test``. Without such a datamodule none are drawn.

    Args:
        folder: Folder to write to; None = ``predictions`` in the folder of the run.
        max_pictures: Most pictures that are drawn, at least 0.

    Raises:
        ValueError: ``max_pictures`` below 0, or the predictions are of another kind.
    """

    def __init__(self, folder: str | None = None, max_pictures: int = 100) -> None:
        if max_pictures < 0:
            raise ValueError(f"max_pictures is {max_pictures}; it must be at least 0.")
        super().__init__(write_interval="epoch")
        self.folder = folder
        self.max_pictures = max_pictures

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather the boxes of all processes and write them."""
        folder = Path(self.folder).expanduser() if self.folder else run_folder(trainer) / "predictions"
        images = [image for batch in predictions for image in batch]
        if not all(isinstance(image, Mapping) and set(READ) <= set(image) for image in images):
            raise ValueError(
                f"BoxWriter: predict_step of {type(pl_module).__name__} must return a list with a dict for each image, "
                f"of {', '.join(READ)}. Remove the callback or use a detection module."
            )
        records = gather_images([plain_record(image) for image in images])
        if not trainer.is_global_zero or trainer.fast_dev_run or not records:
            return
        source = getattr(trainer, "datamodule", None)
        items = source.records(part_of(source)) if hasattr(source, "records") else None
        own = records[0]["names"] == list(getattr(source, "display_names", ()))  # else the classes are not the file's
        kinds = getattr(items, "category_ids", None) if own else None
        data = coco_boxes(records, getattr(items, "image_ids", None), kinds)
        results = [{key: box[key] for key in RESULT} for box in data["annotations"]]
        for name, content in (("boxes.json", data), ("results.json", results)):
            # a file's name may be no UTF-8; JSON reads it back
            text = json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace")
            replace_file(folder / name, lambda file, text=text: file.write(text))
        drawn = self._draw(folder / "pictures", records, source)
        tiled = getattr(items, "windows", None) is not None
        print(
            f"{len(results)} boxes in {len(records)} {'tiles' if tiled else 'images'} written to {folder} "
            f"(boxes.json, results.json, {drawn} pictures)"
            + "; results.json fits no annotations of whole pictures, for that leave out data.tile"
            * tiled
        )

    def _draw(self, folder: Path, records: Sequence[Mapping[str, Any]], data: Any) -> int:
        if not hasattr(data, "picture"):
            return 0
        for record in records[: self.max_pictures]:
            image = data.picture(part_of(data), record["index"])
            drawn = draw_boxes(image, drawn_boxes(record), max(SIDE, *image.size))
            replace_file(
                folder / picture_name(record["id"]), lambda file, drawn=drawn: drawn.save(file, "PNG", compress_level=1)
            )
        return min(self.max_pictures, len(records))


def part_of(data: Any) -> str:
    """The part of a datamodule that ``predict`` takes."""
    return "predict" if getattr(data, "predict_images", None) else "test"


def plain_record(image: Mapping[str, Any]) -> dict[str, Any]:
    """An image's prediction without tensors, its boxes in the order of their scores (ties: as given).

    Args:
        image: What ``predict_step`` returned; see :class:`BoxWriter`.

    Example:
        >>> image = {"index": 4, "id": "a.jpg", "size": [6, 8], "names": ["ship"], "labels": torch.tensor([0, 0])}
        >>> found = {"boxes": torch.tensor([[0.0, 0, 1, 2], [3, 2, 8, 5]]), "scores": torch.tensor([0.25, 0.5])}
        >>> plain_record({**image, **found})["boxes"]
        [[3.0, 2.0, 8.0, 5.0], [0.0, 0.0, 1.0, 2.0]]
    """
    order = torch.sort(image["scores"], descending=True, stable=True).indices
    columns = {name: image[name][order].tolist() for name in ("boxes", "scores", "labels")}
    height, width = (int(side) for side in image["size"])
    named = {"index": int(image["index"]), "id": str(image["id"]), "names": list(image["names"])}
    return {**named, "size": [height, width], **columns}


def gather_images(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of all processes, each image once, in the order of their index.

    Args:
        records: Those of this process. Every process must call this.
    """
    everyone = [records]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        everyone = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(everyone, records)
    by_index = {record["index"]: record for one in everyone for record in one}
    return [by_index[index] for index in sorted(by_index)]


def coco_boxes(
    records: Sequence[Mapping[str, Any]], image_ids: Sequence[Any] | None = None, kinds: Sequence[Any] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Predictions as a COCO data set.

    Args:
        records: Those of :func:`plain_record`, at least one.
        image_ids: Id of each image of the part, by its index; None = they count from 1.
        kinds: Id of each category, by its label; None = they count from 1.

    Returns:
        ``images``, ``categories`` and ``annotations``; see :class:`BoxWriter`.
    """
    kinds = kinds or range(1, len(records[0]["names"]) + 1)
    images, annotations = [], []
    for record in records:
        height, width = record["size"]
        number = image_ids[record["index"]] if image_ids else record["index"] + 1
        images.append({"id": number, "file_name": record["id"], "width": width, "height": height})
        columns = (record[name] for name in ("boxes", "scores", "labels"))
        for (left, top, right, bottom), score, label in zip(*columns, strict=True):
            across, down = right - left, bottom - top
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": kinds[label],
                    "bbox": [left, top, across, down],
                    "score": score,
                    "area": across * down,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in zip(kinds, records[0]["names"], strict=True)]
    return {"images": images, "categories": categories, "annotations": annotations}


def drawn_boxes(record: Mapping[str, Any]) -> Boxes:
    """The strongest boxes of an image, coloured by class, with name and score."""
    labels, scores = record["labels"][:STRONGEST], record["scores"][:STRONGEST]
    texts = [f"{record['names'][label]} {short(score)}" for label, score in zip(labels, scores, strict=True)]
    return Boxes(record["boxes"][:STRONGEST], [PALETTE[label % len(PALETTE)] for label in labels], texts)


def picture_name(name: str) -> Path:
    """Where the drawn picture of an image goes, inside the folder of pictures whatever its id is; long names are cut.

    Example:
        >>> picture_name("harbour/a.jpg").as_posix(), picture_name("../elsewhere/b").as_posix()
        ('harbour/a.jpg.png', 'elsewhere/b.png')
    """
    *folders, file = [part for part in PurePosixPath(f"{name}.png").parts if part not in ("..", "/")]
    written = os.fsencode(file)
    if len(written) > NAME_MAX:  # as a name with its own ending may be as long as a name can; the hash keeps two apart
        mark = f"-{hashlib.sha256(written).hexdigest()[:12]}.png"
        file = written[: NAME_MAX - len(mark)].decode(errors="ignore") + mark
    return Path(*folders, file)
