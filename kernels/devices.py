"""An array in, the same numbers on the device that works on them out: NumPy on the host, torch tensors elsewhere."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np


def put(array: Any, device: Any) -> Any:
    """Return the array itself for "cpu", else a tensor on the device ("cuda", or torch's "cpu:0")."""
    if not isinstance(array, np.ndarray):
        return array.to(device)
    if device == "cpu":
        return np.ascontiguousarray(array)
    import torch

    _in_full_precision()
    # A file of an index cannot be written to, of which torch would warn, though what is made here is a copy.
    array = np.ascontiguousarray(array) if array.flags.writeable else np.array(array)
    return torch.from_numpy(array).to(device, copy=True)


@cache
def _in_full_precision() -> None:
    """Have products of float32 made of float32: NVIDIA's containers let torch round to ten bits (TF32), or a notebook.

    The answers would be others than a CPU's, from the third decimal on.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False


def put_in_cupy(array: np.ndarray) -> Any:
    """Return an array as CuPy has it; integers with 32 bits, as its sparse matrices want them.

    Raises:
        MemoryError: a number needs more bits, so that the array has to stay on the host.
    """
    import cupy

    if array.dtype == np.int64 and array.max(initial=0) > np.iinfo(np.int32).max:
        raise MemoryError("more than 2**31 entries, which CuPy's sparse matrices cannot number")
    return cupy.asarray(array.astype(np.int32) if array.dtype == np.int64 else array)


def host(array: Any) -> np.ndarray:
    """Return an array or a tensor as a NumPy array."""
    there: np.ndarray = array if isinstance(array, np.ndarray) else array.cpu().numpy()
    return there


def clipped(table: Any) -> Any:
    """Clip a table that is nobody else's to [0, 1], in place; NaN stays. Arrays of NumPy or torch."""
    return np.clip(table, 0, 1, out=table) if isinstance(table, np.ndarray) else table.clamp_(0, 1)


def device_bytes(device: Any, unknown: int) -> tuple[int, int]:
    """Return the bytes that are free on a CUDA device, and all that it has; (unknown, unknown) for any other."""
    if not str(device).startswith("cuda"):
        return unknown, unknown
    from torch import cuda

    free, total = cuda.mem_get_info()
    # Memory that torch has reserved and does not use is free for its next tensors.
    return int(free) + cuda.memory_reserved() - cuda.memory_allocated(), int(total)
