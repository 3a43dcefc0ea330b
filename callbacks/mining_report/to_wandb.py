"""Sends the report of a round to W&B: its tables, its figures and its pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from callbacks.mining_report.mined import MiningRound, mined_table, suspects

ROWS = 1000  # of a table, the hardest first; the files have all


def log_mining(loggers: Iterable[Logger], round: MiningRound, folder: Path, step: int) -> None:
    """Send a round to the W&B runs among some loggers, below ``mining/``.

    Sent are the tables ``hard_negatives`` and ``label_errors`` (the first 1000 rows), and as pictures the figures and
    sheets that ``write_mining_report`` left. Numbers are for the module to log.

    Args:
        loggers: Others than W&B's are passed over.
        round: The round.
        folder: Where its report was written.
        step: Step of the run.
    """
    table = mined_table(round)
    order = sorted(range(len(table["rank"])), key=table["rank"].__getitem__)[:ROWS]
    tables = {
        "hard_negatives": {name: [column[row] for row in order] for name, column in table.items()},
        "label_errors": {name: column[:ROWS] for name, column in suspects(table).items()},
    }
    pictures = [*sorted((folder / "figures").glob("*.png")), folder / "hardest.png", folder / "label_errors.png"]
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        for name, columns in tables.items():
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            logger.log_table(f"mining/{name}", list(columns), rows, step=step)
        for path in pictures:
            if path.is_file():
                logger.log_image(f"mining/{path.stem}", [str(path)], step=step)
