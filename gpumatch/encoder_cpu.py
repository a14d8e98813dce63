"""A sentence-transformers model of BERT's kind and texts in, their vectors out: the forward pass on a CPU.

Its layers' products are of 16-bit integers (`kernels.linear`), twice as fast as float32 ones and off by about as much
as the float16 that vectors are kept in. A batch is encoded in pieces side by side, each on a core of its own: threads
that share every product would wait for each other more.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from gpumatch.kernels.linear import Weights, linear
from gpumatch.kernels.shorts import ROWS
from gpumatch.machine import cpu_flags

# Texts of a piece, whatever the threads: vectors must not depend on them. Fewer are padded less, more share weights.
PIECE = 32


class PiecewiseModel:
    """A model whose products are of 16-bit integers where the processor is quick at them.

    Args:
        net: a SentenceTransformer in memory; its layers are replaced.
        threads: CPU threads.
    """

    def __init__(self, net: Any, threads: int) -> None:  # noqa: ANN401 - sentence-transformers has no stubs
        self._net, self._threads = net.eval(), threads
        self._stop = threading.Event()
        if "avx2" in cpu_flags():
            _replace_layers(net, self._stop)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D] vectors of unit length."""
        if not texts:
            return np.empty((0, self._net.get_embedding_dimension()), np.float32)
        # One thread tokenises: a tokeniser must not be told to pad by two at once.
        pieces = [self._tokens(texts[start : start + PIECE]) for start in range(0, len(texts), PIECE)]
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, self._threads // len(pieces)))
        try:
            with ThreadPoolExecutor(min(self._threads, len(pieces))) as pool:
                try:
                    return np.concatenate(list(pool.map(self._forward, pieces)))
                except BaseException:
                    # Of Ctrl-C the other threads hear nothing, and a piece of long texts takes seconds.
                    self._stop.set()
                    raise
        finally:
            self._stop.clear()
            torch.set_num_threads(before)

    def _tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        most = self._net.max_seq_length
        return dict(
            self._net.tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        )

    def _forward(self, tokens: dict[str, torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            found = self._net(tokens)["sentence_embedding"]
            vectors: np.ndarray = torch.nn.functional.normalize(found.float(), dim=1).numpy()
        return vectors


class _ShortLinear(torch.nn.Module):
    """torch.nn.Linear with weights and inputs as 16-bit integers; computes nothing once it is told to stop."""

    def __init__(self, layer: torch.nn.Linear, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop
        bias = None if layer.bias is None else layer.bias.detach().numpy()
        self._weights = Weights.of(layer.weight.detach().numpy(), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return outputs float32 [..., n] of inputs float32 [..., W]."""
        if self._stop.is_set():
            raise InterruptedError
        return torch.from_numpy(linear(x.reshape(-1, x.shape[-1]).numpy(), self._weights)).reshape(*x.shape[:-1], -1)


def _replace_layers(module: torch.nn.Module, stop: threading.Event) -> None:
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear) and child.out_features % ROWS == 0:
            setattr(module, name, _ShortLinear(child, stop))
        else:
            _replace_layers(child, stop)
