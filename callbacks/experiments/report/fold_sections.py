"""The section about folds: frequencies, rare classes, what a fold's score is made of."""

from __future__ import annotations

import numpy as np

from callbacks.experiments.report.documents import Section, Text
from callbacks.experiments.report.fold_analysis import FoldAnalysis, analyse, spearman
from callbacks.experiments.report.pooled import Pooled
from callbacks.experiments.tables import Cell, Table, number

RAREST = 10
NAMED = 3  # classes that are named for a fold


def fold_section(pooled: Pooled | None) -> Section:
    """The section; empty with fewer than two folds."""
    if pooled is None or len(pooled.folds) < 2:
        return Section("Folds", [])
    analysis = analyse(pooled)
    parts: list[Text | Table] = [frequency_table(analysis), rare_table(analysis), contribution_table(analysis)]
    return Section("Folds", [*parts, correlation_table(analysis)])


def frequency_table(analysis: FoldAnalysis) -> Table:
    """Items and label frequencies by fold."""
    deviation = np.abs(analysis.deviation)
    names, rows = analysis.class_names, []
    for k, fold in enumerate(analysis.folds):
        worst = int(np.nanargmax(deviation[k]))
        empty = [names[c] for c in analysis.rarest if analysis.counts[k, c] == 0]
        rows.append(
            [
                f"Fold {fold}",
                f"{analysis.sizes[k]:,}",
                percent(float(np.nanmean(deviation[k]))),
                percent(float(deviation[k, worst])),
                names[worst],
                ", ".join(empty) or "none",
            ]
        )
    last = [
        "All",
        f"{analysis.sizes.sum():,}",
        percent(float(np.nanmean(deviation))),
        percent(float(np.nanmax(deviation))),
    ]
    rows.append([*last, "", ""])
    notes = [
        "Deviation: |frequency of a class in the fold / its frequency over all folds \N{MINUS SIGN} 1|, over classes."
    ]
    head = ["", "Items", "Mean deviation", "Largest deviation", "in class", "Classes without a positive"]
    return Table("fold-frequency", "Label frequencies of the folds", head, rows, "lrrrlp", notes, closing=1)


def rare_table(analysis: FoldAnalysis) -> Table:
    """The rarest classes: positives by fold with the average precision there."""
    rows = []
    for c in analysis.rarest[:RAREST]:
        pairs = zip(analysis.counts[:, c], analysis.ap[:, c], strict=True)
        cells = [Cell(f"{count:,}", f"AP {ap:.3f}" if ap == ap else "no AP") for count, ap in pairs]
        spread = float(np.nanstd(analysis.ap[:, c], ddof=1)) if np.isfinite(analysis.ap[:, c]).sum() > 1 else None
        rows.append([analysis.class_names[c], f"{analysis.counts[:, c].sum():,}", *cells, number(spread)])
    head = ["Class", "All", *(f"Fold {fold}" for fold in analysis.folds), "sd of AP"]
    notes = ["Positives in each fold and, beneath, the average precision of the fold's model on its fold."]
    title = f"The {len(rows)} rarest classes"
    return Table("fold-rarest", title, head, rows, "l" + "r" * (len(head) - 1), notes)


def contribution_table(analysis: FoldAnalysis) -> Table:
    """What lifts or lowers each fold's mean average precision."""
    rare, rows = analysis.rare_quarter, []
    mean = float(analysis.scores.mean())
    for k, fold in enumerate(analysis.folds):
        shares = analysis.contributions[k]
        top = sorted(range(len(shares)), key=lambda c: -abs(shares[c]))[:NAMED]
        said = ", ".join(f"{analysis.class_names[c]} {number(float(shares[c]), signed=True)}" for c in top)
        own = float(analysis.scores[k])
        parts = (own - mean, float(shares[rare].sum()), float(shares.sum() - shares[rare].sum()))
        rows.append([f"Fold {fold}", number(own), *(number(part, signed=True) for part in parts), said])
    notes = [
        "The mAP macro of a fold is the mean AP over classes, so its difference from the mean of the folds is a sum "
        "over classes: of (AP in the fold \N{MINUS SIGN} mean AP over folds) / number of classes. Rare: the "
        f"{len(rare)} {'class' if len(rare) == 1 else 'classes'} with the fewest positives (a quarter of all). Named "
        "are the classes with the largest shares."
    ]
    if not (analysis.counts > 0)[:, analysis.rarest].all():
        notes.append(
            "A class that a fold lacks adds 0 there, so the shares of that fold do not add up to the difference."
        )
    head = ["", "mAP macro", "Difference", "from rare classes", "from the others", "Largest shares"]
    return Table("fold-shares", "Which classes make a fold's score", head, rows, "lrrrrp", notes)


def correlation_table(analysis: FoldAnalysis) -> Table:
    """Rank correlations: a plain test of what goes with a fold's score."""
    deviation = np.nanmean(np.abs(analysis.deviation), axis=1)
    rare = np.array(
        [np.nanmean(row) if np.isfinite(row).any() else np.nan for row in analysis.ap[:, analysis.rare_quarter]]
    )
    several = analysis.rarest[np.isfinite(analysis.ap[:, analysis.rarest]).sum(axis=0) > 1]
    spread = np.nanstd(analysis.ap[:, several], axis=0, ddof=1)
    support = analysis.counts[:, several].sum(axis=0)
    known = np.isfinite(rare)
    pairs = [
        ("mAP macro of a fold", "its mean deviation of label frequency", "folds", analysis.scores, deviation),
        ("mAP macro of a fold", "mean AP of its rare classes", "folds", analysis.scores[known], rare[known]),
        ("sd of a class's AP over folds", "positives of the class", "classes", spread, support),
    ]
    rows = []
    for first, second, unit, a, b in pairs:
        rho, p, n = spearman(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
        rows.append([first, second, f"{n} {unit}", number(rho, 2, signed=True), small_p(p)])
    notes = [
        "Spearman's rank correlation with two-sided p (exact, over all orders, up to 7 pairs). "
        f"{len(analysis.folds)} folds are few: only a very strong link can show. The rare classes are part of the "
        "score that they are compared with."
    ]
    head = ["", "against", "over", "Spearman's \N{GREEK SMALL LETTER RHO}", "p"]
    return Table("fold-correlation", "What goes with a fold's score", head, rows, "lllrr", notes)


def small_p(p: float) -> str:
    """A p-value for people; a dash where there is none.

    >>> small_p(0.0166), small_p(1e-9)
    ('0.017', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else number(p, 3)


def percent(value: float) -> str:
    """A share in percent.

    >>> percent(0.0123)
    '1.23 %'
    """
    return f"{100 * value:.2f} %" if value < 0.1 else f"{100 * value:.1f} %"
