"""The default model's weights and tokens in, vectors out, on a CPU: pieces of a batch at once, one thread each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from gpumatch.kernels.bert import Bert, text_vectors

if TYPE_CHECKING:
    from gpumatch.encoder.minilm import Tokens

# The most texts of a piece: what a thread works on fits its share of the cache.
PIECE = 32


class OnCpu:
    """See `minilm.Forward`. A thread has pieces of its own: if all shared every product they would wait more."""

    # Enough to keep all threads busy while the batch before is used, and little to lose in a kill.
    batch_texts, batch_tokens, in_flight = 128, 128 * 256, 2

    def __init__(self, tensors: Mapping[str, np.ndarray], heads: int, epsilon: float, threads: int) -> None:
        self._bert = Bert.of(tensors, heads, epsilon)
        self._pool = ThreadPoolExecutor(threads, "gpumatch-encode")
        self._piece = max(1, min(PIECE, self.batch_texts * self.in_flight // threads))
        self._run = threading.Event()  # setting it ends the pieces that hold it; then it is replaced

    def begin(self, tokens: Tokens) -> Callable[[], np.ndarray]:
        """See `minilm.Forward`."""
        pieces = [
            self._pool.submit(self._vectors, tokens[start : start + self._piece], self._run)
            for start in range(0, len(tokens), self._piece)
        ]
        return lambda: np.concatenate([piece.result() for piece in pieces])

    def stop(self) -> None:
        """See `minilm.Forward`."""
        self._run.set()
        self._run = threading.Event()

    def _vectors(self, tokens: Tokens, ended: threading.Event) -> np.ndarray:
        def between() -> None:
            # Ctrl-C does not reach other threads, and a piece of long texts takes seconds.
            if ended.is_set():
                raise InterruptedError

        return text_vectors(self._bert, tokens.ids, tokens.start, between)
