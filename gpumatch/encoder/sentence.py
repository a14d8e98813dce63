"""A folder or a hub id in, the sentence-transformers model there out, as an encoder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpumatch.errors import EncoderError

# Texts whose tokens are counted at once: they are Python lists, 1 GB of them for the columns of 20,000 tables, and a
# call into the tokeniser cannot be interrupted.
_TOKENISED_AT_ONCE = 2048
# Whatever can hold weights or a vocabulary: another one must never be taken for this one.
_MODEL_FILES = (".json", ".safetensors", ".bin", ".pt", ".model", ".txt", ".py")


class SentenceTransformerEncoder:
    """A sentence-transformers model in a local folder; loaded at once, for it alone knows how long its vectors are."""

    def __init__(self, folder: Path, *, device: str, model: str, revision: str, threads: int | None = None) -> None:
        self.folder = folder
        self.device = device
        self._threads = threads
        self.model = model
        self.revision = revision
        self.dim = int(self._net.get_embedding_dimension())

    @cached_property
    def _net(self) -> Any:  # noqa: ANN401 - sentence-transformers has no stubs
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

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D] vectors of unit length; one forward pass, so give it one batch."""
        vectors: np.ndarray = self._net.encode(
            list(texts), batch_size=max(1, len(texts)), normalize_embeddings=True, show_progress_bar=False
        )
        return vectors.astype(np.float32, copy=False)


def open_folder(name: str, folder: Path, device: str, threads: int | None) -> SentenceTransformerEncoder:
    """Return the encoder in a folder, or under a hub id where there is no such folder.

    Raises:
        EncoderError: it is neither.
    """
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name))
        except Exception as error:
            raise EncoderError(
                f"encoder {name!r} is neither a folder nor a hub id that can be fetched: {error}"
            ) from error
    return SentenceTransformerEncoder(
        folder, device=device, model=Path(name).name, revision=_folder_hash(folder), threads=threads
    )


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in _MODEL_FILES):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
