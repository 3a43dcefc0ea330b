"""Which items each process takes: training items by weights that may change, scored items once over all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from datamodules.ranks import rank_and_world, share_of_rank


class WeightedDistributedSampler(DistributedSampler[Any]):
    """Training positions, drawn with replacement in proportion to weights that may change between epochs.

    Every process makes the same draw, from the seed and the epoch alone, and takes its own entries of it; so the
    processes must hold the same weights. Equal weights give a plain permutation instead, an ordinary epoch. All
    processes take the same number of steps: up to ``world - 1`` entries of a permutation come twice.

    It is a DistributedSampler, so Lightning tells it the epoch and does not replace it. Process and world are looked
    up when it is iterated: it may be made before the process group is.

    Args:
        dataset: What to sample, N items.
        seed: Seed of the draws.
    """

    def __init__(self, dataset: Sized, seed: int = 0) -> None:
        # the process group may not be there yet, so the base class's num_replicas and rank stay unused
        super().__init__(dataset, num_replicas=1, rank=0, seed=seed)  # type: ignore[arg-type]
        self.count = len(dataset)
        self.weights = torch.ones(self.count, dtype=torch.float64)

    def set_weights(self, weights: Tensor) -> None:
        """Draw by other weights from the next epoch on; loader processes may stay as they are.

        Args:
            weights: Shape ``(N,)``, the same in every process; only their proportions matter.

        Raises:
            ValueError: They have another shape, are negative or not finite, or are all zero.
        """
        if weights.shape != (self.count,):
            raise ValueError(f"The weights have shape {tuple(weights.shape)}; it must be ({self.count},), one an item.")
        values = weights.detach().to("cpu", torch.float64, copy=True)
        if len(bad := torch.nonzero(~(values.isfinite() & (values >= 0)))):
            first = int(bad[0])
            raise ValueError(
                f"{len(bad)} of {self.count} weights are negative or not finite, first that of item {first}: "
                f"{values[first].item()}. Give each item a finite weight of at least 0."
            )
        if not values.any():
            raise ValueError(f"All {self.count} weights are 0. Give at least one item a weight above 0.")
        self.weights = values

    def draw(self) -> Tensor:
        """The positions that all processes together take in this epoch, ``(world * len(self),)`` int64."""
        total = len(self) * rank_and_world()[1]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if (self.weights == self.weights[0]).all():
            return torch.randperm(self.count, generator=generator)[torch.arange(total) % self.count]
        return torch.multinomial(self.weights, total, replacement=True, generator=generator)

    def __len__(self) -> int:
        return -(-self.count // rank_and_world()[1])

    def __iter__(self) -> Iterator[int]:
        rank, world = rank_and_world()
        return iter(self.draw()[rank::world].tolist())


class UnpaddedSampler(DistributedSampler[Any]):
    """All positions in order, each in one process only, so that no item is scored twice.

    Each process takes a contiguous share, as tiles of a picture follow each other; the shares differ by one item at
    most. Lightning leaves it alone, where its own sampler would repeat items to make the shares equal. Process and
    world are looked up when it is iterated.

    Args:
        dataset: What to sample.
    """

    def __init__(self, dataset: Sized) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]
        self.count = len(dataset)

    def share(self) -> list[int]:
        """The positions of this process.

        Raises:
            ValueError: There are fewer items than processes; a process without a batch would leave the others waiting.
        """
        rank, world = rank_and_world()
        if self.count < world:
            raise ValueError(f"{self.count} items cannot be shared among {world} processes. Set fewer trainer.devices.")
        return share_of_rank(list(range(self.count)), rank, world)

    def __len__(self) -> int:
        return len(self.share())

    def __iter__(self) -> Iterator[int]:
        return iter(self.share())


def first_of_shares(count: int, limit: int | float, batch_size: int) -> list[int]:
    """Positions that a run takes by :class:`UnpaddedSampler`, in all processes together.

    Args:
        count: Number of images.
        limit: Batches a process, or their part, as ``trainer.limit_test_batches``.
        batch_size: Images a batch.

    Returns:
        The positions, ascending.

    Example:
        >>> first_of_shares(10, 2, batch_size=3), first_of_shares(4, 1.0, batch_size=3)
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3])
    """
    world = rank_and_world()[1]
    taken: list[int] = []
    for rank in range(world):
        share = share_of_rank(list(range(count)), rank, world)
        batches = limit if isinstance(limit, int) else int(-(-len(share) // batch_size) * limit)
        taken += share[: batches * batch_size]
    return taken
