"""Ragged lists, as boxes of images are: laid one after the other in rows, and gathered from all processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

Ints = NDArray[np.int64]


class RowMetric(Metric):
    """Base of metrics whose states are rows that ``update`` appends: lists of (n, width) tensors.

    Args:
        widths: Name of each state -> width and type of its rows.
        kwargs: Of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, widths: Mapping[str, tuple[int, torch.dtype]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.widths = dict(widths)
        for name in widths:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; see ``torchmetrics.Metric.sync``.

        Args:
            args: Of the overridden method.
            kwargs: Of the overridden method.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for name, (width, dtype) in self.widths.items():
                state = getattr(self, name)
                if isinstance(state, list) and not state:  # without rows: still of the right type and width
                    state.append(torch.zeros(0, width, dtype=dtype, device=self.device))
        super().sync(*args, **kwargs)

    def gathered(self) -> list[NDArray[Any]]:
        """The rows of all processes; every process must call it.

        Returns:
            (N, width) of each state, process after process.
        """
        gather = self._to_sync and not self._is_synced  # compute() has gathered already
        with self.sync_context(should_sync=gather, should_unsync=gather):
            rows = []
            for name, (width, dtype) in self.widths.items():
                state: list[Tensor] | Tensor = getattr(self, name)  # a tensor once gathered
                if isinstance(state, list):
                    state = torch.cat(state) if state else torch.zeros(0, width, dtype=dtype)
                rows.append(state.cpu().numpy())
            return rows


def ragged_rows(starts: Ints, sizes: Ints) -> Ints:
    """Rows of items that lie one after the other in an array.

    Args:
        starts: (N,) first row of each item.
        sizes: (N,) rows of each item.

    Returns:
        (sum of sizes,) rows, item by item.

    >>> ragged_rows(np.array([4, 0, 1]), np.array([2, 0, 3]))
    array([4, 5, 1, 2, 3])
    """
    ends = sizes.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    first: Ints = np.repeat(starts - (ends - sizes), sizes)
    return first + np.arange(total)
