"""Writes the labels that ``predict`` finds, as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from callbacks.code_rows import Rows, join_rows
from callbacks.run_files import replace_file, run_folder

DEFAULT_THRESHOLD = 0.5


def rows_of_predictions(outputs: Mapping[str, Any]) -> Rows:
    """One batch of predictions as arrays.

    Args:
        outputs: ``index`` (B,), ``probabilities`` (B, C), ``ids``, B strings, and, from a hashing module, ``codes``
            (B, bits), where bit = ``value > 0``.

    Returns:
        ``index`` (B,), ``probabilities`` (B, C), ``ids`` (B,), and ``codes`` (B, ceil(bits / 8)) uint8 with the first
        bit of a code in the highest bit of its first byte.

    Example:
        >>> outputs = {"index": torch.tensor([2]), "probabilities": torch.tensor([[0.5, 0.25]]), "ids": ["a.jpg"]}
        >>> rows = rows_of_predictions({**outputs, "codes": torch.tensor([[1, -1, -1, 1]])})
        >>> rows["ids"].tolist(), rows["probabilities"].tolist(), rows["codes"].tolist()
        (['a.jpg'], [[0.5, 0.25]], [[144]])
    """
    rows = {
        "index": outputs["index"].cpu().numpy().astype(np.int64),
        "probabilities": outputs["probabilities"].detach().float().cpu().numpy(),
        "ids": np.array(outputs["ids"], dtype=np.str_),
    }
    if outputs.get("codes") is not None:
        rows["codes"] = np.packbits((outputs["codes"].detach() > 0).cpu().numpy(), axis=1)
    return rows


def gather_loaders(loaders: list[list[Rows]]) -> list[Rows]:
    """The rows of all processes, loader by loader, each item once in the order of its index.

    Args:
        loaders: For each loader the batches of this process. Every process must call this.
    """
    everyone = [loaders]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        everyone = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(everyone, loaders)
    batches = [[rows for one in everyone for rows in one[i]] for i in range(len(loaders))]
    return [join_rows(rows) for rows in batches if rows]


def table_columns(
    loaders: Sequence[Rows], class_names: Sequence[str], thresholds: np.ndarray, parts: Sequence[str] = ()
) -> dict[str, list[Any] | np.ndarray]:
    """The table of predictions as columns.

    Args:
        loaders: Rows of each loader, at least one.
        class_names: C names.
        thresholds: (C,); an item has a label where ``probability >= threshold``.
        parts: Names of the loaders; without them they are numbered.

    Returns:
        ``part`` (where there is more than one loader), ``id``, ``labels`` (for each item a list of names),
        ``p_<class>`` for each class, and ``code`` (hex digits) where there are codes.

    Example:
        >>> rows = {"probabilities": np.array([[0.5, 0.25]]), "ids": np.array(["a.jpg"])}
        >>> columns = table_columns([rows], ["cat", "dog"], np.array([0.5, 0.5]))
        >>> columns["id"], columns["labels"], columns["p_dog"].tolist()
        (['a.jpg'], [['cat']], [0.25])
    """
    names = [parts[i] if i < len(parts) else str(i) for i in range(len(loaders))]
    probabilities = np.concatenate([rows["probabilities"] for rows in loaders])  # (N, C)
    columns: dict[str, list[Any] | np.ndarray] = {}
    if len(loaders) > 1:
        columns["part"] = [name for name, rows in zip(names, loaders, strict=True) for _ in rows["ids"]]
    columns["id"] = [str(name) for rows in loaders for name in rows["ids"]]
    columns["labels"] = [[class_names[c] for c in np.flatnonzero(row)] for row in probabilities >= thresholds]
    columns.update({f"p_{name}": probabilities[:, c] for c, name in enumerate(class_names)})
    if "codes" in loaders[0]:
        columns["code"] = [code.tobytes().hex() for rows in loaders for code in rows["codes"]]
    return columns


def write_csv(file: IO[bytes], columns: Mapping[str, Any]) -> None:
    """Write columns as CSV: labels joined by ``;``, probabilities with six digits."""
    cells = {
        name: [";".join(names) for names in values] if name == "labels" else values for name, values in columns.items()
    }
    cells = {
        name: [f"{value:.6g}" for value in values] if isinstance(values, np.ndarray) else values
        for name, values in cells.items()
    }
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(cells)
    writer.writerows(zip(*cells.values(), strict=True))
    text.flush()
    text.detach()  # the file belongs to the caller, who closes it


def write_parquet(file: IO[bytes], columns: Mapping[str, Any]) -> None:
    """Write columns as Parquet: labels as lists of strings, probabilities as they are."""
    import pyarrow as pa
    from pyarrow import parquet

    types = {"labels": pa.list_(pa.string()), "part": pa.string(), "id": pa.string(), "code": pa.string()}
    arrays = {name: pa.array(values, type=types.get(name)) for name, values in columns.items()}
    parquet.write_table(pa.table(arrays), file)


class MultilabelWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` and ``predictions.parquet`` after ``predict``, one row an item.

    Columns: ``part`` (the datamodule's ``predict_parts``, only where ``predict`` ran over several loaders), ``id``,
    ``labels`` (names of the classes whose probability reaches their threshold; joined by ``;`` in CSV, a list in
    Parquet), ``p_<class>`` for each class, and ``code`` where the module hashes: hex digits of the packed bits, the
    first bit of the code in front, zeros at the end. Several processes write one file. A file is replaced in one step,
    when it is whole.

    The module's ``predict_step`` must return a dict with ``index`` (B,), ``probabilities`` (B, C), ``ids`` (B strings)
    and, if it hashes, ``codes`` (B, bits). Class names are the module's ``class_names``, else the datamodule's.
    Thresholds are the module's ``decision_thresholds`` (C,), 0.5 where it has none; a printed line says which.

    Args:
        folder: Folder to write to; None = ``predictions`` in the folder of the run.

    Raises:
        ValueError: The predictions are of another kind, or class names or thresholds do not fit them.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.folder = folder

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather the predictions of all processes and write them."""
        folder = Path(self.folder).expanduser() if self.folder else run_folder(trainer) / "predictions"
        several = len(trainer.num_predict_batches) > 1
        parts = []
        for batches in predictions if several else [predictions]:
            for outputs in batches:
                if not isinstance(outputs, Mapping) or not {"index", "probabilities", "ids"} <= set(outputs):
                    raise ValueError(
                        f"MultilabelWriter: predict_step of {type(pl_module).__name__} must return a dict with "
                        "'index', 'probabilities' and 'ids'. Remove the callback or use a multi-label module."
                    )
            parts.append([rows_of_predictions(outputs) for outputs in batches])
        gathered = gather_loaders(parts)
        if not trainer.is_global_zero or trainer.fast_dev_run or not gathered:
            return
        num_classes = gathered[0]["probabilities"].shape[1]
        names = getattr(pl_module, "class_names", None) or getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        if names is None or len(names) != num_classes:
            have = "no class names" if names is None else f"{len(names)} class names"
            raise ValueError(
                f"MultilabelWriter: the model gives {num_classes} probabilities an item, but the data has {have}. Use "
                "the data that the model was trained with."
            )
        titles = getattr(trainer.datamodule, "predict_parts", ())  # type: ignore[attr-defined]
        columns = table_columns(gathered, names, self._thresholds(pl_module, num_classes), titles)
        replace_file(folder / "predictions.csv", lambda file: write_csv(file, columns))
        replace_file(folder / "predictions.parquet", lambda file: write_parquet(file, columns))
        print(f"predictions of {len(columns['id'])} items written to {folder} (predictions.csv, predictions.parquet)")

    def _thresholds(self, pl_module: LightningModule, num_classes: int) -> np.ndarray:
        fitted = getattr(pl_module, "decision_thresholds", None)
        if fitted is None:
            print(f"labels: probability >= {DEFAULT_THRESHOLD} for every class, as no thresholds were fitted")
            return np.full(num_classes, DEFAULT_THRESHOLD, np.float32)
        thresholds = torch.as_tensor(fitted).detach().cpu().numpy()
        if thresholds.shape != (num_classes,):
            raise ValueError(
                f"MultilabelWriter: decision_thresholds has shape {thresholds.shape}; ({num_classes},) is needed."
            )
        print(
            f"labels: probability >= the class's threshold, fitted on training items ({thresholds.min():.3f} to "
            f"{thresholds.max():.3f})"
        )
        return thresholds
