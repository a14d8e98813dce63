"""gpumatch finds, in a lake of tables, the tables that each query table can be joined or unioned with.

    index = gpumatch.build("lake/", "lake.idx")
    index.match({"new": frame}, task="join").to_pandas()

Axes used throughout: T tables, C columns, D vector length, K survivors, P pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["GpumatchError", "Index", "Matches", "Settings", "align", "build", "evaluate", "open"]

if TYPE_CHECKING:
    from gpumatch.api import Index, align, build, open
    from gpumatch.config import Settings
    from gpumatch.errors import GpumatchError
    from gpumatch.metrics import evaluate
    from gpumatch.results import Matches

# Loaded when first asked for: `gpumatch --help` must not wait for torch.
_HOMES = {
    "GpumatchError": "errors",
    "Index": "api",
    "Matches": "results",
    "Settings": "config",
    "align": "api",
    "build": "api",
    "evaluate": "metrics",
    "open": "api",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module 'gpumatch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"gpumatch.{_HOMES[name]}"), name)
