"""From packed codes to distance histograms, and to the ranked relevance of a stable sort.

Two ways of computing the same integers: packed words, XOR and ``np.bitwise_count`` on a CPU; a matrix product of
{-1, +1} on a GPU, which has no population count. Both look at a few rows of the distance matrix at a time, so that
memory does not grow with queries x database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.metrics.hamming import PackedPairs, unpack_bits

# Pairs that one step looks at: on a CPU a few buffers that stay in its cache, on a GPU enough to fill it.
CPU_PAIRS = 2**17
GPU_PAIRS = 2**24
# torch starts its own threads above 32768 elements; workers must stay below, or threads start threads.
SERIAL_ELEMENTS = 32_000

Rows = tuple[int, NDArray[np.unsignedinteger], NDArray[np.bool_]]


def distance_histograms(pairs: PackedPairs) -> Tensor:
    """How many irrelevant and relevant items lie at each Hamming distance of each query.

    Args:
        pairs: Packed codes and labels.

    Returns:
        (Q, 2, bits + 1) int64; ``[:, 0]`` counts irrelevant items and ``[:, 1]`` relevant ones.

    >>> from lightning_modules.metrics.hamming import pack_pairs
    >>> codes, labels = torch.tensor([[0, 0], [0, 1], [1, 1]]), torch.tensor([[1], [0], [1]])
    >>> distance_histograms(pack_pairs(codes[:1], codes, labels[:1], labels)).tolist()
    [[[0, 1, 0], [1, 0, 1]]]
    """
    if pairs.device.type != "cpu":
        return histograms_torch(pairs)
    return _over_queries(pairs, lambda words, start, stop: _histograms_numpy(words, start, stop))


def stable_precision_sums(pairs: PackedPairs, top_k: int | None = None) -> Tensor:
    """Sum of the precisions at the relevant ranks, items at one distance kept in database order.

    Args:
        pairs: Packed codes and labels.
        top_k: Ranks that count; None = all.

    Returns:
        (Q, 3) float64: the sum, the relevant items among the first ``top_k``, the relevant items of the database.

    >>> from lightning_modules.metrics.hamming import pack_pairs
    >>> codes, labels = torch.tensor([[0, 0], [0, 1], [1, 1]]), torch.tensor([[1], [0], [1]])
    >>> stable_precision_sums(pack_pairs(codes[:1], codes, labels[:1], labels), top_k=2).tolist()
    [[1.0, 1.0, 2.0]]
    """
    if pairs.device.type != "cpu":
        return stable_sums_torch(pairs, top_k)
    k = min(top_k or pairs.n_database, pairs.n_database)
    return _over_queries(pairs, lambda words, start, stop: _stable_sums_numpy(words, start, stop, k))


class _Words:
    """Packed pairs as machine words, the database with one contiguous row a word."""

    def __init__(self, pairs: PackedPairs) -> None:
        self.bits = pairs.bits
        self.query_codes = _as_words(pairs.query_codes)
        self.query_labels = _as_words(pairs.query_labels)
        self.database_codes = np.ascontiguousarray(_as_words(pairs.database_codes).T)  # (words, N)
        self.database_labels = np.ascontiguousarray(_as_words(pairs.database_labels).T)  # (words, N)

    def rows(self, start: int, stop: int) -> Iterator[Rows]:
        """Distances (rows, N) and relevance (rows, N) of a few queries, in buffers that the next step overwrites."""
        n = self.database_codes.shape[1]
        step = max(1, min(stop - start, CPU_PAIRS // n))
        shape = (step, n)
        mixed, shared = np.empty(shape, self.query_codes.dtype), np.empty(shape, self.query_labels.dtype)
        count, relevant = np.empty(shape, np.uint8), np.empty(shape, np.bool_)
        distance = count if len(self.database_codes) == 1 else np.empty(shape, _distance_dtype(self.bits))
        for first in range(start, stop, step):
            use = slice(0, min(step, stop - first))
            query = slice(first, first + use.stop)
            for word, column in enumerate(self.database_codes):
                np.bitwise_xor(self.query_codes[query, word, None], column, out=mixed[use])
                np.bitwise_count(mixed[use], out=count[use])
                if distance is not count:
                    np.add(distance[use] if word else 0, count[use], out=distance[use])
            for word, column in enumerate(self.database_labels):
                np.bitwise_and(self.query_labels[query, word, None], column, out=shared[use])
                if word:
                    relevant[use] |= shared[use] != 0
                else:
                    np.not_equal(shared[use], 0, out=relevant[use])
            yield first, distance[use], relevant[use]


def _as_words(packed: Tensor) -> NDArray[np.unsignedinteger]:
    """(N, bytes) uint8 -> (N, words) of the narrowest unsigned type that holds a row, 64 bits at most."""
    array = packed.contiguous().numpy()
    size = next((size for size in (1, 2, 4) if array.shape[1] <= size), 8)
    padded = np.pad(array, ((0, 0), (0, -array.shape[1] % size)))
    return np.ascontiguousarray(padded).view(np.dtype(f"u{size}"))


def _distance_dtype(bits: int) -> type[np.unsignedinteger]:
    return np.uint8 if bits <= 255 else np.uint16


def _over_queries(pairs: PackedPairs, work: Callable[[_Words, int, int], Tensor]) -> Tensor:
    """Run ``work`` on ranges of queries with torch's number of threads, and join the results in order."""
    words = _Words(pairs)
    threads = torch.get_num_threads() if pairs.n_query * pairs.n_database > 2**20 else 1
    if threads == 1:
        return work(words, 0, pairs.n_query)
    size = max(1, -(-pairs.n_query // (8 * threads)))  # several ranges a thread: a slow core gets fewer of them
    starts = range(0, pairs.n_query, size)
    with ThreadPoolExecutor(threads) as pool:
        return torch.cat(list(pool.map(lambda start: work(words, start, min(start + size, pairs.n_query)), starts)))


def _histograms_numpy(words: _Words, start: int, stop: int) -> Tensor:
    width = words.bits + 1
    result = torch.zeros(stop - start, 2 * width, dtype=torch.int64)
    key: NDArray[Any] = np.empty((0, 0))
    for first, distance, relevant in words.rows(start, stop):
        if len(key) < len(distance):
            key = np.empty(distance.shape, np.uint8 if 2 * width <= 256 else np.int32)
        use = key[: len(distance)]
        np.multiply(relevant.view(np.uint8), key.dtype.type(width), out=use)
        np.add(use, distance, out=use, casting="unsafe")
        for row, line in enumerate(torch.from_numpy(use), start=first - start):
            for part in line.split(SERIAL_ELEMENTS) if len(line) > SERIAL_ELEMENTS else (line,):
                result[row] += torch.bincount(part, minlength=2 * width)
    return result.view(-1, 2, width)


def _stable_sums_numpy(words: _Words, start: int, stop: int, k: int) -> Tensor:
    n = words.database_codes.shape[1]
    result = np.zeros((stop - start, 3))
    counts = np.arange(1.0, k + 1)
    weights = 1 / counts
    position_bits = max(1, (n - 1).bit_length())
    wide: Any = np.uint32 if (words.bits + 1) << position_bits <= 2**32 else np.uint64
    positions = np.arange(n, dtype=wide)
    for first, distance, relevant in words.rows(start, stop):
        result[first - start : first - start + len(distance), 2] = np.count_nonzero(relevant, axis=1)
        if k < n:
            # distance and position in one number: the k smallest are the k first of a stable sort, in any order
            key = (distance.astype(wide) << wide(position_bits)) | positions
            key.partition(k - 1, axis=1)
            nearest = np.sort(key[:, :k], axis=1) & wide((1 << position_bits) - 1)
            ranked = np.take_along_axis(relevant, nearest.astype(np.intp), axis=1)
        for row in range(len(distance)):
            # a stable argsort of bytes is a counting sort
            line = ranked[row] if k < n else relevant[row].take(np.argsort(distance[row], kind="stable"))
            hits = np.flatnonzero(line)
            # a sum, not a dot product: BLAS would start threads inside each of ours
            result[first - start + row, 0] = (counts[: len(hits)] * weights.take(hits)).sum()
            result[first - start + row, 1] = len(hits)
    return torch.from_numpy(result)


def _rows_torch(pairs: PackedPairs) -> Iterator[tuple[Tensor, Tensor]]:
    """Distances (rows, N) int64 and relevance (rows, N) bool of a few queries, on the device of the codes."""
    # integers up to 2048 are exact in half precision, and a GPU multiplies halves fastest
    dtype = torch.float16 if pairs.device.type == "cuda" and pairs.bits <= 2048 else torch.float32
    codes = [2 * unpack_bits(part, pairs.bits).to(dtype) - 1 for part in (pairs.query_codes, pairs.database_codes)]
    labels = [unpack_bits(part, 8 * part.shape[1]).to(dtype) for part in (pairs.query_labels, pairs.database_labels)]
    step = max(1, GPU_PAIRS // pairs.n_database)
    for start in range(0, pairs.n_query, step):
        query = slice(start, start + step)
        agreement = (codes[0][query] @ codes[1].T).long()  # (rows, N), bits less twice the distance
        yield (pairs.bits - agreement) // 2, labels[0][query] @ labels[1].T > 0


def histograms_torch(pairs: PackedPairs) -> Tensor:
    """:func:`distance_histograms` in torch operations, for tensors on a GPU.

    Args:
        pairs: Packed codes and labels on any device.

    Returns:
        (Q, 2, bits + 1) int64 on that device.
    """
    width = pairs.bits + 1
    parts = []
    for distance, relevant in _rows_torch(pairs):
        row = torch.arange(len(distance), device=distance.device)[:, None]
        key = distance + width * (relevant.long() + 2 * row)
        parts.append(torch.bincount(key.flatten(), minlength=2 * width * len(distance)).view(-1, 2, width))
    return torch.cat(parts)


def stable_sums_torch(pairs: PackedPairs, top_k: int | None = None) -> Tensor:
    """:func:`stable_precision_sums` in torch operations, for tensors on a GPU.

    Args:
        pairs: Packed codes and labels on any device.
        top_k: Ranks that count; None = all.

    Returns:
        (Q, 3) float64 on that device.
    """
    n = pairs.n_database
    k = min(top_k or n, n)
    ranks = torch.arange(1, k + 1, device=pairs.device, dtype=torch.float64)
    parts = []
    for distance, relevant in _rows_torch(pairs):
        # the position inside the key makes every key different, so no sort has a choice among ties
        key = distance * n + torch.arange(n, device=distance.device)
        nearest = key.topk(k, largest=False).values if k < n else key.sort(dim=1).values
        ranked = relevant.gather(1, nearest % n)
        sums = ((ranked.cumsum(dim=1) * ranked) / ranks).sum(dim=1)
        parts.append(torch.stack([sums, ranked.sum(dim=1), relevant.sum(dim=1)], dim=1))
    return torch.cat(parts)
