"""Compiles plain loops to machine code at their first call, so that numba is not imported before it is needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Let numba compile a function of numbers and arrays when it is first called.

    Args:
        function: See ``jit``; it calls no other compiled function.

    Returns:
        The function, compiled.

    >>> @compiled
    ... def total(values):
    ...     found = 0
    ...     for i in range(len(values)):
    ...         found += values[i]
    ...     return found
    >>> import numpy as np
    >>> int(total(np.arange(4)))
    6
    """
    built = cache(lambda: jit(function))

    @wraps(function)
    def call(*arguments: Any) -> Any:
        return built()(*arguments)

    return cast(Function, call)


def jit(function: Function) -> Function:
    """Like ``compiled`` for files that are imported late themselves: imports numba, and the functions call each other.

    The code is kept on disk beside the function's file or in the user's cache folder (``NUMBA_CACHE_DIR`` names another
    one). Floating-point arithmetic is that of the source, in its order, so that ties stay ties.

    Args:
        function: Loops over arrays.

    Returns:
        The function, compiled at its first call.
    """
    from numba import njit

    try:
        return cast(Function, njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:  # no folder that can be written to: compiled anew in each process
        return cast(Function, njit(nogil=True, error_model="numpy")(function))
