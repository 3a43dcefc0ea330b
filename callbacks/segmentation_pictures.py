"""A sheet of a segmentation test: picture, truth, regions and prediction of some images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageDraw
from torch import Tensor

from callbacks.box_pictures import CAPTION, GAP, MARGIN, Cell, typeface
from callbacks.label_maps import Pixels, class_colours, fitted, label_picture, legend, region_colours
from callbacks.panels import INK, QUIET
from callbacks.run_files import replace_file, run_folder
from lightning_modules.metrics.segmentation import SegmentationScores

HEADINGS = ("picture", "truth", "regions", "prediction")
CELL = 320  # longest side of a picture on the sheet, in pixels
HEAD = 44  # pixels above the first row
WITHOUT = "ignored, or in no region"  # what the grey stripes mean


class Row(NamedTuple):
    """An image of the test, drawn.

    Args:
        cells: One for each of :data:`HEADINGS`.
        classes: Those that are true or predicted in it, ascending.
    """

    cells: list[Cell]
    classes: list[int]


class SegmentationPictures(Callback):
    """Draws, after ``test``, its first images: picture, truth, regions, prediction, and the image's own IoU.

    ``pictures/segmentation.png`` in the folder of the run holds a row for each image and the names of the classes that
    are true or predicted in them; a WandbLogger receives the same file. The IoU is the mean over the classes that are
    true or predicted in the image, as ``SegmentationScores`` has it over all. Colours of regions are arbitrary. Grey
    stripes are pixels that the truth ignores or that belong to no region. Of several processes the first one's images
    are taken, and of several sets, each with classes of its own, those of the first.

    It reaches the module through a small protocol: ``test_step`` returns a dict with ``found``, B label maps (H, W),
    and ``names`` of the classes; the batch holds, for each of the B images, ``image`` (3, H, W) uint8, ``target``
    (H, W), ``instance_mask`` (H, W) with ids of regions, 0 for none, and ``id``. Labels that do not count are
    ``datamodule.ignore_index``, else 255.

    Args:
        num_images: How many images, at least 1.

    Raises:
        ValueError: ``num_images`` below 1.
    """

    def __init__(self, num_images: int = 6) -> None:
        if num_images < 1:
            raise ValueError(f"num_images is {num_images}; it must be at least 1.")
        self.num_images = num_images
        self.pictures: dict[str, Path] = {}
        self._names: list[str] = []
        self._rows: list[Row] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self.pictures, self._names, self._rows = {}, [], []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw what belongs to the first images, which is less to keep than their label maps."""
        given = isinstance(outputs, Mapping) and {"found", "names"} <= set(outputs)
        wanted = self.num_images - len(self._rows)
        elsewhere = dataloader_idx > 0 or not trainer.is_global_zero
        if not given or not wanted or elsewhere or "instance_mask" not in batch:
            return
        self._names = list(outputs["names"])
        colours = class_colours(self._names)
        ignore_index = getattr(getattr(trainer, "datamodule", None), "ignore_index", 255)
        for k in range(min(wanted, len(outputs["found"]))):
            image, truth, regions = (batch[name][k].cpu() for name in ("image", "target", "instance_mask"))
            found = outputs["found"][k].cpu()
            self._rows.append(drawn_row(str(batch["id"][k]), image, truth, regions, found, colours, ignore_index))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sheet, on the first process."""
        folder, rows = run_folder(trainer) / "pictures", self._rows
        self._rows = []
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        if not rows:
            rank_zero_warn(
                f"SegmentationPictures: no pictures, because test_step of {type(pl_module).__name__} returned no "
                "'found' and 'names', or the batches have no 'instance_mask'."
            )
            return
        sheet = segmentation_sheet(rows, self._names, class_colours(self._names))
        self.pictures["segmentation"] = folder / "segmentation.png"
        replace_file(self.pictures["segmentation"], lambda file: sheet.save(file, "PNG"))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                path = str(self.pictures["segmentation"])
                logger.log_image("test/segmentation", [path], step=trainer.global_step)


def drawn_row(
    name: str, image: Tensor, truth: Tensor, regions: Tensor, found: Tensor, colours: Pixels, ignore_index: int = 255
) -> Row:
    """The row of an image.

    Args:
        name: Id of the image.
        image: (3, H, W) uint8.
        truth: (H, W), classes from 0 and ``ignore_index``.
        regions: (H, W) ids, 0 for none.
        found: (H, W), classes from 0.
        colours: (C, 3) of the classes.
        ignore_index: Label that does not count; it is drawn in stripes.
    """
    iou, scored = image_iou(found, truth, len(colours), ignore_index)
    present = torch.cat([found.unique(), truth[truth != ignore_index].unique()]).unique().tolist()
    ids = regions.numpy().astype(np.int64) - 1  # no region, 0, becomes a label without a colour
    count = len(np.unique(ids[ids >= 0]))
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    outcome = f"IoU {iou:.2f}, mean of {scored} class{'es' * (scored != 1)}" if scored else "no pixel counts"
    cells = [
        Cell(picture.resize(fitted(picture.size, CELL), Image.Resampling.BICUBIC), name[-44:]),
        Cell(label_picture(truth.numpy(), colours, CELL)),
        Cell(label_picture(ids, region_colours(int(ids.max()) + 1), CELL), f"{count} region{'s' * (count != 1)}"),
        Cell(label_picture(found.numpy(), colours, CELL), outcome),
    ]
    return Row(cells, present)


def image_iou(found: Tensor, truth: Tensor, num_classes: int, ignore_index: int = 255) -> tuple[float, int]:
    """Mean IoU of one image over the classes that are true or predicted in it, and their number.

    Args:
        found: (H, W), classes from 0.
        truth: (H, W), classes from 0 and ``ignore_index``.
        num_classes: Number of classes.
        ignore_index: Label that does not count.

    >>> image_iou(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), num_classes=3)
    (0.25, 2)
    """
    metric = SegmentationScores(num_classes, ignore_index, boundary_ratio=None, sync_on_compute=False)
    metric.update([found], [truth], torch.tensor([0]))
    values = metric.compute()
    return values["miou"], int(values["classes_scored"])


def segmentation_sheet(rows: Sequence[Row], names: Sequence[str], colours: Pixels) -> Image.Image:
    """Rows below each other under headings, above the classes in their colours.

    Args:
        rows: Those of :func:`drawn_row`.
        names: C classes.
        colours: (C, 3).
    """
    classes = sorted({label for row in rows for label in row.classes})
    entries = [(names[label], tuple(colours[label].tolist())) for label in classes]
    width = 2 * MARGIN + len(HEADINGS) * (CELL + GAP) - GAP
    words = legend([*entries, (WITHOUT, None)], width - 2 * MARGIN, 15)
    tops = [HEAD]  # of each row; pictures of one row are of one height
    for row in rows:
        tops.append(tops[-1] + row.cells[0].picture.height + CAPTION + GAP)
    sheet = Image.new("RGB", (width, tops[-1] + words.height + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for column, heading in enumerate(HEADINGS):
        left = MARGIN + column * (CELL + GAP)
        pen.text((left + CELL / 2, HEAD - 18), heading, fill=INK, font=typeface(17), anchor="mm")
        for top, row in zip(tops[:-1], rows, strict=True):
            picture, caption = row.cells[column]
            sheet.paste(picture, (left + (CELL - picture.width) // 2, top))
            pen.text((left + CELL / 2, top + picture.height + 12), caption, fill=QUIET, font=typeface(13), anchor="mm")
    sheet.paste(words, (MARGIN, tops[-1]))
    return sheet
