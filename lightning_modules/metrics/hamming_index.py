"""Exact nearest neighbours among binary codes."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.metrics.hamming import check_bits, check_codes, pack_bits

BUCKET_BYTES = 2**26


class HammingIndex:
    """Finds the items whose codes are nearest to a query's, with FAISS's exact binary index.

    Args:
        bits: Code length.

    Raises:
        ValueError: ``bits`` is below 1.

    >>> import torch
    >>> index = HammingIndex(bits=3)
    >>> index.add(torch.tensor([[-1, -1, -1], [1, 1, 1], [1, 1, -1]]), ids=["cat", "dog", "ship"])
    >>> index.search(torch.tensor([[1.0, 1.0, 1.0]]), k=2)
    ([['dog', 'ship']], array([[0, 1]], dtype=int32))
    """

    def __init__(self, bits: int) -> None:
        import faiss

        self.bits = check_bits(bits)
        self.ids: list[str] = []
        index: Any = faiss.IndexBinaryFlat(8 * self._bytes)  # FAISS wants whole bytes; the rest stays 0
        index.use_heap = False  # a counting sort: faster, and database order within a distance
        self._index = index

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def _bytes(self) -> int:
        return -(-self.bits // 8)

    def add(self, codes: Tensor, ids: Sequence[str] | None = None) -> None:
        """Add items.

        Args:
            codes: (N, bits) numbers or booleans; bit = ``value > 0``.
            ids: N names, returned by :meth:`search`; None = the positions, from 0 in the order of adding.

        Raises:
            ValueError: Malformed codes, another width than ``bits``, or not one id a code.
        """
        packed = self._pack(codes)
        names: Sequence[object] = range(len(self), len(self) + len(packed)) if ids is None else ids
        if len(packed) != len(names):
            raise ValueError(f"{len(packed)} codes but {len(names)} ids; each item needs one of each.")
        self._index.add(packed)
        self.ids.extend(str(item) for item in names)

    def search(self, codes: Tensor, k: int) -> tuple[list[list[str]], NDArray[np.int32]]:
        """The k nearest items of each query, nearest first; at one distance the item added first comes first.

        Args:
            codes: (Q, bits) numbers or booleans; bit = ``value > 0``.
            k: Items a query.

        Returns:
            (Q, k) ids and (Q, k) int32 Hamming distances.

        Raises:
            ValueError: Malformed codes, another width than ``bits``, or ``k`` not between 1 and the number of items.
        """
        positions, distances = self.positions(codes, k)
        return [[self.ids[item] for item in row] for row in positions], distances

    def positions(self, codes: Tensor, k: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The k nearest items of each query by their positions, in the order of :meth:`search`.

        Args:
            codes: (Q, bits) numbers or booleans; bit = ``value > 0``.
            k: Items a query.

        Returns:
            (Q, k) int64 positions, from 0 in the order of adding, and (Q, k) int32 Hamming distances.

        Raises:
            ValueError: Malformed codes, another width than ``bits``, or ``k`` not between 1 and the number of items.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k is {k}, but the index holds {len(self)} items; k must lie between 1 and that number.")
        # FAISS takes 32 queries at a time, five times slower than 1000; its buckets, k a distance, set the limit.
        self._index.query_batch_size = min(1024, max(32, BUCKET_BYTES // (8 * k * (self.bits + 1))))
        distances, positions = self._index.search(self._pack(codes), k)
        order = np.lexsort((positions, distances), axis=1)
        distances, positions = (np.take_along_axis(part, order, axis=1) for part in (distances, positions))
        return positions, distances

    def save(self, path: str | Path) -> None:
        """Write the index to a .npz file that holds plain arrays, no pickle.

        Args:
            path: File to write; replaced only once the new one is whole.
        """
        import faiss

        path = Path(path)
        codes = faiss.vector_to_array(self._index.xb).reshape(-1, self._bytes)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, codes=codes, ids=np.array(self.ids, dtype=np.str_), bits=np.array(self.bits))
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> HammingIndex:
        """Read an index that :meth:`save` wrote.

        Args:
            path: The .npz file.

        Returns:
            The index.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file is damaged or is not such an index.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No Hamming index at {path}. Write one with HammingIndex.save, or check the path.")
        try:
            with np.load(path, allow_pickle=False) as file:
                codes, ids, bits = file["codes"], file["ids"], int(file["bits"])
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a Hamming index, or is damaged ({error}). Write it again.") from error
        index = cls(bits)
        if codes.dtype != np.uint8 or codes.shape != (len(ids), index._bytes):
            raise ValueError(f"{path} is damaged: its codes do not fit {bits} bits and {len(ids)} ids. Write it again.")
        index._index.add(np.ascontiguousarray(codes))
        index.ids = [str(item) for item in ids]
        return index

    def _pack(self, codes: Tensor) -> NDArray[np.uint8]:
        codes = check_codes(codes)
        if codes.shape[1] != self.bits:
            raise ValueError(f"The codes are {codes.shape[1]} wide, but this index was made with bits={self.bits}.")
        return np.ascontiguousarray(pack_bits((codes.detach() > 0).cpu()).numpy())
