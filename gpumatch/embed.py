"""Profiles and an encoder in, unit vectors of every distinct column text and header text out.

Every distinct text is encoded once, ever: the vector cache is asked first. Never loads the encoder when nothing is left
to encode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
