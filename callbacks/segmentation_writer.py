"""Writes the label maps that ``predict`` finds, drawn over the pictures too, and the areas of the classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from callbacks.box_writer import gather_images, picture_name
from callbacks.label_maps import Pixels, class_colours, indexed_picture, label_picture, legend
from callbacks.run_files import replace_file, run_folder

READ = ("index", "id", "names", "labels")  # of what predict_step returns
SMALL, LARGE = 640, 2048  # least and most longest side of an overlay, in pixels
WRITTEN = ("labels", "overlays", "areas.json")
LISTED = 24  # classes in a legend, the largest; areas.json has all


class SegmentationWriter(BasePredictionWriter):
    """Writes ``labels/<id>.png`` and ``overlays/<id>.png`` while ``predict`` runs, and ``areas.json`` after it.

    A label map has the picture's size and a pixel's class as its value: 8 bits with a palette, or 16 bits grey where
    there are more than 255 classes. An overlay is the picture with half-transparent colours, boundaries, and the
    classes that occur with their share of the area, the largest first; it is enlarged to 640 pixels or shrunk to 2048.
    The first ``max_pictures`` images of the set are drawn. ``areas.json`` holds ``classes``, the names in the order of
    the labels, and ``images``, in the order of the set, each once over all processes: ``id``, ``width``, ``height`` and
    ``areas``, for each class that occurs its ``class``, ``pixels`` and ``share``. A file is replaced in one step, when
    it is whole; what an earlier ``predict`` left is moved to ``predictions.previous``.

    Of each batch only the areas are kept. Lightning keeps the label maps all the same, unless ``predict`` is called
    with ``return_predictions=False``.

    The module's ``predict_step`` must return a list with a dict for each image: ``index``, ``id``, ``names`` of the
    classes, and ``labels`` (H, W). Pictures come from the batch's ``image``, B tensors (3, H, W) uint8; without it no
    overlay is drawn.

    Args:
        folder: Folder to write to; None = ``predictions`` in the folder of the run.
        max_pictures: Most overlays that are drawn, at least 0.

    Raises:
        ValueError: ``max_pictures`` below 0, or the predictions are of another kind.
    """

    def __init__(self, folder: str | None = None, max_pictures: int = 100) -> None:
        if max_pictures < 0:
            raise ValueError(f"max_pictures is {max_pictures}; it must be at least 0.")
        super().__init__(write_interval="batch")
        self.folder = folder
        self.max_pictures = max_pictures
        self._records: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._place = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run, and settle where to write."""
        self._records, self._names = [], []
        self._place = Path(self.folder).expanduser() if self.folder else run_folder(trainer) / "predictions"
        if trainer.is_global_zero and not trainer.fast_dev_run:
            put_aside(self._place)
        trainer.strategy.barrier()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the label maps and overlays of a batch."""
        images: Sequence[Any] = prediction if isinstance(prediction, Sequence) else [None]
        if not all(isinstance(image, Mapping) and set(READ) <= set(image) for image in images):
            raise ValueError(
                f"SegmentationWriter: predict_step of {type(pl_module).__name__} must return a list with a dict for "
                f"each image, of {', '.join(READ)}. Remove the callback or use a segmentation module."
            )
        if trainer.fast_dev_run or not images:
            return
        self._names = list(images[0]["names"])
        colours = class_colours(self._names)
        pictures = batch["image"] if isinstance(batch, Mapping) and "image" in batch else [None] * len(images)
        for image, picture in zip(images, pictures, strict=True):
            labels, file = image["labels"].cpu().numpy(), picture_name(str(image["id"]))
            record = {"index": int(image["index"]), **area_record(str(image["id"]), labels, self._names)}
            record["drawn"] = picture is not None and record["index"] < self.max_pictures
            self._records.append(record)
            save_png(self._place / "labels" / file, indexed_picture(labels, colours))
            if record["drawn"]:
                drawn = overlay_with_legend(pixels_of(picture), labels, self._names, colours)
                save_png(self._place / "overlays" / file, drawn)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the areas of all processes and write them."""
        records, self._records = gather_images(self._records), []
        if not trainer.is_global_zero or trainer.fast_dev_run or not records:
            return
        drawn = sum(record["drawn"] for record in records)
        images = [{key: record[key] for key in ("id", "width", "height", "areas")} for record in records]
        text = json.dumps({"classes": self._names, "images": images}, ensure_ascii=False)
        data = text.encode(errors="backslashreplace")  # a file's name may be no UTF-8; JSON reads it back
        replace_file(self._place / "areas.json", lambda file: file.write(data))
        print(f"label maps of {len(records)} images written to {self._place} (labels, {drawn} overlays, areas.json)")


def put_aside(place: Path) -> None:
    """Move what an earlier ``predict`` wrote to ``<place>.previous``, which is replaced."""
    earlier = place.with_name(f"{place.name}.previous")
    written = [place / name for name in WRITTEN if (place / name).exists()]
    if not written:
        return
    shutil.rmtree(earlier, ignore_errors=True)
    earlier.mkdir()
    for each in written:
        each.rename(earlier / each.name)


def pixels_of(image: Tensor) -> Pixels:
    """A picture (3, H, W) uint8 as an array (H, W, 3)."""
    pixels: Pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, in one step."""
    replace_file(path, lambda file: picture.save(file, "PNG"))


def area_record(name: str, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The areas of the classes that occur in an image.

    Args:
        name: Id of the image.
        labels: (H, W), classes from 0.
        names: C classes.

    Returns:
        ``id``, ``width``, ``height`` and ``areas``; see :class:`SegmentationWriter`.

    >>> area_record("a", np.array([[1, 1, 1, 0]]), ["sky", "cat", "dog"])["areas"]
    [{'class': 'sky', 'pixels': 1, 'share': 0.25}, {'class': 'cat', 'pixels': 3, 'share': 0.75}]
    """
    height, width = labels.shape
    counts = np.bincount(labels.ravel(), minlength=len(names)).tolist()
    counted = ((name, pixels) for name, pixels in zip(names, counts, strict=True) if pixels)
    areas = [{"class": name, "pixels": pixels, "share": pixels / labels.size} for name, pixels in counted]
    return {"id": name, "width": width, "height": height, "areas": areas}


def overlay_with_legend(image: Pixels, labels: np.ndarray, names: Sequence[str], colours: Pixels) -> Image.Image:
    """A picture below its label map in half-transparent colours, above the classes with their share of the area.

    Args:
        image: (H, W, 3).
        labels: (H, W), classes from 0.
        names: C classes.
        colours: (C, 3).
    """
    side = min(max(SMALL, *labels.shape), LARGE)
    drawn = label_picture(labels, colours, side, image)
    counts = np.bincount(labels.ravel(), minlength=len(names))
    order = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k]]
    entries = [(f"{names[k]}  {percent(counts[k] / labels.size)}", tuple(colours[k].tolist())) for k in order[:LISTED]]
    size = max(13, side // 50)
    words = legend(entries, max(SMALL, drawn.width) - 2 * size, size)
    sheet = Image.new("RGB", (words.width + 2 * size, drawn.height + words.height + size), "white")
    sheet.paste(drawn, ((sheet.width - drawn.width) // 2, 0))
    sheet.paste(words, (size, drawn.height + size // 2))
    return sheet


def percent(share: float) -> str:
    """A share as people read it.

    >>> percent(0.1234), percent(0.0002)
    ('12.3 %', '< 0.1 %')
    """
    return "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"
