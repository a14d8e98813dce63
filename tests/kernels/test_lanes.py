"""Operations in LLVM's vectors against loops, each beginning anywhere in its arrays."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from gpumatch.kernels import lanes, reference
from gpumatch.kernels.lanes import BLOCK, LANES, TILE_ROWS

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="Python cannot call them")


@numba.njit
def compare(cells, a, b, product, top, at):
    return lanes.compare(cells, a, b, product, top, at)


@numba.njit
def copy_lanes(source, at, count, out, to):
    return lanes.copy_lanes(source, at, count, out, to)


@numba.njit
def write_row_sums(out, at, rows, stride, a, b, c, d, slots, weights, count):
    lanes.write_row_sums(out, at, rows, stride, a, b, c, d, slots, weights, count)


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


@pytest.mark.parametrize("count", [*range(1, 2 * LANES + 2), 5 * LANES])
@pytest.mark.parametrize("nan", [False, True])
def test_copy_lanes(count, nan):
    rng = np.random.default_rng(count)
    source, out = rng.normal(size=100).astype(np.float32), rng.normal(size=100).astype(np.float32)
    at, to = rng.integers(0, 100 - lanes.padded(count) + 1, 2).tolist()
    source[:at] = source[at + count :] = np.nan  # of no matter
    if nan:
        source[at + int(rng.integers(count))] = np.nan
    wanted = out.copy()
    assert reference.copy_lanes(source, at, count, wanted, to, lanes=LANES) is not nan
    assert copy_lanes(source, at, count, out, to) is not nan
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("at", [0, 3])
def test_clip_cells(at):
    cells = np.tile(np.array([-np.inf, -1, -1e-30, 0, 0.5, 1, 1.5, np.inf, np.nan], np.float32), 3)
    wanted = cells.copy()
    wanted[at : at + BLOCK] = wanted[at : at + BLOCK].clip(0, 1)
    lanes.clip_cells(cells, at)
    np.testing.assert_array_equal(cells, wanted)


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("seed", range(5))
def test_write_row_sums(seed, count):
    rng = np.random.default_rng(seed)
    stride = 4 * BLOCK + int(rng.integers(0, 40))
    a, b, c, d = rng.integers(0, stride - BLOCK + 1, 4).tolist()
    rows, out = rng.normal(size=7 * stride).astype(np.float32), rng.normal(size=40 + stride).astype(np.float32)
    slots, weights = rng.integers(0, 7, count).astype(np.int32), rng.normal(size=count).astype(np.float32)
    at, wanted = int(rng.integers(0, 40)), out.copy()
    reference.write_row_sums(wanted, at, rows, stride, a, b, c, d, slots, weights, count, block=BLOCK)
    write_row_sums(out, at, rows, stride, a, b, c, d, slots, weights, count)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)


@numba.njit
def write_products(rows, starts, first, factors, at, count, out, to, stride):
    lanes.write_products(rows, starts, first, factors, at, count, out, to, stride)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 384])
@pytest.mark.parametrize("seed", range(4))
def test_write_products(seed, count):
    rng = np.random.default_rng(seed)
    rows, factors = rng.normal(size=5 + 2 * count).astype(np.float32), rng.normal(size=3 + count * BLOCK)
    factors, first = factors.astype(np.float32), int(rng.integers(0, 3))
    starts, at, to = rng.integers(0, 5 + count, first + TILE_ROWS), int(rng.integers(0, 4)), int(rng.integers(0, 9))
    stride = BLOCK + int(rng.integers(0, 9))
    out = rng.normal(size=9 + TILE_ROWS * stride).astype(np.float32)
    wanted = out.copy()
    reference.write_products(
        rows, starts, first, factors, at, count, wanted, to, stride, block=BLOCK, tile_rows=TILE_ROWS
    )
    write_products(rows, starts, first, factors, at, count, out, to, stride)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("width", "padded"), [(0, 0), (1, 8), (7, 8), (8, 8), (9, 16), (123, 128)])
def test_padded(width, padded):
    assert lanes.padded(width) == padded
    assert lanes.padded(np.array([width])).tolist() == [padded]
