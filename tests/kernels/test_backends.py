"""Every back end against float64: the same rows, ties by row number, whatever the parts, tiles and owners."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from gpumatch.kernels import backends, reference
from gpumatch.kernels.backends import CupyBackend, FaissBackend, Part, Product, TorchBackend

# NumPy stands in for CuPy, which wants a device.
MADE = {
    "torch": lambda: TorchBackend("cpu", 2),
    "torch tensors": lambda: TorchBackend("cpu:0", 1),
    "faiss": lambda: FaissBackend("cpu", 1),
    "cupy": lambda: CupyBackend(np),
}


@pytest.fixture(params=MADE)
def backend(request):
    if request.param == "faiss" and importlib.util.find_spec("faiss") is None:
        pytest.skip("faiss is not installed: pip install faiss-cpu")
    return MADE[request.param]()


def numbers(*shape, seed, kind=np.float32):
    """Multiples of 1/8: sums of their products are exact, and often tie."""
    return (np.random.default_rng([seed, *shape]).integers(-4, 5, shape) / 8).astype(kind)


def assert_best(backend, product, k, exclude, tile=7):
    scores = 0
    for part in product.parts:
        rows = part.rows if isinstance(part.rows, np.ndarray) else part.rows(0, product.n_rows)
        rows = rows if part.at is None else rows[part.at]
        scores = scores + part.queries.astype(np.float64) @ rows.astype(np.float64).T
    owner = np.arange(product.n_rows) if product.owner is None else product.owner
    scores[owner == exclude[:, None]] = -np.inf
    wanted = reference.topk(scores, k)
    gone = wanted[1] == -np.inf
    ids, best = backend.best(product, k, exclude, tile)
    np.testing.assert_array_equal(ids, np.where(gone, -1, wanted[0]))
    np.testing.assert_allclose(best, wanted[1], rtol=2e-7, atol=1e-9)
    assert (ids.dtype, best.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("n_rows", [0, 1, 2, 31, 33, 123, 700])
def test_rows(backend, n_rows, kind):
    for n, k in ((0, 3), (1, 1), (6, 0), (6, 9), (3, 200)):
        product = Product([Part(numbers(n, 12, seed=1), numbers(n_rows, 12, seed=2, kind=kind))], n_rows)
        for exclude in (np.full(n, -1), np.arange(n) % max(1, n_rows)):
            for tile in (5, 64, 1000):
                assert_best(backend, product, k, exclude, tile)


@pytest.mark.parametrize("k", [1, 4, 60])
def test_sums_of_parts_and_rows_that_have_owners(backend, k):
    """As columns are searched: each has a row of its own and shares its table's, and no column of one's own counts."""
    n, rows, tables = 5, numbers(50, 9, seed=3), numbers(11, 6, seed=4)
    of = np.sort(np.random.default_rng(5).integers(0, 11, 50))
    parts = [Part(numbers(n, 9, seed=6), lambda a, b: rows[a:b]), Part(numbers(n, 6, seed=7), tables, of)]
    for exclude in (np.full(n, -1), np.array([0, 10, 3, -1, 5])):
        for tile in (1, 7, 50):
            assert_best(backend, Product(parts, 50, of), k, exclude, tile)


def test_ties_at_the_end_go_to_the_lower_row(backend):
    """FAISS alone would give any of them."""
    rows = np.repeat(numbers(3, 8, seed=8), 40, axis=0)[np.random.default_rng(9).permutation(120)]
    for k in (1, 13, 41, 79):
        assert_best(backend, Product([Part(rows[:4].copy(), rows)], 120), k, np.array([0, -1, 5, 119]), tile=50)


def test_wide_rows_of_any_numbers_score_within_what_is_promised(backend):
    """Float32 sums round differently: scores are within 1e-5, and only rows closer than that change places."""
    rng, width, k = np.random.default_rng(17), 3864, 40
    queries, rows = (np.abs(rng.standard_normal((n, width), np.float32)) for n in (9, 900))
    queries *= 6 / np.linalg.norm(queries, axis=1, keepdims=True)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    scores = queries.astype(np.float64) @ rows.astype(np.float64).T
    ids, best = backend.best(Product([Part(queries, rows)], len(rows)), k, np.full(9, -1), 250)
    of_ids = np.take_along_axis(scores, ids, axis=1)
    np.testing.assert_allclose(best, of_ids, rtol=0, atol=1e-5)
    np.testing.assert_allclose(of_ids, -np.sort(-scores, axis=1)[:, :k], rtol=0, atol=1e-5)
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused(backend, bad):
    rows = numbers(30, 8, seed=10)
    rows[17, 3] = bad
    with pytest.raises(ValueError, match=r"NaN|more than"), np.errstate(invalid="ignore"):
        backend.best(Product([Part(numbers(2, 8, seed=11), rows)], 30), 3, np.full(2, -1), 64)


def test_a_score_that_a_key_cannot_hold_is_refused(backend):
    rows = np.full((5, 4), 501, np.float32)
    with pytest.raises(ValueError, match=r"more than|too large"):
        backend.best(Product([Part(np.ones((1, 4), np.float32), rows)], 5), 3, np.full(1, -1), 64)


def test_rows_stay_on_a_device():
    rows = numbers(40, 8, seed=12, kind=np.float16)
    backend = TorchBackend("cpu:0", 1)
    product = Product([Part(numbers(2, 8, seed=13), rows)], 40)
    assert_best(backend, product, 3, np.full(2, -1))
    (there,) = backend._resident([rows], 3, stays=True)
    assert_best(backend, product, 3, np.full(2, -1))
    assert backend._resident([rows], 3, stays=True) == [there]
    (other,) = backend._resident([rows.copy()], 3, stays=True)
    assert other is not there
    assert_best(backend, replace(product, stays=False), 3, np.full(2, -1))
    assert not backend._kept


def test_what_is_kept_on_the_host_outlives_a_search_that_does_without(monkeypatch):
    monkeypatch.setattr(backends, "_WORTH_SPLITTING", 1)
    rows, made = numbers(400, 8, seed=17, kind=np.float16), []
    whole = backends.Split.of
    monkeypatch.setattr(backends.Split, "of", lambda rows: made.append(1) or whole(rows))
    backend = TorchBackend("cpu", 1)
    product = Product([Part(numbers(2, 8, seed=18), rows)], 400)
    for k in (20, 3, 20, 3):  # of 400 rows, three are searched by screening
        assert_best(backend, product, k, np.full(2, -1))
    assert made == [1]


def test_all_parts_of_a_product_stay_on_a_device_but_what_is_made_on_the_way():
    own, tables = (numbers(n, width, seed=n, kind=np.float16) for n, width in ((40, 4), (7, 8)))
    at = np.arange(40) // 6
    asked, backend = [numbers(2, width, seed=16) for width in (4, 8)], TorchBackend("cpu:0", 1)
    product = Product([Part(asked[0], own), Part(asked[1], tables, at)], 40, at)
    assert_best(backend, product, 3, np.array([2, -1]))
    kept = {id(rows): backend._kept[id(rows)][1] for rows in (own, tables)}
    assert_best(backend, product, 3, np.array([2, -1]), tile=9)
    assert all(backend._kept[key][1] is there for key, there in kept.items())
    made = replace(product, parts=[Part(asked[0], lambda start, stop: own[start:stop]), product.parts[1]])
    assert_best(backend, made, 3, np.array([2, -1]), tile=9)
    assert list(backend._kept) == [id(tables)]


def test_a_gpus_limit_to_what_faiss_selects(monkeypatch):
    """Pieces that are no longer than it are looked at whole."""
    faiss = pytest.importorskip("faiss")
    backend = FaissBackend("cpu", 1)
    monkeypatch.setattr(backends, "_MOST_ON_GPU", 16)
    monkeypatch.setattr(backend, "_gpu", object())
    asked = []

    def knn_gpu(_, queries, rows, k, metric):
        asked.append(k)
        return faiss.knn(queries, rows, k, metric=metric)

    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    product = Product([Part(numbers(3, 8, seed=14), numbers(90, 8, seed=15))], 90)
    for k in (3, 15, 16, 40):
        assert_best(backend, product, k, np.array([4, -1, 80]), tile=60)
    assert max(asked) <= 16
