"""The charts of a run: retrieval figures with their intervals, precision-recall, training curves, code values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P, R = ParamSpec("P"), TypeVar("R")
COLOURS = ("#2166ac", "#d6604d", "#4393c3", "#f4a582", "#1b7837", "#762a83")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
}
STYLES = ("-", "-", "--", "--", "-", "--")
DIRECTIONS = {"i2t": "image \N{RIGHTWARDS ARROW} text", "t2i": "text \N{RIGHTWARDS ARROW} image"}


class Curve(NamedTuple):
    """Precision and recall by Hamming radius.

    Args:
        radius: (R,) radii.
        precision: (R,) over the queries that find something.
        recall: (R,).
        answered: (R,) share of the queries that find something.
        floor: Precision of a random ranking.
    """

    radius: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    answered: np.ndarray
    floor: float


def _styled(draw: Callable[P, R]) -> Callable[P, R]:
    """``draw`` in the suite's style, without changing matplotlib's settings for others."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def readable(name: str) -> str:
    """A name of a protocol and direction for people.

    >>> readable("unimodal_t2i").replace("\N{RIGHTWARDS ARROW}", "to")
    'unimodal, text to image'
    """
    words = [DIRECTIONS.get(word, word) for word in name.strip("_").split("_")]
    return ", ".join(words)


def curves_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Curve]:
    """The precision-recall curves among a module's results.

    Args:
        results: For each protocol and direction a dict with tensors ``curve_radius``, ``curve_precision``,
            ``curve_recall``, ``curve_answered`` and ``random_precision``; entries without curves are left out.

    Returns:
        Curves by name, radii at which no query finds anything left out.
    """
    curves = {}
    for name, values in results.items():
        if "curve_radius" in values:
            parts = [values[f"curve_{part}"].cpu().numpy() for part in Curve._fields[:4]]
            some = parts[3] > 0
            curves[name] = Curve(*(part[some] for part in parts), floor=float(values["random_precision"]))
    return curves


@_styled
def precision_recall_figure(curves: Mapping[str, Curve]) -> Figure:
    """Precision over recall of all curves, a point for each radius, with the random floor."""
    figure, axes = _subplots(1, 1, width=5.2, height=3.9)
    for place, (name, curve) in enumerate(sorted(curves.items(), reverse=True)):
        style = {"color": COLOURS[place % 6], "linestyle": STYLES[place % 6]}
        axes[0].plot(curve.recall, curve.precision, marker=".", markersize=4, label=readable(name), **style)
    floor = next(iter(curves.values())).floor
    axes[0].axhline(floor, color="#888888", linestyle=":", label=f"random ({floor:.3f})")
    axes[0].set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(0, 1.02))
    axes[0].set_title("Lookup within each Hamming radius", loc="left")
    axes[0].legend(frameon=False)
    return figure


@_styled
def summary_figure(values: Mapping[str, tuple[float, float, float]], floor: float | None, title: str) -> Figure:
    """A point with its interval for each name, and the floor.

    Args:
        values: Name to (value, low, high).
        floor: What a trivial control reaches.
        title: Above the axes.
    """
    figure, axes = _subplots(1, 1, width=7.4, height=0.36 * len(values) + 1.15)
    for place, (name, (value, low, high)) in enumerate(values.items()):
        axes[0].plot([low, high], [place, place], color=COLOURS[0], linewidth=2.2, solid_capstyle="butt")
        axes[0].plot(value, place, "o", color=COLOURS[0], markersize=5.5)
        axes[0].annotate(f"{value:.3f}", (high, place), (7, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes[0].text(-0.02, place, name, ha="right", va="center", transform=axes[0].get_yaxis_transform())
    if floor is not None:
        axes[0].axvline(floor, color="#888888", linestyle=":")
        axes[0].annotate("random", (floor, -0.55), (3, 0), textcoords="offset points", fontsize=8, color="#777777")
    axes[0].set(xlim=(0, 1), ylim=(len(values) - 0.4, -0.7), yticks=[])
    axes[0].set_title(title, loc="left")
    return figure


def read_curves(file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The columns of a ``metrics.csv``.

    Args:
        file: Written by the CSV logger; may be missing.

    Returns:
        Column name to epochs and values, rows without a value left out.
    """
    import csv

    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = [name for name in (rows[0] if rows else {}) if name not in ("epoch", "step")]
    points = {name: [(row["epoch"], row[name]) for row in rows if row[name] and row["epoch"]] for name in names}
    return {
        name: (np.array([float(x) for x, _ in pairs]), np.array([float(y) for _, y in pairs]))
        for name, pairs in points.items()
        if pairs
    }


@_styled
def training_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure | None:
    """Losses, validation mAP and the scale over epochs; None when nothing was logged in training.

    Args:
        curves: As :func:`read_curves` returns them.
    """
    losses = [name for name in curves if "/" in name and name.split("/")[1].startswith("loss")]
    maps = [name for name in curves if name.startswith("val/") and name.endswith("map") and "random" not in name]
    parts = {name.split("_")[0] for name in maps if name.count("_") > 1}  # val/fused of val/fused_i2t_map
    maps = [name for name in maps if name.removesuffix("_map") not in parts]  # their means are left out
    groups = [
        ("Loss", losses, None),
        ("Validation mAP", maps, curves.get("val/random_map")),
        ("Sharpness of tanh(scale \N{MULTIPLICATION SIGN} x)", [name for name in curves if name == "scale"], None),
    ]
    groups = [group for group in groups if group[1]]
    if not groups:
        return None
    figure, all_axes = _subplots(1, len(groups), width=3.7 * len(groups), height=3.5)
    for axes, (title, names, floor) in zip(all_axes, groups, strict=True):
        main = min(names, key=len)  # the sum of the losses, the mean of the mAPs
        for place, name in enumerate(names):
            x, y = curves[name]
            label = "mean" if name == "val/map" else name.split("/")[-1].removesuffix("_map")
            style = {"color": "#222222"} if name == main else {"color": COLOURS[place % 6], "linewidth": 1.1}
            axes.plot(x, y, label=readable(label) if name in maps else label.replace("_", " "), **style)
        if floor is not None:
            axes.axhline(floor[1][-1], color="#888888", linestyle=":", label="random")
        axes.set(xlabel="epoch")
        axes.set_title(title, loc="left")
        if len(names) > 1:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
            axes.legend(frameon=False, fontsize=7.5, **below)
    return figure


@_styled
def code_values_figure(values: Mapping[str, np.ndarray]) -> Figure:
    """Histograms of relaxed code values from -1 to 1, one below the other.

    Args:
        values: Title to any number of values in [-1, 1].
    """
    figure, all_axes = _subplots(len(values), 1, width=5.2, height=1.95 * len(values))
    bins = np.linspace(-1, 1, 61)
    heights = {title: np.histogram(part, bins)[0] / part.size for title, part in values.items()}
    for axes, (title, height) in zip(all_axes, heights.items(), strict=True):
        axes.bar(bins[:-1], height, width=np.diff(bins), align="edge", color=COLOURS[0])
        near = float((np.abs(values[title]) > 0.9).mean())
        axes.set(ylabel="share", xlim=(-1, 1), ylim=(0, 1.08 * max(h.max() for h in heights.values())))
        axes.set_title(title, loc="left")
        note = f"|value| > 0.9: {near:.0%}"
        axes.text(0.99, 0.93, note, ha="right", va="top", transform=axes.transAxes, fontsize=8.5, color="#555555")
    all_axes[-1].set(xlabel="code value")
    return figure


def _subplots(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, layout="constrained", facecolor="white")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
