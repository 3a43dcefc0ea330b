"""The grid of an ablation: factors, their levels, and the cells that combine them."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

EXAMPLE = (
    "Write `model.init_args.bits: [32, 64]`, or name levels that set several keys: `head: {linear: "
    "{model.init_args.head: linear}, knn: {model.init_args.head: knn, model.init_args.knn_neighbours: 20}}`."
)
OWN = {  # keys that the experiment sets itself
    "seed_everything": "The seeds are given with --seeds.",
    "trainer.default_root_dir": "Each cell has its own folder below trainer.default_root_dir of the command line.",
    "test_after_fit": "Every cell is tested.",
}


class Factor(NamedTuple):
    """What an ablation varies.

    Attributes:
        name: A dotted key, or a name of one's own.
        levels: (value to show, dotted key to value) for each level.
    """

    name: str
    levels: list[tuple[Any, dict[str, Any]]]

    @property
    def label(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


class Cell(NamedTuple):
    """One combination of levels.

    Attributes:
        settings: Name of the factor to the value to show.
        overrides: Dotted key to value.
        folder: Name of its folder: readable, and another one for other overrides.
    """

    settings: dict[str, Any]
    overrides: dict[str, Any]
    folder: str

    @property
    def text(self) -> str:
        """The combination for people."""
        return ", ".join(f"{name.rpartition('.')[2]} {show(value)}" for name, value in self.settings.items())


def read_factors(content: Mapping[str, Any], source: str) -> list[Factor]:
    """The factors of a grid.

    Args:
        content: What the file holds.
        source: Its name, for messages.

    Returns:
        The factors, in the file's order.

    Raises:
        ValueError: The file holds no factor, a factor no levels, or two factors set the same key.

    Example:
        >>> [factor.levels for factor in read_factors({"model.init_args.bits": [32, 64]}, "bits.yaml")]
        [[(32, {'model.init_args.bits': 32}), (64, {'model.init_args.bits': 64})]]
    """
    factors = [_factor(str(name), entry, source) for name, entry in content.items()]
    if not factors:
        raise ValueError(f"grid {source} is empty. {EXAMPLE}")
    owners: dict[str, str] = {}
    for factor in factors:
        for key in {key for _, overrides in factor.levels for key in overrides}:
            if key in OWN:
                raise ValueError(f"grid {source}: {factor.name} sets {key}. {OWN[key]}")
            if key in owners:
                raise ValueError(f"grid {source}: {owners[key]} and {factor.name} both set {key}; keep it in one.")
            owners[key] = factor.name
    return factors


def cells_of(factors: Sequence[Factor]) -> list[Cell]:
    """All combinations of the levels, the last factor varying fastest.

    Example:
        >>> [cell.text for cell in cells_of(read_factors({"model.bits": [32, 64], "model.lr": [0.1]}, "g"))]
        ['bits 32, lr 0.1', 'bits 64, lr 0.1']
    """
    cells = []
    for levels in itertools.product(*(factor.levels for factor in factors)):
        overrides = {key: value for _, part in levels for key, value in part.items()}
        mark = hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:6]
        words = [f"{factor.label}-{show(value)}" for factor, (value, _) in zip(factors, levels, strict=True)]
        name = "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", word) for word in words)
        settings = {factor.name: value for factor, (value, _) in zip(factors, levels, strict=True)}
        cells.append(Cell(settings, overrides, f"{name[:80]}_{mark}"))
    return cells


def show(value: Any) -> str:
    """A value for people.

    >>> show(None), show(True), show([1, 2]), show("knn")
    ('null', 'true', '[1, 2]', 'knn')
    """
    return value if isinstance(value, str) else json.dumps(value)


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "run"), counted(2, "run")
    ('1 run', '2 runs')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _factor(name: str, entry: Any, source: str) -> Factor:
    if isinstance(entry, list) and entry:
        levels = [(value, {name: value}) for value in entry]
    elif isinstance(entry, dict) and entry and all(isinstance(part, dict) and part for part in entry.values()):
        levels = [(str(level), {str(key): value for key, value in part.items()}) for level, part in entry.items()]
    else:
        raise ValueError(f"grid {source}: {name} has no list of values and no named levels. {EXAMPLE}")
    texts = [json.dumps(overrides, sort_keys=True, default=str) for _, overrides in levels]
    double = [show(value) for place, (value, _) in enumerate(levels) if texts[place] in texts[:place]]
    if double:
        raise ValueError(f"grid {source}: {name} lists {double[0]} twice.")
    return Factor(name, levels)
