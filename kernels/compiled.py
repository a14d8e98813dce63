"""Python loops in, machine code out: how every compiled kernel is compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])

# What a sum in any order asks for; NaN and infinity stay what they are.
_ANY_ORDER = {"reassoc", "contract", "nsz"}


def compiled(loop: F, *, any_order: bool = False) -> F:
    """Compile a loop when it is first called, for the types it is called with; other threads go on meanwhile.

    Machine code is kept beside the source or in the user's cache folder (NUMBA_CACHE_DIR), or, where neither can be
    written, only as long as the process lives.

    Args:
        loop: what to compile.
        any_order: whether sums may be added up in any order, several lanes at once.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": _ANY_ORDER if any_order else False}
    try:
        made: F = numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # numba's "no locator available"
        made = numba.njit(**options)(loop)
    return made


# A decorator like `compiled`, for loops whose sums may be added up in any order.
compiled_sum = partial(compiled, any_order=True)
