"""Writes what an evaluation found to results.json, and prints it with floor, convention and number of items."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.run_files import run_folder, write_text


class Results(Callback):
    """Writes ``results.json`` after ``validate`` and ``test`` and prints a table.

    The file holds one block for each stage; the other stage's block is kept. It is written to the side and moved into
    place, so a run that fails leaves the earlier file as it was. Where a training starts anew, it becomes
    ``results.previous.json``: its figures are of weights that ``best`` no longer names.

    A module may offer ``result_notes() -> dict`` to say what its figures mean. Understood are ``convention`` (text),
    ``n_<kind>`` (numbers of items), ``headline`` (the ends of the names that the printed table shows; the file has all)
    and ``random_<metric>`` (floors, for every metric whose name ends in ``<metric>``); a metric
    ``<part>/random_<metric>`` that was logged is such a floor too, first of all for its own part. Everything is copied
    into the file.

    Args:
        path: Where to write; None = ``results.json`` in the folder of the run.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the results of an earlier training aside, once the data and the model stand."""
        path = self._file(trainer)
        if trainer.is_global_zero and not (trainer.ckpt_path or trainer.fast_dev_run) and path.is_file():
            path.replace(path.with_suffix(".previous.json"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after ``validate``; the validations inside a training are curves, not results."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after ``test``."""
        self._write(trainer, pl_module, "test")

    def _file(self, trainer: Trainer) -> Path:
        """Where to write; asks all processes."""
        return Path(self.path) if self.path else run_folder(trainer) / "results.json"

    def _write(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path, folder = self._file(trainer), run_folder(trainer)
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        notes = pl_module.result_notes() if callable(getattr(pl_module, "result_notes", None)) else {}
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        block = {
            "stage": stage,
            "model": type(pl_module).__name__,
            "data": type(trainer.datamodule).__name__ if getattr(trainer, "datamodule", None) else None,
            "metrics": metrics,
            "floors": floors(metrics, notes),
            "n": item_counts(notes) or loader_counts(trainer, stage),
            "notes": notes,
            "seed": int(os.environ["PL_GLOBAL_SEED"]) if os.environ.get("PL_GLOBAL_SEED") else None,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "config_sha256": config_hash(trainer, folder),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "versions": versions(),
            "git_commit": git_commit(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        save_block(path, stage, block)
        print_table(block, path)


def save_block(path: Path, stage: str, block: dict[str, Any]) -> None:
    """Put ``block`` into the file, keeping the blocks of other stages; the file is replaced in one step.

    Args:
        path: The results file.
        stage: Name of the block.
        block: What to write; numbers that are not finite become null.
    """
    content: dict[str, Any] = {}
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            path.replace(path.with_suffix(".damaged.json"))  # somebody's results may still be read from it
    content[stage] = finite(block)
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")


def finite(value: Any) -> Any:
    """``value`` with None for the numbers that JSON cannot hold.

    Example:
        >>> finite({"a": [1.0, float("nan")]})
        {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def floors(metrics: dict[str, float], notes: dict[str, Any]) -> dict[str, float]:
    """The floor of every metric that has one.

    Args:
        metrics: Logged values by name.
        notes: What the module says of them.

    Returns:
        Metric name to the value that a trivial control reaches.

    Example:
        >>> floors({"test/i2t_map": 0.5, "test/random_map": 0.1}, {})
        {'test/i2t_map': 0.1}
        >>> floors({"test/map": 0.5, "test/random_map": 0.1, "fold/map": 0.6, "fold/random_map": 0.2}, {})
        {'test/map': 0.1, 'fold/map': 0.2}
    """
    known = {name.rpartition("/")[::2]: value for name, value in {**notes, **metrics}.items() if _is_floor(name)}
    found = {}
    for name in metrics:
        part, _, base = name.rpartition("/")
        ends = [key for key in known if base == key[1][7:] or base.endswith("_" + key[1][7:])]
        if ends and not _is_floor(name):
            found[name] = float(known[max(ends, key=lambda key: (key[0] == part, len(key[1])))])
    return found


def item_counts(notes: dict[str, Any]) -> dict[str, int]:
    """The numbers of items among the notes.

    Example:
        >>> item_counts({"n_query": 693.0, "convention": "all"})
        {'query': 693}
    """
    return {name[2:]: int(value) for name, value in notes.items() if name.startswith("n_")}


def loader_counts(trainer: Trainer, stage: str) -> dict[str, int]:
    """Items in the evaluation loaders, for modules that do not count themselves."""
    loaders = trainer.test_dataloaders if stage == "test" else trainer.val_dataloaders
    loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
    sets = [getattr(loader, "dataset", None) for loader in loaders]
    return {f"loader_{place}": len(entry) for place, entry in enumerate(sets) if hasattr(entry, "__len__")}


def config_hash(trainer: Trainer, folder: Path) -> str | None:
    """Sha256 of the config file that this run saved; None for a run that was not started by the command line."""
    names = [getattr(callback, "config_filename", None) for callback in trainer.callbacks]
    files = [folder / name for name in names if name and (folder / name).is_file()]
    return hashlib.sha256(files[0].read_bytes()).hexdigest() if files else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("clip-suite", "torch", "lightning", "torchmetrics"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the suite's source, with ``+changes`` when files differ from it; None outside a repository."""
    here = Path(__file__).resolve().parent.parent
    try:
        if not (here / ".git").exists():
            return None
        commit = _git(here, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def print_table(block: dict[str, Any], path: Path) -> None:
    """Print one table: metric, value, interval, floor; below it the number of items and the convention.

    Args:
        block: What is in the file.
        path: Where the file is.
    """
    from rich.console import Console
    from rich.table import Table

    metrics, found = block["metrics"], block["floors"]
    bounds = intervals(metrics)
    lines = [f"n: {', '.join(f'{value} {name}' for name, value in block['n'].items())}"] if block["n"] else []
    lines += [f"convention: {block['notes']['convention']}"] if "convention" in block["notes"] else []
    title = f"{block['model']} on {block['data']}, {block['stage']}"
    table = Table()
    table.add_column("metric", no_wrap=True)
    for name in ["value", *(["interval"] if bounds else []), "floor"]:
        table.add_column(name, justify="right")
    inside = {f"{name}{end}" for name in bounds for end in ("_low", "_high")}
    shown = tuple(block["notes"].get("headline", ("",)))
    for name, value in metrics.items():
        if not _is_floor(name) and name not in inside and name.endswith(shown):
            low_high = [bounds[name]] if name in bounds else [""] if bounds else []
            table.add_row(name, f"{value:.4f}", *low_high, f"{found[name]:.4f}" if name in found else "")
    console = Console()
    console.print(title, style="bold")
    console.print(table)
    for line in [*lines, f"written to {path}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def intervals(metrics: dict[str, float]) -> dict[str, str]:
    """The intervals of the metrics that were logged with a ``_low`` and a ``_high`` beside them; empty where unknown.

    Example:
        >>> intervals({"test/map": 0.5, "test/map_low": 0.4, "test/map_high": 0.6, "test/loss": 1.0})
        {'test/map': '0.4000 to 0.6000'}
    """
    both = [name for name in metrics if f"{name}_low" in metrics and f"{name}_high" in metrics]
    ends = {name: (metrics[f"{name}_low"], metrics[f"{name}_high"]) for name in both}
    return {name: "" if math.isnan(low) else f"{low:.4f} to {high:.4f}" for name, (low, high) in ends.items()}


def _is_floor(name: str) -> bool:
    return name.rpartition("/")[2].startswith("random_")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
