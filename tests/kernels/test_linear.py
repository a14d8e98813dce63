"""A layer's outputs by products of 16-bit integers: close to float64, whatever the shape."""

from __future__ import annotations

import numpy as np
import pytest

from gpumatch.kernels import linear as kernel
from gpumatch.kernels import reference
from gpumatch.kernels.linear import Weights, linear
from gpumatch.kernels.shorts import ROWS


def numbers(m, n, width, seed=0):
    rng = np.random.default_rng([seed, m, n, width])
    parts = rng.normal(size=(m, width)), rng.normal(size=(n, width)), rng.normal(size=n)
    return [part.astype(np.float32) for part in parts]


def assert_close(x, weight, bias):
    got = linear(x, Weights.of(weight, bias))
    assert got.dtype == np.float32
    assert got.shape == (len(x), len(weight))
    wanted = reference.linear(x, weight, 0 if bias is None else bias)
    lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weight, axis=1)
    assert (np.abs(got - wanted) <= 2e-5 * np.sqrt(x.shape[1]) * lengths + 1e-6 * np.abs(wanted)).all()
    return np.abs(got - wanted) / np.maximum(lengths, 1e-30)


@pytest.mark.parametrize("m", [0, 1, 5, 6, 7, 31, 33, 47, 48, 49, 123])
def test_odd_shapes(m):
    for n, width in ((ROWS, 1), (2 * ROWS, 33), (ROWS, 64), (3 * ROWS, 127)):
        assert_close(*numbers(m, n, width))


def test_errors_are_far_below_their_bound():
    far = assert_close(*numbers(200, 64, 384))
    assert np.sqrt((far**2).mean()) < 2e-5


def test_without_a_bias():
    x, weight, _ = numbers(9, ROWS, 20)
    assert_close(x, weight, None)


def test_rows_of_any_length():
    x, weight, bias = numbers(40, 2 * ROWS, 30)
    x *= np.random.default_rng(1).choice([0, 1e-30, 1e-3, 1e3], (40, 1)).astype(np.float32)
    weight *= np.random.default_rng(2).choice([0, 1e-10, 1, 1e4], (2 * ROWS, 1)).astype(np.float32)
    assert_close(x, weight, bias)
    x[3, 7] = 1e5  # one number that outweighs all others
    assert_close(x, weight, bias)


def test_rows_that_are_not_contiguous():
    x, weight, bias = numbers(20, 2 * ROWS, 32)
    assert_close(x[::2, ::2], weight[:, ::2], bias)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused(bad):
    x, weight, bias = numbers(60, ROWS, 8)
    x[55, 3] = bad
    with pytest.raises(ValueError, match="among the vectors"):
        linear(x, Weights.of(weight, bias))
    weight[2, 1] = bad
    with pytest.raises(ValueError, match="among the weights"):
        Weights.of(weight, bias)


def test_vectors_of_another_width_are_refused():
    _, weight, bias = numbers(1, ROWS, 8)
    for width in (7, 9):
        with pytest.raises(ValueError, match=f"vectors of {width} numbers, weights of 8"):
            linear(np.zeros((3, width), np.float32), Weights.of(weight, bias))


def test_outputs_come_in_whole_blocks():
    with pytest.raises(ValueError, match="no multiple of 16"):
        Weights.of(np.zeros((ROWS + 1, 4), np.float32), None)


def test_a_row_does_not_depend_on_its_neighbours():
    x, weight, bias = numbers(100, ROWS, 24)
    whole, packed = linear(x, Weights.of(weight, bias)), Weights.of(weight, bias)
    for some in (slice(0, 1), slice(3, 60), slice(99, 100)):
        np.testing.assert_array_equal(linear(x[some], packed), whole[some])
    assert kernel.TOGETHER < 100
