"""Connected components of one thresholded map in one pass, compiled to machine code at the first call.

Numba is imported with this file, so import it inside functions only. Compiled code is kept on disk beside this file
or in the user's cache folder (``NUMBA_CACHE_DIR`` names another one). The functions start no threads and let go of
the interpreter lock: callers run several maps at once.

The pass goes from run to run: a run is a stretch of inside pixels of one row. A run takes the label of a run above that
it touches, or a new one; labels that meet are united, the lower one staying. Statistics are kept a label and put
together at the end, so that no pixel is looked at again and no picture of labels is written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
COLUMNS = 7  # x1, y1, x2, y2, area, maximum, sum


def _compiled(function: Function, freedom: tuple[str, ...] = ()) -> Function:
    compiler = partial(njit, nogil=True, fastmath=set(freedom), error_model="numpy")
    try:
        return cast(Function, compiler(cache=True)(function))
    except RuntimeError:  # no folder that can be written to: compiled anew in each process
        return cast(Function, compiler()(function))


# "reassoc" lets a sum run in several registers; "nnan" and "nsz" do so for the maximum, as a pixel of a run is no NaN:
# it has reached the threshold
@partial(_compiled, freedom=("reassoc", "nnan", "nsz"))
def _run_statistics(row: NDArray[np.float32], start: int, end: int) -> tuple[float, float]:
    """Largest value and float64 sum of ``row[start:end]``."""
    largest, total = row[start], 0.0
    for x in range(start, end):
        largest = max(largest, row[x])
        total += np.float64(row[x])
    return largest, total


@_compiled
def _root(parent: NDArray[np.int64], label: int) -> int:
    while parent[label] != label:
        parent[label] = parent[parent[label]]
        label = parent[label]
    return label


@_compiled
def _find_edges(
    row: NDArray[np.float32],
    threshold: np.float32,
    is_edge: NDArray[np.uint8],
    words: NDArray[np.uint64],
    edges: NDArray[np.int64],
) -> int:
    """Write where the runs of a row start and end, in turns, and return how many such places there are.

    Args:
        row: (W,).
        threshold: Values that reach it are inside.
        is_edge: (at least W + 1,), multiples of 8, zeros beyond W.
        words: The memory of ``is_edge``, eight places a word: most words hold no edge.
        edges: (W + 2,), overwritten.
    """
    width = len(row)
    is_edge[0] = row[0] >= threshold
    for x in range(1, width):
        is_edge[x] = (row[x] >= threshold) != (row[x - 1] >= threshold)
    is_edge[width] = row[width - 1] >= threshold
    count = 0
    for word in range(len(words)):
        if words[word] != 0:
            for x in range(8 * word, 8 * word + 8):
                edges[count] = x  # always written, kept for an edge: a branch would be guessed wrongly
                count += is_edge[x]
    return count


@_compiled
def component_table(
    values: NDArray[np.float32], threshold: np.float32, reach: int, min_area: int
) -> NDArray[np.float64]:
    """Boxes and statistics of the connected components of ``values >= threshold``, by their first pixel.

    Args:
        values: (H, W).
        threshold: Values that reach it are inside.
        reach: 1: pixels that touch at a corner are neighbours too; 0: at an edge only.
        min_area: Smaller components are left out.

    Returns:
        (components, 7): x1, y1, x2, y2 (half-open), area, maximum, sum.
    """
    height, width = values.shape
    words = np.zeros(width // 8 + 1, np.uint64)
    is_edge = words.view(np.uint8)
    above, here = np.empty(width + 2, np.int64), np.empty(width + 2, np.int64)
    labels_above, labels_here = np.empty(width // 2 + 1, np.int64), np.empty(width // 2 + 1, np.int64)
    most = height * ((width + 1) // 2)  # memory that is not written takes no place
    parent = np.empty(most, np.int64)
    table = np.empty((most, COLUMNS), np.float64)
    count_above, labels = 0, 0
    for y in range(height):
        count_here = _find_edges(values[y], threshold, is_edge, words, here) // 2
        j = 0
        for i in range(count_here):
            start, end = here[2 * i], here[2 * i + 1]
            while j < count_above and above[2 * j + 1] + reach <= start:
                j += 1
            label, k = -1, j
            while k < count_above and above[2 * k] < end + reach:
                other = _root(parent, labels_above[k])
                if label < 0:
                    label = other
                elif other != label:
                    parent[max(label, other)] = min(label, other)
                    label = min(label, other)
                k += 1
            largest, total = _run_statistics(values[y], start, end)
            if label < 0:
                label = labels
                labels += 1
                parent[label] = label
                table[label, 0], table[label, 1], table[label, 2], table[label, 3] = start, y, end, y + 1
                table[label, 4], table[label, 5], table[label, 6] = end - start, largest, total
            else:
                table[label, 0] = min(table[label, 0], start)
                table[label, 2] = max(table[label, 2], end)
                table[label, 3] = y + 1
                table[label, 4] += end - start
                table[label, 5] = max(table[label, 5], largest)
                table[label, 6] += total
            labels_here[i] = label
        above, here = here, above
        labels_above, labels_here = labels_here, labels_above
        count_above = count_here
    return _united(table[:labels], parent, min_area)


@_compiled
def _united(table: NDArray[np.float64], parent: NDArray[np.int64], min_area: int) -> NDArray[np.float64]:
    """Add each label's row to its parent's, the last first, and keep the roots that are large enough."""
    kept = 0
    for label in range(len(table) - 1, -1, -1):
        root = parent[label]  # a lower label, whose own turn comes later
        if root == label:
            kept += table[label, 4] >= min_area
            continue
        table[root, 0] = min(table[root, 0], table[label, 0])
        table[root, 1] = min(table[root, 1], table[label, 1])
        table[root, 2] = max(table[root, 2], table[label, 2])
        table[root, 3] = max(table[root, 3], table[label, 3])
        table[root, 4] += table[label, 4]
        table[root, 5] = max(table[root, 5], table[label, 5])
        table[root, 6] += table[label, 6]
    result = np.empty((kept, COLUMNS), np.float64)
    place = 0
    for label in range(len(table)):
        if parent[label] == label and table[label, 4] >= min_area:
            result[place] = table[label]
            place += 1
    return result
