"""With NUMBA_DISABLE_JIT=1 the loops run as Python, so that their coverage is seen (make coverage)."""

from __future__ import annotations

from functools import partial

import numba
import numpy as np
import pytest

from gpumatch.kernels import attention, dense, linear, maxsim, reference, screen, shorts, sparse
from gpumatch.kernels.lanes import BLOCK, LANES, TILE_ROWS


@pytest.fixture(autouse=True, scope="session")
def lanes_in_python():
    """Python cannot call what is written in LLVM's vectors; its reference can stand in for it."""
    with pytest.MonkeyPatch.context() as patch:
        if numba.config.DISABLE_JIT:
            patch.setattr(maxsim, "compare", partial(reference.compare, lanes=LANES))
            patch.setattr(maxsim, "copy_lanes", partial(reference.copy_lanes, lanes=LANES))
            patch.setattr(sparse, "write_row_sums", partial(reference.write_row_sums, block=BLOCK))
            tile = {"block": BLOCK, "tile_rows": TILE_ROWS}
            patch.setattr(dense, "write_products", partial(reference.write_products, **tile))
            patch.setattr(attention, "write_tile", partial(reference.write_tile, block=BLOCK))
            patch.setattr(attention, "_greatest", lambda row, count: row[:count].max())
            patch.setattr(attention, "_power_of_two", lambda n: np.float32(2) ** n)
            for module in (screen, shorts):
                patch.setattr(module, "as_float", reference.as_float)
            block = {"rows": shorts.ROWS, "queries": shorts.QUERIES}
            patch.setattr(linear, "write_sums", partial(reference.write_sums, **block))
            patch.setattr(screen, "reaching", partial(reference.reaching, rows=shorts.ROWS))
        yield
