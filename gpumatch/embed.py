"""An encoder and the texts of columns and headers in, a unit vector of every distinct text out.

Every distinct text is encoded once, ever: the vector cache is asked first. Never loads the encoder when nothing is left
to encode.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, cast

import numpy as np

from gpumatch.cache.keys import KEY, text_keys
from gpumatch.cache.vectors import VectorStore
from gpumatch.encoder import Encoder, StreamingEncoder
from gpumatch.errors import EncoderError
from gpumatch.memory import Halving

# Raised when `encoder_texts` writes other texts for the same columns, so that old vectors are never asked for again.
SERIALISER = "2"
# Texts in a batch of an encoder that does not stream. Fixed per device, so that batches never depend on settings.
BATCH_TEXTS = {"cpu": 256, "cuda": 1024}
# The most texts that are encoded but not stored yet. A kill loses these (usually few: vectors are stored as they come
# unless the disk is slow), the batch that waits to join them, and what a streaming encoder has in flight: at worst
# three seconds of work of a CPU, a third of a second of a GPU. If the encoder does not stream, one batch.
UNSTORED_TEXTS = {"cpu": 256, "cuda": 16_384}

_NO_ROWS = np.empty(0, np.int32)

# How often and how long the end of a run waits for a thread that encodes: it may be importing a library.
_STOP_TRIES, _STOP_SECONDS = 20, 0.05


@dataclass(frozen=True)
class Vectors:
    """The distinct vectors of a set of tables.

    rows: float16 [X, D] of unit length, X distinct texts; 0 of one that is empty.
    value: int32 [C], the row of each column's values; name: int32 [C], of each column's name.
    header: int32 [T], of each table's header.
    """

    rows: np.ndarray
    value: np.ndarray
    name: np.ndarray
    header: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, places: Sequence[np.ndarray], columns: Sequence[int]) -> Vectors:
        """Return the vectors of the `encoder_texts` of some batches of tables.

        Args:
            places: for each batch the row of each text, int [2C + T]; columns: for each batch, C.
        """
        batches = [np.split(place.astype(np.int32), [n, 2 * n]) for place, n in zip(places, columns, strict=True)]
        value, name, header = (np.concatenate([_NO_ROWS, *(batch[i] for batch in batches)]) for i in range(3))
        return cls(rows, value, name, header)

    @property
    def place(self) -> np.ndarray:
        """int32 [2C + T], the row of each of the `encoder_texts`."""
        return np.concatenate([self.value, self.name, self.header])

    @property
    def dim(self) -> int:
        """D."""
        return int(self.rows.shape[1])


def open_store(root: Path, encoder: Encoder) -> VectorStore:
    """Open the vectors that this encoder has made so far."""
    return VectorStore.open(
        root, model=encoder.model, revision=encoder.revision, serialiser=SERIALISER, dim=encoder.dim
    )


@dataclass(frozen=True)
class EmbedCounts:
    """How many distinct texts there were, and how many of them had to be encoded."""

    texts: int
    encoded: int


class Embedder:
    """Texts in, vectors out: looked up, or encoded and stored, in a thread of its own while later texts are being read.

    An encoder that does not stream is given all missing texts at once in the end, so that its batches depend on nothing
    else. Use as a context manager: leaving it ends the work, finished or not.

    Args:
        progress: called after each batch, mostly in that thread, with (texts encoded so far, found to encode so far).
    """

    def __init__(
        self,
        encoder: Encoder,
        store: VectorStore,
        *,
        device: str = "cpu",
        progress: Callable[[int, int], None] = lambda done, found: None,
    ) -> None:
        self._encoder, self._store, self._device = encoder, store, device
        self._streaming = cast(StreamingEncoder, encoder) if hasattr(encoder, "stream") else None
        self._queue: SimpleQueue[tuple[Sequence[str], float] | None] = SimpleQueue()
        self._row: dict[bytes, int] = {}
        self._chunks: list[np.ndarray] = []  # float16 [n, D], the new vectors of each `give`
        self._places: list[np.ndarray] = []
        self._left: dict[bytes, tuple[str, np.ndarray]] = {}  # key → a text not encoded yet, and its row to fill
        self._found = 0
        self._writer = _Writer(store, lambda stored: progress(stored, self._found))
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the work."""
        self._ended.set()
        self._queue.put(None)
        for _ in range(_STOP_TRIES):
            if self._thread is None or not self._thread.is_alive():
                return
            if self._streaming is not None:
                self._streaming.stop()
            self._thread.join(_STOP_SECONDS)

    def give(self, texts: Sequence[str], share: float = 1) -> None:
        """Give some of the texts; share: how much of all texts these and the ones before them are expected to be.

        Raises:
            Whatever the encoder or the store raised for earlier texts.
        """
        if self._error is not None:
            raise self._error
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gpumatch-embed", daemon=True)
            self._thread.start()
        self._queue.put((texts, share))

    def finish(self) -> tuple[np.ndarray, list[np.ndarray], EmbedCounts]:
        """Return the X distinct texts' vectors, float16 [X, D]; for each `give` its texts' rows, int64 [n]; and counts.

        An empty text says nothing, whatever an encoder makes of it: its vector is 0.
        Rows are in the order in which their texts first came, so that those of one table lie together.

        Raises:
            EncoderError: the encoder has given arrays of another shape.
            Whatever the encoder or the store has raised.
        """
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error
        keys = sorted(self._left)  # so that the batches do not depend on the order in which texts came
        texts, rows = [self._left[key][0] for key in keys], [self._left[key][1] for key in keys]
        for which, vectors in _batches(texts, self._encoder, self._device):
            for i, vector in zip(which, vectors, strict=True):
                rows[i][:] = vector
            self._writer.put(np.array([keys[i] for i in which], KEY), vectors, len(vectors))
            self._writer.wait()
        found = _joined(self._chunks, self._encoder.dim)
        if (blank := self._row.get(text_keys([""])[0].tobytes())) is not None:
            found[blank] = 0  # else columns without values would be alike
        return found, self._places, EmbedCounts(len(self._row), self._writer.stored)

    def _work(self) -> None:
        try:
            try:
                while (given := self._queue.get()) is not None and not self._ended.is_set():
                    self._embed(*given)
            finally:  # whatever was encoded is stored
                self._writer.wait()
        except BaseException as error:
            if not self._ended.is_set():  # else it was told to stop
                self._error = error

    @property
    def _most_unstored(self) -> int:
        device = str(getattr(self._encoder, "device", self._device))  # there may be a GPU and not be used
        return UNSTORED_TEXTS.get(device, UNSTORED_TEXTS["cuda"])

    def _embed(self, texts: Sequence[str], share: float) -> None:
        keys, row, before = text_keys(texts), self._row, len(self._row)
        place = np.fromiter((row.setdefault(key, len(row)) for key in keys.tolist()), np.int64, len(keys))
        self._places.append(place)
        new = _first_at_least(place, before)
        rows, known = self._store.get(keys[new])
        self._chunks.append(rows)
        missing = np.flatnonzero(~known)
        self._found += len(missing)
        if self._streaming is None:
            self._left.update((keys[new[i]].tobytes(), (texts[new[i]], rows[i])) for i in missing)
        elif len(missing):
            expected = self._found / max(share, 1e-6)
            wanted = [texts[new[i]] for i in missing]
            with contextlib.closing(self._streaming.stream(wanted, expected)) as stream:
                for which, found in stream:
                    if self._ended.is_set():
                        return
                    vectors = _shaped(found, (len(which), self._encoder.dim), self._encoder, "stream")
                    rows[missing[which]] = vectors
                    self._writer.put(keys[new[missing[which]]], vectors, self._most_unstored)


class _Writer:
    """Stores vectors in a thread of its own, all that are waiting together: each write costs two syncs of the disk.

    Args:
        told: called in that thread with how many are stored so far.
    """

    def __init__(self, store: VectorStore, told: Callable[[int], None]) -> None:
        self._store, self._told = store, told
        self._changed = threading.Condition()
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._unstored = 0  # vectors that wait or are being stored
        self._ending = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.stored = 0

    def put(self, keys: np.ndarray, vectors: np.ndarray, most: int) -> None:
        """Store vectors soon; wait while earlier ones are not stored and all together would be more than `most`.

        Raises:
            Whatever storing earlier ones raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._unstored or self._unstored + len(keys) <= most)
            if self._error is not None:
                raise self._error
            self._waiting.append((keys, vectors))
            self._unstored += len(keys)
            self._changed.notify_all()
        if self._thread is None:
            self._ending = False
            self._thread = threading.Thread(target=self._work, name="gpumatch-store", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until all is stored.

        Raises:
            Whatever storing raised.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            with self._changed:
                self._ending = True
                self._changed.notify_all()
            thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                some, self._waiting = self._waiting, []
            if not some:
                return
            n = sum(len(keys) for keys, _ in some)
            try:
                keys, vectors = zip(*some, strict=True)
                self._store.put(np.concatenate(keys), np.concatenate(vectors))
                self.stored += n
                self._told(self.stored)
            except BaseException as error:
                self._error = error
            with self._changed:
                self._unstored -= n
                self._changed.notify_all()
            if self._error is not None:
                return


def _first_at_least(place: np.ndarray, least: int) -> np.ndarray:
    """Return the first position of each number from `least` on, int64 [n]; their first ones come in ascending order."""
    most = np.maximum.accumulate(np.append(least - 1, place))
    answer: np.ndarray = np.flatnonzero(most[1:] > most[:-1])
    return answer


def _joined(chunks: list[np.ndarray], dim: int) -> np.ndarray:
    """Return chunks of rows as one array; each chunk is freed once it is copied."""
    if len(chunks) == 1:
        return chunks[0]
    rows = np.empty((sum(map(len, chunks)), dim), np.float16)
    end = len(rows)
    while chunks:
        chunk = chunks.pop()
        rows[end - len(chunk) : end] = chunk
        end -= len(chunk)
    return rows


def _batches(texts: Sequence[str], encoder: Encoder, device: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (which of the texts, int64 [m], their vectors, float16 [m, D]) until each text has come once."""
    if not texts:
        return
    halving = Halving()
    lengths = _shaped(encoder.lengths(texts), (len(texts),), encoder, "lengths")
    for batch in batch_plan(lengths, BATCH_TEXTS.get(device, BATCH_TEXTS["cuda"])):
        encode = partial(_encode, encoder, [texts[i] for i in batch])
        for piece, vectors in halving(encode, 0, len(batch)):
            yield batch[piece], vectors


def _encode(encoder: Encoder, texts: Sequence[str], some: slice) -> np.ndarray:
    some_texts = texts[some]
    return _shaped(encoder.encode(some_texts), (len(some_texts), encoder.dim), encoder, "encode").astype(np.float16)


def _shaped(found: Any, shape: tuple[int, ...], encoder: Encoder, method: str) -> np.ndarray:  # noqa: ANN401
    """Return an encoder's answer for shape[0] texts as an array of that shape; the encoder may be somebody's own.

    Raises:
        EncoderError: it has another shape, or is no array of numbers.
    """
    try:
        array = np.asarray(found)
        of_numbers = array.dtype.kind in "fiu"
    except (ValueError, TypeError) as error:  # rows of several lengths, tensors on a device
        raise _unfit(encoder, method, shape, str(error)) from error
    if array.shape != shape or not of_numbers:
        raise _unfit(encoder, method, shape, f"{array.dtype} {array.shape}")
    return array


def _unfit(encoder: Encoder, method: str, shape: tuple[int, ...], found: str) -> EncoderError:
    return EncoderError(
        f"the encoder {encoder.model}: {method} of {shape[0]} texts gave {found}, expected numbers of shape {shape}; "
        "see gpumatch.encoder.Encoder"
    )


def batch_plan(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Return batches of at most `size` positions, longest texts first.

    So there is little padding, and a lack of memory shows at once. Depends on the lengths (int [n]) alone; texts of
    equal lengths keep their order.
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]
