"""Labels by the votes of the nearest codes: multi-label classification without a trained classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.metrics.hamming import check_codes, check_labels, pack_bits, unpack_bits
from lightning_modules.metrics.hamming_index import HammingIndex


class KnnVotes:
    """Probabilities of classes as the weighted votes of the k nearest gallery codes.

    A neighbour at Hamming distance d has the similarity ``1 - d / bits`` and votes with its weight in
    ``softmax(similarity / temperature)`` over the k neighbours; the probability of a class is the sum of the weights
    of the neighbours that have it. The search is exact; where more codes than fit stand at the distance of rank k,
    those that come first in the gallery vote.

    Args:
        codes: Gallery codes, shape ``(G, bits)``, numbers or booleans; bit = ``value > 0``.
        labels: 0 or 1, shape ``(G, C)``.
        k: Neighbours that vote, at most G.
        temperature: Divides the similarities; the lower, the more the nearest decide.

    Raises:
        ValueError: Malformed codes or labels, ``k`` not between 1 and G, temperature not above 0.

    Example:
        >>> import torch
        >>> codes, labels = torch.tensor([[1, 1], [1, -1], [-1, -1]]), torch.tensor([[1, 0], [1, 1], [0, 1]])
        >>> votes = KnnVotes(codes, labels, k=2, temperature=0.5)
        >>> [round(p, 4) for p in votes.probabilities(torch.tensor([[1, 1]]))[0].tolist()]  # second 1 / (1 + e)
        [1.0, 0.2689]
    """

    def __init__(self, codes: Tensor, labels: Tensor, k: int = 20, temperature: float = 0.07) -> None:
        bits, marks = (check_codes(codes, "gallery codes") > 0).cpu(), check_labels(labels, "gallery labels").cpu()
        if len(bits) != len(marks):
            raise ValueError(f"{len(bits)} gallery codes but {len(marks)} rows of labels; each item needs one of each.")
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it must be positive.")
        self.bits, self.k, self.temperature = bits.shape[1], k, temperature
        self.labels = marks.float()  # (G, C), a table of votes
        self.codes = bits
        self._check_k(len(bits))
        self._index = HammingIndex(self.bits)
        self._index.add(bits)

    def __len__(self) -> int:
        return len(self.codes)

    def _check_k(self, candidates: int) -> None:
        if not 1 <= self.k <= candidates:
            raise ValueError(
                f"k is {self.k}, but only {candidates} gallery items can vote. Set k between 1 and {candidates}, or "
                "take a larger gallery."
            )

    def probabilities(self, codes: Tensor, exclude_self: Tensor | None = None) -> Tensor:
        """The votes for queries.

        Args:
            codes: Query codes, shape ``(N, bits)``; bit = ``value > 0``.
            exclude_self: For queries that stand in the gallery themselves: their gallery rows, shape ``(N,)``. Such a
                row does not vote for its own query; another item with the same code does.

        Returns:
            Float32 probabilities ``(N, C)`` on the device of ``codes``.

        Raises:
            ValueError: Malformed codes, another width than the gallery's, rows that do not fit, or ``k`` above the
                number of items that can vote.
        """
        codes = torch.as_tensor(codes)
        if exclude_self is None:
            self._check_k(len(self))
            positions, distances = self._index.positions(codes, self.k)
        else:
            positions, distances = self._others(codes, torch.as_tensor(exclude_self).cpu().numpy())
        nearness = -torch.from_numpy(distances).double() / (self.bits * self.temperature)
        weights = nearness.softmax(dim=1).float()  # (N, k); the 1 of 1 - d / bits falls out of the softmax
        votes = F.embedding_bag(torch.from_numpy(positions), self.labels, per_sample_weights=weights, mode="sum")
        return votes.clamp(max=1).to(codes.device)  # (N, k) -> (N, C); rounding may pass 1

    def leave_one_out(self) -> Tensor:
        """The votes for each gallery item by the others, ``(G, C)``: what thresholds may be fitted on.

        Raises:
            ValueError: ``k`` above G - 1.
        """
        return self.probabilities(self.codes, exclude_self=torch.arange(len(self)))

    def _others(self, codes: Tensor, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions and distances ``(N, k)`` of the nearest without each query's own row."""
        self._check_k(len(self) - 1)
        if rows.shape != (len(codes),) or (rows < 0).any() or (rows >= len(self)).any():
            raise ValueError(
                f"exclude_self must hold one gallery row, 0 to {len(self) - 1}, for each of the {len(codes)} queries."
            )
        positions, distances = self._index.positions(codes, self.k + 1)
        keep = positions != rows[:, None]  # (N, k + 1)
        # Items with the same code may push a row itself out of the list; then the last of the list goes.
        keep[keep.all(axis=1), -1] = False
        return positions[keep].reshape(-1, self.k), distances[keep].reshape(-1, self.k)

    def state_dict(self) -> dict[str, Any]:
        """The gallery for a checkpoint: ``codes`` and ``labels``, eight bits a byte, and the settings."""
        return {
            "codes": pack_bits(self.codes),
            "labels": pack_bits(self.labels > 0),
            "bits": self.bits,
            "num_classes": self.labels.shape[1],
            "k": self.k,
            "temperature": self.temperature,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> KnnVotes:
        """The votes that :meth:`state_dict` describes."""
        codes = unpack_bits(state["codes"].cpu(), state["bits"])
        labels = unpack_bits(state["labels"].cpu(), state["num_classes"])
        return cls(codes, labels, k=state["k"], temperature=state["temperature"])
