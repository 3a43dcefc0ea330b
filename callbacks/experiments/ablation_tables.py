"""The table of an ablation, its marginal means, and their figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from callbacks.charts import COLOURS, _styled, _subplots
from callbacks.experiments.grid import counted, show
from callbacks.experiments.summary import wide_console
from callbacks.experiments.tables import Cell, Table, interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FALLING = ("loss", "error", "mae")  # parts of the names of metrics of which less is better
COMPARED = "Bold: the best mean of those over all seeds; not corrected for the number of comparisons."

LETTERS = 14  # of the small print to an inch


def ablation_tables(record: Mapping[str, Any]) -> list[Table]:
    """The table of the cells, and that of the factors' levels.

    Args:
        record: Content of ``ablation.json``.
    """
    metric, seeds = record["metric"], record["seeds"]
    factors = list(record["factors"])
    labels = [name.rpartition(".")[2] for name in factors]
    cells = record["cells"]
    whole = [cell for cell in cells if cell["n"] == len(seeds)]  # a mean over fewer seeds may be best by their choice
    floors = {number(cell["floor"]) for cell in cells if cell["floor"] is not None}
    several = len(floors) > 1  # each then stands beside its figure
    rows: list[list[Cell | str]] = [
        [
            *(show(cell["settings"][name]) for name in factors),
            *_figures(cell, is_best(cell, whole, metric)),
            *([number(cell["floor"])] if several else []),
        ]
        for cell in cells
    ]
    notes = [f"{counted(len(seeds), 'seed')} a setting; mean \N{PLUS-MINUS SIGN} sd (n - 1)."]
    notes += ["Brackets: 95 % t-interval over seeds."] if len(seeds) > 1 else ["One seed: no spread is known."]
    notes += [COMPARED]
    notes += [f"Floor: {floors.pop()}."] if len(floors) == 1 else []
    notes += [f"Convention: {record['convention']}."] if record["convention"] else []
    notes += [f"Missing: {text}." for text in record["missing"]]
    title = f"{metric} of {counted(len(cells), 'setting')}"
    head, align = [*labels, metric, "n", *["floor"] * several], "l" * len(factors) + "rr" + "r" * several
    found = [Table("ablation", title, head, rows, align, notes)]
    if len(factors) > 1:
        levels: list[list[Cell | str]] = [
            [label, show(level["value"]), *_figures(level, is_best(level, record["marginals"][name], metric))]
            for name, label in zip(factors, labels, strict=True)
            for level in record["marginals"][name]
        ]
        note = "Each level averaged over the settings of the other factors that all levels have, then over seeds."
        title = f"{metric} of each level, mean over the other factors"
        found.append(Table("marginals", title, ["factor", "level", metric, "seeds"], levels, "llrr", [note, COMPARED]))
    return found


def is_best(entry: Mapping[str, Any], entries: list[dict[str, Any]], metric: str) -> bool:
    """Whether an entry is one of several and has the best mean among them; less is better for losses and errors."""
    means = [other["mean"] for other in entries if other["mean"] is not None]
    better = min if any(word in metric for word in FALLING) else max
    return len(means) > 1 and entry in entries and entry["mean"] == better(means)


def print_ablation(record: Mapping[str, Any], folder: Path, written: Sequence[str]) -> None:
    """Print the table of the cells, what is missing, and the files that were written to the folder."""
    from rich.table import Table as Shown

    tables = ablation_tables(record)
    console = wide_console()
    for table in tables:
        shown = Shown()
        for name, letter in zip(table.head, table.align, strict=True):
            shown.add_column(name, justify="right" if letter == "r" else "left")
        for row in table.cells():
            shown.add_row(*(f"{cell.text} {cell.below}".strip() for cell in row))
        console.print(table.title, style="bold")
        console.print(shown)
        for line in table.notes:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"written to {folder}: {', '.join(written)}", highlight=False, markup=False, soft_wrap=True)


@_styled
def marginals_figure(record: Mapping[str, Any]) -> Figure | None:
    """A panel for each factor: its levels' means over the other factors with intervals, the cells as dots behind.

    Args:
        record: Content of ``ablation.json``.

    Returns:
        The figure; None without any value.
    """
    shown = {name: levels for name, levels in record["marginals"].items() if any(x["mean"] is not None for x in levels)}
    if not shown:
        return None
    widths = [max(2.4, 0.75 * len(levels) + 1) for levels in shown.values()]
    figure, all_axes = _subplots(1, len(shown), width=sum(widths) + 0.6, height=3.2)
    for axes, width, (name, levels) in zip(all_axes, widths, shown.items(), strict=True):
        places = {show(level["value"]): place for place, level in enumerate(levels)}
        for cell in record["cells"]:
            if cell["mean"] is not None:
                axes.plot(places[show(cell["settings"][name])] + 0.16, cell["mean"], ".", color="#bbbbbb", zorder=1)
        for level in levels:
            place = places[show(level["value"])]
            if level["low"] is not None:
                axes.plot([place, place], [level["low"], level["high"]], color=COLOURS[0], linewidth=2.2)
            if level["mean"] is not None:
                axes.plot(place, level["mean"], "o", color=COLOURS[0], markersize=6)
        crowded = max(map(len, places)) * len(places) > LETTERS * width
        axes.set_xticks(range(len(levels)), list(places), **({"rotation": 20, "ha": "right"} if crowded else {}))
        axes.set(xlim=(-0.6, len(levels) - 0.4))
        axes.grid(visible=False, axis="x")
        axes.set_title(name.rpartition(".")[2], loc="left")
        if axes is not all_axes[0]:
            axes.sharey(all_axes[0])
            axes.tick_params(labelleft=False)
    all_axes[0].set_ylabel(record["metric"])
    bars = "bars: 95\N{NO-BREAK SPACE}% t-interval over seeds" if len(record["seeds"]) > 1 else "one seed, no interval"
    said = f"mean over the other factors; {bars}; grey: single settings"
    letters = int(figure.get_figwidth() * LETTERS)
    figure.supxlabel(textwrap.fill(said, letters), fontsize=8, color="#555555")
    return figure


def _figures(entry: Mapping[str, Any], best: bool) -> list[Cell | str]:
    text = number(entry["mean"])
    if entry["sd"] is not None:
        text += f" \N{PLUS-MINUS SIGN} {number(entry['sd'])}"
    return [Cell(text, interval(entry["low"], entry["high"]), best), str(entry["n"])]
