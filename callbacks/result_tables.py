"""The tables of a test, such as its figures by class, as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.run_files import replace_file, run_folder


class ResultTables(Callback):
    """Writes the tables of the module, such as ``classes.csv``, to the folder of the run after ``test``.

    It reaches the module through ``tables``: file name to ``(heading, rows)``, a row being a list of numbers and texts.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the tables."""
        tables: dict[str, tuple[Sequence[str], list[list[Any]]]] = getattr(pl_module, "tables", {})
        folder = run_folder(trainer)  # on every process: they tell each other
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        for name, (heading, rows) in tables.items():
            write_table(folder / name, heading, rows)


def write_table(path: Path, heading: Sequence[str], rows: list[list[Any]]) -> None:
    """Write a CSV file in one step; floats get six digits, what is not a number stays empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows([[_cell(value) for value in row] for row in rows])
    replace_file(path, lambda file: file.write(text.getvalue().encode()))


def _cell(value: Any) -> Any:
    """A value as it is written.

    >>> _cell(0.123456789), _cell(float("nan")), _cell("ship"), _cell(3)
    ('0.123457', '', 'ship', 3)
    """
    if not isinstance(value, float):
        return value
    return "" if value != value else f"{value:.6g}"
