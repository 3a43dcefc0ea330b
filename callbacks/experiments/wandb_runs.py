"""The W&B runs of an experiment: one group, a run for each fold or cell, and one with the summary."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

OF_INIT = ("project", "entity", "tags", "notes")  # what the summary's run takes over from the logger


def wandb_settings(logger: Any) -> dict[str, Any] | None:
    """The settings of the W&B logger of a configuration.

    Args:
        logger: ``trainer.logger``.

    Returns:
        All of its arguments; None when there is no such logger.
    """
    for entry in logger if isinstance(logger, list) else [logger]:
        if isinstance(entry, dict) and str(entry.get("class_path", "")).endswith("WandbLogger"):
            return {**(entry.get("init_args") or {}), **(entry.get("dict_kwargs") or {})}
    return None


def named_logger(logger: Any, name: str, group: str) -> Any:
    """The logger setting of one run.

    Args:
        logger: ``trainer.logger`` of the experiment.
        name: Name of the run.
        group: Name of the experiment.

    Returns:
        The setting with name and group filled in; None when nothing has to be changed, as W&B is not used.
    """
    if wandb_settings(logger) is None:
        return None
    named = copy.deepcopy(logger)
    for entry in named if isinstance(named, list) else [named]:
        if wandb_settings(entry) is not None:
            entry["init_args"] = {**(entry.get("init_args") or {}), "name": name, "group": group}
            entry.get("dict_kwargs", {}).pop("group", None)
    return named


def log_summary(logger: Any, name: str, folder: Path, config: dict[str, Any], values: dict[str, float | None]) -> None:
    """Write a run ``<name>-summary`` into the experiment's group; nothing without a W&B logger.

    Args:
        logger: ``trainer.logger`` of the experiment.
        name: Name of the experiment.
        folder: Its folder.
        config: Its configuration.
        values: What stands in the run's summary.
    """
    from callbacks.loggers import fall_back_to_offline

    settings = wandb_settings(logger)
    if settings is None:
        return
    reason = fall_back_to_offline()
    if reason is not None:
        print(f"W&B runs offline: {reason}.", file=sys.stderr)
    import wandb

    taken = {key: settings[key] for key in OF_INIT if settings.get(key)}
    mode = "offline" if settings.get("offline") else None
    run = wandb.init(
        **taken, mode=mode, dir=str(folder), name=f"{name}-summary", group=name, job_type="summary", config=config
    )
    run.summary.update({key: value for key, value in values.items() if value is not None})
    kept = Path(run.dir).parent
    run.finish()
    if kept.name.startswith("offline-run-"):
        print(f"W&B summary kept on this machine; to send it: wandb sync {kept}")
