"""A tiny datamodule with folds, and a module that reports figures of a fold, for the tests of experiments."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from toy_run import ToyData, ToyModule


class FoldData(ToyData):
    """Random rows that pretend to be cut into folds.

    A file ``fail_<fold>``, ``mistake_<fold>`` or ``kill_<fold>`` in the working folder makes the run of that fold fail,
    refuse its settings, or die.

    Args:
        num_folds: Number of folds.
        fold: The fold that is scored.
        width: Length of a row.
        batch_size: Samples a step and process.
        num_workers: Loader processes.
        pin_memory: Copy batches to page-locked memory.
        persistent_workers: Keep the loader processes between epochs.
    """

    def __init__(
        self,
        num_folds: int | None = None,
        fold: int = 0,
        width: int = 4,
        batch_size: int = 4,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
    ) -> None:
        super().__init__(width, None, batch_size, num_workers, pin_memory, persistent_workers)
        self.num_folds, self.fold = num_folds, fold

    def setup(self, stage: str) -> None:
        if Path(f"fail_{self.fold}").exists():
            raise RuntimeError("the fold broke")
        if Path(f"mistake_{self.fold}").exists():
            raise MisconfigurationException(f"num_folds is {self.num_folds}, too many")
        if Path(f"kill_{self.fold}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        super().setup(stage)


class FoldModule(ToyModule):
    """Logs figures that follow from the settings, so that tests know what the summary has to say."""

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        fold = self.trainer.datamodule.fold
        seed = int(os.environ["PL_GLOBAL_SEED"])
        self.log("fold/soft_map_macro", 0.5 + 0.1 * fold**2 + 0.01 * seed + 0.001 * self.hparams["width"])
        self.log("fold/soft_classes_scored", float(3 - fold))
        self.log("test/soft_map_macro", 0.4 + 0.1 * fold)

    def result_notes(self) -> dict[str, Any]:
        fold = self.trainer.datamodule.fold
        absent = ["cat", "dog"][:fold]
        return {
            "convention": "toy",
            "n_fold": 8.0 + fold,
            "folds_sha256": "abc",
            "random_map_macro": 0.1 * (fold + 1),
            "num_classes": 3,
            "classes_not_scored_fold": absent,
        }
