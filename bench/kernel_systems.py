"""Each op of kernels/ with inputs of a size, beside torch and the libraries that have it, and what it must cost.

A `Case` is one op at one size: its systems, all given the same inputs, how an answer is checked, and its operations and
bytes. Libraries that are not installed are left out.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpumatch.kernels.dense import row_products
from gpumatch.kernels.devices import host, put
from gpumatch.kernels.maxsim import MEAN, Pairs, Similarity, maxsim
from gpumatch.kernels.overlap import Sets, overlap
from gpumatch.kernels.ragged import offsets_of
from gpumatch.kernels.topk import topk
from gpumatch.lake import open_lake
from gpumatch.profile import profile_tables

WIDTH, K = 384, 100
# Rows whose scores torch holds at once, beside which it keeps the best so far.
TORCH_ROWS = 65_536
# A float64 product of these queries checks an answer.
CHECKED = 16
# What LSH Ensemble and SetSimilaritySearch look for.
CONTAINED, PERMUTATIONS = 0.1, 128


@dataclass(frozen=True)
class Estimate:
    """The answer of a system that was asked a sample only, and the seconds that all would have taken."""

    answer: Any
    seconds: float


@dataclass(frozen=True)
class Case:
    """One op at one size.

    systems: name → what computes the answer; the first is gpumatch's.
    check: raises where an answer is wrong.
    operations: of a product, multiplications and additions; bytes: each input read once, the answer written once.
    full_bytes: of all scores, where an op could hold them.
    """

    op: str
    size: str
    systems: dict[str, Callable[[], Any]]
    check: Callable[[str, Any], None]
    operations: float
    bytes: float
    full_bytes: float = 0.0


def unit(rng: np.random.Generator, n: int, width: int = WIDTH) -> np.ndarray:
    """Return random unit vectors, float32 [n, width]."""
    found = rng.standard_normal((n, width), dtype=np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


# --- topk


def topk_case(device: str, threads: int, n_queries: int, n_rows: int, seed: int) -> Case:
    """Exact top-K of inner products: float32 rows on a CPU, float16 ones that lie on the device elsewhere."""
    rng = np.random.default_rng(seed)
    queries = unit(rng, n_queries)
    if device == "cpu":
        rows: Any = unit(rng, n_rows)
        there = torch.from_numpy(rows)
    else:
        queries = queries.astype(np.float16).astype(np.float32)
        rows = there = _random_halves(n_rows, device, seed)
    on = there.device
    asked = put(queries, on)
    systems: dict[str, Callable[[], Any]] = {
        "gpumatch": lambda: topk(queries, rows, K, device=device, threads=threads),
        "torch, in tiles": lambda: _torch_topk(asked, there),
    }
    if device == "cpu":
        systems["torch, whole"] = lambda: [part.numpy() for part in (asked @ there.T).topk(K)][::-1]
    if importlib.util.find_spec("faiss"):
        systems["faiss"] = _faiss_topk(queries, rows, there, device, threads)
    checked = slice(0, CHECKED)
    wanted = _best_scores(put(queries[checked], on), there)

    def check(name: str, answer: Any) -> None:  # noqa: ANN401
        scores = np.sort(np.asarray(answer[1][checked], np.float64), axis=1)[:, ::-1]
        # Sums of float16 products in tiles of torch and FAISS are rounded to float16 or accumulated in float32.
        far = np.abs(scores - wanted).max()
        if not far <= (2e-6 if name == "gpumatch" else 2e-3 if device != "cpu" else 2e-5):
            raise AssertionError(f"top-K of {name} is off by {far}")

    size = rows.element_size() if isinstance(rows, torch.Tensor) else rows.itemsize
    moved = size * (n_rows + n_queries) * WIDTH + 12 * n_queries * K
    about = f"{n_queries:,} queries × {n_rows:,} rows of {WIDTH}, top {K}"
    whole = 4.0 * n_queries * n_rows
    return Case("topk", about, systems, check, 2.0 * n_queries * n_rows * WIDTH, moved, whole)


def _random_halves(n: int, device: str, seed: int) -> torch.Tensor:
    made = torch.Generator(device).manual_seed(seed)
    rows = torch.empty((n, WIDTH), dtype=torch.float16, device=device)
    for start in range(0, n, 1 << 20):
        some = torch.randn((min(1 << 20, n - start), WIDTH), generator=made, device=device)
        rows[start : start + len(some)] = torch.nn.functional.normalize(some, dim=1).half()
    return rows


def _torch_topk(queries: torch.Tensor, rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Keep the best of tiles, as one writes it in torch."""
    queries = queries.to(rows.dtype)
    best = queries.new_full((len(queries), 0), 0), torch.empty((len(queries), 0), dtype=torch.int64, device=rows.device)
    for start in range(0, len(rows), TORCH_ROWS):
        tile = rows[start : start + TORCH_ROWS]
        scores, ids = (queries @ tile.T).topk(min(K, len(tile)), dim=1)
        scores, ids = torch.cat([best[0], scores], 1), torch.cat([best[1], ids + start], 1)
        scores, at = scores.topk(min(K, scores.shape[1]), dim=1)
        best = scores, ids.gather(1, at)
    return best[1].cpu().numpy(), best[0].float().cpu().numpy()


def _faiss_topk(
    queries: np.ndarray,
    rows: Any,  # noqa: ANN401
    there: torch.Tensor,
    device: str,
    threads: int,
) -> Callable[[], Any]:
    import faiss

    if device == "cpu":
        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(WIDTH)
        index.add(rows)
        return lambda: index.search(queries, K)[::-1]
    import faiss.contrib.torch_utils

    resources, asked = faiss.StandardGpuResources(), put(queries, device).half()
    metric = faiss.METRIC_INNER_PRODUCT

    def search() -> tuple[np.ndarray, np.ndarray]:
        scores, ids = faiss.knn_gpu(resources, asked, there, K, metric=metric)
        return host(ids), host(scores.float())

    return search


def _best_scores(queries: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """Return the K greatest inner products in float64, falling."""
    best = torch.empty((len(queries), 0), dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), TORCH_ROWS):
        scores = queries.double() @ rows[start : start + TORCH_ROWS].double().T
        best = torch.cat([best, scores], 1).topk(min(K, best.shape[1] + scores.shape[1]), dim=1).values
    return best.cpu().numpy()


# --- maxsim


def maxsim_case(device: str, threads: int, n_queries: int, n_tables: int, columns: int, seed: int) -> Case:
    """MaxSim of all pairs of tables whose columns have a vector each; gpumatch's answer is for both directions."""
    rng = np.random.default_rng(seed)
    q_start, c_start = (offsets_of(rng.integers(1, 2 * columns, n)) for n in (n_queries, n_tables))
    # Positive numbers: gpumatch takes nothing for less alike than 0, the libraries do.
    q, c = np.abs(unit(rng, int(q_start[-1]))), np.abs(unit(rng, int(c_start[-1])))
    if device != "cpu":
        q, c = q.astype(np.float16).astype(np.float32), c.astype(np.float16).astype(np.float32)
    pair_q, pair_c = (side.reshape(-1) for side in np.indices((n_queries, n_tables)))
    on_q, on_c = put(q, device), put(c if device == "cpu" else c.astype(np.float16), device)
    every_q, every_c, terms = np.arange(len(q)), np.arange(len(c)), np.array([(MEAN, 0, 0)])
    lengths = np.diff(q_start)[:, None]

    def ours() -> np.ndarray:
        table = row_products(on_c, put(every_c, device), on_q, clip=True)
        pairs = Pairs([Similarity(table, every_q, every_c)], q_start, c_start, pair_q, pair_c)
        return maxsim(pairs, terms)[0].reshape(n_queries, n_tables)

    systems: dict[str, Callable[[], Any]] = {"gpumatch": ours}
    t_q, t_c = torch.from_numpy(q).to(device), torch.from_numpy(c).to(device)
    if device != "cpu":
        t_q, t_c = t_q.half(), t_c.half()
    systems["torch, padded"] = lambda: _padded(t_q, t_c, q_start, c_start) / lengths
    if device == "cpu" and importlib.util.find_spec("fast_maxsim"):
        systems["fast_maxsim"] = _rust_maxsim(q, c, q_start, c_start, lengths)
    if device != "cpu" and importlib.util.find_spec("late_interaction_kernels"):
        from late_interaction_kernels import maxsim_varlen

        q_cut, c_cut = (put(start.astype(np.int32), device) for start in (q_start, c_start))
        widths = int(np.diff(q_start).max()), int(np.diff(c_start).max())
        systems["late_interaction_kernels"] = lambda: host(maxsim_varlen(t_q, t_c, q_cut, c_cut, *widths)) / lengths
    if device != "cpu" and importlib.util.find_spec("flash_maxsim"):
        from flash_maxsim.flash_maxsim_varlen import flash_maxsim_packed

        cut, widest = put(c_start.astype(np.int32), device), int(np.diff(c_start).max())
        pieces = [t_q[a:b] for a, b in pairwise(q_start)]
        systems["flash_maxsim"] = lambda: (
            host(torch.stack([flash_maxsim_packed(one, t_c, cut, widest) for one in pieces])) / lengths
        )
    wanted = _exact_maxsim(q, c, q_start, c_start)

    def check(name: str, answer: Any) -> None:  # noqa: ANN401
        far = np.abs(answer[: len(wanted)] - wanted).max()
        if not far <= (1e-5 if device == "cpu" else 2e-3):
            raise AssertionError(f"MaxSim of {name} is off by {far}")

    size = 4 if device == "cpu" else 2
    about = f"{n_queries:,} × {n_tables:,} tables, {columns} columns on average, {WIDTH}"
    moved = size * WIDTH * (len(q) + len(c)) + 8.0 * n_queries * n_tables
    return Case("maxsim", about, systems, check, 2.0 * len(q) * len(c) * WIDTH, moved)


def _padded(q: torch.Tensor, c: torch.Tensor, q_start: np.ndarray, c_start: np.ndarray) -> np.ndarray:
    """Sum the maxima over padded tables, one query at a time."""
    pieces = [c[a:b] for a, b in pairwise(c_start)]
    wide = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    beyond = torch.arange(wide.shape[1], device=c.device) >= torch.tensor(np.diff(c_start), device=c.device)[:, None]
    rows = []
    for a, b in pairwise(q_start):
        products = torch.einsum("ld,tmd->tlm", q[a:b], wide).masked_fill_(beyond[:, None], 0)
        rows.append(products.amax(2).clamp(min=0).sum(1))
    return torch.stack(rows).float().cpu().numpy()


def _rust_maxsim(
    q: np.ndarray, c: np.ndarray, q_start: np.ndarray, c_start: np.ndarray, lengths: np.ndarray
) -> Callable[[], Any]:
    from fast_maxsim import maxsim_scores_variable

    tables = [c[a:b] for a, b in pairwise(c_start)]
    asked = [q[a:b] for a, b in pairwise(q_start)]
    return lambda: np.stack([maxsim_scores_variable(one, tables) for one in asked]) / lengths


def _exact_maxsim(q: np.ndarray, c: np.ndarray, q_start: np.ndarray, c_start: np.ndarray) -> np.ndarray:
    rows = []
    for a, b in list(pairwise(q_start))[:3]:
        products = c.astype(np.float64) @ q[a:b].astype(np.float64).T
        rows.append(np.maximum.reduceat(products, c_start[:-1], axis=0).clip(0).mean(axis=1))
    return np.stack(rows)


# --- overlap


def sets_of_lake(lake: Path) -> Sets:
    """Return the canonical values of a lake's columns."""
    profiles = profile_tables(open_lake(lake).tables())
    return Sets(np.array(profiles.value_start), np.array(profiles.values))


def random_sets(n: int, mean: int, seed: int) -> Sets:
    """Return sets whose values are the more frequent the smaller they are, as words are."""
    rng = np.random.default_rng(seed)
    sizes = rng.geometric(1 / mean, n)
    drawn = (rng.pareto(0.7, int(sizes.sum())) * mean * 100).astype(np.uint64)
    sets = [np.unique(part) for part in np.split(drawn, np.cumsum(sizes)[:-1])]
    return Sets(offsets_of(np.array([len(one) for one in sets])), np.concatenate(sets) * np.uint64(0x9E3779B97F4A7C15))


def overlap_case(device: str, threads: int, sets: Sets, about: str, seed: int, slow: bool) -> Case:
    """All sets against all: those that hold at least CONTAINED of a query; building indexes counts.

    Args:
        slow: whether the libraries that take minutes take part; they are asked a sample.
    """
    size = np.diff(sets.start)
    least = np.maximum(1, np.ceil(CONTAINED * size)).astype(np.int64)
    systems: dict[str, Callable[[], Any]] = {
        "gpumatch": lambda: overlap(sets, sets, least, threads=threads, device=device),
        "scipy, sparse product": lambda: _scipy_overlap(sets, least),
    }
    filled = np.flatnonzero(size)
    drawn = np.random.default_rng(seed).choice(filled, min(150, len(filled)), replace=False)
    if slow and importlib.util.find_spec("SetSimilaritySearch"):
        systems["SetSimilaritySearch"] = lambda: _set_search(sets, filled, drawn)
    if slow and importlib.util.find_spec("datasketch"):
        systems["datasketch LSH Ensemble"] = lambda: _ensemble(sets, filled, drawn)
    wanted = {int(i): _exact_overlap(sets, int(i), int(least[i])) for i in drawn[:CHECKED]}
    pairs = overlap(sets, sets, least, threads=threads)

    def check(name: str, answer: Any) -> None:  # noqa: ANN401
        if isinstance(answer, dict):  # of a sample; the ensemble estimates, and says nothing that could be checked
            found = answer
        else:
            found = {i: set(answer.column[answer.start[i] : answer.start[i + 1]].tolist()) for i in wanted}
        for i, expected in wanted.items():
            if name != "datasketch LSH Ensemble" and found[i] != expected:
                raise AssertionError(f"{name} finds {len(found[i])} sets for one that has {len(expected)}")

    # Besides what goes in and comes out, four bytes for each value of each pair: who holds it has to be read.
    met = float((np.unique(sets.value, return_counts=True)[1].astype(np.float64) ** 2).sum())
    moved = 2.0 * sets.value.nbytes + pairs.column.nbytes + pairs.count.nbytes + 4 * met
    return Case("overlap", f"{about}: all against all, containment {CONTAINED}", systems, check, 0.0, moved)


def _exact_overlap(sets: Sets, i: int, least: int) -> set[int]:
    own = set(sets.value[sets.start[i] : sets.start[i + 1]].tolist())
    held = np.fromiter((value in own for value in sets.value.tolist()), np.int64, len(sets.value))
    counts = np.append(0, np.cumsum(held))
    return set(np.flatnonzero(counts[sets.start[1:]] - counts[sets.start[:-1]] >= least).tolist())


@dataclass(frozen=True)
class _Found:
    start: np.ndarray
    column: np.ndarray


def _scipy_overlap(sets: Sets, least: np.ndarray) -> _Found:
    from scipy.sparse import csr_array

    values, place = np.unique(sets.value, return_inverse=True)
    rows = csr_array((np.ones(len(place), np.int32), place, sets.start), shape=(len(sets), len(values)))
    product = (rows @ rows.T).tocsr()
    product.sort_indices()
    owner = np.repeat(np.arange(len(sets)), np.diff(product.indptr))
    keep = product.data >= least[owner]
    return _Found(offsets_of(np.bincount(owner[keep], minlength=len(sets))), product.indices[keep])


def _lists(sets: Sets, filled: np.ndarray) -> list[list[int]]:
    return [sets.value[sets.start[i] : sets.start[i + 1]].tolist() for i in filled]


def _set_search(sets: Sets, filled: np.ndarray, drawn: np.ndarray) -> Estimate:
    from SetSimilaritySearch import SearchIndex

    lists = _lists(sets, filled)
    begun = time.perf_counter()
    index = SearchIndex(lists, similarity_func_name="containment", similarity_threshold=CONTAINED)
    built = time.perf_counter()
    place = {int(i): at for at, i in enumerate(filled)}
    found = {int(i): {int(filled[at]) for at, _ in index.query(lists[place[int(i)]])} for i in drawn}
    asked = time.perf_counter() - built
    return Estimate(found, built - begun + asked * len(filled) / len(drawn))


def _ensemble(sets: Sets, filled: np.ndarray, drawn: np.ndarray) -> Estimate:
    from datasketch import MinHash, MinHashLSHEnsemble

    lists = _lists(sets, filled)
    begun = time.perf_counter()
    sketches = []
    for one in lists:
        sketch = MinHash(PERMUTATIONS, hashfunc=lambda value: value & 0xFFFFFFFF)
        sketch.update_batch(one)
        sketches.append(sketch)
    index = MinHashLSHEnsemble(threshold=CONTAINED, num_perm=PERMUTATIONS)
    index.index([(at, sketch, len(one)) for at, (sketch, one) in enumerate(zip(sketches, lists, strict=True))])
    built = time.perf_counter()
    place = {int(i): at for at, i in enumerate(filled)}
    found = {int(i): set(index.query(sketches[place[int(i)]], len(lists[place[int(i)]]))) for i in drawn}
    asked = time.perf_counter() - built
    return Estimate(found, built - begun + asked * len(filled) / len(drawn))


def cases(
    device: str, threads: int, rows: list[int] | None, queries: list[int] | None, lake: Path | None, only: list[str]
) -> Iterator[Case]:
    """Yield the sweep of a device, one after another, so that only one's inputs are held."""
    small = device == "cpu"
    if "topk" in only:
        for seed, n_rows in enumerate(rows or ([100_000, 300_000, 1_000_000] if small else [1_000_000, 14_800_000])):
            for n_queries in queries or ([32, 1_000] if small else [1_000, 10_000]):
                yield topk_case(device, threads, n_queries, n_rows, seed)
    if "maxsim" in only:
        for seed, (n_tables, columns) in enumerate(((1_000, 8), (3_000, 8), (1_000, 30))):
            yield maxsim_case(device, threads, 12 if small else 200, n_tables * (1 if small else 10), columns, seed)
    if "overlap" in only:
        yield overlap_case(device, threads, random_sets(10_000, 30, 0), "10,000 random sets of 30", 0, slow=False)
        yield overlap_case(device, threads, random_sets(100_000, 4, 1), "100,000 random sets of 4", 1, slow=False)
        if lake is not None:
            sets = sets_of_lake(lake)
            yield overlap_case(device, threads, sets, f"{len(sets):,} columns of a lake", 2, slow=True)
