"""The checkpoints of a run: where they are, which is the best, and whose they are."""

from __future__ import annotations

import math
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


def checkpoint_folder(trainer: Trainer) -> Path:
    """The folder of a ModelCheckpoint's ``dirpath``, else ``checkpoints`` in the folder of the run."""
    given = getattr(trainer.checkpoint_callback, "dirpath", None)
    return Path(given or Path(trainer.default_root_dir) / "checkpoints")


class FreshCheckpoints(Callback):
    """Puts the checkpoints of an earlier training aside when a new one starts in the same folder.

    They go to ``checkpoints.previous``, in the place of those that were there. Without this, ``best`` and ``last``
    would still name the earlier training. A training that resumes keeps them.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the files, once the data and the model stand."""
        folder = checkpoint_folder(trainer)
        files = sorted(folder.glob("*.ckpt"))
        if trainer.ckpt_path or trainer.fast_dev_run or not files or not trainer.is_global_zero:
            return
        aside = folder.with_name(f"{folder.name}.previous")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for file in files:
            file.replace(aside / file.name)


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after epochs, for ``--ckpt_path last``.

    A ModelCheckpoint with a monitor writes its own only when the monitored value is among the best, so that a resumed
    training would repeat all epochs since. Where writing takes long beside an epoch, some are passed over, so that it
    takes a tenth of the time at most; the last epoch never is. Runs without checkpoints stay so.

    It must stand behind early stopping and other checkpoints, for the file to know what they made of the epoch. Append
    it to the callbacks of a trainer: among those it is built with it would take the place of the usual checkpoint.
    """

    def __init__(self) -> None:
        self.written, self.took = -math.inf, 0.0  # when, and how long it took, in seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, on all processes."""
        if trainer.checkpoint_callbacks == [self] or trainer.fast_dev_run:
            return
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        last = last or 0 < trainer.max_steps <= trainer.global_step
        start = time.monotonic()
        if trainer.strategy.broadcast(last or start - self.written >= 10 * self.took):  # as the first process says
            trainer.save_checkpoint(checkpoint_folder(trainer) / "last.ckpt", weights_only=False)
            self.written = time.monotonic()
            self.took = self.written - start


def find_checkpoint(trainer: Trainer, which: str) -> str:
    """The best or the last checkpoint in the folder of a run.

    Args:
        trainer: A trainer with that folder, or with a ModelCheckpoint that has another.
        which: ``best`` or ``last``.

    Returns:
        Path of the checkpoint.

    Raises:
        FileNotFoundError: When the folder holds none, or the training kept no best one.
    """
    folder = checkpoint_folder(trainer)
    try:
        if which == "best":
            return str(best_checkpoint(folder))
        last = folder / "last.ckpt"
        return str(last if last.is_file() else furthest_checkpoint(folder)[0])
    except FileNotFoundError as error:
        cure = "Train first (fit with the same config), or give the path of a checkpoint."
        raise FileNotFoundError(f"--ckpt_path {which}: {error} {cure}") from None


def best_checkpoint(folder: Path) -> Path:
    """The best checkpoint of a training, as the one that was furthest in it knows.

    Args:
        folder: Of the checkpoints.

    Raises:
        FileNotFoundError: It holds none, or the training kept no best one.
    """
    furthest, content = furthest_checkpoint(folder)
    states = content.get("callbacks", {}).values()
    for name in (state["best_model_path"] for state in states if state.get("best_model_path")):
        for file in (folder / Path(name).name, Path(name)):  # the folder may have been moved
            if file.is_file():
                return file
    raise FileNotFoundError(f"{furthest} names no best checkpoint that still exists.")


def furthest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint with the most steps of training, of several the newest file, and its content.

    Times alone tell nothing of files that were copied. A file that cannot be read has no steps.

    Raises:
        FileNotFoundError: The folder holds none that can be read.
    """
    import torch

    found = []
    for file in sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime):
        try:
            found.append((file, torch.load(file, map_location="cpu", weights_only=True, mmap=True)))
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
            continue
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {folder} that can be read.")
    return max(reversed(found), key=lambda entry: entry[1].get("global_step", -1))
