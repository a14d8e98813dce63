"""Every text is encoded once, ever, in batches that depend on lengths alone; the encoder that ships is the real one."""

from __future__ import annotations

import hashlib
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from word_encoder import embed_texts

from gpumatch import embed
from gpumatch.cache.publish import CacheError
from gpumatch.embed import (
    Embedder,
    Vectors,
    batch_plan,
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


def wait_until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    return profiles, Vectors.of(rows, [place], [profiles.n_columns]), counts


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
            expected = encoder.vector(text) * bool(text)  # an empty one says nothing
            np.testing.assert_array_equal(vectors.rows[row], expected.astype(np.float16))


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
    assert seen == sorted(set(seen))
    assert {found for _, found in seen} == {counts.texts}
    assert all(done % 5 == 0 for done, _ in seen[:-1])
    assert seen[-1] == (counts.texts, counts.texts)


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


# --- encoders that stream


class Streaming(CountingEncoder):
    """Makes batches of three itself, and gives them last text first."""

    stopped = 0

    def stream(self, texts, expected=0):
        self.expected = expected
        for start in range(0, len(texts), 3):
            which = np.arange(start, min(start + 3, len(texts)))[::-1]
            yield which, self.encode([texts[i] for i in which]).astype(np.float16)

    def stop(self):
        self.stopped += 1


def test_an_encoder_that_streams_makes_its_own_batches(tmp_path):
    encoder, told = Streaming(), []
    profiles, vectors, counts = embedded(lake(), encoder, tmp_path, progress=lambda *done: told.append(done))
    assert_right(profiles, vectors, encoder)
    assert {len(batch) for batch in encoder.batches[:-1]} == {3}
    assert told[-1] == (counts.texts, counts.texts)


def test_what_a_stream_has_given_is_kept_when_it_breaks(tmp_path):
    with pytest.raises(RuntimeError, match="interrupted"):
        embedded(lake(), Streaming(fail_at=2), tmp_path)
    _, _, counts = embedded(lake(), Streaming(), tmp_path)
    assert counts.encoded == counts.texts - 6


# --- what an encoder of one's own may do wrong


@pytest.mark.parametrize(
    ("base", "method", "wrong", "says"),
    [
        (
            CountingEncoder,
            "encode",
            lambda rows: rows[:-1],
            r"gave float32 \(4, 16\), expected numbers of shape \(5, 16\)",
        ),
        (
            CountingEncoder,
            "encode",
            lambda rows: rows[:, :8],
            r"gave float32 \(5, 8\), expected numbers of shape \(5, 16\)",
        ),
        (CountingEncoder, "encode", lambda rows: rows[0], r"gave float32 \(16,\), expected"),
        (CountingEncoder, "encode", lambda rows: None, r"gave object \(\), expected"),
        (CountingEncoder, "encode", lambda rows: rows.astype(str), r"gave <U.* \(5, 16\), expected numbers"),
        (CountingEncoder, "encode", lambda rows: [[1.0], [1.0, 2.0]], r"gave .*inhomogeneous.*, expected"),
        (CountingEncoder, "lengths", lambda rows: rows[:2], r"gave int64 \(2,\), expected numbers of shape \(5,\)"),
        (Streaming, "encode", lambda rows: rows[:, :8], r"gave float16 \(3, 8\), expected numbers of shape \(3, 16\)"),
    ],
)
def test_what_an_encoder_gives_is_told_beside_what_is_expected(tmp_path, base, method, wrong, says):
    class Wrong(base):
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            return found if name != method else lambda texts: wrong(found(texts))

    encoder = Wrong()
    told = "stream of 3 texts" if base is Streaming else f"{method} of 5 texts"
    with (
        open_store(tmp_path, encoder) as store,
        pytest.raises(EncoderError, match=f"^the encoder counting: {told} {says}"),
    ):
        embed_texts(list("abcde"), encoder, store)


def test_lists_are_as_good_as_arrays(tmp_path):
    class Lists(CountingEncoder):
        def lengths(self, texts):
            return super().lengths(texts).tolist()

        def encode(self, texts):
            return super().encode(texts).tolist()

    profiles, vectors, _ = embedded(lake(), Lists(), tmp_path)
    assert_right(profiles, vectors, Lists())


# --- texts encoded while others are read


@pytest.mark.parametrize("kind", [Streaming, CountingEncoder])
def test_texts_that_come_bit_by_bit_are_encoded_once(tmp_path, kind):
    encoder, told = kind(), []
    profiles = profile_tables(lake())
    texts = encoder_texts(profiles)
    with open_store(tmp_path, encoder) as store:
        embed_texts(texts[5:8], encoder, store, device="cpu")
        known = len(set(texts[5:8]))
        with Embedder(encoder, store, progress=lambda *done: told.append(done)) as embedder:
            for some in (texts[:9], [], texts[:20], texts[20:]):
                embedder.give(some)
            rows, places, counts = embedder.finish()
    assert [len(place) for place in places] == [9, 0, 20, len(texts) - 20]
    assert (counts.texts, counts.encoded) == (len(set(texts)), len(set(texts)) - known)
    assert told[-1] == (counts.encoded, counts.encoded)
    assert sorted(encoder.texts) == sorted(set(texts))
    place = np.concatenate(places[2:])
    np.testing.assert_array_equal(places[0], place[:9])
    assert list(dict.fromkeys(place.tolist())) == list(range(len(rows)))  # in the order in which they came first
    assert_right(profiles, Vectors.of(rows, [place], [profiles.n_columns]), encoder)


def test_an_encoder_that_streams_encodes_while_later_texts_are_still_to_come(tmp_path):
    encoder = Streaming()
    with open_store(tmp_path, encoder) as store, Embedder(encoder, store) as embedder:
        embedder.give(["a", "b", "c", "a"], 0.25)
        wait_until(lambda: len(encoder.texts) >= 3)
        assert encoder.expected == 12
        embedder.give(["c", "d"], 0.5)
        wait_until(lambda: len(encoder.texts) >= 4)
        assert encoder.expected == 8
        assert embedder.finish()[2].encoded == 4


def test_an_encoder_that_does_not_stream_makes_its_batches_when_all_is_known(tmp_path, monkeypatch):
    monkeypatch.setitem(embed.BATCH_TEXTS, "cpu", 4)
    encoder = CountingEncoder()
    with open_store(tmp_path, encoder) as store, Embedder(encoder, store) as embedder:
        for text in ("a", "bbb", "cc", "dddd", "eeeee"):
            embedder.give([text])
        time.sleep(0.05)
        assert not encoder.batches
        embedder.finish()
    assert encoder.batches == [["eeeee", "dddd", "bbb", "cc"], ["a"]]


def test_tables_that_come_in_batches_have_their_vectors(tmp_path):
    encoder = CountingEncoder()
    batches = [profile_tables(tables) for tables in (lake(3), [], lake(4, seed=2))]
    with open_store(tmp_path, encoder) as store, Embedder(encoder, store) as embedder:
        for profiles in batches:
            embedder.give(encoder_texts(profiles))
        rows, places, _ = embedder.finish()
    vectors = Vectors.of(rows, places, [profiles.n_columns for profiles in batches])
    assert_right(profile_tables([*lake(3), *lake(4, seed=2)]), vectors, encoder)


def test_leaving_ends_the_work(tmp_path):
    class Slow(Streaming):
        def encode(self, texts):
            time.sleep(0.05)
            return super().encode(texts)

    encoder, texts, told = Slow(), [f"text {i}" for i in range(300)], []
    with open_store(tmp_path, encoder) as store:
        with Embedder(encoder, store, progress=lambda *done: told.append(done)) as embedder:
            embedder.give(texts)
            wait_until(lambda: told)
        assert "gpumatch-embed" not in [thread.name for thread in threading.enumerate()]
        assert 0 < len(encoder.texts) < 300
        assert encoder.stopped
        assert embed_texts(texts, encoder, store, device="cpu")[2].encoded == 300 - told[-1][0]


def test_what_breaks_is_told_by_the_next_call(tmp_path):
    encoder = Streaming(fail_at=1)
    with open_store(tmp_path, encoder) as store, Embedder(encoder, store) as embedder:
        embedder.give([str(i) for i in range(9)])
        with pytest.raises(RuntimeError, match="interrupted"):
            embedder.finish()
        with pytest.raises(RuntimeError, match="interrupted"):
            embedder.give(["more"])
    with open_store(tmp_path, encoder) as store:
        assert embed_texts([str(i) for i in range(9)], Streaming(), store, device="cpu")[2].encoded == 6


# --- what was made is stored meanwhile


class Slowly:
    """A store whose first put waits until it is let go."""

    def __init__(self, store, fail=False):
        self.store, self.fail, self.sizes, self.go = store, fail, [], threading.Event()

    def get(self, keys):
        return self.store.get(keys)

    def put(self, keys, vectors):
        self.go.wait(10)
        if self.fail:
            raise CacheError("the disk is full")
        self.sizes.append(len(keys))
        self.store.put(keys, vectors)


def test_what_comes_while_the_disk_is_busy_is_stored_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(embed.UNSTORED_TEXTS, "cpu", 16)
    encoder, told = Streaming(), []
    texts = [str(i) for i in range(90)]
    with open_store(tmp_path, encoder) as store:
        slowly = Slowly(store)
        with Embedder(encoder, slowly, progress=lambda *done: told.append(done)) as embedder:
            embedder.give(texts)
            wait_until(lambda: len(encoder.texts) >= 18)  # the encoder does not wait for the disk
            time.sleep(0.1)
            # unless it is behind: five batches of three texts are not stored, and one waits to join them
            assert len(encoder.texts) == 18
            slowly.go.set()
            counts = embedder.finish()[2]
        assert sum(slowly.sizes) == counts.encoded == 90
        assert len(slowly.sizes) < 30
        assert max(slowly.sizes) <= 15
        assert told[-1] == (90, 90)
        assert embed_texts(texts, Streaming(), store, device="cpu")[2].encoded == 0


@pytest.mark.parametrize(("where", "most"), [("cpu", 3), ("cuda", 9)])
def test_what_a_kill_costs_goes_by_where_texts_were_encoded(tmp_path, monkeypatch, where, most):
    """Not by what might have been used; a batch that is larger than the bound is stored by itself."""
    monkeypatch.setattr(embed, "UNSTORED_TEXTS", {"cpu": 2, "cuda": 9})
    encoder = Streaming()
    encoder.device = where
    with open_store(tmp_path, encoder) as store:
        slowly = Slowly(store)
        with Embedder(encoder, slowly, device="cuda") as embedder:
            embedder.give([str(i) for i in range(90)])
            wait_until(lambda: len(encoder.texts) >= most + 3)
            time.sleep(0.1)
            assert len(encoder.texts) == most + 3
            slowly.go.set()
            assert embedder.finish()[2].encoded == 90
        assert max(slowly.sizes) <= most


@pytest.mark.parametrize("kind", [Streaming, CountingEncoder])
def test_a_disk_that_is_full_is_told(tmp_path, kind):
    encoder = kind()
    with open_store(tmp_path, encoder) as store:
        full = Slowly(store, fail=True)
        full.go.set()
        with Embedder(encoder, full) as embedder:
            embedder.give([str(i) for i in range(9)])
            with pytest.raises(CacheError, match="disk is full"):
                embedder.finish()


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
