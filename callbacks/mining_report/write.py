"""Writes the report of a round: everything is made first, then each file is put into place whole."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

from callbacks.experiments.report.documents import html_page, latex_tables
from callbacks.mining_report.analysis import analyse, report_of, summary_of
from callbacks.mining_report.crops import crop_sheet, crops_of, is_crop_name
from callbacks.mining_report.figures import draw_figures
from callbacks.mining_report.mined import COLUMNS, MiningRound, mined_table, suspects, to_csv, to_parquet
from callbacks.mining_report.page import mining_document
from callbacks.run_files import replace_file

SHEETS = ("hardest", "label_errors")


def write_mining_report(folder: Path, round: MiningRound, crops: int = 48) -> dict[str, float]:
    """Write a round to a folder.

    ``report.json`` has all numbers, ``report.html`` shows them in one file that needs no network, ``report.tex`` has
    its tables. ``hard_negatives.csv`` and ``.parquet`` list the hard negatives, ``label_errors.csv`` those that may be
    missing annotations, ``figures/`` holds the figures for print. With pictures ``crops/`` holds the hardest errors,
    ``hardest.png`` the same on a sheet and ``label_errors.png`` the most suspicious boxes.

    Every file is replaced in one step, after all of them have been made. Crops and sheets of an earlier report in the
    folder are removed.

    Args:
        folder: Made when needed.
        round: The round.
        crops: How many of the hardest errors, and of the suspected label errors, are shown at most.

    Returns:
        The numbers of ``summary_of``.

    Raises:
        ValueError: A picture cannot be read.
    """
    mined, table, found = round, mined_table(round), analyse(round)
    shown = {} if mined.picture is None else {name: crops_of(mined, table, crops, name != SHEETS[0]) for name in SHEETS}
    titles = dict(zip(SHEETS, ("Hardest errors", "Suspected label errors"), strict=True))
    sheets = {name: crop_sheet(some, titles[name]) for name, some in shown.items() if some}
    pictures = draw_figures(mined, found, table)
    document = mining_document(mined, found, table, pictures, sheets)
    files = {
        "hard_negatives.csv": to_csv(table),
        "hard_negatives.parquet": to_parquet(table, COLUMNS),
        "label_errors.csv": to_csv(suspects(table)),
        **{f"figures/{name}.png": picture.png for name, picture in pictures.items()},
        **{f"crops/{crop.name}": _png(crop.image) for crop in shown.get(SHEETS[0], [])},
        **{f"{name}.png": _png(sheet) for name, sheet in sheets.items()},
        "report.json": json.dumps(report_of(mined, found, table), indent=2, ensure_ascii=False).encode() + b"\n",
        "report.tex": latex_tables(document).encode(),
        "report.html": html_page(document).encode(),
    }
    for name, content in files.items():
        replace_file(folder / name, lambda file, content=content: file.write(content))
    earlier = [*(folder / "crops").glob("*.png"), *(folder / f"{name}.png" for name in SHEETS)]
    for path in earlier:
        if path.relative_to(folder).as_posix() not in files and (path.parent == folder or is_crop_name(path.name)):
            path.unlink(missing_ok=True)
    return summary_of(mined, found)


def _png(image: Image.Image) -> bytes:
    target = io.BytesIO()
    image.save(target, "PNG", compress_level=1)  # a training waits for it
    return target.getvalue()
