"""The store as its callers see it: what was put is there, bit-equal, and what cannot be true is refused."""

from __future__ import annotations

import sqlite3
import threading

import numpy as np
import pytest

from gpumatch.cache import shards
from gpumatch.cache.keys import text_keys
from gpumatch.cache.publish import CacheError

from .stores import DIM, assert_holds, batch, child, open_store, some, the, unit

# What it does when nothing goes wrong


def test_round_trip_in_this_and_a_later_instance(tmp_path):
    keys, vectors = some(100)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
        assert_holds(store, keys, vectors)
    with open_store(tmp_path) as store:
        assert_holds(store, keys, vectors)
        assert store.damaged == []
        assert store.stats()["rows"] == 100


def test_any_order_repeats_and_missing_keys(tmp_path):
    keys, vectors = some(50)
    missing, _ = some(5, "missing")
    places = np.array([7, 49, 7, 0, 33])
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
        read, found = store.get(np.concatenate([missing, keys[places], missing[:1]]))
        assert found.tolist() == [False] * 5 + [True] * 5 + [False]
        assert read[5:10].tobytes() == vectors[places].tobytes()
        assert not read[~found].any()
        handles = store.lookup(np.concatenate([keys, missing]))
        assert (handles[:50] >= 0).all()
        assert len(set(handles[:50].tolist())) == 50
        assert (handles[50:] == -1).all()


def test_the_first_of_repeated_keys_counts_within_and_between_puts(tmp_path):
    keys, vectors = some(40)
    with open_store(tmp_path) as store:
        store.put(np.concatenate([keys, keys]), np.concatenate([vectors, unit(9, 40)]))
        store.put(keys, unit(10, 40))
        assert_holds(store, keys, vectors)
        assert store.stats()["rows"] == 40


def test_nothing_put_and_nothing_asked(tmp_path):
    none = text_keys([])
    with open_store(tmp_path) as store:
        store.put(none, np.empty((0, DIM), np.float16))
        read, found = store.get(none)
        assert read.shape == (0, DIM)
        assert found.shape == store.lookup(none).shape == (0,)
        assert store.stats() == {"rows": 0, "segments": 0, "shards": 0, "bytes": store.stats()["bytes"]}


def test_more_keys_than_one_query_takes(tmp_path):
    keys, vectors = some(3000)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
        assert_holds(store, keys[::-1].copy(), vectors[::-1])


def test_wider_floats_are_rounded_to_float16(tmp_path):
    keys, vectors = some(20)
    with open_store(tmp_path) as store:
        store.put(keys[:10], vectors[:10].astype(np.float64))
        store.put(keys[10:], np.asfortranarray(vectors[10:].astype(np.float32)))
        assert_holds(store, keys, vectors)


def test_namespaces_do_not_see_each_other(tmp_path):
    keys, vectors = some(10)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
    for other in ({"model": "n"}, {"revision": "q"}, {"serialiser": "t"}, {"model": "mr", "revision": ""}):
        with open_store(tmp_path, **other) as store:
            assert not store.get(keys)[1].any()
            store.put(keys, -vectors)
    with open_store(tmp_path) as store:
        assert_holds(store, keys, vectors)


def test_stats_count_what_is_on_disk(tmp_path):
    keys, vectors = some(40)
    with open_store(tmp_path) as first, open_store(tmp_path) as second:
        first.put(keys[:30], vectors[:30])
        second.put(keys[30:], vectors[30:])
        stats = first.stats()
    assert (stats["rows"], stats["segments"], stats["shards"]) == (40, 3, 2)
    assert stats["bytes"] > 40 * DIM * 2


# What it refuses


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 1.02, 0.98, 1e5])
def test_rows_that_are_no_unit_vectors_are_refused_whole(tmp_path, bad):
    keys, vectors = some(40)
    vectors = vectors.astype(np.float32)
    vectors[33] = vectors[33] * bad
    with open_store(tmp_path) as store:
        with pytest.raises(CacheError, match=rf"vector 33 of 40 \(key {keys[33].tobytes().hex()}\) has norm"):
            store.put(keys, vectors)
        assert store.stats()["rows"] == 0


@pytest.mark.parametrize("factor", [0.995, 1.005])
def test_rounding_errors_of_a_norm_are_accepted(tmp_path, factor):
    keys, vectors = some(10)
    with open_store(tmp_path) as store:
        store.put(keys, vectors.astype(np.float32) * factor)


def test_shapes_and_types_are_checked(tmp_path):
    keys, vectors = some(10)
    with open_store(tmp_path) as store:
        with pytest.raises(CacheError, match=r"shape \(10, 8\), got float16 \(9, 8\)"):
            store.put(keys, vectors[:9])
        with pytest.raises(CacheError, match="got int64"):
            store.put(keys, np.ones((10, DIM), np.int64))
        for call in (store.lookup, store.get):
            with pytest.raises(CacheError, match="V16"):
                call(np.array([b"0123456789abcdef"]))
    with pytest.raises(CacheError, match="at least 1"):
        open_store(tmp_path, dim=0)


def test_another_dim_names_the_folder_and_the_way_out(tmp_path):
    with open_store(tmp_path) as store:
        folder = store.folder
    with pytest.raises(CacheError, match=rf"{folder} holds vectors of dim 8, but 16 .*gpumatch cache clear"):
        open_store(tmp_path, dim=16)


def test_a_closed_store_says_so(tmp_path):
    store = open_store(tmp_path)
    store.close()
    store.close()
    with pytest.raises(CacheError, match="is closed"):
        store.stats()


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match="cannot create the cache folder"):
        open_store(tmp_path / "file")


# More than one at a time


FORK = """
with open_store(sys.argv[1]) as store:
    store.put(*batch(1))
    if os.fork() == 0:
        try:
            store.put(*batch(2))
            print("put", flush=True)
        except Exception as error:
            print(type(error).__name__, "open it again" in str(error), flush=True)
        store.close()
        os._exit(0)
    os.wait()
    store.put(*batch(3))
"""


def test_a_forked_child_must_open_its_own(tmp_path):
    with child(FORK, tmp_path) as process:
        assert process.communicate()[0] == "CacheError True\n"
    assert process.returncode == 0
    with open_store(tmp_path) as store:
        for b in (1, 3):
            assert_holds(store, *batch(b))


OVERLAP = """
root, me = Path(sys.argv[1]), int(sys.argv[2])
keys = text_keys([f"shared {i}" for i in range(1200)])
mine = unit(me, 1200)
order = np.random.default_rng(100 + me).permutation(1200)
print("ready", flush=True)
while not (root / "go").exists():
    time.sleep(0.001)
with open_store(root) as store:
    for start in range(0, 1200, 30):
        places = order[start:start + 30]
        store.put(keys[places], mine[places])
        _, found = store.get(keys[places])
        assert found.all(), store.damaged
    assert not store.damaged, store.damaged
"""


def test_processes_that_put_the_same_keys_at_once(tmp_path):
    writers = [child(OVERLAP, tmp_path, me) for me in range(3)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    for writer in writers:
        assert writer.communicate()[0] == ""
        assert writer.returncode == 0

    keys = text_keys([f"shared {i}" for i in range(1200)])
    sources = np.stack([unit(me, 1200) for me in range(3)])
    with open_store(tmp_path) as store:
        read, found = store.get(keys)
        stats = store.stats()
        assert store.damaged == []
    assert found.all()
    assert (sources == read).all(axis=2).any(axis=0).all()  # each row whole, from one of the writers
    assert stats["rows"] == 1200
    assert stats["shards"] == 3
    db = sqlite3.connect(the(tmp_path, "catalogue-*.sqlite"))
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        db.close()


def test_threads_share_an_instance(tmp_path):
    failures = []
    with open_store(tmp_path) as store:

        def work(me):
            try:
                for b in range(me, 40, 4):
                    store.put(*batch(b))
                    assert_holds(store, *batch(b))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for b in range(40):
            assert_holds(store, *batch(b))


def test_a_reader_sees_what_is_put_after_it_read(tmp_path):
    keys, vectors = some(60)
    with open_store(tmp_path) as writer, open_store(tmp_path) as reader:
        for start in range(0, 60, 20):  # the same shard grows under the reader's map
            part = slice(start, start + 20)
            assert not reader.get(keys[part])[1].any()
            writer.put(keys[part], vectors[part])
            assert_holds(reader, keys[: start + 20], vectors[: start + 20])


# Speed: the bounds are several times what two cores need, so that only another algorithm breaks them


def test_lookup_of_100_000_keys_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SEGMENT_ROWS", 16_384)
    keys, _ = some(100_000)
    with open_store(tmp_path) as store:
        store.put(keys, np.resize(unit(0, 1000), (100_000, DIM)))
        order = np.random.default_rng(0).permutation(len(keys))
        handles = store.lookup(keys[order])
        assert (handles >= 0).all()
        np.testing.assert_array_equal(handles, store.lookup(keys)[order])


@pytest.mark.parametrize(
    ("size", "missing", "worth"),
    [(0, 5, False), (1, 1, True), (100_000, 1, True), (100_001, 1, False), (300_000, 3, True), (1, 0, False)],
)
def test_a_catalogue_is_proved_where_that_costs_less_than_encoding_what_it_may_hide(tmp_path, size, missing, worth):
    (tmp_path / "catalogue").write_bytes(bytes(size))
    with open_store(tmp_path / "store") as store:
        assert store._is_worth_proving(tmp_path / "catalogue", missing) is worth
        assert store._is_worth_proving(tmp_path / "cleared meanwhile", missing) is False
