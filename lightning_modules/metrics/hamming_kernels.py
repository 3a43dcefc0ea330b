"""Walks over all pairs of queries and database, compiled to machine code at the first call.

Numba is imported with this file, so import it inside functions only. Compiled code is kept on disk beside this file
or in the user's cache folder (``NUMBA_CACHE_DIR`` names another one). The functions start no threads and let go of
the interpreter lock: callers run several at once, and a process may fork between two calls.

Words and counts are int64, so that no expression mixes signs. A key is twice the distance, plus 1 for a relevant item.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

# The database is cut into lanes that are walked in turns: counters of their own, so that an increment does not
# wait for the one before it, which usually is of the same distance.
LANES = 4


def _compiled(function: Function) -> Function:
    # "reassoc" lets a sum run in several registers; the numpy error model does not look for a zero at each division
    compiler = partial(njit, nogil=True, fastmath={"reassoc"}, error_model="numpy")
    try:
        return cast(Function, compiler(cache=True)(function))
    except RuntimeError:  # no folder that can be written to: compiled anew in each process
        return cast(Function, compiler()(function))


def _popcount_of(context: Any, word: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), code


_popcount: Any = intrinsic(_popcount_of)  # numba knows no np.bitwise_count


@_compiled
def _count(code: Ints, label: Ints, codes: Ints, labels: Ints, keys: NDArray[np.uint32], counts: Ints) -> None:
    """Fill ``keys`` (LANES, places) for one query, and count them lane by lane in ``counts`` (LANES, keys)."""
    n = codes.shape[1]
    flat = keys.ravel()
    flat[:n] = 0
    for word in range(len(codes)):  # items inside, words outside: this way each loop becomes vector instructions
        for i in range(n):
            flat[i] += 2 * _popcount(code[word] ^ codes[word, i])
    for word in range(len(labels)):
        for i in range(n):
            flat[i] |= (label[word] & labels[word, i]) != 0
    flat[n:] = counts.shape[1] - 2  # the places that no item fills lie beyond every distance
    counts[:] = 0
    for i in range(keys.shape[1]):
        for lane in range(LANES):
            counts[lane, keys[lane, i]] += 1


@_compiled
def histograms(query_codes: Ints, query_labels: Ints, codes: Ints, labels: Ints, result: Ints) -> None:
    """Count irrelevant and relevant items at each distance.

    Args:
        query_codes: (Q, words).
        query_labels: (Q, label words).
        codes: (words, N) of the database.
        labels: (label words, N) of the database.
        result: (Q, 2, bits + 1), overwritten.
    """
    bits = result.shape[2] - 1
    keys = np.empty((LANES, -(-codes.shape[1] // LANES)), np.uint32)
    counts = np.empty((LANES, 2 * bits + 4), np.int64)
    for query in range(len(query_codes)):
        _count(query_codes[query], query_labels[query], codes, labels, keys, counts)
        for distance in range(bits + 1):
            for relevant in range(2):
                result[query, relevant, distance] = counts[:, 2 * distance + relevant].sum()


@_compiled
def stable_sums(
    query_codes: Ints,
    query_labels: Ints,
    codes: Ints,
    labels: Ints,
    bits: int,
    top_k: int,
    result: NDArray[np.float64],
) -> None:
    """Sum the precisions at the relevant ranks of a stable sort by distance, without sorting anything.

    The counts of all distances say where each distance begins; a second walk then knows the rank of each item.

    Args:
        query_codes: (Q, words).
        query_labels: (Q, label words).
        codes: (words, N) of the database, fewer than 2**31 items.
        labels: (label words, N) of the database.
        bits: Code length.
        top_k: Ranks that count, at most N.
        result: (Q, 3), overwritten: the sum, the relevant items among the first ``top_k``, all relevant items.
    """
    one_relevant, low = 1 << 32, (1 << 32) - 1  # relevant items in the upper half of a number, all in the lower
    keys = np.empty((LANES, -(-codes.shape[1] // LANES)), np.uint32)
    counts = np.empty((LANES, 2 * bits + 4), np.int64)
    ahead = np.zeros((LANES, bits + 2), np.int64)
    hits = np.empty(codes.shape[1] + 1, np.int64)
    for query in range(len(query_codes)):
        _count(query_codes[query], query_labels[query], codes, labels, keys, counts)
        total, last = 0, 0
        for distance in range(bits + 1):
            if total & low < top_k:
                last = distance
            for lane in range(LANES):
                ahead[lane, distance] = total
                total += counts[lane, 2 * distance] + counts[lane, 2 * distance + 1] * (one_relevant + 1)
        found = 0
        for i in range(keys.shape[1]):
            for lane in range(LANES):
                distance, relevant = keys[lane, i] >> 1, keys[lane, i] & 1
                if distance <= last:
                    place = ahead[lane, distance] + 1 + relevant * one_relevant
                    ahead[lane, distance] = place
                    hits[found] = place  # always written, kept for a relevant item: a branch would be guessed wrongly
                    found += relevant & (place & low <= top_k)
        precisions = 0.0
        for i in range(found):
            precisions += (hits[i] >> 32) / (hits[i] & low)
        result[query, 0] = precisions
        result[query, 1] = found
        result[query, 2] = total >> 32
