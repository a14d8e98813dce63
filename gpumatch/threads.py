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
_going_on = 0
# Brings back what was there before the first of the runs that go on.
_restore: Callable[[], None] | None = None


def limit_threads(n: int) -> None:
    """Limit BLAS, Arrow, the tokeniser, and torch where it is loaded, to n threads each."""
    global _restore
    import pyarrow

    with _lock:
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

        _restore = _restore or restore


@contextmanager
def limits_end() -> Iterator[None]:
    """Set the limits back when no run goes on any more: the process may be somebody's notebook or server."""
    global _going_on, _restore
    with _lock:
        _going_on += 1
    try:
        yield
    finally:
        with _lock:
            _going_on -= 1
            if not _going_on and _restore is not None:
                _restore()
                _restore = None
