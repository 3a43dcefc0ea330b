"""Mines each batch while a detector tests or predicts, and returns its hard negatives beside the boxes."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.mining_report import MiningRound, log_mining, write_mining_report
from callbacks.run_files import run_folder
from lightning_modules.detection.batches import truths_of
from lightning_modules.detection.mining import HardNegativeMiner
from lightning_modules.metrics.detection import DetectionScores


class RealTimeMining(Callback):
    """Puts ``hard_negatives`` beside the boxes that ``test`` and ``predict`` find, batch by batch.

    What a step returns for an image gets a list of ``HardNegative``; it is empty where the picture has no truths to
    compare with. Strategies that compare images of a whole part have no place here. ``test`` ends with a report on its
    part, in ``hard_negatives/test`` in the folder of the run.

    The module's ``test_step`` must return a dict with ``found``, a list of boxes by image, and its ``predict_step`` a
    list with a dict for each image; it has the ``names`` of its classes. The datamodule is a ``DetectionData``.

    Args:
        strategy: ``confidence_based`` or ``iou_based``, see ``HardNegativeMiner``.
        confidence_threshold: Confidence from which on a prediction counts; one, or one of each class.
        iou_threshold: IoU from which on it finds a truth.
        crops: Hardest errors that the report shows.

    Raises:
        ValueError: Arguments outside their range.
    """

    def __init__(
        self,
        strategy: Literal["confidence_based", "iou_based"] = "confidence_based",
        confidence_threshold: float | list[float] = 0.5,
        iou_threshold: float = 0.5,
        crops: int = 24,
    ) -> None:
        if strategy not in ("confidence_based", "iou_based"):
            raise ValueError(f"strategy is {strategy!r}; a batch can be mined by confidence_based or iou_based.")
        self.settings = {
            "strategy": strategy, "confidence_threshold": confidence_threshold, "iou_threshold": iou_threshold
        }  # fmt: skip
        self.crops = crops
        self.miner()  # refuses what does not fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that finds no boxes."""
        if stage in ("test", "predict") and not hasattr(pl_module, "find_boxes"):
            raise ValueError(
                f"RealTimeMining: {type(pl_module).__name__} has no find_boxes. Use a detection module, or remove the "
                "callback."
            )

    def miner(self) -> HardNegativeMiner:
        """A miner without images."""
        return HardNegativeMiner(**self.settings)

    def mine(self, batch: Any, found: list[dict[str, Any]]) -> list[list[Any]]:
        """The hard negatives of each image of a batch; none where it has no truths."""
        if "boxes" not in batch:
            return [[] for _ in found]
        truths = [
            {**truth, "index": index} for truth, index in zip(truths_of(batch), batch["index"].tolist(), strict=True)
        ]
        records = self.miner().find_hard_negatives(found, truths, batch["id"])
        return [[record for record in records if record.image_index == truth["index"]] for truth in truths]

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Put its hard negatives beside the boxes of each image."""
        for image, records in zip(outputs, self.mine(batch, outputs), strict=True):
            image["hard_negatives"] = records

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to collect."""
        self.seen = DetectionScores(len(pl_module.names), (0.5,)).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Put the hard negatives of each image into what the step returned."""
        outputs["hard_negatives"] = self.mine(batch, outputs["found"])
        self.seen.update(outputs["found"], truths_of(batch), batch["index"])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report on the whole part; every process gathers."""
        folder = run_folder(trainer) / "hard_negatives" / "test"
        data, index = self.seen.collected()
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        source = trainer.datamodule
        ids = [source.records("test").ids[position] for position in index.tolist()]
        miner = self.miner()
        records = miner.mine(data, list(range(len(ids))), ids)
        title = "Hard negatives of the test part"
        picture = partial(_picture, source, index.tolist())
        report, names = miner.generate_report(), list(pl_module.names)
        mined = MiningRound(report, records, data, names, ids, picture, title, self.settings)
        write_mining_report(folder, mined, self.crops)
        log_mining(trainer.loggers, mined, folder, trainer.global_step)
        print(f"{len(records)} hard negatives in {len(ids)} images; the report is {folder / 'report.html'}")


def _picture(source: Any, index: list[int], place: int) -> Any:
    return source.picture("test", index[place])
