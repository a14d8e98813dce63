"""Operations in LLVM's vectors against loops, each beginning anywhere in its arrays."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from gpumatch.kernels import lanes, reference
from gpumatch.kernels.lanes import LANES

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="Python cannot call them")


@numba.njit
def compare(cells, a, b, product, top, at):
    return lanes.compare(cells, a, b, product, top, at)


@numba.njit
def add_scaled(out, at, x, start, factor):
    lanes.add_scaled(out, at, x, start, factor)


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_compare(seed, product):
    rng = np.random.default_rng(seed)
    cells, top = rng.uniform(0, 1, (2, 64)).astype(np.float32)
    cells[rng.uniform(size=64) < 0.3] = -1  # not known
    cells[rng.uniform(size=64) < 0.1] = 0
    a, b, at = rng.integers(0, 64 - LANES + 1, 3).tolist()
    wanted = top.copy()
    most = reference.compare(cells, a, b, product, wanted, at, lanes=LANES)
    assert compare(cells, a, b, product, top, at) == most
    np.testing.assert_array_equal(top, wanted)


@pytest.mark.parametrize("best", range(LANES))
def test_the_most_may_stand_in_any_lane(best):
    cells, top = np.zeros(LANES, np.float32), np.full(LANES, 0.25, np.float32)
    cells[best] = 0.5
    assert compare(cells, 0, 0, False, top, 0) == 0.5
    assert top.tolist() == [0.5 if lane == best else 0.25 for lane in range(LANES)]


@pytest.mark.parametrize("seed", range(20))
def test_add_scaled(seed):
    rng = np.random.default_rng(seed)
    out, x = rng.normal(size=(2, 64)).astype(np.float32)
    at, start = rng.integers(0, 64 - LANES + 1, 2).tolist()
    factor = np.float32(rng.normal())
    wanted = out.copy()
    reference.add_scaled(wanted, at, x, start, factor, lanes=LANES)
    add_scaled(out, at, x, start, factor)
    np.testing.assert_allclose(out, wanted, rtol=1e-6)


@pytest.mark.parametrize(("width", "padded"), [(0, 0), (1, 8), (7, 8), (8, 8), (9, 16), (123, 128)])
def test_padded(width, padded):
    assert lanes.padded(width) == padded
    assert lanes.padded(np.array([width])).tolist() == [padded]
