"""float16 as float32, every one of them."""

import numpy as np
import pytest

from gpumatch.kernels.halves import widened


def test_every_half_is_what_numpy_says():
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    got = widened(x)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, x.astype(np.float32))  # NaN equals NaN here


@pytest.mark.parametrize("shape", [(0,), (0, 3), (5,), (3, 4), (2, 3, 4)])
def test_shapes_and_gaps(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    np.testing.assert_array_equal(widened(x), x.astype(np.float32))
    np.testing.assert_array_equal(widened(x.T), x.T.astype(np.float32))
    np.testing.assert_array_equal(widened(x[::2]), x[::2].astype(np.float32))


def test_other_types():
    x = np.ones(3, np.float32)
    assert widened(x) is x
    assert widened(np.ones(3)).dtype == np.float32
