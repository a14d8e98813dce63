"""What goes over a whole lake: torch and our own kernels, FAISS, or CuPy.

All give the same top-K: scores within 1e-5, so that rows whose scores are closer than that may swap; equal scores by
ascending row. FAISS and CuPy are imported only when their back end is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from gpumatch.kernels.dense import products
from gpumatch.kernels.devices import put
from gpumatch.kernels.heaps import LARGEST_SCORE, NOTHING, RESOLUTION, keys_of, ranked
from gpumatch.kernels.overlap import Overlaps, Sets, overlap
from gpumatch.kernels.ragged import gather_segments
from gpumatch.kernels.split import Split
from gpumatch.kernels.topk import is_screened, stream_topk, topk

# Rows that are searched again and again are worth taking apart (`Split`) if they hold at least so many numbers.
_WORTH_SPLITTING = 1_000_000
# The most rows that FAISS can select on a GPU; of a piece with no more rows than that it returns all.
_MOST_ON_GPU = 2048


@dataclass(frozen=True)
class Part:
    """One of the inner products that a score is the sum of.

    queries: float32 [n, W].
    rows: float16 or float32 [R, W], or a function (start, stop) that makes those rows; an array that is the same in
        several products may be kept on a device.
    at: int64 [N], ascending, which of the R rows row i of the search uses; None where it is row i itself.
    """

    queries: np.ndarray
    rows: Any
    at: np.ndarray | None = None

    def of(self, start: int, stop: int) -> tuple[Any, np.ndarray | None]:
        """Return (some rows, which of them each of the search's rows start to stop uses, or None); start < stop."""
        if self.at is None:
            return self._some(start, stop), None
        first, last = int(self.at[start]), int(self.at[stop - 1])
        return self._some(first, last + 1), self.at[start:stop] - first

    def _some(self, start: int, stop: int) -> Any:
        return self.rows(start, stop) if callable(self.rows) else self.rows[start:stop]


@dataclass(frozen=True)
class Product:
    """Scores of n queries and N rows: sums of inner products.

    n_rows: N, below 2**32.
    owner: int64 [N], ascending, the owner of each row, if `exclude` names owners; None if it names rows.
    stays: whether a device has room to keep the rows for later products; else they pass through it.
    """

    parts: Sequence[Part]
    n_rows: int
    owner: np.ndarray | None = None
    stays: bool = True

    def hides(self, ids: np.ndarray, exclude: np.ndarray) -> np.ndarray:
        """Tell which of the rows found for each query (ids int64 [n, k], -1 for none) it must not get."""
        of = ids if self.owner is None or not len(self.owner) else self.owner[np.maximum(ids, 0)]
        answer: np.ndarray = (ids >= 0) & (of == exclude[:, None])
        return answer

    def hidden(self, start: int, stop: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs (query, row) of rows start to stop that must not be found: int64 [h] each, rows from 0."""
        of = np.arange(start, stop) if self.owner is None else self.owner[start:stop]
        bounds = np.stack([np.searchsorted(of, exclude, side) for side in ("left", "right")], axis=1)
        row, times = gather_segments(bounds.reshape(-1), np.arange(0, bounds.size, 2))
        return np.repeat(np.arange(len(exclude)), times), row


class Backend(Protocol):
    """Finds the best rows of a product, and the sets that have values in common."""

    def best(self, product: Product, k: int, exclude: np.ndarray, tile: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the K best rows of every query, best first, equal scores by ascending row.

        Args:
            product: n queries and N rows.
            k: how many to keep.
            exclude: int64 [n], a row, or an owner of rows, that query i must not get; -1 for none.
            tile: how many rows are held at once.

        Returns:
            (ids int64 [n, k], scores float32 [n, k]); ids -1 and scores -inf where there are fewer than K rows.

        Raises:
            ValueError: NaN or an infinite number, or a score beyond heaps.LARGEST_SCORE.
        """
        ...

    def overlaps(self, q: Sets, c: Sets, least: np.ndarray) -> Overlaps:
        """Return every pair of sets with at least `least` values in common: see `overlap.overlap`."""
        ...


class _OnHost:
    """Counts common values with compiled loops: a query has too few of them to be worth copying to a device."""

    threads: int

    def overlaps(self, q: Sets, c: Sets, least: np.ndarray) -> Overlaps:
        """See `Backend`."""
        return overlap(q, c, least, threads=self.threads)


class TorchBackend(_OnHost):
    """NumPy and compiled loops on a CPU; torch, and Triton if it is there, on a device. Needs no other library."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self._kept: dict[int, tuple[np.ndarray, Any]] = {}

    def best(self, product: Product, k: int, exclude: np.ndarray, tile: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend`."""
        (first, *others), device = product.parts, self.device
        if not product.n_rows:
            return ranked(np.full((len(first.queries), k), NOTHING))
        if isinstance(first.rows, np.ndarray) and first.at is None and product.owner is None and not others:
            (rows,) = self._resident([first.rows], k, product.stays)
            return topk(first.queries, rows, k, device=device, tile=tile, exclude=exclude, threads=self.threads)
        asked = [put(part.queries, device) for part in product.parts]
        parts = product.parts
        if device != "cpu":
            there = self._resident([part.rows for part in parts], k, product.stays)
            parts = [replace(part, rows=rows) for part, rows in zip(parts, there, strict=True)]

        def scores(start: int, stop: int) -> Any:
            total = _summed(parts, asked, start, stop, lambda array: put(array, device))
            # Hidden rows are put last here and removed at the end: an owner may have many.
            total[tuple(put(some, device) for some in product.hidden(start, stop, exclude))] = -LARGEST_SCORE
            return total

        ids, best = stream_topk(scores, product.n_rows, k, tile=tile)
        own = product.hides(ids, exclude)
        return np.where(own, -1, ids), np.where(own, np.float32(-np.inf), best)

    def _resident(self, several: Sequence[Any], k: int, stays: bool) -> list[Any]:
        """Return rows in the form that is fastest to search, kept for the next queries (on the device if they stay)."""
        if not stays and self.device != "cpu":
            self._kept.clear()  # of when there was room
            return list(several)
        wanted = {id(rows): rows for rows in several if isinstance(rows, np.ndarray) and self._is_kept(rows, k)}
        if wanted:  # of one product at a time
            self._kept = {key: kept for key, kept in self._kept.items() if key in wanted}
        for key, rows in wanted.items():
            if key not in self._kept:
                self._kept[key] = rows, Split.of(rows) if self.device == "cpu" else put(rows, self.device)
        return [self._kept[id(rows)][1] if id(rows) in wanted else rows for rows in several]

    def _is_kept(self, rows: np.ndarray, k: int) -> bool:
        return self.device != "cpu" or not (rows.size < _WORTH_SPLITTING or is_screened(len(rows), k, rows.shape[1]))


class FaissBackend(_OnHost):
    """FAISS's exhaustive inner products (Johnson, Douze and Jégou, IEEE Transactions on Big Data 2021)."""

    def __init__(self, device: str, threads: int) -> None:
        import faiss

        self._faiss, self._gpu = faiss, None if device == "cpu" else faiss.StandardGpuResources()
        faiss.omp_set_num_threads(threads)
        self.threads = threads

    def best(self, product: Product, k: int, exclude: np.ndarray, tile: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend`."""
        queries = _finite(np.concatenate([part.queries for part in product.parts], axis=1), "the queries")
        best = np.full((len(queries), k), NOTHING, np.int64)
        for start, stop in _tiles(product, k, tile):
            rows = _finite(_rows_of(product, start, stop), f"rows {start} to {stop}")
            hidden = product.hidden(start, stop, exclude)
            keys = self._seen(queries, rows, start, hidden, k)
            best = _largest(np, np.concatenate([best, keys], axis=1), k)
        return ranked(best)

    def _seen(
        self, queries: np.ndarray, rows: np.ndarray, start: int, hidden: tuple[np.ndarray, np.ndarray], k: int
    ) -> np.ndarray:
        """Return keys of some rows, int64 [n, m]; they include every query's K best rows that are not hidden."""
        most = int(np.bincount(hidden[0], minlength=1).max())
        wanted = k + most + 1
        while True:
            wanted = min(wanted, len(rows))
            if self._gpu is not None and wanted > _MOST_ON_GPU:
                cut = min(_MOST_ON_GPU, len(rows) // 2)
                pieces = []
                for some, first in ((slice(0, cut), 0), (slice(cut, None), cut)):
                    here = (hidden[1] >= first) & (hidden[1] < first + len(rows[some]))
                    of = hidden[0][here], hidden[1][here] - first
                    pieces.append(self._seen(queries, rows[some], start + first, of, k))
                return np.concatenate(pieces, axis=1)
            scores, ids = self._search(queries, rows, wanted)
            if not (np.abs(scores) <= LARGEST_SCORE).all():
                raise ValueError(f"more than {LARGEST_SCORE} among the scores of rows {start} to {start + len(rows)}")
            keys: np.ndarray = keys_of(scores.astype(np.float64), ids + start)
            cell = ids + np.arange(len(ids))[:, None] * len(rows)
            keys[np.isin(cell, hidden[0] * len(rows) + hidden[1])] = NOTHING
            # If scores tie at the end FAISS returns any of them: all have to be seen.
            if wanted == len(rows) or not len(keys) or (scores[:, -1] < scores[:, k + most - 1] - 2 * RESOLUTION).all():
                return keys
            wanted *= 2

    def _search(self, queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        faiss = self._faiss
        if self._gpu is None:
            scores, ids = faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
        else:
            scores, ids = faiss.knn_gpu(self._gpu, queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, ids


class CupyBackend:
    """Products and selection in CuPy's arrays, and its sparse rows.

    Args:
        arrays: CuPy, or a module with the same functions, such as NumPy.
    """

    def __init__(self, arrays: ModuleType | None = None) -> None:
        if arrays is None:
            import cupy

            arrays = cupy
        self._arrays: Any = arrays

    def best(self, product: Product, k: int, exclude: np.ndarray, tile: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend`."""
        there = self._arrays
        asked = [there.asarray(part.queries) for part in product.parts]
        best = there.full((len(asked[0]), k), NOTHING, np.int64)
        for start, stop in _tiles(product, k, tile):
            total = _summed(product.parts, asked, start, stop, there.asarray)
            if total.size and not bool(abs(total).max() <= LARGEST_SCORE):
                raise ValueError(f"NaN, or more than {LARGEST_SCORE}, among the scores of rows {start} to {stop}")
            keys = keys_of(total.astype(np.float64), there.arange(start, stop))
            keys[tuple(there.asarray(some) for some in product.hidden(start, stop, exclude))] = NOTHING
            best = _largest(there, there.concatenate([best, keys], axis=1), k)
        return ranked(best if there is np else there.asnumpy(best))

    def overlaps(self, q: Sets, c: Sets, least: np.ndarray) -> Overlaps:
        """See `Backend`."""
        return overlap(q, c, least, device="cpu" if self._arrays is np else "cuda")


def _tiles(product: Product, k: int, tile: int) -> Iterator[tuple[int, int]]:
    if k and len(product.parts[0].queries):
        yield from ((start, min(start + tile, product.n_rows)) for start in range(0, product.n_rows, tile))


def _summed(parts: Sequence[Part], asked: Sequence[Any], start: int, stop: int, there: Callable[[Any], Any]) -> Any:
    """Return the scores of rows start to stop, float32 [n, m]; `there` copies an array to the device of `asked`."""
    total: Any = 0
    for queries, part in zip(asked, parts, strict=True):
        rows, at = part.of(start, stop)
        of_part = products(queries, there(rows))
        total = total + (of_part if at is None else of_part[:, there(at)])
    return total


def _rows_of(product: Product, start: int, stop: int) -> np.ndarray:
    """Return rows start to stop, float32 [m, ΣW], the parts side by side."""
    parts = [rows if at is None else rows[at] for rows, at in (part.of(start, stop) for part in product.parts)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _finite(array: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError(f"NaN or an infinite number among {what}")
    return np.ascontiguousarray(array, np.float32)


def _largest(arrays: Any, keys: Any, k: int) -> Any:
    """Return the k largest of every row, in no order; `arrays` is NumPy or CuPy."""
    return arrays.partition(keys, keys.shape[1] - k, axis=1)[:, keys.shape[1] - k :]
