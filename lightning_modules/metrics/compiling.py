"""Compiles plain loops to machine code at their first call, so that numba is not imported before it is needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Let numba compile a function of numbers and arrays when it is first called.

    The code is kept on disk beside the function's file or in the user's cache folder (``NUMBA_CACHE_DIR`` names another
    one). Floating-point arithmetic is that of the source, in its order, so that ties stay ties.

    Args:
        function: Loops over arrays; it calls no other compiled function.

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

    @cache
    def built() -> Callable[..., Any]:
        from numba import njit

        try:
            return cast(Callable[..., Any], njit(nogil=True, error_model="numpy", cache=True)(function))
        except RuntimeError:  # no folder that can be written to: compiled anew in each process
            return cast(Callable[..., Any], njit(nogil=True, error_model="numpy")(function))

    @wraps(function)
    def call(*arguments: Any) -> Any:
        return built()(*arguments)

    return cast(Function, call)
