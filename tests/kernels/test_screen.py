"""Rows ruled out by products of 16-bit integers: what is left is what float64 alone would find, ties by row number."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_inputs import assert_best_keys, vectors

from gpumatch.kernels import heaps, reference, screen, shorts
from gpumatch.kernels.screen import screened_topk
from gpumatch.kernels.shorts import QUERIES, ROWS

SIZES = (0, 1, 2, 15, 16, 17, 31, 33, 123, 255, 257)


def assert_best(queries, rows, k, exclude=None, threads=1):
    assert_best_keys(screened_topk(queries, rows, k, exclude, threads), queries, rows, k, exclude)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("n_rows", SIZES)
def test_odd_shapes(n_rows, kind):
    for n, width, k in ((0, 4, 3), (1, 1, 1), (5, 7, 0), (6, 8, 2), (7, 33, 16), (13, 64, 300)):
        assert_best(vectors(n, width, 1), vectors(n_rows, width, 2, kind), k)


@pytest.mark.parametrize("width", [0, 1, 2, 3, 31, 32, 33, 127, 129, 384])
def test_any_width(width):
    assert_best(vectors(9, width, 3), vectors(70, width, 4), 12)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_and_blocks(threads, monkeypatch):
    queries, rows = vectors(20, 24, 5), vectors(700, 24, 6)
    for taken, packed in ((1, 1), (16, 100_000), (50, 2_000), (4096, 100_000)):
        monkeypatch.setattr(screen, "_TAKEN", taken)
        monkeypatch.setattr(screen, "_PACKED_BYTES", packed)
        assert_best(queries, rows, 9, threads=threads)


def test_ties_go_to_the_lower_row():
    rows = np.repeat(vectors(5, 16, 7), 20, axis=0)
    assert_best(rows[::20].copy(), rows, 37)
    ids, _ = heaps.ranked(screened_topk(np.zeros((2, 16), np.float32), rows, 8, None, 1))
    np.testing.assert_array_equal(ids, [range(8)] * 2)


def test_the_excluded_row_is_never_given():
    rows = vectors(60, 16, 8)
    queries = rows[[3, 59, 0, 16]]
    for exclude in ([3, 59, 0, 16], [-1, -1, 0, 15]):
        for k in (1, 5, 60):
            assert_best(queries, rows, k, np.array(exclude))


def test_rows_in_rising_order_all_have_to_be_looked_at():
    query = vectors(1, 24, 9)
    rows = query * np.linspace(0.1, 1, 500, dtype=np.float32)[:, None]
    assert_best(query, rows, 7)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-3, 30])
def test_lengths_of_every_size(scale):
    """Scores far below the resolution are all ties."""
    queries, rows = vectors(8, 12, 10) * np.float32(scale), vectors(90, 12, 11)
    assert_best(queries, rows * np.float32(40), 10)
    lengths = np.random.default_rng(12).choice([0, 1e-38, 1e-20, 1e-4, 1, 30], (90, 1))
    assert_best(queries, (rows * lengths).astype(np.float32), 10)


def test_one_number_may_outweigh_all_others():
    rng = np.random.default_rng(13)
    queries, rows = (rng.normal(size=(n, 40)).astype(np.float32) * 1e-3 for n in (9, 200))
    for some in (queries, rows):
        some[np.arange(len(some)), rng.integers(0, 40, len(some))] = rng.choice([-30, 30, 1], len(some))
    assert_best(queries, rows, 15)


def test_scores_as_close_as_the_resolution_keep_their_order():
    rng = np.random.default_rng(14)
    direction = vectors(1, 384, 15)[0].astype(np.float64)
    steps = rng.integers(0, 300, 400)
    rows = (direction * (0.5 + steps[:, None] * 1e-6)).astype(np.float32)
    assert_best(direction.astype(np.float32)[None], rows, 100)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_no_number_is_refused(bad):
    queries, rows = vectors(3, 20, 16), vectors(100, 20, 17)
    rows[71, 19] = bad
    with pytest.raises(ValueError, match="row 71"):
        screened_topk(queries, rows, 4, None, 1)
    queries[2, 0] = bad
    with pytest.raises(ValueError, match="query 2" if np.isfinite(bad) else "among the queries"):
        screened_topk(queries, rows[:50], 4, None, 1)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_of_float16_is_refused():
    rows = vectors(40, 20, 18, np.float16)
    rows[33, 0] = np.nan
    with pytest.raises(ValueError, match="row 33"):
        screened_topk(vectors(3, 20, 19), rows, 4, None, 1)


def test_a_best_score_that_a_key_cannot_hold_is_refused():
    rows = np.ones((50, 4), np.float32)
    rows[20] = 501
    with pytest.raises(ValueError, match="row 20"):
        screened_topk(np.ones((1, 4), np.float32), rows, 3, None, 1)


def test_rows_that_are_not_contiguous():
    rows = vectors(200, 32, 20)
    assert_best(vectors(5, 16, 21), rows[::2, ::2], 6)
    assert_best(vectors(32, 16, 21).T[:, :16].copy(), rows[:, 8:24], 6)


@given(n=st.integers(1, 14), n_rows=st.integers(1, 60), width=st.integers(1, 9), k=st.integers(1, 20), data=st.data())
def test_any_small_numbers(n, n_rows, width, k, data):
    """Few different numbers: scores are exact and often tie."""
    level = st.sampled_from([0.0, 0.25, -0.25, 1.0, -1.0, 3.0])
    numbers = data.draw(st.lists(level, min_size=(n + n_rows) * width, max_size=(n + n_rows) * width))
    both = np.array(numbers, np.float32).reshape(n + n_rows, width)
    exclude = np.array(data.draw(st.lists(st.integers(-1, n_rows - 1), min_size=n, max_size=n)))
    assert_best(both[:n].copy(), both[n:].copy(), k, exclude)


# --- what is written in LLVM's vectors


@numba.njit
def reaching(packed, asked, pairs, step, norm, q_step, q_more, q_times, least, masks):
    return screen.reaching(packed, 0, asked, 0, pairs, step, norm, 0, q_step, q_more, q_times, least, 0, masks)


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="Python cannot call it")
@pytest.mark.parametrize("seed", range(20))
def test_reaching(seed):
    rng = np.random.default_rng(seed)
    pairs = int(rng.integers(0, 9))
    packed = rng.integers(-9, 10, 32 + 2 * ROWS * pairs, np.int16)
    asked = rng.integers(-9, 10, 12 + 2 * QUERIES * pairs, np.int16)
    step, norm = rng.integers(1, 4, (2, 3 + ROWS)).astype(np.float32)
    q_step, q_more, q_times, least = rng.integers(0, 4, (4, 2 + QUERIES)).astype(np.float32)
    least[2] = np.inf  # one that nothing reaches, and one that everything does
    least[3] = -np.inf
    masks, wanted = np.full((2, QUERIES), 7, np.uint16)
    of_all = step, norm, 3, q_step, q_more, q_times, least, 2
    anywhere = reference.reaching(packed, 32, asked, 12, pairs, *of_all, wanted, rows=ROWS)
    of_some = step[3:], norm[3:], q_step[2:], q_more[2:], q_times[2:], least[2:]
    assert reaching(packed[32:], asked[12:], pairs, *of_some, masks) == anywhere
    np.testing.assert_array_equal(masks, wanted)
    assert wanted[0] == 0
    assert wanted[1] == 2**ROWS - 1


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="Python cannot call it")
def test_the_largest_sums_do_not_overflow():
    """Integers of two vectors that lie the same way, as long as they get."""
    for width in (4, 384, 4096, shorts.MAX_WIDTH):
        v = np.full((1, width), 1 / np.sqrt(width), np.float32)
        packed, step, norm = np.empty(ROWS * (width + width % 2), np.int16), *np.empty((2, ROWS), np.float32)
        assert shorts.pack(v, 0, 1, ROWS, packed, step, norm) == -1
        whole = packed.reshape(-1, ROWS, 2)[:, 0].reshape(-1).astype(np.int64)
        assert 0.9 * 46_000**2 < (whole * whole).sum() < 2**31 or width == 4  # four numbers are capped at 32,767
        assert abs(step[0] ** 2 * (whole * whole).sum() - 1) < 0.02


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="Python cannot call it")
def test_most_rows_are_ruled_out():
    """Else the answers would be right and nothing gained."""
    queries, rows = vectors(12, 64, 22), vectors(4_800, 64, 23)
    asked, least = screen._Queries.of(queries), np.full(12, 0.3, np.float32)
    packed, masks, found = np.empty(ROWS * 64, np.int16), np.zeros(QUERIES, np.uint16), 0
    step, norm = np.empty((2, ROWS), np.float32)
    for start in range(0, len(rows), ROWS):
        shorts.pack(rows, start, start + ROWS, ROWS, packed, step, norm)
        for q in range(0, 12, QUERIES):
            of = asked.step[q:], asked.more[q:], asked.times[q:], least[q:]
            reaching(packed, asked.packed[q * 64 :], 32, step, norm, *of, masks)
            found += sum(int(mask).bit_count() for mask in masks)
    exact = (queries.astype(np.float64) @ rows.astype(np.float64).T >= 0.3).sum()
    assert exact <= found <= exact + 20


WITHOUT_F16C = """
import numba
import numpy as np
from gpumatch.kernels.shorts import as_float

@numba.njit
def widen(bits, out):
    for i in range(len(bits)):
        out[i] = as_float(bits[i])

bits = np.arange(1 << 16, dtype=np.uint16)
out = np.empty(len(bits), np.float32)
widen(bits, out)
np.testing.assert_array_equal(out, bits.view(np.float16).astype(np.float32))
assert (np.signbit(out) == (bits >= 0x8000)).all()
"""


def test_a_processor_that_cannot_widen_halves_does_it_by_its_integers():
    plain = {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "", "NUMBA_DISABLE_JIT": "0"}
    done = subprocess.run([sys.executable, "-c", WITHOUT_F16C], env=os.environ | plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
