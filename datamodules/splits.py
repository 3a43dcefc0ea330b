"""Train, query and database parts: drawn from a seed, the same on every machine, saved and hashed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Splits = dict[str, list[str]]


def order_by_hash(ids: Sequence[str], seed: int) -> list[str]:
    """A shuffle that no library version, platform or file order can change.

    Args:
        ids: Names, all different.
        seed: Another seed is another order.

    Returns:
        The names in ascending order of ``sha256(seed/name)``. Adding or leaving out a name moves no other pair.

    Example:
        >>> order_by_hash(["a", "b", "c"], 0) == order_by_hash(["c", "a", "b"], 0)
        True
        >>> order_by_hash(["a", "b", "c"], 0), order_by_hash(["a", "b", "c"], 1)
        (['c', 'b', 'a'], ['a', 'b', 'c'])
    """
    return sorted(ids, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def draw_splits(ids: Sequence[str], num_query: int, num_train: int, seed: int) -> Splits:
    """The retrieval protocol: queries apart, everything else is the database, a part of the database trains.

    Args:
        ids: Names of all items, all different.
        num_query: Size of the query part.
        num_train: Size of the training part, which is the head of the database.
        seed: Seed of the order.

    Returns:
        ``train``, ``query`` and ``database``; query and database do not meet.

    Raises:
        ValueError: Too few items, or an empty part.

    Example:
        >>> splits = draw_splits([str(i) for i in range(10)], num_query=2, num_train=3, seed=0)
        >>> {name: len(part) for name, part in splits.items()}, splits["database"][:3] == splits["train"]
        ({'train': 3, 'query': 2, 'database': 8}, True)
    """
    if num_query < 1 or num_train < 1:
        raise ValueError(f"num_query is {num_query} and num_train {num_train}; both must be at least 1.")
    if num_query + num_train > len(ids):
        third = max(1, len(ids) // 3)
        raise ValueError(
            f"num_query {num_query} + num_train {num_train} are more than the {len(ids)} items there are. For a set "
            f"smaller than the protocol's pass smaller numbers, e.g. num_query: {third}, num_train: {third}."
        )
    if len(set(ids)) < len(ids):
        raise ValueError("Some items have the same id; splits need different ones.")
    order = order_by_hash(ids, seed)
    rest = order[num_query:]
    return {"train": rest[:num_train], "query": order[:num_query], "database": rest}


def hash_splits(splits: Splits) -> str:
    """The sha256 of the parts, names and order included.

    Example:
        >>> hash_splits({"train": ["a"], "query": ["b"]})[:8]
        'f8d9920d'
    """
    return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the whole new one, never a piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def save_splits(path: Path, splits: Splits, **notes: Any) -> None:
    """Save the parts with their hash and whatever tells where they came from."""
    write_json(path, {**notes, "sha256": hash_splits(splits), "splits": splits})


def read_splits(path: Path) -> dict[str, Any]:
    """Read what ``save_splits`` wrote.

    Raises:
        ValueError: The file was changed or is damaged.
    """
    try:
        saved = json.loads(path.read_text())
        intact = saved["sha256"] == hash_splits(saved["splits"])
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise ValueError(f"{path}: the saved splits do not match their hash. Delete the file to draw them again.")
    return saved
