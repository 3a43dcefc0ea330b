"""The runs of an experiment: their command lines, which of them are finished, and what they found."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from callbacks.experiments.grid import counted
from callbacks.experiments.jobs import LOG, RECORD, RESULTS, Job, Outcome
from callbacks.experiments.launchers import gpus_a_run, run_jobs
from callbacks.experiments.unchanged import check_unchanged, not_its_own, other_settings
from callbacks.experiments.wandb_runs import named_logger
from callbacks.run_files import write_text
from callbacks.run_lock import take_lock

LOCK = ".experiment.lock"
MISTAKE = 2  # exit code of a run whose settings the user has to change
TRACES = {  # what an experiment leaves in its folder, and the command that it is of
    "crossval.json": "crossval", "fold_[0-9]*": "crossval", "ablation.json": "ablate", "cells": "ablate",
}  # fmt: skip
MAIN_FIGURES = ("fold/soft_map_macro", "fold/binary_map_macro")


class Run(NamedTuple):
    """One run of an experiment.

    Attributes:
        name: For people.
        folder: Where it writes.
        settings: Dotted key to value, on top of the experiment's configuration.
        config: The configuration that results.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    config: dict[str, Any]


class State(NamedTuple):
    """What is known of a run from its folder.

    Attributes:
        status: ``done``, ``failed``, or ``missing`` when it never ended.
        seconds: How long it took, where known.
        error: Why it failed, and where its log is.
        block: The block ``test`` of its results; empty when it is not done.
    """

    status: str
    seconds: float | None
    error: str
    block: dict[str, Any]


class Plan(NamedTuple):
    """How the runs of an experiment are started.

    Attributes:
        program: The command line tool, as words.
        launcher: ``local`` or ``ray``.
        workers: Runs at a time.
    """

    program: list[str]
    launcher: str = "local"
    workers: int = 1


def perform(
    runs: Sequence[Run], config: dict[str, Any], saved_as: Path, plan: Plan, figures: Sequence[str],
    chosen: Sequence[Run] | None = None, hopeless: Callable[[], str] = str,
) -> int:  # fmt: skip
    """Run what is not finished yet.

    Args:
        runs: All runs of the experiment; those that are finished must have had the settings of now.
        config: The experiment's configuration.
        saved_as: Where it is saved; the runs read it there, so its name must not be one that a run writes.
        plan: How to start them.
        figures: The metrics to name as a run ends: the first one that it has.
        chosen: The runs to start where they are missing; None = all.
        hopeless: Called when a run is done; why no more are to be started, empty when nothing speaks against it.

    Returns:
        Number of runs that were started.

    Raises:
        ValueError: A finished run had other settings, or no more runs were started: ``hopeless`` said why, or one
            ended with a mistake of the user before any had ended well.
        SystemExit: With code 130 when it was interrupted; finished runs are kept.
    """
    finished = finished_of(runs)
    check_unchanged(finished)
    chosen = runs if chosen is None else chosen
    open_runs = [run for run in chosen if run not in finished]
    earlier = len(chosen) - len(open_runs)
    print(f"{counted(len(chosen), 'run')}, {earlier} of them finished earlier, in {saved_as.parent}", flush=True)
    for run in open_runs:
        if (state := read_state(run)).status == "failed":
            print(f"{run.name} is made again: {state.error}", flush=True)
    if not open_runs:
        return 0
    write_yaml(saved_as, config)
    group = experiment_name(config)
    by_folder = {str(run.folder.absolute()): run for run in open_runs}
    jobs = [
        Job(run.name, folder, command(run, saved_as, plan, group), os.getcwd()) for folder, run in by_folder.items()
    ]

    gpus = {gpus_a_run(run.config["trainer"]) for run in open_runs}
    well: list[str] = []

    def told(job: Job, outcome: Outcome) -> tuple[str, str]:
        run = by_folder[job.folder]
        state = read_state(run)
        if outcome.code == 0:
            well.append(job.name)
        if state.status != "done":
            mistake = outcome.code == MISTAKE and not well  # then the others would end likewise
            return f"FAILED, {state.error}", f"{job.name}: {state.error}." if mistake else ""
        return other_settings(run) or f"done: {figure_text(state.block, figures)}", hopeless()

    try:
        run_jobs(jobs, plan.launcher, plan.workers, -1 if -1 in gpus else max(gpus), told)
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            print("Stopped, and what ran with it. The same command goes on with what is missing.", flush=True)
        raise SystemExit(130) from None
    check_unchanged(finished_of(runs))  # somebody may have trained in a folder meanwhile
    return len(jobs)


def finished_of(runs: Sequence[Run]) -> list[Run]:
    """Those of the runs that are finished."""
    return [run for run in runs if read_state(run).status == "done"]


def check_folder(folder: Path, command: str) -> None:
    """See that a folder holds no experiment of the other kind.

    Args:
        folder: Of the experiment.
        command: ``crossval`` or ``ablate``.

    Raises:
        ValueError: It does.
    """
    for trace, owner in TRACES.items():
        found = next(folder.glob(trace), None)
        if found and owner != command:
            raise ValueError(
                f"{folder} is the folder of another experiment: {owner} made {found.name} there. Give {command} a "
                "folder of its own with another --trainer.default_root_dir."
            )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second experiment out of a folder while one runs there.

    Args:
        folder: Of the experiment.

    Raises:
        ValueError: Another one runs there.
    """
    lock = take_lock(folder / LOCK)
    if lock is None:
        raise ValueError(
            f"an experiment is running in {folder}: another process holds {folder / LOCK}. Two would train in the same "
            "folders. Wait until it has ended, or give --trainer.default_root_dir another folder."
        )
    try:
        yield
    finally:
        lock.release()


def command(run: Run, config_file: Path, plan: Plan, group: str) -> list[str]:
    """The command line of a run: ``fit`` and its test, or with ``max_epochs`` 0, where nothing is trained, ``test``.

    A run that was interrupted starts anew, as resumed loaders do not repeat their order: every figure of an
    experiment then stems from an uninterrupted training.
    """
    settings = dict(run.settings)
    parts = [part for part in run.folder.relative_to(config_file.parent).parts if part != "cells"]
    logger = named_logger(run.config["trainer"].get("logger"), "-".join([group, *parts]), group)
    if logger is not None:
        settings["trainer.logger"] = logger
    settings |= {"trainer.default_root_dir": str(run.folder), "test_after_fit": True}
    name = "test" if run.config["trainer"].get("max_epochs") == 0 else "fit"
    return [*plan.program, name, "-c", str(config_file), *options(settings)]


def options(settings: dict[str, Any]) -> list[str]:
    """Settings as options of the command line.

    >>> options({"model.init_args.bits": 32, "model.init_args.head": "knn", "trainer.logger": None})
    ['--model.init_args.bits=32', '--model.init_args.head=knn', '--trainer.logger=null']
    """
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return [f"--{key}={word}" for key, word in words.items()]


def read_state(run: Run) -> State:
    """What is known of a run from its folder; it is done when the results there are its own, see ``not_its_own``.

    A results file that cannot be read counts as none.
    """
    try:
        record = json.loads((run.folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    try:
        block = json.loads((run.folder / RESULTS).read_text(encoding="utf-8"))["test"]
        cause = not_its_own(run, block)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        block, cause = {}, ""
    if block and not cause:
        return State("done", record.get("seconds"), "", block)
    if not record and not block:
        return State("missing", None, "", {})
    error = record.get("error") or cause or "it ended without the results of a test"
    return State("failed", record.get("seconds"), f"{error}; log: {run.folder / LOG}", {})


def with_settings(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with some dotted keys set."""
    copied = copy.deepcopy(config)
    for key, value in settings.items():
        *parents, last = key.split(".")
        place = copied
        for name in parents:
            place = place[name]
        place[last] = value
    return copied


def experiment_name(config: dict[str, Any]) -> str:
    """The name of the W&B logger, else that of the folder."""
    logger = config["trainer"].get("logger")
    entries = logger if isinstance(logger, list) else [logger]
    names = [(entry.get("init_args") or {}).get("name") for entry in entries if isinstance(entry, dict)]
    return str(next(filter(None, names), Path(config["trainer"]["default_root_dir"]).resolve().name))


def figure_text(block: dict[str, Any], figures: Sequence[str]) -> str:
    """The first of ``figures`` that a run has, else its first metric, as text."""
    metrics = block.get("metrics") or {}
    name = next((name for name in figures if name in metrics), next(iter(metrics), None))
    value = metrics.get(name)
    return "no metric" if name is None else f"{name} {'not a number' if value is None else f'{value:.4f}'}"


def write_yaml(file: Path, content: Any) -> None:
    """Write YAML, the file being replaced in one step."""
    import yaml

    write_text(file, yaml.safe_dump(content, sort_keys=False))


def write_json(file: Path, content: Any) -> None:
    """Write JSON, the file being replaced in one step; numbers that are not finite become null."""
    from callbacks.results import finite

    write_text(file, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")
