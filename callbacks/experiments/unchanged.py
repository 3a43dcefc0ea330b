"""Whether the runs of an experiment had the settings that it has now, as figures of others are not averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        ValueError: One had others, or does not say which it had; the message names the keys.
    """
    for run in finished:
        problem = other_settings(run)
        if problem:
            raise ValueError(
                f"{run.name} in {run.folder} {problem}. Figures of different settings are not averaged. Give "
                f"--trainer.default_root_dir another folder, or delete {run.folder} to run it again."
            )


def other_settings(run: Run) -> str:
    """What a finished run was trained with instead of its configuration, in words; empty when nothing differs."""
    import yaml

    try:
        file = run.folder / (TESTED if run.config["trainer"].get("max_epochs") == 0 else CONFIG)
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        return (
            f"has results, but its {file.name}, which says with which settings, cannot be read ({type(error).__name__})"
        )
    keys = list(differing(stored, run.config))
    named = [f"{key} (was {lookup(stored, key)}, is {lookup(run.config, key)})" for key in keys[:4]]
    rest = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return f"was finished with other settings: {', '.join(named)}{rest}" if keys else ""


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
