"""Keeps figures and predictions of random weights out of the folder of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer


class TrainedWeights(Callback):
    """Refuses to validate, to test or to predict with weights that are as they were drawn, before files are written.

    A command line that lacks ``--ckpt_path`` would else replace good results by those of chance. The module tells
    which weights are random, by ``random_weights``.
    """

    def check(self, trainer: Trainer, pl_module: Any) -> None:
        """Look at the weights.

        Raises:
            ValueError: They are random.
        """
        if trainer.state.fn != "fit" and pl_module.random_weights():
            raise ValueError(
                "The weights are random: nothing trained them, and no checkpoint was loaded. Name one (--ckpt_path "
                "best), or let the test follow the training (fit ... --test_after_fit true)."
            )

    on_validation_start = on_test_start = on_predict_start = check
