"""Profiles and an encoder in, unit vectors of every distinct column text and header text out.

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
from typing import cast

import numpy as np

from gpumatch.cache.keys import text_keys
from gpumatch.cache.vectors import VectorStore
from gpumatch.encoder import Encoder, StreamingEncoder
from gpumatch.memory import Halving

# Bumped when encoder_texts writes another text for the same column: old vectors are then never asked for.
SERIALISER = "2"
# A batch of an encoder that does not stream; one is what a kill can cost. Fixed per device, so that a run's batches
# never depend on its settings.
BATCH_TEXTS = {"cpu": 256, "cuda": 1024}


# How long the end of a run waits for a thread that encodes: it may be amid the import of a library.
_STOP_TRIES, _STOP_SECONDS = 20, 0.05


@dataclass(frozen=True)
class Vectors:
    """The distinct vectors of a set of tables.

    rows: float16 [X, D] of unit length, X distinct texts.
    value: int32 [C], the row of each column's values; name: int32 [C], of each column's name.
    header: int32 [T], of each table's header.
    """

    rows: np.ndarray
    value: np.ndarray
    name: np.ndarray
    header: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, place: np.ndarray, columns: int) -> Vectors:
        """Return the vectors of `encoder_texts`, given which row each of them has, int [2C + T]."""
        place = place.astype(np.int32)
        return cls(rows, place[:columns], place[columns : 2 * columns], place[2 * columns :])

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


class Ahead:
    """Encodes texts into a store in a thread of its own, while those that come after them are still being read.

    Only an encoder that streams is used so; with any other nothing happens. Whatever is not encoded when the work ends
    is left to `embed_texts`. Use as a context manager: leaving it ends the work, finished or not.

    Args:
        progress: called in that thread with (encoded so far, found to encode so far) after each batch.
    """

    def __init__(self, encoder: Encoder, store: VectorStore, progress: Callable[[int, int], None]) -> None:
        self._encoder = cast(StreamingEncoder, encoder) if hasattr(encoder, "stream") else None
        self._store, self._progress = store, progress
        self._queue: SimpleQueue[tuple[Sequence[str], float] | None] = SimpleQueue()
        self._seen: set[bytes] = set()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.encoded = 0

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the work."""
        self._ended.set()
        if self._thread is not None and self._encoder is not None:
            self._queue.put(None)
            for _ in range(_STOP_TRIES):
                if not self._thread.is_alive():
                    return
                self._encoder.stop()
                self._thread.join(_STOP_SECONDS)

    def give(self, texts: Sequence[str], share: float) -> None:
        """Give some of the texts, with the share of all that these and the ones before them are expected to be.

        Raises:
            Whatever the encoder or the store has raised over those before them.
        """
        if self._error is not None:
            raise self._error
        if self._encoder is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gpumatch-ahead", daemon=True)
            self._thread.start()
        self._queue.put((texts, share))

    def wait(self) -> None:
        """Wait until what was given is encoded.

        Raises:
            Whatever the encoder or the store has raised.
        """
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while (given := self._queue.get()) is not None and not self._ended.is_set():
                self._encode(*given)
        except BaseException as error:
            if not self._ended.is_set():  # else it was told to stop
                self._error = error

    def _encode(self, texts: Sequence[str], share: float) -> None:
        keys = text_keys(texts)
        unknown = np.flatnonzero(self._store.lookup(keys) < 0).tolist()
        missing = [i for i in unknown if self._is_new(keys[i].tobytes())]
        if not missing or self._encoder is None or self._ended.is_set():
            return
        wanted = [texts[i] for i in missing]
        expected = len(self._seen) / max(share, 1e-6)
        with contextlib.closing(self._encoder.stream(wanted, expected)) as stream:
            for which, vectors in stream:
                if self._ended.is_set():
                    return
                self._store.put(keys[[missing[i] for i in which]], vectors)
                self.encoded += len(which)
                self._progress(self.encoded, len(self._seen))

    def _is_new(self, key: bytes) -> bool:
        new = key not in self._seen
        self._seen.add(key)
        return new


def embed_texts(
    texts: Sequence[str],
    encoder: Encoder,
    store: VectorStore,
    *,
    device: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray, EmbedCounts]:
    """Return the vectors of the X different ones among n texts, float16 [X, D], and the row of each text, int64 [n].

    Args:
        progress: called with (encoded so far, to encode) after each batch.
    """
    keys = text_keys(texts)
    distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rows, found = store.get(distinct)
    missing = np.flatnonzero(~found)
    if len(missing):
        wanted, done = [texts[i] for i in first[missing]], 0
        for which, vectors in _streamed(wanted, encoder, device):
            at = missing[which]
            rows[at] = vectors
            store.put(distinct[at], vectors)
            done += len(at)
            progress(done, len(missing))
    return rows, inverse, EmbedCounts(len(distinct), len(missing))


def _streamed(texts: Sequence[str], encoder: Encoder, device: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (which of the texts, int64 [m], their vectors, float16 [m, D]) until each was there once."""
    if hasattr(encoder, "stream"):
        yield from cast(StreamingEncoder, encoder).stream(texts)
        return
    halving = Halving()
    for batch in batch_plan(encoder.lengths(texts), BATCH_TEXTS.get(device, BATCH_TEXTS["cuda"])):
        encode = partial(_encode, encoder, [texts[i] for i in batch])
        for piece, vectors in halving(encode, 0, len(batch)):
            yield batch[piece], vectors


def _encode(encoder: Encoder, texts: Sequence[str], some: slice) -> np.ndarray:
    return encoder.encode(texts[some]).astype(np.float16)


def batch_plan(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Return batches of at most `size` positions, longest texts first: little padding, and a full device shows at once.

    Depends on the lengths (int [n]) and on nothing else; equal lengths keep their order.
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]
