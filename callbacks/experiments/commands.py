"""What the command line calls for ``crossval``, ``ablate`` and ``report``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from callbacks.experiments.runs import Plan

FitConfig = Callable[..., dict[str, Any]]


def run(
    command: str, program: list[str], options: dict[str, Any], fit_config: FitConfig, load: Callable[[str], Any]
) -> None:
    """Run an experiment and write its report.

    Args:
        command: ``crossval`` or ``ablate``.
        program: The command line tool, as words, for the runs.
        options: The command's own options.
        fit_config: Gives the configuration of ``fit``, with further options and their source where given.
        load: Reads a YAML file that must hold a mapping.

    Raises:
        ValueError: ``workers`` is below 1, or the experiment cannot be run.
        SystemExit: With code 1 when a run that was asked for has no result.
    """
    plan = Plan(program, options.pop("launcher"), options.pop("workers"))
    if plan.workers < 1:
        raise ValueError(f"--workers is {plan.workers}; it must be at least 1.")
    if command == "crossval":
        from callbacks.experiments.crossval import run_crossval

        code = run_crossval(fit_config(), plan, **options)
    else:
        from callbacks.experiments.ablation import run_ablation

        file = options.pop("grid")
        code = run_ablation(fit_config, plan, load(file), file, **options)
    report(fit_config()["trainer"]["default_root_dir"])
    if code:
        raise SystemExit(code)


def report(dir: str) -> None:
    """Write report.html, report.md and report.tex from the result files in a folder.

    Args:
        dir: Folder of a crossval, an ablate or a single run.
    """
    from callbacks.experiments.report.page import write_report

    page, *others = write_report(Path(dir))
    print(f"report: {page} ({', '.join(file.name for file in others)} beside it)")
