"""Class lines as texts: several ways to name a class, each a query of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lightning_modules.backbones.encoder import FrozenEncoder
from lightning_modules.backbones.prompts import class_embeddings, prompt_templates

SYNONYMS = ";"  # separates the ways to name a class


@dataclass(frozen=True)
class Classes:
    """What is looked for in a picture.

    Args:
        names: C names, in the order of the labels.
        text: Unit embeddings (Q, D) of the queries.
        class_of: (Q,) class of each query, ascending.
    """

    names: tuple[str, ...]
    text: Tensor
    class_of: Tensor

    def to(self, device: torch.device) -> Classes:
        """The same on another device."""
        return replace(self, text=self.text.to(device), class_of=self.class_of.to(device))


def prompt_classes(
    encoder: FrozenEncoder,
    lines: Sequence[str],
    templates: str | Sequence[str] = "imagenet",
    cache_dir: str | None = None,
) -> Classes:
    """Encode class lines.

    Args:
        encoder: Its text tower encodes.
        lines: C class lines, see :func:`split_lines`.
        templates: Prompt templates, see ``backbones.prompts.prompt_templates``.
        cache_dir: Folder where the embeddings are kept; None = nowhere.

    Returns:
        The classes under their first names, on the encoder's device.

    Raises:
        ValueError: No class, or a class without a name or with the name of another.
    """
    queries, class_of = split_lines(lines)
    text = class_embeddings(encoder, queries, prompt_templates(templates), cache_dir)
    return Classes(tuple(first_names(lines)), text, torch.tensor(class_of, device=text.device))


def split_lines(lines: Sequence[str]) -> tuple[list[str], list[int]]:
    """Queries and the class of each.

    Args:
        lines: C class lines, ways to name a class separated by ``";"``, with a blank after it or without.

    Returns:
        Q queries, and Q classes, ascending.

    Raises:
        ValueError: No class, a class without a name, or one name twice.

    >>> split_lines(["sky; wall", "cat;kitten"])
    (['sky', 'wall', 'cat', 'kitten'], [0, 0, 1, 1])
    """
    if not lines:
        raise ValueError("There is no class. Name at least one in model.init_args.class_lines, as [cat, dog].")
    queries = [(name.strip(), number) for number, line in enumerate(lines) for name in line.split(SYNONYMS)]
    if nameless := [number for name, number in queries if not name]:
        raise ValueError(f"Class {nameless[0]}, counted from 0, has no name: '{lines[nameless[0]]}'. Name each class.")
    names = [name for name, _ in queries]
    if double := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"The name '{double[0]}' occurs twice among the classes. Give each name once.")
    return names, [number for _, number in queries]


def read_lines(path: str) -> list[str]:
    """The class lines of a text file, one a line; empty lines are none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not text in UTF-8.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"Class file {file} does not exist. Write one line a class, or give a list: [cat, dog]."
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"Class file {file} is not text in UTF-8 ({error.reason}). Save it as UTF-8.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def first_names(lines: Sequence[str]) -> list[str]:
    """The first way to name each class."""
    return [line.split(SYNONYMS)[0].strip() for line in lines]
