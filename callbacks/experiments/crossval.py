"""K-fold cross-validation: one run a fold, each in a fresh process, then the summary of their result files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from callbacks.experiments.runs import (
    MAIN_FIGURES,
    Plan,
    Run,
    alone_in,
    check_folder,
    perform,
    read_state,
    with_settings,
)
from callbacks.experiments.unchanged import lookup

DEFAULT_FOLDS = 5


def run_crossval(config: dict[str, Any], plan: Plan, num_folds: int | None, folds: Sequence[int] | None) -> int:
    """Run the folds that are missing, then write and print the summary of all that are there.

    Args:
        config: Configuration of ``fit``; its ``trainer.default_root_dir`` becomes the folder of the experiment.
        plan: How to start the runs.
        num_folds: Number of folds; None = ``data.init_args.num_folds``, or 5 where that is null.
        folds: Folds to run now, from 0; None = all.

    Returns:
        Exit code: 1 when one of the folds that were asked for has no result, else 0.

    Raises:
        ValueError: The data has no folds, a number of folds is out of range, a finished fold had other
            settings, also one that was not asked for, as the summary is of all; another experiment runs there or
            an ablation stands there; or the first fold to end said what the user has to change.
    """
    from callbacks.experiments.summary import summarise

    total = fold_count(config, num_folds)
    chosen = chosen_folds(total, folds)
    folder = Path(config["trainer"]["default_root_dir"])
    check_folder(folder, "crossval")
    config = with_settings(config, {"data.init_args.num_folds": total, "data.init_args.fold": 0})
    runs = [fold_run(config, folder, fold) for fold in range(total)]
    with alone_in(folder):
        # not config.yaml: a plain fit with the same folder would replace it while folds are still to read it
        wanted = [runs[fold] for fold in chosen]
        started = perform(runs, config, folder / "crossval.yaml", plan, MAIN_FIGURES, wanted)
        summarise(folder, config, runs, announce=started > 0)
    return int(any(read_state(run).status != "done" for run in wanted))


def fold_run(config: dict[str, Any], folder: Path, fold: int) -> Run:
    """The run of one fold."""
    settings = {"data.init_args.fold": fold}
    return Run(f"fold {fold}", folder / f"fold_{fold}", settings, with_settings(config, settings))


def fold_count(config: dict[str, Any], num_folds: int | None) -> int:
    """The number of folds.

    Args:
        config: Configuration of ``fit``.
        num_folds: What the user asked for.

    Raises:
        ValueError: The data class knows no folds, or the number is below 2.
    """
    arguments = lookup(config, "data.init_args") or {}
    if not {"num_folds", "fold"} <= set(arguments):
        raise ValueError(
            f"{lookup(config, 'data.class_path')} cannot be cut into folds: it has no arguments num_folds and fold. "
            "Take a data class that has them, such as MultilabelData."
        )
    total = next(number for number in (num_folds, arguments["num_folds"], DEFAULT_FOLDS) if number is not None)
    if total < 2:
        raise ValueError(f"--num_folds is {total}; a cross-validation needs at least 2. For a single run take fit.")
    return total


def chosen_folds(total: int, folds: Sequence[int] | None) -> list[int]:
    """The folds to run, each once and in order.

    Raises:
        ValueError: One does not exist.
    """
    wrong = [fold for fold in folds or () if not 0 <= fold < total]
    if wrong or folds == []:
        raise ValueError(f"--folds is {list(folds or [])}; the folds are 0 to {total - 1}.")
    return sorted(set(range(total) if folds is None else folds))
