"""How many threads a run wants in; every library that has threads of its own limited to them, while runs go on, out."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

# The tokeniser reads it once, when it first works.
_OF_TOKENISER = "RAYON_NUM_THREADS"

_lock = threading.Lock()
# Sets back what each of the runs that go on has found; the first found what was there before all of them.
_going_on: list[Callable[[], None]] = []


@contextmanager
def limited(n: int) -> Iterator[None]:
    """Limit BLAS, Arrow, the tokeniser, and torch where it is loaded, to n threads each.

    The limits of the run that began last hold until none goes on any more. Then all is as it was: the process may be
    somebody's notebook or server.
    """
    with _lock:
        _going_on.append(_limit(n))
    try:
        yield
    finally:
        with _lock:
            restore = _going_on.pop()  # the first one stays to the end
            if not _going_on:
                restore()


def _limit(n: int) -> Callable[[], None]:
    """Set the limits, and return what sets them back."""
    import pyarrow

    torch = sys.modules.get("torch")  # it takes seconds to load, and many runs never need it
    arrow, of_torch, free = pyarrow.cpu_count(), torch and torch.get_num_threads(), _OF_TOKENISER not in os.environ
    blas = threadpool_limits(n, user_api="blas")
    pyarrow.set_cpu_count(n)
    if torch:
        torch.set_num_threads(n)
    os.environ.setdefault(_OF_TOKENISER, str(n))

    def restore() -> None:
        blas.restore_original_limits()
        pyarrow.set_cpu_count(arrow)
        if torch:
            torch.set_num_threads(of_torch)
        if free:
            os.environ.pop(_OF_TOKENISER, None)

    return restore
