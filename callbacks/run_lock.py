"""Keeps a second training out of the folder of a run while one is at work there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".run.lock"  # holds the number of the process that has it, or had it last


def take_lock(file: Path) -> BaseFileLock | None:
    """Lock a file for this process, with whose end the lock ends too; where a disk knows no locks there is none.

    Args:
        file: The file; it and its folder are made.

    Returns:
        The lock, to be released; None where another process has it.
    """
    from filelock import FileLock, Timeout

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except OSError:
        return lock
    with suppress(OSError):
        file.write_text(str(os.getpid()))
    return lock


class RunLock(Callback):
    """Refuses to train in a folder where another process trains: both would write the same files.

    The first process takes the lock before any file is touched and tells the others, so that a refusal ends them all.
    It is kept until ``release``, thus over the test after the training, or until the process ends, however it does.
    """

    def __init__(self) -> None:
        self.lock: BaseFileLock | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the lock.

        Raises:
            ValueError: Another process has it.
        """
        if stage == "fit" and not trainer.fast_dev_run:
            folder = Path(trainer.default_root_dir)
            refusal = trainer.strategy.broadcast(self._take(folder) if trainer.is_global_zero else "")
            if refusal:
                raise ValueError(refusal)

    def release(self) -> None:
        """Let others train in the folder."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def _take(self, folder: Path) -> str:
        """Why the lock cannot be had; empty when it is."""
        self.lock = self.lock or take_lock(folder / LOCK)
        if self.lock is not None:
            return ""
        with suppress(OSError):
            if number := (folder / LOCK).read_text().strip():
                return _refusal(folder, f"process {number}")
        return _refusal(folder, "another process")


def _refusal(folder: Path, who: str) -> str:
    return (
        f"{who} is training in {folder}, and two would write the same files. Wait until it has ended, end it, or give "
        "--trainer.default_root_dir another folder."
    )
