"""Holds back Python's garbage collector while many objects are made that all live on or are freed by reference count.

Pure; nothing here collects anything.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back() -> Iterator[None]:
    """Collect nothing inside the block.

    Every few hundred new lists and dicts set off a pass over them all: building the result rows of the headline job
    took 1.7 to 2.7 s with these passes and 0.4 s without (bench/LOG.md, 2026-11-24).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
