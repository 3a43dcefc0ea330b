"""The configuration of a run, saved beside its results."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger


class SuiteSaveConfig(SaveConfigCallback):
    """Saves the configuration beside the results (``config.yaml`` for fit, ``config_test.yaml``, ...) and to W&B."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Name the file after the command, so that a test does not replace what was trained with."""
        if stage == "fit":
            return  # until the data and a checkpoint have been read: a fit that cannot start leaves the file as it was
        if not self.already_saved and trainer.state.fn is not None:
            self.config_filename = f"config_{trainer.state.fn.value}.yaml"
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is about to be trained with."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the configuration into the W&B run, as values to compare and as the file to run it again with."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                run = logger.experiment
                run.config.update(self.config.as_dict(), allow_val_change=True)
                if Path(run.dir).is_dir():
                    self.parser.save(self.config, Path(run.dir) / "cli_config.yaml", skip_none=False, overwrite=True)
