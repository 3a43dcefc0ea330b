"""Writes the codes that ``predict`` makes, for a search over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from callbacks.code_rows import ROLES, Rows, gather_rows, has_codes, rows_of_batch
from callbacks.run_files import replace_file, run_folder


class CodeWriter(BasePredictionWriter):
    """Writes ``query.npz`` and ``database.npz`` after ``predict``: the binary codes of all items, with their ids.

    Each file holds ``image_codes`` and ``text_codes`` (N, ceil(bits / 8)) uint8, eight bits a byte and the first in
    the lowest bit, ``ids`` (N,), ``bits`` and ``checkpoint``, the path of the weights that made the codes, where they
    came from a file; item i is item i of the split. Several processes write one file. A file
    is replaced in one step, when it is whole.

    The module's ``predict_step`` must return a dict with ``index``, ``image_codes`` and ``text_codes``; loader 0 is
    the query, loader 1 the database. Ids are ``trainer.datamodule.splits[role].ids`` where the datamodule has them,
    positions otherwise.

    Args:
        dir: Folder to write to; None = ``codes`` in the folder of the run.

    Raises:
        ValueError: The module's predictions are no codes.
    """

    def __init__(self, dir: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.dir = dir

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather the codes of all processes and write them."""
        folder = Path(self.dir) if self.dir else run_folder(trainer) / "codes"
        loaders = predictions if trainer.num_predict_batches and isinstance(predictions[0], list) else [predictions]
        parts: dict[str, list[Rows]] = {role: [] for role in ROLES}
        for role, batches in zip(ROLES, loaders, strict=False):
            for outputs in batches:
                if not has_codes(outputs):
                    raise ValueError(
                        f"CodeWriter: predict_step of {type(pl_module).__name__} must return a dict with 'index', "
                        "'image_codes' and 'text_codes'. Remove the callback or use a hashing module."
                    )
                parts[role].append(rows_of_batch(outputs))
        gathered = gather_rows(parts)
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        splits = getattr(getattr(trainer, "datamodule", None), "splits", {})
        for role, rows in gathered.items():
            names = getattr(splits.get(role), "ids", None)
            ids = [str(i) if names is None else names[i] for i in rows["index"]]
            write_codes(folder / f"{role}.npz", rows, ids, str(trainer.ckpt_path or ""))
        counts = ", ".join(f"{len(rows['index'])} {role}" for role, rows in gathered.items())
        print(f"codes written to {folder} ({counts} items)")


def write_codes(path: Path, rows: Rows, ids: Sequence[str], checkpoint: str) -> None:
    """Write one file of codes; see :class:`CodeWriter` for what it holds.

    Args:
        path: The .npz file, replaced in one step.
        rows: ``image_codes``, ``text_codes`` and ``bits``.
        ids: N names.
        checkpoint: Where the weights came from.
    """
    arrays = {
        **{name: rows[name] for name in ("image_codes", "text_codes")},
        "ids": np.array(ids, dtype=np.str_),
        "bits": rows["bits"][0],
        "checkpoint": np.array(checkpoint),
    }
    replace_file(path, lambda file: np.savez(file, **arrays))
