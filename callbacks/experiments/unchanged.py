"""Whether results are those of their run and had the settings of now, as figures of others are not averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callbacks.experiments.runs import Run

CONFIG = "config.yaml"  # what a run saves in its folder as it starts to train,
TESTED = "config_test.yaml"  # or to test, where it trains nothing
# settings that decide where a run writes and how it is fed, but not what it finds
FREE = (
    "ckpt_path",
    "weights_only",
    "test_after_fit",
    "verbose",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "data.init_args.num_workers",
    "data.init_args.pin_memory",
    "data.init_args.persistent_workers",
)


def check_unchanged(finished: Sequence[Run]) -> None:
    """See that finished runs had the settings that they would get now.

    Args:
        finished: Runs with results; each is compared with the configuration that it saved in its own folder.

    Raises:
        ValueError: One had others; the message names the keys.
    """
    for run in finished:
        problem = other_settings(run)
        if problem:
            raise ValueError(
                f"{run.name} in {run.folder} {problem}. Figures of different settings are not averaged. Give "
                f"--trainer.default_root_dir another folder, or delete {run.folder} to run it again."
            )


def other_settings(run: Run) -> str:
    """What a finished run was made with instead of its configuration, in words; empty when nothing differs."""
    told = told_differences(saved(own_config(run)), run.config)
    return f"was finished with other settings: {told}" if told else ""


def not_its_own(run: Run, block: Mapping[str, Any]) -> str:
    """Why results are not those of the run in whose folder they lie, in words; empty when they are.

    ``config_sha256`` of the results names the configuration that made them. They are the run's own when that is the one
    which the run saved as it began: ``config.yaml``, under which the test after the training runs too, or
    ``config_test.yaml`` where nothing is trained. A test by hand saves a ``config_test.yaml`` beside ``config.yaml``:
    it counts when both agree in all that decides a figure and it tested the best checkpoint that lies there. Results
    of an earlier training, of a part of the items or of the last weights are none, and the run is made again.

    Args:
        run: The run.
        block: The block ``test`` of its results.json.
    """
    own, made_by, tested = own_config(run), block.get("config_sha256"), block.get("checkpoint")
    if made_by and made_by == file_hash(own):
        by_hand = own.name == TESTED and tested  # nothing is trained, so no checkpoint was asked for
        return f"its results.json is of a test of {tested}, by hand" if by_hand else ""
    if own.name == TESTED or not made_by or made_by != file_hash(run.folder / TESTED):
        return f"its results.json was made with another configuration than its {own.name}"
    if told := told_differences(saved(own), saved(run.folder / TESTED)):
        return f"its results.json is of a test by hand with other settings: {told}"
    from callbacks.checkpoints import best_checkpoint

    try:
        best = best_checkpoint(run.folder / "checkpoints")
    except OSError:
        best = None
    if best is None or not tested or best.resolve() != Path(tested).resolve():
        return f"its results.json is of a test by hand of {tested or 'untrained weights'}, not of its best checkpoint"
    return ""


def own_config(run: Run) -> Path:
    """The file in which a run saves its configuration as it begins."""
    return run.folder / (TESTED if run.config["trainer"].get("max_epochs") == 0 else CONFIG)


def saved(file: Path) -> dict[str, Any]:
    """A saved configuration; an empty one where it cannot be read."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def file_hash(file: Path) -> str | None:
    """Sha256 of a file; None where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def told_differences(stored: Any, wanted: Any) -> str:
    """The keys whose values differ, with both values; empty without any."""
    keys = list(differing(stored, wanted))
    named = [f"{key} (was {lookup(stored, key)}, is {lookup(wanted, key)})" for key in keys[:4]]
    return ", ".join(named) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def differing(stored: Any, wanted: Any, key: str = "") -> Iterator[str]:
    """The dotted keys whose values differ; a key that is not there counts as null, those in FREE do not count.

    >>> list(differing({"a": {"b": 1, "c": None}}, {"a": {"b": 2}}))
    ['a.b']
    """
    if key in FREE:
        return
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in dict.fromkeys([*wanted, *stored]):
            yield from differing(stored.get(name), wanted.get(name), f"{key}.{name}" if key else str(name))
    elif stored != wanted:
        yield key


def lookup(config: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none.

    >>> lookup({"a": {"b": 1}}, "a.b")
    1
    """
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config
