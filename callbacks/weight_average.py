"""An exponential moving average of the weights, which is what is validated, kept and tested."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class AverageWeights(EMAWeightAveraging):
    """Lightning's ``EMAWeightAveraging``, with the averaged weights also in a test that follows the training.

    Lightning would put the last step's weights back when a test loads a checkpoint in the process that trained, and the
    averaged ones in a process of its own, so that the two would give different figures. What a module fits for its
    checkpoint, in ``fit_for_checkpoint()``, is fitted with the averaged weights in place, as these are kept.

    Args:
        decay: Share of the average that stays at each step, at least 0 and below 1; 0.99 looks back some 100 steps.

    Raises:
        ValueError: ``decay`` outside its range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1, as 0.999.")
        super().__init__(decay=decay)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Build the average; the suite's modules are not sharded, which Lightning would warn of."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*doesn't support sharding.*")
            super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average beside the weights of the last step, while training, and let the module fit to it."""
        if self._average_model is None:
            return
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if fit := getattr(pl_module, "fit_for_checkpoint", None):
            self._swap_models(pl_module)
            fit()
            self._swap_models(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with both kinds of weights when training is resumed; else leave the averaged ones that were loaded."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
