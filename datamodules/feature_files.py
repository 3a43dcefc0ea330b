"""The feature arrays that every paired source ends up as, and the checks that all of them pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHUNK_ROWS = 16384  # rows looked at together, so that a memory-mapped array is never read as a whole


@dataclass(frozen=True)
class FeatureSplit:
    """The features of one split of a paired image-text dataset; row i of everything is the same item.

    Args:
        image: Image features, shape ``(N, Di)``; may be memory-mapped.
        text: Text features, shape ``(N, K, Dt)``: K texts (captions) an item; may be memory-mapped.
        labels: 0/1 matrix, shape ``(N, C)``.
        ids: N names of the items.
    """

    image: np.ndarray
    text: np.ndarray
    labels: np.ndarray
    ids: list[str]

    def __len__(self) -> int:
        return len(self.image)


def one_hot_labels(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Label matrices from class-index vectors; matrices pass through.

    Args:
        columns: One array a split: ``(N,)`` or ``(N, 1)`` class indices, or a ``(N, C)`` matrix. All splits
            share the classes that any of them holds, in ascending order.

    Returns:
        One float32 matrix ``(N, C)`` a split.

    Example:
        >>> import numpy as np
        >>> one_hot_labels([np.array([3, 7]), np.array([[7]])])[1].tolist()
        [[0.0, 1.0]]
    """
    if any(a.ndim == 2 and a.shape[1] > 1 for a in columns):
        return [a.astype(np.float32) for a in columns]
    flat = [a.reshape(-1) for a in columns]
    classes = np.unique(np.concatenate(flat))
    return [(a[:, None] == classes[None, :]).astype(np.float32) for a in flat]


def check_split(split: FeatureSplit, where: str) -> None:
    """Refuse a split that would train or score wrongly.

    Args:
        split: The arrays.
        where: Name of the file and of the split, for the message.

    Raises:
        ValueError: Empty split, unequal rows, wrong number of axes, NaN or infinite features, non-binary labels.
    """
    rows = {"image": len(split.image), "text": len(split.text), "labels": len(split.labels), "ids": len(split.ids)}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name} {n}" for name, n in rows.items())
        raise ValueError(f"{where}: unequal rows ({counts}). Row i of each must be the same item; write them again.")
    if not len(split):
        raise ValueError(f"{where}: the split is empty. Give it at least one item.")
    for name, array, axes in (("image", split.image, 2), ("text", split.text, 3), ("labels", split.labels, 2)):
        if array.ndim != axes:
            raise ValueError(
                f"{where}: {name} has shape {array.shape}; {axes} axes are needed, and features, not pixels."
            )
    for name, array in (("image", split.image), ("text", split.text)):
        for start in range(0, len(array), CHUNK_ROWS):
            bad = ~np.isfinite(array[start : start + CHUNK_ROWS]).reshape(len(array[start : start + CHUNK_ROWS]), -1)
            if bad.any():
                row = start + int(np.flatnonzero(bad.any(axis=1))[0])
                raise ValueError(
                    f"{where}: {name} holds NaN or infinite values, first in row {row} ({split.ids[row]}). "
                    "Extract that item's features again or leave the item out."
                )
    labels = np.asarray(split.labels)
    wrong = (labels != 0) & (labels != 1)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{where}: labels must be 0 or 1, found {labels[row, column]:g} in row {row}, column {column}. "
            "Give a 0/1 matrix, or one column of class indices."
        )
