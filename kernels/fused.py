"""Returns whether Triton's kernels can run, found by running the smallest.

Triton compiles at run time: a kernel with its own tools, and the kernel's launcher with a C compiler and Python's
headers, which many machines with a GPU lack. Without them torch's operations do the same.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_SAID = 300


@cache
def fused_trouble(device: str = "cuda") -> str:
    """Return why Triton's kernels cannot run on a device, on one line, or "" if they can."""
    try:
        import torch

        from gpumatch.kernels.maxsim import MEAN, Pairs, Similarity
        from gpumatch.kernels.triton_maxsim import maxsim_fused

        first, bounds = np.zeros(1, np.int64), np.arange(2)
        one = Similarity(torch.ones((1, 1), device=device), first, first)
        maxsim_fused(Pairs([one], bounds, bounds, first, first), np.array([(MEAN, 0, 0)]))
    except Exception as error:  # Triton's, the compiler's, the driver's, or one is missing
        said = " ".join(str(error).split())
        if "out of memory" not in said:  # that may pass, and callers that work in pieces handle it
            return f"{type(error).__name__}: {said}"[:_SAID]
    return ""
