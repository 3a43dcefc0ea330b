"""Says over which classes a macro mean was taken: a class without a positive has no average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from callbacks.experiments.result_files import SCORINGS
from callbacks.experiments.tables import span

COUNT = "classes_scored"  # logged beside the scores
NAMED = 20  # a sentence that lists more than this is no longer read
Blocks = Mapping[int, Mapping[str, Any]]


def classes_without(blocks: Blocks, part: str = "fold") -> dict[str, list[int]]:
    """The classes that some folds have no positive of.

    Args:
        blocks: Fold to its block of results.
        part: ``fold`` or ``test``.

    Returns:
        Class to those folds.
    """
    found: dict[str, list[int]] = {}
    for fold, block in sorted(blocks.items()):
        for name in (block.get("notes") or {}).get(f"classes_not_scored_{part}") or ():
            found.setdefault(name, []).append(fold)
    return found


def means_over(record: Mapping[str, Any], part: str) -> str:
    """Over how many classes the macro means of a part are; empty when over all, or where that is not known.

    Args:
        record: crossval.json.
        part: ``fold`` or ``test``.

    >>> entry = {"values": {"0": 54.0, "1": 56.0}}
    >>> means_over({"metrics": {"fold/soft_classes_scored": entry}, "notes": {"num_classes": 80}}, "fold")
    'mAP macro over 54 to 56 of 80 classes; the others have no positive there'
    """
    entries = [record["metrics"].get(f"{part}/{scoring}_{COUNT}") for scoring in SCORINGS]
    values = [value for entry in entries if entry for value in entry["values"].values() if value is not None]
    total = (record.get("notes") or {}).get("num_classes")
    if not values or not total or min(values) == total:
        return ""
    return f"mAP macro over {span(values)} of {total:g} classes; the others have no positive there"


def named(without: Mapping[str, Sequence[int]], num_folds: int) -> str:
    """The classes that are not scored in some folds; empty without any.

    Args:
        without: Class to the folds without a positive of it.
        num_folds: Number of folds that ran.

    >>> named({"toaster": [0, 2], "hair drier": [0, 1, 2]}, 3)
    '2 classes have no positive in some folds and are not scored there: toaster (fold 0, 2), hair drier (all folds)'
    """
    if not without:
        return ""
    texts = [
        f"{name} ({'all folds' if len(folds) == num_folds else 'fold ' + ', '.join(map(str, folds))})"
        for name, folds in list(without.items())[:NAMED]
    ]
    more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
    verb = "1 class has" if len(without) == 1 else f"{len(without)} classes have"
    is_are = "is" if len(without) == 1 else "are"
    return f"{verb} no positive in some folds and {is_are} not scored there: {', '.join(texts)}{more}"
