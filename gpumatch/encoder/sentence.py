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

# How many texts' tokens are counted at once: they are Python lists, 1 GB for the columns of 20,000 tables, and a call
# into the tokeniser cannot be interrupted.
_TOKENISED_AT_ONCE = 2048
# Files that can hold weights or a vocabulary: they are hashed, so that another model is never taken for this one.
_MODEL_FILES = (".json", ".safetensors", ".bin", ".pt", ".model", ".txt", ".py")


class SentenceTransformerEncoder:
    """A sentence-transformers model in a local folder; loaded at once, since only it knows its vectors' length."""

    def __init__(self, folder: Path, *, device: str, model: str, revision: str, threads: int | None = None) -> None:
        self.folder = folder
        self.device = device
        self._threads = threads
        self.model = model
        self.revision = revision
        self.dim = int(self._net.get_embedding_dimension())

    @cached_property
    def _net(self) -> Any:  # noqa: ANN401 - sentence-transformers has no stubs
        # Nothing is ever fetched for a model in a folder.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            return SentenceTransformer(
                str(self.folder),
                device=self.device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except Exception as error:
            raise EncoderError(f"{self.folder} is no sentence-transformers model: {error}") from error

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Return int [n], the tokens of each text, cut at the model's window; characters if the model pads nothing."""
        if not callable(self._net.tokenizer):  # static embeddings, which have no window either
            return np.fromiter(map(len, texts), np.int64, len(texts))
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
        vectors = vectors.astype(np.float32, copy=False)
        vectors[~vectors.any(axis=1), 0] = 1  # static embeddings of a text without a token are the zero vector
        return vectors


def open_folder(name: str, folder: Path, device: str, threads: int | None) -> SentenceTransformerEncoder:
    """Return the encoder in a folder, or under a hub id if there is no such folder.

    Args:
        name: a hub id may be followed by @ and a branch, tag or commit; without it is the newest revision.

    Raises:
        EncoderError: it is neither, or has weights that could hold code.
    """
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        hub_id, _, revision = name.partition("@")
        try:
            folder, name = Path(snapshot_download(hub_id, revision=revision or None)), hub_id
        except Exception as error:
            raise EncoderError(
                f"encoder {name!r} is neither a folder nor a hub id that can be fetched: {error}"
            ) from error
    _refuse_pickles(folder)
    return SentenceTransformerEncoder(
        folder, device=device, model=Path(name).name, revision=_folder_hash(folder), threads=threads
    )


def _refuse_pickles(folder: Path) -> None:
    """Refuse weights that are only a pickle, which may hold any code; safetensors beside it are read instead."""
    for path in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(path.parent.glob("*.safetensors")):
            raise EncoderError(
                f"{path} is a pickle, which may hold any code, and there is no .safetensors beside it; convert it: "
                f'python -c "from sentence_transformers import SentenceTransformer as S; '
                f"S({str(folder)!r}).save('NEW')\", if you trust it, and give --encoder NEW"
            )


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in _MODEL_FILES):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
