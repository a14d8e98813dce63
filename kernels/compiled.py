"""Python loops in, machine code out: how every compiled kernel is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(loop: F) -> F:
    """Compile a loop when it is first called, for the types it is called with; other threads go on meanwhile.

    Machine code is kept beside the source or in the user's cache folder (NUMBA_CACHE_DIR), or, where neither can be
    written, only as long as the process lives.
    """
    try:
        made: F = numba.njit(nogil=True, cache=True, error_model="numpy")(loop)
    except RuntimeError:  # numba's "no locator available"
        made = numba.njit(nogil=True, error_model="numpy")(loop)
    return made
