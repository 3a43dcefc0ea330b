"""The report of a cross-validation, an ablation or a single run, from result files alone: page, Markdown, LaTeX."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from callbacks.experiments.ablation_tables import ablation_tables, marginals_figure
from callbacks.experiments.report.class_sections import class_section
from callbacks.experiments.report.documents import Chart, Document, Section, html_page, latex_tables, markdown_page
from callbacks.experiments.report.error_sections import error_section
from callbacks.experiments.report.fold_sections import fold_section
from callbacks.experiments.report.metric_tables import ensemble_table, fold_tables, main_table
from callbacks.experiments.report.pooled import pool
from callbacks.experiments.report.statements import (
    disagreements,
    facts,
    footer,
    notes_table,
    scored_items,
    spread_chart,
    statements,
    title_of,
)
from callbacks.experiments.result_files import Experiment, read_experiment
from callbacks.experiments.tables import Table
from callbacks.run_files import replace_file


def write_report(folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``report.tex`` to the folder of an experiment.

    Nothing is trained or scored by a network: everything comes from crossval.json or ablation.json and from the
    results.json, predictions.npz and worst/ of the runs. What is missing or damaged there is named in the report and
    printed, a line each.

    Args:
        folder: Of a cross-validation, an ablation, or a single run.

    Returns:
        The three files.

    Raises:
        FileNotFoundError: The folder holds no experiment; the message says what was looked for and what makes it.
        ValueError: The experiment's own file is damaged, or its folds overlap.
    """
    folder = Path(folder)
    experiment = read_experiment(folder)
    document = ablation_document(experiment) if experiment.kind == "ablation" else score_document(experiment)
    pages = {"html": html_page(document), "md": markdown_page(document), "tex": latex_tables(document)}
    files = []
    for ending, page in pages.items():
        files.append(folder / f"report.{ending}")
        replace_file(files[-1], lambda file, page=page: file.write(page.encode()))
    for text in document.missing:
        print(f"missing: {' '.join(text.split())}", flush=True)
    return files


def score_document(experiment: Experiment) -> Document:
    """The report of a cross-validation or of a single run."""
    record, runs = experiment.record, experiment.runs
    blocks = [run.block for run in runs.values() if run.block]
    pooled = pool(runs)
    crossval = experiment.kind == "crossval"
    folds = list(range(int(record.get("num_folds") or len(runs)))) if crossval else []
    parts: dict[str, list[Table | Chart | None]] = {"fold": [spread_chart(record) if crossval else None], "test": []}
    for part, name, rows in (
        ("fold", "held-out folds" if crossval else "fold", "fold"),
        ("test", "hold-out part", "model"),
    ):
        parts[part].append(main_table(record, part, f"Scores on the {name}", statements(experiment, part)))
        parts[part] += fold_tables(record, part, f"The {name} by {rows}", folds) if crossval else []
    parts["test"].append(ensemble_table(record))
    sections = [
        Section("Cross-validation" if crossval else "Fold", [p for p in parts["fold"] if p]),
        Section("Hold-out", [part for part in parts["test"] if part]),
        class_section(pooled),
        error_section(pooled, runs),
        fold_section(pooled),
        Section("Settings", [settings] if (settings := notes_table(record, blocks)) else []),
    ]
    missing = [*experiment.missing, *disagreements(experiment)]
    return Document(title_of(experiment, blocks), facts(experiment), missing, sections, footer(experiment, blocks))


def ablation_document(experiment: Experiment) -> Document:
    """The report of an ablation: the tables that the ablation wrote itself, and the figure of its factors."""
    record = experiment.record
    said = scored_items(record)
    cells, *factors = [replace(table, notes=[*table.notes, *said]) for table in ablation_tables(record)]
    figure, charts = marginals_figure(record), []
    if figure is not None:
        target = io.BytesIO()
        figure.savefig(target, format="png")
        caption = "Each level of each factor, averaged over the settings of the other factors that all levels have."
        charts = [Chart(target.getvalue(), "Mean of every level of every factor", caption)]
    sections = [
        Section("Settings of the grid", [cells]),
        Section("Factors", [*factors, *charts]),
        Section("Notes", [notes] if (notes := notes_table(record, [])) else []),
    ]
    return Document(title_of(experiment, []), facts(experiment), experiment.missing, sections, footer(experiment, []))
