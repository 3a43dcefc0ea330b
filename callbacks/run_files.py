"""Where the files of a run go, and how they get there whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO
from uuid import uuid4

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """The folder of the run. It asks all processes: call it before the first one goes its own way."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file to the side and move it into place: readers see the earlier file or the new one, whole.

    Args:
        path: The file; its folder is made.
        write: Gets the open file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{uuid4().hex}")  # no longer than the name may be, and of no other process or machine
    try:
        with beside.open("wb") as file:
            write(file)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, as ``replace_file`` does."""
    replace_file(path, lambda file: file.write(text.encode()))
