"""Finds the mistake behind a command line that could not be parsed.

The parser's own text names the outermost key and lists Python types. Here the settings are walked once more, beside
the parser's options and the signatures of the chosen classes, up to the first key, class or value that does not fit;
the parser's text is read only when that finds nothing.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lightning_modules.messages.settings import Mistake, Setting, load_config, nearest, read_settings, whole_path

SPEC = {"class_path", "init_args", "dict_kwargs"}
ANY_TEXT = (str, Any)


def explain_parse_failure(parsers: dict[str, ArgumentParser], tokens: list[str], text: str) -> str:
    """The message for a command line that the parser refused.

    Args:
        parsers: The parser of each subcommand.
        tokens: The arguments after the name of the program.
        text: What the parser said.

    Returns:
        One readable paragraph that names the key and the nearest valid ones.
    """
    try:
        command, settings = read_settings(tokens, list(parsers))
        if command is None:
            raise Mistake(f"no command is given. Commands: {', '.join(parsers)}.")
        walk = SettingsWalk(parsers[command])
        for setting in settings:
            walk.check(setting)
        return f"{command}: {from_parser_text(text, walk.chosen)}"
    except Mistake as mistake:
        return str(mistake)


class SettingsWalk:
    """Checks settings one after the other, remembering the classes that earlier ones chose.

    Args:
        parser: The parser of the subcommand.
    """

    def __init__(self, parser: ArgumentParser) -> None:
        self.options = option_types(parser)
        self.chosen: dict[str, type] = {}
        self.source = ""

    def check(self, setting: Setting) -> None:
        """Raise a Mistake when a key, class or value of ``setting`` does not fit."""
        self.source = setting.source
        value = setting.value
        if isinstance(value, str) and setting.source == "the command line" and value[:1] in ("{", "["):
            value = yaml.safe_load(value)
        parts = setting.key.split(".")
        for name in reversed(parts[1:]):
            value = {name: value}
        self._option(self.options, parts[0], value, "")

    def _option(self, options: dict[str, Any], dest: str, value: Any, prefix: str) -> None:
        """Check one option ``dest``, or the group of options below it. ``prefix`` is what stands before it."""
        dest = dest.rstrip("+")
        if dest in options:
            self._value(prefix + dest, value, options[dest])
            return
        group = [name for name in options if name.startswith(dest + ".")]
        if not group:
            self._unknown(options, dest, prefix)
        if isinstance(value, str):
            value = load_config(value, self.source)
        for name, entry in (value or {}).items():
            self._option(options, f"{dest}.{name}", entry, prefix)

    def _unknown(self, options: dict[str, Any], dest: str, prefix: str) -> None:
        parent = dest.rpartition(".")[0]
        start = f"{parent}." if parent else ""
        siblings = {name[len(start) :].split(".")[0] for name in options if name.startswith(start)}
        if not prefix and not parent:  # a bare argument of the model or the data, written without its place
            places = [f"{key}.init_args" for key, owner in self.chosen.items() if dest in option_types(owner)]
            if places:
                raise Mistake(f"unknown key {dest!r} ({self._where()}). It belongs to {places[0]}.{dest}.")
        place = f"Valid below {(prefix + parent).rstrip('.')}" if prefix + parent else "Valid"
        near = nearest(dest[len(start) :], siblings, place)
        raise Mistake(f"unknown key {prefix + dest!r} ({self._where()}).{near}")

    def _value(self, key: str, value: Any, hint: Any) -> None:
        """Check a value against its type; values that build classes are followed into their arguments."""
        bases = class_bases(hint)
        entries = value if isinstance(value, list) and bases else [value]
        for place, entry in enumerate(entries):
            name = f"{key}[{place}]" if isinstance(value, list) and bases else key
            if bases and isinstance(entry, str) and entry.endswith((".yaml", ".yml", ".json")):
                entry = load_config(entry, self.source)
            if bases and isinstance(entry, dict):
                self._class_spec(name, entry, bases)
            elif bases and isinstance(entry, str) and not set(ANY_TEXT) & set(flat_types(hint)):
                if not _fits(entry, hint) or "." in entry or entry in subclass_names(bases):
                    self.chosen[name] = self._resolve(name, entry, bases)
            elif not _fits(entry, hint):
                shown = repr(entry) if isinstance(entry, str) else str(entry)
                raise Mistake(f"{name} is {shown} ({self._where()}); expected {describe(hint)}.")

    def _class_spec(self, key: str, spec: dict[str, Any], bases: list[type]) -> None:
        if "class_path" in spec:
            self.chosen[key] = self._resolve(key, str(spec["class_path"]), bases)
        of_list = [name for name in self.chosen if name.startswith(f"{key}[")]  # settings without place reach the last
        owner = self.chosen.get(key, self.chosen[of_list[-1]] if of_list else None)
        if owner is None and len(bases) == 1 and not inspect.isabstract(bases[0]) and not SPEC & set(spec):
            owner = bases[0]
        if owner is None:
            names = ", ".join(sorted(subclass_names(bases))[:40])
            raise Mistake(f"{key} ({self._where()}) has settings but no class_path. Classes: {names}.")
        stray = [name for name in spec if name not in SPEC]
        if stray and SPEC & set(spec):
            raise Mistake(
                f"unknown key {key + '.' + stray[0]!r} ({self._where()}); arguments of {owner.__name__} stand "
                f"below {key}.init_args.{nearest(stray[0], [*SPEC, *option_types(owner)])}"
            )
        arguments = spec if stray else spec.get("init_args") or {}
        options = option_types(owner)
        for name, entry in arguments.items():
            self._option(options, name, entry, f"{key}.init_args.")

    def _resolve(self, key: str, name: str, bases: list[type]) -> type:
        """The class called ``name``, with or without its path."""
        known = subclass_names(bases)
        if name in known:
            return known[name]
        if "." not in name:
            kinds = " or ".join(base.__name__ for base in bases)
            cure = nearest(name, known, "Classes") if known else whole_path(name)
            raise Mistake(f"{key}: there is no {kinds} called {name!r} ({self._where()}).{cure}")
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise Mistake(
                f"{key}: class path {name!r} ({self._where()}) cannot be imported: {error}."
                f"{nearest(attribute, known, 'Classes')}"
            ) from error
        protocol = any(getattr(base, "_is_protocol", False) for base in bases)
        if not isinstance(found, type) or not (protocol or issubclass(found, tuple(bases))):
            kinds = " or ".join(base.__name__ for base in bases)
            raise Mistake(f"{key}: {name!r} ({self._where()}) is no {kinds}.{nearest(attribute, known, 'Classes')}")
        return found

    def _where(self) -> str:
        return f"in {self.source}" if self.source.endswith((".yaml", ".yml", ".json")) else f"on {self.source}"


def option_types(owner: ArgumentParser | type) -> dict[str, Any]:
    """The options of a parser, or the arguments of a class, with their types.

    Args:
        owner: A parser, or a class whose constructor is read (through ``**kwargs`` too).

    Returns:
        Dotted name to type; ``Any`` where the type is unknown.
    """
    if isinstance(owner, type):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(owner, fail_untyped=False, sub_configs=True)
    else:
        parser = owner
    skipped = {"help", "config", "print_config", "print_shtab", "subcommand", "==SUPPRESS=="}
    hints = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        name = action.dest
        # the option of a whole group (--trainer FILE) has no type: its members are checked instead
        if name not in skipped and not name.endswith(".help") and (hint is not None or action.type is not None):
            hints[name] = hint if hint is not None else action.type
    return hints


def flat_types(hint: Any) -> list[Any]:
    """The types that a union, list or optional is made of.

    Example:
        >>> flat_types(list[int] | None)
        [<class 'int'>, <class 'NoneType'>]
    """
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal or not inner:
        return [hint]
    return [entry for part in inner for entry in flat_types(part)]


def class_bases(hint: Any) -> list[type]:
    """The classes of a type that are built from a ``class_path``."""
    plain = ("builtins", "typing", "collections.abc", "pathlib", "types", "datetime", "jsonargparse.typing")
    found = [
        entry
        for entry in flat_types(hint)
        if isinstance(entry, type) and entry.__module__ not in plain and not hasattr(entry, "__members__")
    ]
    return list(dict.fromkeys(found))


def subclass_names(bases: Iterable[type]) -> dict[str, type]:
    """The concrete classes below ``bases`` that are loaded, by name."""
    found: dict[str, type] = {}
    queue = list(bases)
    while queue:
        entry = queue.pop()
        queue.extend(entry.__subclasses__())
        hidden = entry.__name__.startswith("_") or "<locals>" in entry.__qualname__ or "._" in entry.__module__
        if not (inspect.isabstract(entry) or hidden or getattr(entry, "_is_protocol", False)):
            found.setdefault(entry.__name__, entry)
    # the common parents of the suite are no choice
    return {name: entry for name, entry in found.items() if name not in ("BaseModule", "BaseDataModule")}


def describe(hint: Any) -> str:
    """A type in words.

    Example:
        >>> describe(int | None)
        'int or null'
        >>> describe(typing.Literal["min", "max"])
        "one of 'min', 'max'"
    """
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(repr(entry) for entry in typing.get_args(hint))}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(describe(entry) for entry in typing.get_args(hint))
    if hint is type(None):
        return "null"
    if typing.get_args(hint):
        inner = ", ".join(describe(entry) for entry in typing.get_args(hint))
        return f"{getattr(typing.get_origin(hint), '__name__', hint)} of {inner}"
    return getattr(hint, "__name__", str(hint))


def from_parser_text(text: str, chosen: dict[str, type]) -> str:
    """What remains of the parser's text: missing arguments, or its first sentences.

    Args:
        text: What the parser said.
        chosen: The classes that the settings chose, by key.

    Returns:
        A message.

    Example:
        >>> from_parser_text("the following arguments are required: fit.data, fit.model", {})
        '--data, --model must be given, on the command line or in a config file.'
    """
    missing = re.findall(r"(?:class_path '([^']+)':\s+)?the following arguments are required: ([^\n]+)", text)
    if missing:
        path, names = missing[-1]
        if not path:
            plain = [f"--{name.strip().split('.', 1)[-1]}" for name in names.split(",")]
            return f"{', '.join(plain)} must be given, on the command line or in a config file."
        owner = path.rpartition(".")[2]
        key = next((name for name, entry in chosen.items() if entry.__name__ == owner), "")
        wanted = ", ".join(f"{key}.init_args.{name.strip()}" if key else name.strip() for name in names.split(","))
        return f"{owner} needs {wanted}, which is not given."
    lines = [line.strip(" -") for line in text.splitlines()]
    return " ".join(line for line in lines if line)[:600]


def _fits(value: Any, hint: Any) -> bool:
    """Whether the parser would take ``value`` for an option of type ``hint``."""
    if hint is Any:
        return True
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except (ValueError, TypeError):
        return True  # a type that only its own parser understands
    try:
        parser.parse_args([f"--value={value}"]) if isinstance(value, str) else parser.parse_object({"value": value})
    except (ArgumentError, TypeError, ValueError):
        return False
    return True
