"""Folds of a pool of labelled items: made, saved, read back and checked."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.splits import Splits, order_by_hash, write_json

NAMED_CLASSES = 20  # a warning that lists more than this is no longer read


def make_folds(labels: np.ndarray, num_folds: int, seed: int = 42, stratified: bool = True) -> np.ndarray:
    """Cut a pool into folds.

    Args:
        labels: 0/1 matrix ``(N, C)``; rows of zeros are allowed. Without ``stratified`` only its length matters.
        num_folds: Number of folds, 2 to N.
        seed: Seed of the shuffle and of the ties.
        stratified: Give each fold the same share of every label (iterative stratification) instead of an equal number
            of random items. Sizes of stratified folds may differ by a few items.

    Returns:
        The fold of each item, ``(N,)`` int64.

    Raises:
        ValueError: Too few or too many folds, no labels to stratify by, or a fold that stays empty.

    Example:
        >>> folds = make_folds(np.array([[1, 0]] * 4 + [[0, 1]] * 2), 2)
        >>> [np.bincount(folds[:4]).tolist(), np.bincount(folds[4:]).tolist()]
        [[2, 2], [1, 1]]

    Reference:
        Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD 2011.
    """
    count = len(labels)
    if not 2 <= num_folds <= count:
        raise ValueError(f"num_folds is {num_folds}; with {count} items it must be at least 2 and at most {count}.")
    splitter: Any
    if stratified:
        from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

        targets = np.asarray(labels) > 0
        if targets.ndim != 2 or not targets.shape[1]:
            raise ValueError(f"Labels of shape {targets.shape} give nothing to stratify by. Set stratified: false.")
        if targets.shape[1] == 1:  # the library asks for two columns; the second says the same as the first
            targets = np.concatenate([targets, ~targets], axis=1)
        splitter = MultilabelStratifiedKFold(num_folds, shuffle=True, random_state=seed)
    else:
        from sklearn.model_selection import KFold

        targets = np.zeros((count, 1), bool)
        splitter = KFold(num_folds, shuffle=True, random_state=seed)
    folds = np.empty(count, np.int64)
    for number, (_, rows) in enumerate(splitter.split(targets, targets)):
        folds[rows] = number
    if empty := np.flatnonzero(np.bincount(folds, minlength=num_folds) == 0).tolist():
        raise ValueError(
            f"Stratifying {count} items into {num_folds} folds leaves fold {empty[0]} empty. Lower num_folds, or set "
            "stratified: false."
        )
    return folds


def check_fold(num_folds: int | None, fold: int) -> None:
    """Refuse a number of folds below 2 and a fold that is none of them; None = no folds.

    Raises:
        ValueError: Names the argument and what it may be.
    """
    if num_folds is None:
        return
    if num_folds < 2:
        raise ValueError(f"num_folds is {num_folds}; cross-validation needs at least 2.")
    if not 0 <= fold < num_folds:
        raise ValueError(f"fold is {fold}; with num_folds {num_folds} it must be 0 to {num_folds - 1}.")


def select_rows(ids: Sequence[str], rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep a part of the training rows for selection, by a hash of the ids.

    Args:
        ids: Names of all items.
        rows: Positions of the training pool in ``ids``.
        fraction: Part of the rows to keep for selection, in [0, 1); 0 = none.
        seed: Seed of the choice.

    Returns:
        Rows to train on and rows to select by, both ascending.

    Raises:
        ValueError: One of the two would be empty.

    Example:
        >>> train, select = select_rows(list("abcdefgh"), np.array([1, 2, 4, 6, 7]), 0.4, seed=0)
        >>> len(train), len(select), sorted([*train.tolist(), *select.tolist()])
        (3, 2, [1, 2, 4, 6, 7])
    """
    position = {ids[row]: int(row) for row in rows}
    kept = round(len(position) * fraction)
    if not 0 <= kept < len(position) or (kept == 0) != (fraction == 0):
        raise ValueError(
            f"select_fraction {fraction} of {len(position)} items leaves {len(position) - kept} to train on and {kept} "
            "to select by; both need at least one. Change select_fraction or give more items."
        )
    order = np.array([position[name] for name in order_by_hash(list(position), seed)], np.int64)
    return np.sort(order[kept:]), np.sort(order[:kept])


def draw_holdout(ids: Sequence[str], num_test: int, seed: int) -> Splits:
    """A development pool and a hold-out part, drawn by a hash of the ids; both keep the order of ``ids``.

    Raises:
        ValueError: One of the two would be empty.

    Example:
        >>> {name: len(part) for name, part in draw_holdout(list("abcde"), 2, seed=0).items()}
        {'development': 3, 'test': 2}
    """
    if not 1 <= num_test < len(ids):
        raise ValueError(
            f"num_query is {num_test}, but there are {len(ids)} items, and some must be left to develop on. For a "
            f"small set pass a smaller number, e.g. num_query: {max(1, len(ids) // 5)}."
        )
    test = set(order_by_hash(ids, seed)[:num_test])
    return {"development": [i for i in ids if i not in test], "test": [i for i in ids if i in test]}


def check_holdout(ids: Sequence[str], holdout_ids: Sequence[str]) -> None:
    """Refuse a pool that an item of the hold-out part is in, or that has an item twice.

    Raises:
        ValueError: Names the first such item.
    """
    for part, names in (("development pool", ids), ("hold-out part", holdout_ids)):
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise ValueError(f"Item {twice} is twice in the {part}. Take one out of the dataset's lists.")
    if shared := sorted(set(ids) & set(holdout_ids)):
        raise ValueError(
            f"{len(shared)} item(s) are in the development pool and in the hold-out part, first {shared[0]}; a score "
            "on items that were trained on says nothing. Take them out of one of the two."
        )


def fold_hash(ids: Sequence[str], folds: np.ndarray) -> str:
    """The sha256 of folds: which items are together, and in which fold.

    Example:
        >>> fold_hash(["a", "b", "c"], np.array([0, 1, 0]))[:8]
        '35e80a4a'
    """
    return _hash_of(_members(ids, folds))


def label_deviation(labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """How far the frequency of each class in a fold is from that in the pool.

    Args:
        labels: 0/1 matrix ``(N, C)``.
        folds: Fold of each item, ``(N,)``.

    Returns:
        ``|frequency in the fold / frequency in the pool - 1|``, shape ``(K, C)``; NaN for a class without a positive.

    Example:
        >>> label_deviation(np.array([[1], [1], [1], [0]]), np.array([0, 0, 1, 1])).round(3).tolist()
        [[0.333], [0.333]]
    """
    labels = np.asarray(labels, np.float64)
    frequencies = np.stack([labels[folds == number].mean(axis=0) for number in range(folds.max() + 1)])
    pool = labels.mean(axis=0)
    with np.errstate(invalid="ignore"):
        return np.abs(frequencies / pool - 1)


def missing_classes(labels: np.ndarray, folds: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (fold, class) without a positive.

    Example:
        >>> missing_classes(np.array([[1, 0], [1, 1]]), np.array([0, 1]))
        [(0, 1)]
    """
    counts = np.stack([np.asarray(labels)[folds == number].sum(axis=0) for number in range(folds.max() + 1)])
    return [(int(fold), int(column)) for fold, column in np.argwhere(counts == 0)]


def warn_missing(labels: np.ndarray, folds: np.ndarray, class_names: Sequence[str] | None = None) -> None:
    """Warn about classes that a fold has no positive of; without names a class is its column number."""
    without: dict[int, list[int]] = {}
    for fold, column in missing_classes(labels, folds):
        without.setdefault(column, []).append(fold)
    if not without:
        return
    named = []
    for column, numbers in sorted(without.items())[:NAMED_CLASSES]:
        where = "all folds" if len(numbers) > folds.max() else f"fold {', '.join(map(str, numbers))}"
        named.append(f"{class_names[column] if class_names else f'class {column}'} ({where})")
    more = f" and {len(without) - len(named)} more" if len(without) > len(named) else ""
    warnings.warn(
        f"{len(without)} class(es) have no positive in some folds: {'; '.join(named)}{more}. Average precision "
        "does not exist there. Use fewer folds or more items if the score of these classes matters.",
        stacklevel=3,
    )


def read_or_make_folds(
    folder: Path,
    ids: Sequence[str],
    labels: np.ndarray,
    num_folds: int,
    seed: int,
    stratified: bool,
    holdout_ids: Sequence[str],
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """The folds of a pool from their file; the first call makes them and writes it.

    Every process of a run may call this: the folds follow from the arguments, and the file appears whole.

    Args:
        folder: Where files of folds lie; the name of one changes with ids, labels and the arguments.
        ids: N different names.
        labels: 0/1 matrix ``(N, C)``.
        num_folds: Number of folds.
        seed: Seed of the folds.
        stratified: As in :func:`make_folds`.
        holdout_ids: Names of the hold-out part, which must not meet the pool.
        class_names: C names for the warning about classes that a new fold lacks.

    Returns:
        The fold of each item, ``(N,)`` int64.

    Raises:
        ValueError: The file was changed or is about other items, or the hold-out part meets the pool.
    """
    check_holdout(ids, holdout_ids)
    method = "stratified" if stratified else "kfold"
    digest = hashlib.sha256(json.dumps([list(ids), list(labels.shape)]).encode())
    digest.update((np.asarray(labels) > 0).tobytes())
    path = Path(folder) / f"folds-{method}-k{num_folds}-seed{seed}-{digest.hexdigest()[:12]}.json"
    holdout = {"count": len(holdout_ids), "sha256": _hash_of(sorted(holdout_ids))}
    header = {"num_folds": num_folds, "seed": seed, "method": method, "holdout": holdout}
    if path.is_file():
        return _read_folds(path, ids, header)
    folds = make_folds(labels, num_folds, seed, stratified)
    warn_missing(labels, folds, class_names)
    members = _members(ids, folds)
    write_json(path, {**header, "sha256": _hash_of(members), "folds": members})
    return folds


def _members(ids: Sequence[str], folds: np.ndarray) -> list[list[str]]:
    members: list[list[str]] = [[] for _ in range(int(folds.max()) + 1)]
    for name, number in zip(ids, folds, strict=True):
        members[number].append(name)
    return members


def _hash_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _read_folds(path: Path, ids: Sequence[str], header: dict[str, Any]) -> np.ndarray:
    """The fold of each item, from a file that must say of itself what ``header`` says."""
    cure = "Delete the file to make the folds again; scores of other folds are then not comparable."
    try:
        saved = json.loads(path.read_text())
        intact = saved["sha256"] == _hash_of(saved["folds"]) and len(saved["folds"]) == header["num_folds"]
        fold_of = {name: number for number, names in enumerate(saved["folds"]) for name in names}
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise ValueError(f"{path}: the saved folds do not match their hash. {cure}")
    if fold_of.keys() != set(ids) or sum(map(len, saved["folds"])) != len(ids):
        raise ValueError(f"{path}: the folds are not those of the {len(ids)} items of the pool. {cure}")
    for name, value in header.items():
        if saved.get(name) != value:
            raise ValueError(f"{path}: {name} is {saved.get(name)} there and {value} here. {cure}")
    return np.array([fold_of[name] for name in ids], np.int64)
