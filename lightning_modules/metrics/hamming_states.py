"""The states that Hamming metrics collect, exact over any number of processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_modules.metrics.hamming import PackedPairs, check_bits, check_codes, check_labels, pack_bits

ROLES = ("query", "database")


class HammingMetric(Metric):
    """Collects codes, labels and indices of queries and database; a subclass computes something from the pairs.

    A sampler that pads the last batch of a process repeats items, so ``compute`` keeps the first of each index and
    sorts by index: the pairs are those of one process whatever the number of processes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    query_codes: list[Tensor]
    query_labels: list[Tensor]
    query_index: list[Tensor]
    database_codes: list[Tensor]
    database_labels: list[Tensor]
    database_index: list[Tensor]

    def __init__(self, bits: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bits = check_bits(bits)
        for role in ROLES:
            for part in ("codes", "labels", "index"):
                self.add_state(f"{role}_{part}", default=[], dist_reduce_fx="cat")

    def update(self, codes: Tensor, labels: Tensor, index: Tensor, role: str = "query") -> None:
        """Add items.

        Args:
            codes: (B, bits) numbers or booleans; bit = ``value > 0``.
            labels: (B, C) of 0 and 1.
            index: (B,) position of each item in its dataset.
            role: ``query`` or ``database``.

        Raises:
            ValueError: Malformed codes or labels, a width other than ``bits``, another number of classes than before,
                unequal rows, or an unknown role.
        """
        if role not in ROLES:
            raise ValueError(f"role is {role!r}; it must be 'query' or 'database'.")
        codes, labels = check_codes(codes, f"{role} codes"), check_labels(labels, f"{role} labels")
        if codes.shape[1] != self.bits:
            raise ValueError(f"{role} codes are {codes.shape[1]} wide, but this metric was made with bits={self.bits}.")
        index = torch.as_tensor(index, device=codes.device)
        if not len(codes) == len(labels) == index.numel():
            raise ValueError(
                f"{role}: {len(codes)} codes, {len(labels)} labels and {index.numel()} indices; "
                "each item needs one of each."
            )
        seen = self._seen_labels()
        if seen and labels.shape[1] != seen[0].shape[1]:
            raise ValueError(
                f"{role} labels have {labels.shape[1]} classes but earlier labels had {seen[0].shape[1]}; "
                "queries and database must come from the same list of classes."
            )
        getattr(self, f"{role}_codes").append(pack_bits(codes.detach() > 0))
        getattr(self, f"{role}_labels").append(labels)
        getattr(self, f"{role}_index").append(index.long().flatten())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; see ``torchmetrics.Metric.sync``.

        Args:
            args: Of the overridden method.
            kwargs: Of the overridden method.
        """
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if together and not self._is_synced and kwargs.get("should_sync", True):
            self._fill_roles(kwargs.get("process_group") or self.process_group)
        super().sync(*args, **kwargs)

    def _fill_roles(self, group: Any) -> None:
        """A process that saw no item of a role must still gather tensors of the right type and number of columns."""
        seen = self._seen_labels()
        device, classes = (seen[0].device, seen[0].shape[1]) if seen else (self.device, 0)
        classes = max(map(int, gather_all_tensors(torch.tensor(classes, device=device), group)))
        for role in ROLES:
            if classes and not getattr(self, f"{role}_codes"):
                codes = torch.zeros(0, -(-self.bits // 8), dtype=torch.uint8, device=device)
                getattr(self, f"{role}_codes").append(codes)
                getattr(self, f"{role}_labels").append(torch.zeros(0, classes, dtype=torch.bool, device=device))
                getattr(self, f"{role}_index").append(torch.zeros(0, dtype=torch.int64, device=device))

    def _seen_labels(self) -> list[Tensor]:
        return [part for role in ROLES for part in getattr(self, f"{role}_labels")]

    def pairs(self) -> PackedPairs:
        """The collected items, each index once, in the order of the index.

        Returns:
            Packed codes and labels.

        Raises:
            ValueError: A role has no item, or one index carries two label sets.
        """
        packed: dict[str, tuple[Tensor, Tensor]] = {}
        for role in ROLES:
            codes, labels, index = (_joined(getattr(self, f"{role}_{part}")) for part in ("codes", "labels", "index"))
            if codes is None or labels is None or index is None or len(codes) == 0:
                raise ValueError(
                    f"The metric has seen no {role} item: call update(codes, labels, index, role='{role}') for each "
                    "batch before compute(), and check that the split is not empty."
                )
            order = index.argsort(stable=True)
            ordered, labels = index[order], labels[order]
            repeats = ordered[1:] == ordered[:-1]
            clash = repeats & (labels[1:] != labels[:-1]).any(dim=1)
            if clash.any():
                raise ValueError(
                    f"Two {role} items with different labels share index {int(ordered[1:][clash][0])}. `index` must be "
                    "the position in the dataset, not in the batch."
                )
            first = torch.cat([repeats.new_ones(1), ~repeats])
            packed[role] = codes[order][first], labels[first]
        (query_codes, query_labels), (database_codes, database_labels) = packed["query"], packed["database"]
        return PackedPairs(query_codes, database_codes, pack_bits(query_labels), pack_bits(database_labels), self.bits)


def _joined(state: list[Tensor] | Tensor) -> Tensor | None:
    """A list state before or after a gather, as one tensor; None when nothing was collected."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else None
