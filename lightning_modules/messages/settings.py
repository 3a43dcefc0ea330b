"""Reads what the user wrote, option by option, so that a message can say where a mistake stands."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

SHOWN = 4  # nearest names that a message lists
FLAGS = ("-h", "--help", "--print_config", "--print_shtab")


class Mistake(Exception):
    """One mistake of the user, told in one readable message."""


class Setting(NamedTuple):
    """One setting of the user.

    Attributes:
        key: Dotted key, without the leading dashes.
        value: What stands there: the text of an option, or the loaded YAML of a file.
        source: Where it stands: ``the command line`` or the name of the file.
    """

    key: str
    value: Any
    source: str


def nearest(name: str, valid: Iterable[str], among: str = "Valid") -> str:
    """The names of ``valid`` that ``name`` may have meant, as the end of a message.

    Args:
        name: What the user wrote.
        valid: What could have been written.
        among: What the valid names are, for the case that none is near and all are listed.

    Returns:
        A sentence that starts with a space; empty without valid names.

    Example:
        >>> nearest("max_epoch", ["max_epochs", "min_epochs", "logger"])
        ' Nearest: max_epochs, min_epochs.'
        >>> nearest("zzz", ["fit", "test"], among="Commands")
        ' Commands: fit, test.'
    """
    known = sorted(set(valid))
    folded = {entry.lower(): entry for entry in known}
    close = [folded[entry] for entry in difflib.get_close_matches(name.lower(), list(folded), n=SHOWN, cutoff=0.6)]
    if close:
        return f" Nearest: {', '.join(close)}."
    if not known:
        return ""
    rest = f" and {len(known) - 40} more" if len(known) > 40 else ""
    return f" {among}: {', '.join(known[:40])}{rest}."


def load_config(path: str, source: str = "the command line") -> dict[str, Any]:
    """The content of a configuration file.

    Args:
        path: The file, as the user wrote it.
        source: Where the name stands.

    Returns:
        The mapping that the file holds.

    Raises:
        Mistake: When the file is missing, is no YAML, or holds no mapping.
    """
    file = Path(path)
    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else Path("configs")
        names = [str(entry) for entry in [*folder.glob("*.yaml"), *Path("configs").rglob("*.yaml")]]
        raise Mistake(f"config file {path!r} (on {source}) does not exist.{nearest(path, names, 'There are')}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise Mistake(f"config file {path!r} is not valid YAML:{place} {error.problem or error.context}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise Mistake(f"config file {path!r} is not valid YAML: {error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise Mistake(f"config file {path!r} must hold `key: value` lines; it holds a {type(content).__name__}.")
    return content


def read_settings(tokens: list[str], commands: list[str]) -> tuple[str | None, list[Setting]]:
    """The subcommand and the settings of a command line, config files opened, in the order in which they count.

    Args:
        tokens: The arguments after the name of the program.
        commands: The subcommands that exist.

    Returns:
        The subcommand (None without one) and the settings.

    Raises:
        Mistake: When an argument cannot be read: an unknown subcommand, a stray word, an unreadable config file.
    """
    command: str | None = None
    settings: list[Setting] = []
    queue = list(tokens)
    while queue:
        token = queue.pop(0)
        if not token.startswith("-") or token == "-":
            if command is not None:
                written = f"-c {token}" if token.endswith((".yaml", ".yml")) else "--key value"
                raise Mistake(f"unexpected argument {token!r}: options are written as {written}.")
            if token not in commands:
                raise Mistake(f"unknown command {token!r}.{nearest(token, commands, 'Commands')}")
            command = token
            continue
        name, equals, value = token.partition("=")
        if name in FLAGS or name.endswith(".help"):
            continue
        if not equals:
            if not queue or _is_option(queue[0]):
                raise Mistake(f"option {name} needs a value.")
            value = queue.pop(0)
        if name in ("-c", "--config"):
            content = load_config(value)
            if command is None:  # a file before the subcommand holds one section for each subcommand
                content = {k: v for part in content.values() if isinstance(part, dict) for k, v in part.items()}
            settings.extend(Setting(str(key), entry, value) for key, entry in content.items())
        else:
            settings.append(Setting(name.lstrip("-"), value, "the command line"))
    return command, settings


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values at the ends of nested mappings.

    Args:
        value: Nested mappings.
        key: What stands before the keys.

    Yields:
        Key and value.

    Example:
        >>> list(leaves({"a": {"b": 1, "c": [2]}}))
        [('a.b', 1), ('a.c', [2])]
    """
    if isinstance(value, dict) and value:
        for name, entry in value.items():
            yield from leaves(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _is_option(token: str) -> bool:
    """Whether ``token`` is the next option rather than a value; a negative number is a value."""
    if not token.startswith("-") or token == "-":
        return False
    try:
        float(token)
    except ValueError:
        return True
    return False


def whole_path(name: str) -> str:
    """The cure for a class that is found by its path only: the path of the backbone with the nearest name.

    >>> whole_path("Felzenswalb")
    ' Write the whole path, as lightning_modules.backbones.masks.Felzenszwalb.'
    """
    folder = Path(__file__).parents[1] / "backbones"
    found = {
        each: f"lightning_modules.backbones.{file.stem}.{each}"
        for file in folder.glob("*.py")
        for each in re.findall(r"^class (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    alike = difflib.get_close_matches(name, found, n=1, cutoff=0.4) or ["Felzenszwalb"]
    return f" Write the whole path, as {found[alike[0]]}."
