"""float16 numbers in, the same numbers as float32 out, several times as fast as NumPy does it."""

from __future__ import annotations

from functools import cache

import numpy as np

from gpumatch.kernels.compiled import compiled


def widened(x: np.ndarray) -> np.ndarray:
    """Return an array as float32: float16 is copied exactly, any other type is converted as NumPy does."""
    if x.dtype != np.float16:
        return x.astype(np.float32, copy=False)
    out = np.empty(x.shape, np.float32)
    _look_up(np.ascontiguousarray(x).reshape(-1).view(np.uint16), _every_half(), out.reshape(-1))
    return out


@cache
def _every_half() -> np.ndarray:
    """Return the number that each of the 65,536 patterns of 16 bits stands for, float32."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


@compiled
def _look_up(bits, every, out):
    for i in range(len(bits)):
        out[i] = every[bits[i]]
