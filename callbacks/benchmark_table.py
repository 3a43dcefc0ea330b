"""The table of a test over several benchmarks, beside what was published, printed and as a file for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.run_files import replace_file, run_folder

NAME = "benchmarks"


class BenchmarkTable(Callback):
    """Prints the table over several sets after ``test`` and writes it as ``benchmarks.md``.

    It reaches the module through ``tables["benchmarks.csv"]``: the heading, whose first cell says what the numbers are,
    and rows of a text and numbers; a module without it gets no table.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write, on the first process."""
        table = getattr(pl_module, "tables", {}).get(f"{NAME}.csv")
        folder = run_folder(trainer)  # on every process: they tell each other
        if table is None or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        text = markdown(*table)
        replace_file(folder / f"{NAME}.md", lambda file: file.write(text.encode()))
        print(text, end="")


def markdown(heading: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, in columns of one width; numbers with one digit, what is not known as a dash.

    >>> print(markdown(["mIoU, %", "voc20"], [["this test", 50.0], ["published", float("nan")]]))
    | mIoU, %   | voc20 |
    |-----------|------:|
    | this test |  50.0 |
    | published |     - |
    <BLANKLINE>
    """
    cells = [list(heading), *([row[0], *(f"{v:.1f}" if v == v else "-" for v in row[1:])] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heading))]
    lines = [
        "| "
        + " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        + " |"
        for row in cells
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"
