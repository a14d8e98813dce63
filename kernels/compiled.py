"""Python loops in, machine code out: how every compiled kernel is compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys

F = TypeVar("F", bound=Callable[..., Any])

# LLVM's fast-math flags that let it add in any order; NaN and infinity stay what they are.
_ANY_ORDER = {"reassoc", "contract", "nsz"}
# Versions of numba with which loading as `_Loading` does is known to work; others load in numba's own way.
_TRIED = {(0, 68)}
# Called before a loop is compiled, to tell people what they wait for: fifteen seconds for all, once on a machine.
on_compiling: Callable[[], None] | None = None


def compiled(loop: F, *, any_order: bool = False) -> F:
    """Compile a loop when it is first called, for the types it is called with; other threads go on meanwhile.

    Machine code is kept beside the source or in the user's cache folder (NUMBA_CACHE_DIR), or, if neither can be
    written, only as long as the process lives. It is made anew when any kernel's source has changed: a loop's machine
    code contains functions and constants of other files, but numba checks only the loop's own file.

    Args:
        loop: what to compile.
        any_order: whether sums may be added up in any order, several lanes at once.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": _ANY_ORDER if any_order else False}
    try:
        made: F = numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # numba's "no locator available"
        made = numba.njit(**options)(loop)
    else:
        # NUMBA_DISABLE_JIT leaves loops as they are.
        if type(getattr(made, "_cache", None)) is FunctionCache:
            kind = _Loading if numba.version_info.short in _TRIED else _Kept
            made._cache = kind(loop)  # type: ignore[attr-defined]
    return made


@cache
def _sources() -> str:
    """Return a hash of every kernel's source."""
    found = hashlib.blake2b()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


class _Kept(FunctionCache):  # type: ignore[misc]
    """A cache whose machine code is valid only for the sources of all kernels that it was made from."""

    def __init__(self, loop: Any) -> None:
        super().__init__(loop)
        self._cache_file._source_stamp = (self._cache_file._source_stamp, _sources())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = self._loaded(sig, target_context)
        if found is None and on_compiling is not None:
            on_compiling()
        return found

    def _loaded(self, sig: Any, target_context: Any) -> Any:
        return super().load_overload(sig, target_context)


class _Loading(_Kept):
    """Loads machine code without the imports that only compiling needs: .4 s in every process.

    If something must be compiled after all, numba imports them then (`numba.core.compiler.CompilerBase`).
    """

    def _loaded(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


# A decorator like `compiled`, for loops whose sums may be added up in any order, several lanes at once.
compiled_sum = partial(compiled, any_order=True)
