"""Pictures of a heatmap detector's test: true boxes, heatmap and what was found, for some images of each class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.box_pictures import HIT_SIGN, IOU, MISS_SIGN, Boxes, Cell, contact_sheet, heatmap_row, short
from callbacks.panels import HIT, MISS, QUIET
from callbacks.run_files import replace_file, run_folder
from lightning_modules.metrics.detection_matching import match_detections

STRONGEST = 10  # boxes drawn on a picture; more hide it


class Sighting(NamedTuple):
    """A class in an image of the test.

    Args:
        index: Position of the image in the test part.
        name: Id of the image.
        heatmap: (rows, columns) of the class.
        truths: (m, 4) true boxes of the class.
        ignore: (m,) whether a truth does not count.
        boxes: (n, 4) predicted boxes of the class.
        scores: (n,).
    """

    index: int
    name: str
    heatmap: np.ndarray
    truths: np.ndarray
    ignore: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


class HeatmapPictures(Callback):
    """Draws, after ``test``, the first images of each class: true boxes, heatmap, inverted heatmap, predicted boxes.

    ``pictures/heatmap_<class>.png`` in the folder of the run holds a row for each image, and a WandbLogger receives the
    same files. Predicted boxes are green where they are hits, as the metric counts them at IoU 0.2, and red where they
    are misses; what the metric ignores is grey. The ten strongest are drawn. Of several processes the first one's
    images are taken.

    It reaches module and data through a small protocol:

    - ``test_step`` returns a dict with ``maps`` (B, K, rows, columns), high where a class is; ``found``, for each of
      the B images a dict of ``boxes`` (n, 4) xyxy in pixels of the picture, ``scores`` and ``labels`` (n,); and
      ``names`` of the K classes. The batch holds ``boxes``, ``box_labels`` and ``ignore`` of each image, ``index`` (B,)
      and ``id``.
    - ``datamodule.picture("test", index)`` is the picture in its own size.

    Args:
        per_class: Images of each class, at least 1.

    Raises:
        ValueError: ``per_class`` below 1.
    """

    def __init__(self, per_class: int = 4) -> None:
        if per_class < 1:
            raise ValueError(f"per_class is {per_class}; it must be at least 1.")
        self.per_class = per_class
        self.pictures: dict[str, Path] = {}
        self._names: list[str] = []
        self._seen: dict[int, list[Sighting]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self.pictures, self._names, self._seen = {}, [], {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what belongs to the first images of each class."""
        given = isinstance(outputs, Mapping) and {"maps", "found", "names"} <= set(outputs)
        if not given or not trainer.is_global_zero:
            return
        self._names = list(outputs["names"])
        for row, labels in enumerate(batch["box_labels"]):
            for label in labels.unique().tolist():
                seen = self._seen.setdefault(label, [])
                if len(seen) < self.per_class:
                    seen.append(sighting(outputs, batch, row, label))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, on the first process."""
        folder, seen = run_folder(trainer) / "pictures", self._seen
        self._seen = {}
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        picture = getattr(getattr(trainer, "datamodule", None), "picture", None)
        if picture is None or not self._names:
            lacks = (
                f"test_step of {type(pl_module).__name__} returned no 'maps', 'found' and 'names'"
                if picture
                else "the datamodule has no picture(part, index)"
            )
            rank_zero_warn(f"HeatmapPictures: no pictures, because {lacks}.")
            return
        for label, sightings in sorted(seen.items()):
            rows = [row_of(one, picture("test", one.index)) for one in sightings]
            sheet = contact_sheet(rows, self._names[label])
            name = "heatmap_" + re.sub(r"[^\w-]+", "_", self._names[label])
            name = f"{name}_{label}" if name in self.pictures else name
            self.pictures[name] = folder / f"{name}.png"
            replace_file(self.pictures[name], lambda file, sheet=sheet: sheet.save(file, "PNG", compress_level=1))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for name, path in self.pictures.items():
                    logger.log_image(f"test/{name}", [str(path)], step=trainer.global_step)


def sighting(outputs: Mapping[str, Any], batch: Mapping[str, Any], row: int, label: int) -> Sighting:
    """What belongs to one class in one image of a batch; see :class:`HeatmapPictures`."""

    def array(values: Tensor) -> np.ndarray:
        return values.detach().cpu().numpy().copy()  # a view would keep the whole batch

    found, true = outputs["found"][row], batch["box_labels"][row] == label
    mine = found["labels"] == label
    return Sighting(
        int(batch["index"][row]),
        str(batch["id"][row]),
        array(outputs["maps"][row, label]),
        array(batch["boxes"][row][true]),
        array(batch["ignore"][row][true]),
        array(found["boxes"][mine]),
        array(found["scores"][mine]),
    )


def row_of(one: Sighting, picture: Any) -> list[Cell]:
    """The row of a sighting on the sheet of its class.

    Args:
        one: The class in the image.
        picture: The image in its own size.
    """
    order = np.argsort(-one.scores, kind="stable")
    hit, ignored = judge(one)
    signs = [("", QUIET) if ignored[i] else (f"{HIT_SIGN} ", HIT) if hit[i] else (f"{MISS_SIGN} ", MISS) for i in order]
    texts = [sign + short(one.scores[i]) for (sign, _), i in zip(signs, order, strict=True)]
    found = Boxes(one.boxes[order][:STRONGEST], [c for _, c in signs[:STRONGEST]], texts[:STRONGEST])
    truths = Boxes(one.truths, [QUIET if ignore else HIT for ignore in one.ignore])
    counts = (int((hit & ~ignored).sum()), int((~hit & ~ignored).sum()))
    outcome = f"{counts[0]} of {int((~one.ignore).sum())} found, {counts[1]} false"
    outcome += f"; {STRONGEST} drawn" if len(order) > STRONGEST else ""
    return heatmap_row(picture, one.heatmap, truths, found, one.name, outcome)


def judge(one: Sighting) -> tuple[np.ndarray, np.ndarray]:
    """Which predicted boxes are hits, and which do not count: two (n,) bool.

    Args:
        one: The class in the image.
    """
    predictions = {"boxes": one.boxes, "scores": one.scores, "labels": np.zeros(len(one.boxes), np.int64)}
    targets = {"boxes": one.truths, "labels": np.zeros(len(one.truths), np.int64), "ignore": one.ignore}
    matches = match_detections([predictions], [targets], 1, [IOU], max(1, len(one.boxes)))
    return matches.truth[0] >= 0, matches.ignored[0]
