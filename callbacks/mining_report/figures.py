"""The figures of the report: confidence against IoU, both distributions, the types, and what each type costs."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from callbacks.charts import STYLE
from callbacks.mining_report.analysis import Analysis, confident
from callbacks.mining_report.mined import Columns, MiningRound
from lightning_modules.metrics.boxes import box_iou
from lightning_modules.metrics.detection_curves import class_means
from lightning_modules.metrics.tide import TYPES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people who do not tell red from green keep apart, and marks for print without colour
COLOURS = dict(zip(TYPES, ("#0072b2", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#009e73"), strict=True))
MARKS = dict(zip(TYPES, "osDv^X", strict=True))
FOUND, LINE = "#b0b0b0", "#222222"  # true positives; thresholds
SHOWN = 1500  # points of a kind in a scatter plot, taken at even distances: more hide each other
PRINT = 200  # dots per inch; a training waits for the figures
BINS = 20


class Picture(NamedTuple):
    """A figure with what it shows, and what stands below it."""

    png: bytes  # of PRINT dots per inch
    alt: str
    caption: str


class Points(NamedTuple):
    """What the figures are drawn from: hard negatives (R), and true positives (T) above the confidence threshold."""

    kind: np.ndarray  # (R,) names of TYPES
    confidence: np.ndarray  # (R,)
    iou: np.ndarray  # (R,)
    found_confidence: np.ndarray  # (T,)
    found_iou: np.ndarray  # (T,) with the truth that it found
    iou_threshold: float
    confidence_threshold: float | None  # None: classes have their own


def draw_figures(mined: MiningRound, found: Analysis, table: Columns) -> dict[str, Picture]:
    """All figures of a round, by the name of their file.

    Args:
        mined: The round.
        found: Its analysis.
        table: Of ``mined_table``.
    """
    points = points_of(mined, found, table)
    return {
        "confidence_iou": confidence_iou_figure(points),
        "confidence_histogram": confidence_figure(points),
        "iou_histogram": iou_figure(points),
        "types": types_figure(points),
        "tide": tide_figure(found, mined),
    }


def points_of(mined: MiningRound, found: Analysis, table: Columns) -> Points:
    """The values that the figures show."""
    limits = np.asarray(mined.settings["confidence_threshold"], np.float64)
    matches, data = found.errors.matches, mined.data
    rows = np.flatnonzero((matches.truth[0] >= 0) & ~matches.ignored[0] & confident(mined))
    return Points(
        np.array(table["type"], dtype=object),
        np.array(table["confidence"], np.float64),
        np.array(table["iou"], np.float64),
        data.scores[rows],
        box_iou(data.boxes[rows], data.truth_boxes[matches.truth[0, rows]]),
        float(mined.settings["iou_threshold"]),
        float(limits) if limits.ndim == 0 else None,
    )


def _styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """``draw`` in the suite's style, without changing matplotlib's settings for others."""

    @functools.wraps(draw)
    def drawn(*args: Any) -> Any:
        from matplotlib import rc_context

        with rc_context({**STYLE, "text.parse_math": False}):  # a dollar in a class name is a dollar
            return draw(*args)

    return drawn


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=PRINT, pil_kwargs={"compress_level": 1})  # a training waits for it
    return target.getvalue()


@_styled
def confidence_iou_figure(points: Points) -> Picture:
    """Confidence against IoU of the hard negatives by type, over the true positives."""
    figure = _figure(6.3, 4.3)
    axes = figure.subplots()
    step = len(points.found_iou) // SHOWN + 1
    some = (points.found_confidence[::step], points.found_iou[::step])
    axes.scatter(*some, s=7, c=FOUND, alpha=0.5, linewidths=0, label=f"true positive ({len(points.found_iou):,})")
    many = max(len(points.kind), len(points.found_iou)) > SHOWN
    for name in TYPES[:-1]:  # a missed truth has no prediction, so no confidence and no IoU
        rows = np.flatnonzero(points.kind == name)
        if len(rows):
            x, y = (values[rows[:: len(rows) // SHOWN + 1]] for values in (points.confidence, points.iou))
            style: dict[str, Any] = {"s": 9 if many else 20, "c": COLOURS[name], "marker": MARKS[name]}
            label = f"{name} ({len(rows):,})"
            axes.scatter(x, y, label=label, alpha=0.75, linewidths=0, clip_on=False, zorder=3, **style)
    axes.axhline(points.iou_threshold, color=LINE, linestyle="--", linewidth=0.9)
    _mark_ends(axes, points)
    axes.set(xlabel="confidence of the prediction", ylabel="IoU with its truth", ylim=(0, 1.01))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.3)
    missed = int((points.kind == "missed").sum())
    caption = (
        f"Confidence against IoU, n = {len(points.kind) - missed:,} hard negatives with a prediction and "
        f"{len(points.found_iou):,} true positives. IoU is that with the truth that an error is about, of background "
        f"the highest with any truth. Dashed: IoU threshold {points.iou_threshold:g}{_dotted(points)}. Not shown: "
        f"{missed:,} missed truths, which have no prediction."
    ) + (f" Of more than {SHOWN:,} points of a kind some are drawn, at even distances." if many else "")
    return Picture(_png(figure), "Confidence of hard negatives against their IoU, by type of error", caption)


@_styled
def confidence_figure(points: Points) -> Picture:
    """How confident true positives and hard negatives are, above each other."""
    figure = _figure(6.3, 4.3)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    bins = np.linspace(*_span(points), BINS + 1)
    above.hist(points.found_confidence, bins, color=FOUND, edgecolor="white", linewidth=0.4)
    above.set(ylabel="true positives")
    number = _stacked(below, points, points.confidence, bins)
    below.set(xlabel="confidence of the prediction", ylabel="hard negatives")
    for axes in (above, below):
        _mark_ends(axes, points)
        _whole_numbers(axes)
    caption = (
        f"Confidence of n = {len(points.found_confidence):,} true positives and {number:,} hard negatives with a "
        f"prediction, number of predictions in each of {BINS} bins; the two axes differ in scale{_dotted(points)}."
    )
    return Picture(_png(figure), "Histograms of the confidence of true positives and of hard negatives", caption)


@_styled
def iou_figure(points: Points) -> Picture:
    """How well hard negatives lie on a truth."""
    figure = _figure(6.3, 3.4)
    axes = figure.subplots()
    number = _stacked(axes, points, points.iou, np.linspace(0, 1, BINS + 1))
    axes.axvline(points.iou_threshold, color=LINE, linestyle="--", linewidth=0.9)
    axes.set(xlabel="IoU with its truth", ylabel="hard negatives", xlim=(0, 1))
    _whole_numbers(axes)
    caption = (
        f"IoU of n = {number:,} hard negatives with a prediction, number of predictions in each of {BINS} bins. IoU is "
        "that with the truth that an error is about, of background the highest with any truth. Dashed: IoU threshold "
        f"{points.iou_threshold:g}."
    )
    return Picture(_png(figure), "Histogram of the IoU of hard negatives by type", caption)


@_styled
def types_figure(points: Points) -> Picture:
    """How many hard negatives there are of each type."""
    figure = _figure(6.3, 2.6)
    axes = figure.subplots()
    counts = [int((points.kind == name).sum()) for name in TYPES]
    total = max(1, sum(counts))
    axes.barh(TYPES, counts, color=[COLOURS[name] for name in TYPES], height=0.68)
    for place, count in enumerate(counts):
        text = f"{count:,} ({100 * count / total:.0f} %)"
        axes.annotate(text, (count, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    _rows(axes, max(counts))
    axes.set(xlabel="hard negatives")
    caption = f"Types of n = {sum(counts):,} hard negatives, in percent of all of them."
    return Picture(_png(figure), "Number of hard negatives of each type", caption)


@_styled
def tide_figure(found: Analysis, mined: MiningRound) -> Picture:
    """What each type of error costs, beside how many there are."""
    figure = _figure(6.3, 3.0)
    left, right = figure.subplots(1, 2, sharey=True)
    kinds, truths = found.errors.kind, ~found.errors.matches.truth_ignored
    counts = found.errors.per_class().sum(axis=1).tolist()
    counts += [int((kinds >= 0).sum()), int((truths & ~found.errors.found).sum())]
    names = [*TYPES, "all false positives", "all not found"]
    gains = [100 * float(class_means(found.gains[name])) for name in (*TYPES, "false_positive", "false_negative")]
    colours = [*COLOURS.values(), "#555555", "#555555"]
    known = [0.0 if gain != gain else gain for gain in gains]
    for axes, values, texts, label in (
        (left, known, [f"{gain:.1f}" for gain in gains], "dAP, percentage points"),
        (right, counts, [f"{count:,}" for count in counts], "errors"),
    ):
        places = [*range(len(TYPES)), len(TYPES) + 0.4, len(TYPES) + 1.4]  # totals stand apart
        axes.barh(places, values, color=colours, height=0.68)
        for place, value, text in zip(places, values, texts, strict=True):
            end = max(value, 0)
            axes.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        _rows(axes, max(values), min(*values, 0))
        axes.set(xlabel=label)
        axes.set_yticks(places, names)
    iou = float(mined.settings["iou_threshold"])
    caption = (
        f"Left: AP at IoU {iou:g} (now {100 * float(class_means(found.ap)):.1f}) that fixing one type of error alone "
        f"would gain, in percentage points; the gains do not add up. Right: errors of that type. All n = {len(kinds):,}"
        f" predictions and {int(truths.sum()):,} truths of {mined.data.num_images:,} images, whatever the confidence."
    )
    return Picture(_png(figure), "Gain in average precision and number of errors, by type of error", caption)


def _stacked(axes: Axes, points: Points, values: np.ndarray, bins: np.ndarray) -> int:
    """A histogram of the hard negatives with a prediction, types upon each other; returns their number."""
    names = [name for name in TYPES[:-1] if (points.kind == name).any()]
    parts = [values[points.kind == name] for name in names]
    if parts:
        colours = [COLOURS[name] for name in names]
        axes.hist(parts, bins, stacked=True, color=colours, label=names, edgecolor="white", linewidth=0.4)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return sum(map(len, parts))


def _rows(axes: Axes, high: float, low: float = 0) -> None:
    """Horizontal bars: the first on top, no grid across them, room for the numbers at their ends."""
    axes.set_ylim(max(axes.get_ylim()), min(axes.get_ylim()))
    axes.grid(visible=False, axis="y")
    axes.set_xlim(1.1 * low, 1.28 * high if high > 0 else 1)


def _mark_ends(axes: Axes, points: Points) -> None:
    """Ends of an axis of confidence, and the threshold on it."""
    low, high = _span(points)
    gap = 0.02 * (high - low)
    axes.set_xlim(low - gap, high + gap)
    if points.confidence_threshold is not None:
        axes.axvline(points.confidence_threshold, color=LINE, linestyle=":", linewidth=1.1)


def _dotted(points: Points) -> str:
    """What the dotted line is; each class may have its own, and then none is drawn."""
    limit = points.confidence_threshold
    return "" if limit is None else f"; dotted: confidence threshold {limit:g}"


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _span(points: Points) -> tuple[float, float]:
    """From the least confidence that is shown to 1, or to the greatest where that is no probability."""
    shown = np.concatenate([points.confidence[points.kind != "missed"], points.found_confidence])
    limits = [] if points.confidence_threshold is None else [points.confidence_threshold]
    low, high = min([*shown, *limits], default=0.0), max([*shown, *limits], default=1.0)
    high = 1.0 if low >= 0 and high <= 1 else high
    return low, high if high > low else low + 1
