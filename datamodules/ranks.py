"""Work shared among the processes of a group: who does what, and failing together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def share_of_rank(items: list[int], rank: int, world: int) -> list[int]:
    """The contiguous part of a list that one of several processes takes.

    Args:
        items: The whole list, the same in every process.
        rank: Number of this process.
        world: Number of processes.

    Returns:
        Its part; the sizes of the parts differ by one at most.

    Example:
        >>> [share_of_rank([0, 1, 2, 3, 4], rank, 2) for rank in range(2)]
        [[0, 1, 2], [3, 4]]
    """
    base, more = divmod(len(items), world)
    start = rank * base + min(rank, more)
    return items[start : start + base + (rank < more)]


def rank_and_world() -> tuple[int, int]:
    """Number of this process and number of processes; ``(0, 1)`` outside a process group.

    Example:
        >>> rank_and_world()
        (0, 1)
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def all_ranks(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks; also a meeting point.

    Example:
        >>> all_ranks("alone")
        ['alone']
    """
    _, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    torch.distributed.all_gather_object(values, value)
    return values


def together(step: Callable[[], None], only_first: bool = False) -> None:
    """Run a step on every process, and fail everywhere if it fails anywhere, instead of leaving the others to wait.

    Args:
        step: What to do.
        only_first: Only rank 0 does it; the others wait.

    Raises:
        ValueError: The step failed in another process; its message. In the process itself its own error is raised.
    """
    error: Exception | None = None
    if not only_first or rank_and_world()[0] == 0:
        try:
            step()
        except Exception as caught:
            error = caught
    messages = all_ranks(None if error is None else str(error))
    if error is not None:
        raise error
    if failed := next((message for message in messages if message is not None), None):
        raise ValueError(failed)
