"""Classes of a network and of the data, which are compared by name, never by place alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

CURES = {
    "checkpoint": "To test or predict, set model.init_args.class_names to the checkpoint's; to train, name the data's "
    "classes in that order.",
    "data": "Leave out model.init_args.class_names to train.",
}
Found = dict[str, Tensor]  # boxes (n, 4), scores (n,) and labels (n,) of an image


def given_names(names: Sequence[str], module: str) -> list[str]:
    """The names of a network's classes, which must be there; ``module`` is who asks.

    Raises:
        ValueError: There are none.
    """
    if not names:
        raise ValueError(
            f"{module} has no class names. Use a detection datamodule, or set model.init_args.class_names, as [ship, "
            "harbor]."
        )
    return list(names)


def check_same(own: Sequence[str], others: Sequence[str], whose: Literal["checkpoint", "data"]) -> None:
    """Refuse classes that are not the network's, or these in another order.

    Args:
        own: Names of the network's classes.
        others: Names of those that it is to take up.
        whose: ``checkpoint``: weights to load; ``data``: labels to train on.

    Raises:
        ValueError: They differ.
    """
    if list(others) != list(own):
        raise ValueError(
            f"The classes of the {whose} are {list(others)}, those of this run {list(own)}. {CURES[whose]}"
        )


def plain(name: str) -> str:
    """A name without case, hyphens, underscores and spaces."""
    return name.lower().translate(str.maketrans("", "", "-_ "))


def data_columns(own: Sequence[str], names: Sequence[str]) -> Tensor:
    """Which class of the data each class of a network is; case, ``-``, ``_`` and spaces do not matter.

    Warns of the classes that one side lacks.

    Args:
        own: Names of the network's classes.
        names: Names of the data's classes.

    Returns:
        (C,) int64, -1 where the data has no such class.

    Raises:
        ValueError: They have no class in common.

    >>> data_columns(["tennis court", "ship"], ["Ship", "tennis-court"])
    tensor([1, 0])
    """
    places = {plain(name): place for place, name in enumerate(names)}
    columns = [places.get(plain(name), -1) for name in own]
    lost = [name for name, column in zip(own, columns, strict=True) if column < 0]
    unknown = [name for place, name in enumerate(names) if place not in columns]
    if len(lost) == len(own):
        raise ValueError(
            f"The detector knows {', '.join(own)}, the data {', '.join(names)}, and no class is in both. Set "
            "model.init_args.class_names to the detector's classes in its order, named as the data names them."
        )
    if lost or unknown:
        warnings.warn(
            f"Boxes of classes that the data lacks are dropped ({', '.join(lost) or 'none'}), objects of classes that "
            f"the detector lacks are missed ({', '.join(unknown) or 'none'}).",
            stacklevel=2,
        )
    return torch.tensor(columns)


def in_data_classes(found: list[Found], own: Sequence[str], names: Sequence[str]) -> list[Found]:
    """Boxes with the data's labels, without those of classes that the data lacks.

    Args:
        found: Boxes of each image, labelled as the network does.
        own: Names of the network's classes.
        names: Names of the data's classes.

    Raises:
        ValueError: See ``data_columns``.

    >>> found = {"labels": torch.tensor([1, 0]), "scores": torch.tensor([0.5, 0.25])}
    >>> in_data_classes([found], ["ship", "car"], ["car", "ship"])
    [{'labels': tensor([0, 1]), 'scores': tensor([0.5000, 0.2500])}]
    """
    if list(own) == list(names):
        return found
    columns = data_columns(own, names)
    moved = [{**boxes, "labels": columns.to(boxes["labels"].device)[boxes["labels"]]} for boxes in found]
    return [{name: rows[boxes["labels"] >= 0] for name, rows in boxes.items()} for boxes in moved]
