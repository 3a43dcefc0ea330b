"""A table of numbers that grows row by row, the same on one process and on many."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.rows import RowMetric


class NamedRows(RowMetric):
    """Rows of numbers, each of which its first columns name.

    Args:
        width: Columns W of the table.
        keys: How many of the first columns name a row; of rows with equal names the first is kept, because samplers
            repeat items to give every process as many.

    Example:
        >>> table = NamedRows(width=3, keys=2)
        >>> table.update(torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, 0.25], [1.0, 0.0, 0.5]]))
        >>> table.compute().tolist()
        [[0.0, 2.0, 0.25], [1.0, 0.0, 0.5]]
    """

    rows: list[Tensor]

    def __init__(self, width: int, keys: int) -> None:
        super().__init__({"rows": (width, torch.float64)})
        self.keys = keys

    def update(self, rows: Tensor) -> None:
        """Add rows ``(n, W)``."""
        self.rows.append(rows.to(self.device, torch.float64))

    def compute(self) -> Tensor:
        """All rows, each once, ``(N, W)`` float64 on the CPU, in ascending order of their names."""
        (table,) = self.gathered()
        _, first = np.unique(table[:, : self.keys], axis=0, return_index=True)
        return torch.from_numpy(table[first])
