"""One page about a run: figures with floors and intervals, curves, pictures, configuration, commands."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.charts import (
    code_values_figure,
    curves_of,
    precision_recall_figure,
    read_curves,
    readable,
    summary_figure,
    training_figure,
)
from callbacks.code_rows import has_codes
from callbacks.media import RetrievalPanel
from callbacks.run_files import replace_file, run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CODES = 1000  # items whose code values are drawn


class Report(Callback):
    """Writes ``report.html`` to the folder of the run after ``test``: one file that needs no network to be read.

    It is made of what stands in that folder (``results.json`` of the Results callback, ``metrics.csv``,
    ``config.yaml``), of the pictures that RetrievalPanel drew in the same run, of ``module.results`` (the
    precision-recall curves) and of the relaxed code values of the first queries: ``module(image, text)`` returns those
    of both modalities, and submodules with ``set_scale(value)`` and ``scale`` are the heads whose sharpening is shown.
    A part whose source is missing is left out.

    Args:
        commands: What to show under "Run it on your own data": a line of explanation to a command.
    """

    def __init__(self, commands: dict[str, str] | None = None) -> None:
        self.commands = commands or {}
        self._values: dict[str, list[np.ndarray]] = {}
        self._tested = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._values, self._tested = {}, False

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the code values of the first queries."""
        enough = sum(map(len, next(iter(self._values.values()), []))) >= MAX_CODES
        if trainer.is_global_zero and dataloader_idx == 0 and has_codes(outputs) and not enough:
            for title, values in code_values(pl_module, batch["image"], batch["text"]).items():
                self._values.setdefault(title, []).append(values)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that the test came to its end."""
        self._tested = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the page, once every other callback has written its part."""
        if stage != "test" or not self._tested:
            return
        self._tested = False
        folder = run_folder(trainer)
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        pictures: dict[str, Path] = {}
        for callback in trainer.callbacks:
            if isinstance(callback, RetrievalPanel):
                pictures = callback.pictures
        values = {title: np.concatenate(parts) for title, parts in self._values.items()}
        page = render(folder, getattr(pl_module, "results", {}), values, pictures, self.commands)
        replace_file(folder / "report.html", lambda file: file.write(page.encode()))
        print(f"report: {folder / 'report.html'}")


@torch.no_grad()
def code_values(module: LightningModule, image: Tensor, text: Tensor) -> dict[str, np.ndarray]:
    """Relaxed code values with and without the sharpening of the heads.

    Args:
        module: ``module(image, text)`` returns relaxed codes of both; its heads have ``set_scale`` and ``scale``.
        image: ``(B, Di)``.
        text: ``(B, Dt)``.

    Returns:
        Title to values ``(B, 2 * bits)``; one entry when the scale is 1, none when there is no head.
    """
    heads = [part for part in module.modules() if callable(getattr(part, "set_scale", None)) and hasattr(part, "scale")]
    if not heads:
        return {}
    scales = [float(head.scale) for head in heads]
    found = {}
    for factor in (1.0, scales[0]) if scales[0] != 1 else (1.0,):
        for head in heads:
            head.set_scale(factor)
        title = "tanh(x)" if factor == 1 else f"tanh({factor:.3g} \N{MULTIPLICATION SIGN} x)"
        found[title] = torch.cat(module(image, text), dim=1).float().cpu().numpy()
    for head, scale in zip(heads, scales, strict=True):
        head.set_scale(scale)
    return found


def render(
    folder: Path,
    results: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, np.ndarray],
    pictures: Mapping[str, Path],
    commands: Mapping[str, str],
) -> str:
    """The page.

    Args:
        folder: Folder of the run.
        results: Figures and curves by protocol and direction.
        values: Relaxed code values by title.
        pictures: Picture files by name.
        commands: Explanations to commands.

    Returns:
        HTML.
    """
    from jinja2 import Environment, PackageLoader

    block = read_json(folder / "results.json").get("test", {})
    groups, columns, others = table_of(block.get("metrics", {}))
    floors = {column: floor_of(column, groups, block.get("floors", {})) for column in columns}
    curves, training = curves_of(results), training_figure(read_curves(folder / "metrics.csv"))
    figures = {
        "summary": summary(groups, floors),
        "training": training,
        "precision_recall": precision_recall_figure(curves) if curves else None,
        "code_values": code_values_figure(values) if values else None,
    }
    config = folder / "config.yaml"
    environment = Environment(loader=PackageLoader("callbacks"), autoescape=True)
    return environment.get_template("report.html").render(
        block=block,
        groups={readable(name): row for name, row in groups.items()},
        columns=columns,
        floors=floors,
        others=others,
        figures={name: svg_source(figure) for name, figure in figures.items() if figure is not None},
        pictures={name: png_source(file) for name, file in pictures.items() if file.is_file()},
        commands=commands,
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        config_file=str(config),
    )


Row = dict[str, tuple[float, float | None, float | None]]


def table_of(metrics: Mapping[str, float | None]) -> tuple[dict[str, Row], list[str], dict[str, float]]:
    """Metrics as a table: a row for each protocol and direction, a column for each kind of figure.

    A metric ``<stage>/<row>_map`` that has ``..._low`` and ``..._high`` beside it names a row; what follows the row's
    name in any metric is a column.

    Args:
        metrics: Logged values by name.

    Returns:
        Rows of (value, low, high) by column; the columns; the metrics that fit nowhere, floors left out.

    >>> rows, columns, others = table_of({"test/a_map": 0.5, "test/a_map_low": 0.4, "test/a_map_high": 0.6, "t/x": 1.0})
    >>> rows, columns, others
    ({'a': {'map': (0.5, 0.4, 0.6)}}, ['map'], {'t/x': 1.0})
    >>> ends = ("", "_low", "_high", "_at_5", "_at_5_low", "_at_5_high")
    >>> list(table_of({f"test/a_map{end}": 1.0 for end in ends})[0])
    ['a']
    """
    known = {name: value for name, value in metrics.items() if value is not None}
    heads = [name for name in known if {f"{name}_low", f"{name}_high"} <= set(metrics) and name.endswith("_map")]
    prefixes = [name.removesuffix("map") for name in heads]
    rows: dict[str, Row] = {prefix.rpartition("/")[2].strip("_"): {} for prefix in prefixes}
    columns, others = {}, {}
    for name, value in known.items():
        if name.endswith(("_low", "_high")) or name.rpartition("/")[2].startswith("random_"):
            continue
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            others[name] = value
            continue
        column = name.removeprefix(prefix)
        columns[column] = None
        entry = (value, known.get(f"{name}_low"), known.get(f"{name}_high"))
        rows[prefix.rpartition("/")[2].strip("_")][column] = entry
    return rows, list(columns), others


def floor_of(column: str, rows: Mapping[str, Row], floors: Mapping[str, float]) -> float | None:
    """The floor of a column, from those of its metrics: the highest, where rows differ."""
    found = [floors[name] for row in rows for name in floors if name.rpartition("/")[2] == f"{row}_{column}"]
    return max(found, default=None)


def summary(rows: Mapping[str, Row], floors: Mapping[str, float | None]) -> Figure | None:
    """The chart of the mean average precisions; None when there is none."""
    values = {
        readable(name): (value, low, high)
        for name, row in rows.items()
        for value, low, high in [row.get("map", (0.0, None, None))]
        if low is not None and high is not None
    }
    return summary_figure(values, floors.get("map"), "Mean average precision, 95 % interval") if values else None


def read_json(file: Path) -> dict[str, Any]:
    """The contents of a JSON file; empty when it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def svg_source(figure: Figure) -> str:
    """A figure as an address that holds the whole picture."""
    target = io.BytesIO()
    figure.savefig(target, format="svg", bbox_inches="tight")
    return f"data:image/svg+xml;base64,{base64.b64encode(target.getvalue()).decode()}"


def png_source(file: Path) -> str:
    """A PNG file as an address that holds the whole picture."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
