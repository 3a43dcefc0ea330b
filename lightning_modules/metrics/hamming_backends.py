"""From packed codes to distance histograms, and to the ranked relevance of a stable sort.

Two ways of computing the same integers: compiled walks over packed words on a CPU; a matrix product of {-1, +1} on a
GPU, which has no population count in torch. Neither holds the distances of more than a few queries at a time, so that
memory does not grow with queries x database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.metrics.hamming import PackedPairs, unpack_bits

# Pairs that one step looks at: on a GPU enough to fill it; on a CPU a fraction of a second, as nothing can interrupt
# a compiled walk.
CPU_PAIRS = 2**28
GPU_PAIRS = 2**24
# Below this a thread costs more than it brings.
PAIRS_WORTH_A_THREAD = 2**20

Walk = Callable[..., None]


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
    from lightning_modules.metrics import hamming_kernels

    result = torch.empty(pairs.n_query, 2, pairs.bits + 1, dtype=torch.int64)
    _over_queries(pairs, hamming_kernels.histograms, result)
    return result


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
    from lightning_modules.metrics import hamming_kernels

    result = torch.empty(pairs.n_query, 3, dtype=torch.float64)
    k = min(top_k or pairs.n_database, pairs.n_database)
    _over_queries(pairs, hamming_kernels.stable_sums, result, pairs.bits, k)
    return result


def _over_queries(pairs: PackedPairs, walk: Walk, result: Tensor, *arguments: int) -> None:
    """Let ``walk`` fill the rows of ``result``, ranges of queries at a time, with torch's number of threads."""
    query_codes, query_labels = _as_words(pairs.query_codes), _as_words(pairs.query_labels)
    # one contiguous row a word: the walks read neighbouring items together
    codes, labels = (np.ascontiguousarray(_as_words(part).T) for part in (pairs.database_codes, pairs.database_labels))
    threads = torch.get_num_threads() if pairs.n_query * pairs.n_database > PAIRS_WORTH_A_THREAD else 1
    share = -(-pairs.n_query // (8 * threads))  # several ranges a thread: a slow core gets fewer of them
    size = max(1, min(share, CPU_PAIRS // pairs.n_database))

    def fill(start: int) -> None:
        rows = slice(start, start + size)
        walk(query_codes[rows], query_labels[rows], codes, labels, *arguments, result.numpy()[rows])

    starts = range(0, pairs.n_query, size)
    if threads == 1:
        for start in starts:
            fill(start)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, starts):  # raises what a thread raised
            pass


def _as_words(packed: Tensor) -> NDArray[np.int64]:
    """(N, bytes) uint8 -> (N, words) int64, zeros at the end of a row."""
    array = packed.contiguous().numpy()
    return np.pad(array, ((0, 0), (0, -array.shape[1] % 8))).view(np.int64)


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
