"""The figures of a report, each as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from callbacks.charts import COLOURS, STYLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUIET = "#777777"
PER_COLUMN = 40  # classes in a column of the figure of all classes
RANGE = 3  # powers of two to both sides of 1 that the colours of ratios span
RING: dict[str, Any] = {"mfc": "none", "mec": COLOURS[2], "ms": 3.2, "mew": 0.7, "clip_on": False}  # a fold of a class
WRITTEN = 20  # classes up to which the numbers are written into the matrix


class Spread(NamedTuple):
    """A score over folds or seeds.

    Args:
        values: One a run.
        mean: Their mean.
        low: Lower end of its interval; None with a single run.
        high: Upper end.
        floor: What a trivial control reaches.
    """

    values: Sequence[float]
    mean: float
    low: float | None
    high: float | None
    floor: float | None = None


def spread_figure(spreads: Mapping[str, Spread], title: str) -> bytes:
    """A row for each score: a ring for each run, the mean with its interval, a tick at the floor.

    Args:
        spreads: Name to score.
        title: Above the axes.
    """
    with _figure(7.4, 0.42 * len(spreads) + 1.0) as (figure, png):
        axes = figure.subplots()
        for place, spread in enumerate(spreads.values()):
            axes.plot(spread.values, [place] * len(spread.values), "o", mfc="none", mec=COLOURS[2], ms=5, mew=0.9)
            if spread.low is not None and spread.high is not None:
                axes.plot([spread.low, spread.high], [place, place], color=COLOURS[0], lw=2.2, solid_capstyle="butt")
            axes.plot(spread.mean, place, "o", color=COLOURS[0], ms=5.5)
            right = max([*spread.values, spread.high or spread.mean])
            axes.annotate(f"{spread.mean:.3f}", (right, place), (8, 0), textcoords="offset points", va="center")
            if spread.floor is not None:
                axes.plot(spread.floor, place, "|", color=QUIET, ms=11, mew=1.6)
        axes.set(ylim=(len(spreads) - 0.4, -0.6), yticks=range(len(spreads)), yticklabels=list(spreads))
        axes.margins(x=0.09)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, loc="left")
    return png.getvalue()


def classes_figure(
    names: Sequence[str],
    ap: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray] | None = None,
    folds: np.ndarray | None = None,
) -> bytes:
    """All classes, best first, in columns of forty: bars with intervals, or means with a ring for each fold.

    Args:
        names: C names.
        ap: (C,); classes without a value are left out.
        ends: (C,) lower and (C,) upper ends of the intervals.
        folds: (K, C) values of which ``ap`` is the mean; NaN where a fold has none.
    """
    order = [c for c in np.argsort(-np.nan_to_num(ap, nan=-1), kind="stable") if not np.isnan(ap[c])]
    columns = max(1, -(-len(order) // PER_COLUMN))
    rows = -(-len(order) // columns)
    with _figure(5.2 * columns if columns > 1 else 7.4, 0.19 * rows + 0.8) as (figure, png):
        for column, axes in enumerate(figure.subplots(1, columns, squeeze=False, sharex=True).flat):
            chosen = order[column * rows : (column + 1) * rows]
            places = np.arange(len(chosen))
            if folds is None:
                axes.barh(places, ap[chosen], color="#a9c9e3", height=0.72)
            else:
                axes.hlines(places, 0, 1, color="#ececec", lw=0.8)
                for values in folds:
                    axes.plot(values[chosen], places, "o", **RING)
                axes.plot(ap[chosen], places, "o", color=COLOURS[0], ms=4, clip_on=False)
            if ends is not None:
                axes.hlines(places, ends[0][chosen], ends[1][chosen], color=COLOURS[0], lw=1.4)
            axes.set(ylim=(rows - 0.4, -0.6), xlim=(0, 1), yticks=places, xlabel="average precision")
            axes.set_yticklabels([shorten(names[c]) for c in chosen], fontsize=7.5)
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
    return png.getvalue()


def support_figure(names: Sequence[str], ap: np.ndarray, support: np.ndarray, folds: np.ndarray | None = None) -> bytes:
    """Average precision of the classes over their number of positives, on a logarithmic axis.

    Args:
        names: C names.
        ap: (C,).
        support: (C,) positives.
        folds: (K, C) values of which ``ap`` is the mean, drawn as rings; NaN where a fold has none.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    known = np.flatnonzero(~np.isnan(ap) & (support > 0))
    with _figure(7.4, 3.9) as (figure, png):
        axes = figure.subplots()
        for values in () if folds is None else folds:
            axes.plot(support[known], values[known], "o", **RING)
        axes.semilogx(support[known], ap[known], "o", color=COLOURS[0], alpha=0.75, ms=5)
        by_ap = known[np.argsort(ap[known], kind="stable")]
        by_support = known[np.argsort(support[known], kind="stable")]
        named = dict.fromkeys([*by_ap[:5], *by_ap[-3:], *by_support[:4], *by_support[-3:]])
        if len(known) <= WRITTEN:
            named = dict.fromkeys(known)
        axes.set(xlabel="positives (logarithmic)", ylabel="average precision", ylim=(0, 1.05))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.1)
        places = np.stack([support[known], ap[known]], axis=1)
        _write_apart(axes, [(float(support[c]), float(ap[c]), shorten(names[c])) for c in named], places)
    return png.getvalue()


def ratio_matrix_figure(matrix: np.ndarray, names: Sequence[str], rows: str, columns: str) -> bytes:
    """A matrix of ratios as a heat map: white at 1, red above, blue below, equal steps for equal factors.

    Args:
        matrix: (C, C) ratios; NaN where there is none.
        names: C names.
        rows: What the rows are.
        columns: What the columns are.
    """
    from matplotlib import colormaps
    from matplotlib.colors import TwoSlopeNorm

    count = len(names)
    size = float(np.clip(0.115 * count + 2.4, 6, 16))
    letters = float(np.clip(72 * (size - 2.4) / count * 0.8, 3.5, 8.5))
    colours = colormaps["RdBu_r"].with_extremes(bad="#e4e4e4")
    logs = np.log2(np.clip(matrix, 2.0**-RANGE, 2.0**RANGE))
    with _figure(size + 0.6, size) as (figure, png):
        axes = figure.subplots()
        # blue is kept pale: a ratio of 0 is mostly a pair that is rare, and false alarms are what one looks for
        shades = TwoSlopeNorm(0, -2 * RANGE, RANGE)
        picture = axes.imshow(logs, cmap=colours, norm=shades, interpolation="nearest")
        axes.set(xticks=range(count), yticks=range(count), xlabel=columns, ylabel=rows)
        axes.set_xticklabels([shorten(name, 15) for name in names], rotation=90, fontsize=letters)
        axes.set_yticklabels([shorten(name) for name in names], fontsize=letters)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(picture, ax=axes, shrink=0.5, pad=0.015, aspect=35, ticks=range(-RANGE, RANGE + 1))
        ends = [f"{2.0**step:g}" for step in range(-RANGE, RANGE + 1)]
        bar.set_ticklabels(
            [f"\N{LESS-THAN OR EQUAL TO} {ends[0]}", *ends[1:-1], f"\N{GREATER-THAN OR EQUAL TO} {ends[-1]}"]
        )
        bar.ax.set_ylim(-RANGE, RANGE)
        bar.outline.set_visible(False)
        for row, column in np.argwhere(np.isfinite(matrix)) if count <= WRITTEN else ():
            ink = "white" if logs[row, column] > 0.65 * RANGE else "#333333"
            axes.text(column, row, f"{matrix[row, column]:.1f}", ha="center", va="center", fontsize=7, color=ink)
    return png.getvalue()


def shorten(name: str, length: int = 22) -> str:
    """A name that fits beside an axis.

    >>> shorten("a very long name of a class")
    'a very long name of a…'
    """
    return name if len(name) <= length else f"{name[: length - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def _write_apart(axes: Axes, points: Sequence[tuple[float, float, str]], others: np.ndarray) -> None:
    """Names right or left of points, where they cover no point and no other name; the tables have them all.

    Args:
        axes: Where to write.
        points: Places and names.
        others: (n, 2) places of all points.
    """
    axes.figure.canvas.draw()  # the limits, which places in pixels depend on, are settled by drawing
    scale = axes.figure.dpi / 72
    dots = axes.transData.transform(others)
    taken = [(x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale) for x, y in dots]
    for x, y, name in points:
        dot = axes.transData.transform((x, y))
        for side in (1, -1):
            ends = sorted(dot[0] + side * scale * reach for reach in (5, 5 + 4.3 * len(name)))
            box = (ends[0], dot[1] - 4 * scale, ends[1], dot[1] + 4 * scale)
            inside = axes.bbox.x0 < box[0] and box[2] < axes.bbox.x1
            if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                place = {"xytext": (5 * side, -2.5), "ha": "left" if side > 0 else "right"}
                axes.annotate(name, (x, y), textcoords="offset points", fontsize=7.5, color="#444444", **place)
                break


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure in the suite's style; after the block the second holds its PNG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    target = io.BytesIO()
    with rc_context({**STYLE, "text.parse_math": False}):  # a dollar in a class name is a dollar
        figure = Figure(figsize=(width, height), dpi=170, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure, target
        figure.savefig(target, format="png")
