"""R5: a flipped byte in any file of the cache or of an index is found before use, or changes nothing.

Each flip is followed by a real second use: the store is opened and asked for every key, or the index is loaded, and
every result is compared with what was there before.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from word_encoder import embed_texts

from gpumatch.cache import shards
from gpumatch.cache.keys import text_keys
from gpumatch.cache.publish import CacheError
from gpumatch.cache.vectors import VectorStore
from gpumatch.embed import SERIALISER, Vectors, open_store
from gpumatch.errors import IndexError_
from gpumatch.index import Index, Pools, TableSet
from gpumatch.lake import Table
from gpumatch.profile import Profiles, encoder_texts, profile_tables

FLIPS = 1000
DIM = 8


class FakeEncoder:
    """Gives every text a unit vector of its own."""

    model, revision, dim = "fake", "1", DIM

    def lengths(self, texts):
        return np.array([len(text) for text in texts])

    def encode(self, texts):
        rows = np.stack([np.random.default_rng(list(text.encode())).normal(size=DIM) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def small_lake(tmp_path, monkeypatch, no_sync):
    """The cache of a small lake, closed and as a kill leaves it, and its index; its keys, vectors and `Index`."""
    monkeypatch.setattr(shards, "SEGMENT_ROWS", 32)
    rng = np.random.default_rng(0)
    profiles = profile_tables(
        Table(
            f"table {i}",
            tuple(f"column {j} of {i % 7}" for j in range(4)),
            tuple(pa.array([f"{x}" for x in rng.integers(0, 50, 6)], pa.string()) for _ in range(4)),
            (None,) * 4,
        )
        for i in range(40)
    )
    encoder = FakeEncoder()
    with open_store(tmp_path / "closed", encoder) as store:
        rows, place, _ = embed_texts(encoder_texts(profiles), encoder, store, device="cpu")
        vectors = Vectors.of(rows, [place], [profiles.n_columns])
        shutil.copytree(tmp_path / "closed", tmp_path / "killed")
    keys = text_keys(list(dict.fromkeys(encoder_texts(profiles))))
    about = {"lake": "small", "encoder": "fake@1", "gpumatch": "0", "skipped": [], "source": "/lake é"}
    index = Index.of(TableSet(profiles, vectors), about)
    scores = rng.uniform(0, 1, (40, 5)).astype(np.float32)
    index.pools["0123"] = Pools(rng.integers(0, 40, (40, 5)).astype(np.int32), scores, scores.mean(axis=1))
    index.save(tmp_path / "index")
    return tmp_path, keys, vectors.rows, index


def contents(index):
    """Everything in an index, by name, as bytes or plain data."""
    profiles, vectors = index.lake.profiles, index.lake.vectors
    found = {one.name: getattr(profiles, one.name) for one in fields(Profiles)}
    found |= {"rows": index.rows, "vectors": vectors.rows, "place": vectors.place}
    for key, pools in index.pools.items():
        found |= {f"{key} {one.name}": getattr(pools, one.name) for one in fields(Pools)}
    for one in fields(index.vocabularies):
        vocabulary = getattr(index.vocabularies, one.name)
        found |= {f"{one.name} {name}": getattr(vocabulary, name) for name in ("term", "df", "n_docs")}
    exact = {name: (x.dtype.str, x.shape, x.tobytes()) if isinstance(x, np.ndarray) else x for name, x in found.items()}
    return exact | {"about": index.about}


def use_index(folder, path, expected):
    try:
        loaded = Index.load(folder)
    except IndexError_ as error:
        named = path.name in str(error) or (path.name == "manifest.json" and str(folder) in str(error))
        return "found" if named else f"WRONG: another file is named: {error}"
    return "harmless" if contents(loaded) == expected else "WRONG"


def use_store(root, keys, vectors):
    (folder,) = root.iterdir()
    try:
        with VectorStore.open(root, model="fake", revision="1", serialiser=SERIALISER, dim=DIM) as store:
            read, there = store.get(keys)
            again, still = store.get(keys)
            damaged = list(store.damaged)
    except CacheError as error:
        return "found" if str(folder) in str(error) else f"WRONG: the folder is not named: {error}"
    if read[there].tobytes() != vectors[there].tobytes() or again[still].tobytes() != vectors[still].tobytes():
        return "WRONG"
    if damaged:
        return "found" if str(folder) in damaged[0] else f"WRONG: the folder is not named: {damaged}"
    return "harmless" if there.all() else f"WRONG: {int((~there).sum())} vectors missing, and nobody says so"


def all_files(root):
    return sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)


def flipped(path, whole, place, bit):
    data = bytearray(whole)
    data[place] ^= 1 << bit
    path.write_bytes(data)


def is_last_commit_mark(log, place):
    """Tell the 12 bytes whose damage nothing tells from a kill before the last commit was written."""
    size = 24 + int.from_bytes(log[8:12], "big")
    last = len(log) - size
    return last + 4 <= place < last + 16


def restore(root: Path, pristine: Path):
    """Bring a folder back that a store has mended or begun anew."""
    shutil.rmtree(root)
    shutil.copytree(pristine, root)


def test_every_flipped_byte_is_found_or_harmless(small_lake, request):
    root, keys, vectors, index = small_lake
    expected = contents(Index.load(root / "index"))
    assert expected == contents(index)
    for kind in ("closed", "killed"):
        shutil.copytree(root / kind, root / f"pristine {kind}")
        assert use_store(root / kind, keys, vectors) == "harmless"
        restore(root / kind, root / f"pristine {kind}")
    files = {kind: all_files(root / kind) for kind in ("closed", "killed", "index")}
    kinds = {path.suffix or path.name for paths in files.values() for path in paths}
    assert {".npy", ".arrow", ".json", ".f16", ".sqlite", ".sqlite-wal", ".sqlite-shm", ".lock"} <= kinds
    chance, outcomes = random.Random(5), Counter()
    choices = [(kind, path) for kind, paths in files.items() for path in paths]
    weights = [30 if kind != "index" and path.suffix != ".lock" else 4 for kind, path in choices]
    wholes = {path: path.read_bytes() for _, path in choices}
    for kind, path in chance.choices(choices, weights, k=FLIPS):
        whole = wholes[path]
        place, bit = a_place(whole, chance), chance.randrange(8)
        flipped(path, whole, place, bit)
        if kind == "index":
            outcome = use_index(root / kind, path, expected)
            path.write_bytes(whole)
        else:
            outcome = use_store(root / kind, keys, vectors)
            restore(root / kind, root / f"pristine {kind}")
        if path.suffix == ".sqlite-wal" and is_last_commit_mark(whole, place) and "missing" in outcome:
            outcome = "as if killed before the last put"
        assert not outcome.startswith("WRONG"), f"bit {bit} of byte {place} of {kind} {path.name}: {outcome}"
        outcomes[path.suffix or path.name, outcome] += 1
    for (kind, outcome), n in sorted(outcomes.items()):
        request.node.user_properties.append((f"{kind} {outcome}", n))
    assert sum(outcomes.values()) == FLIPS
    assert sum(n for (_, outcome), n in outcomes.items() if outcome == "found") > FLIPS // 2
    for kind in (".npy", ".arrow", ".f16", ".json"):
        assert outcomes[kind, "harmless"] == 0


def a_place(whole, chance):
    """Choose a byte: half of the time one that is not zero, for most of a catalogue is unused."""
    place = chance.randrange(len(whole))
    if chance.randrange(2):
        full = np.flatnonzero(np.frombuffer(whole, np.uint8))
        return int(full[chance.randrange(len(full))])
    return place
