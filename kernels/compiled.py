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

# What a sum in any order asks for; NaN and infinity stay what they are.
_ANY_ORDER = {"reassoc", "contract", "nsz"}
# Versions of numba whose machine code is known to run when it is loaded as `_Loading` does; others load it their way.
_TRIED = {(0, 68)}
# Called before a loop is compiled: people wait for it, for all loops some fifteen seconds, once on a machine.
on_compiling: Callable[[], None] | None = None


def compiled(loop: F, *, any_order: bool = False) -> F:
    """Compile a loop when it is first called, for the types it is called with; other threads go on meanwhile.

    Machine code is kept beside the source or in the user's cache folder (NUMBA_CACHE_DIR), or, where neither can be
    written, only as long as the process lives. It is made anew where any kernel's source has changed: loops hold what
    they call of other files, and their constants, and numba looks at a loop's own file alone.

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
    """Holds machine code for what it was made of."""

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
    """Loads machine code without what only compiling needs, which is .4 s of imports in every process.

    Who compiles after all has it imported then (`numba.core.compiler.CompilerBase`).
    """

    def _loaded(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


# A decorator like `compiled`, for loops whose sums may be added up in any order.
compiled_sum = partial(compiled, any_order=True)
