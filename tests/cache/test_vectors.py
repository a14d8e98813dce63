"""The vector store: what was acknowledged is there, bit-equal, whatever is killed; what is flipped is not believed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import gpumatch.cache
from gpumatch.cache import vectors as vectors_module
from gpumatch.cache.keys import text_keys
from gpumatch.cache.publish import CacheError, FileLock
from gpumatch.cache.vectors import VectorStore

DIM = 8
PACKAGE_ROOT = str(Path(gpumatch.cache.__file__).parents[2])
ENV = {**os.environ, "PYTHONPATH": PACKAGE_ROOT, "OPENBLAS_NUM_THREADS": "1"}

# Shared with the children: batch b always has the same keys and vectors, and spans several segments.
COMMON = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from gpumatch.cache import vectors as vectors_module
from gpumatch.cache.keys import text_keys
from gpumatch.cache.vectors import VectorStore
vectors_module.SEGMENT_ROWS = 16
DIM = 8

def unit(seed, n):
    rows = np.random.default_rng(seed).standard_normal((n, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)

def batch(b):
    n = 1 + b * 7 % 40
    return text_keys([f"batch {b} text {i}" for i in range(n)]), unit(b, n)

def open_store(root):
    return VectorStore.open(Path(root), model="m", revision="r", serialiser="s", dim=DIM)
"""
_common: dict = {}
exec(COMMON.replace("vectors_module.SEGMENT_ROWS = 16", ""), _common)  # noqa: S102 - the text above
unit, batch = _common["unit"], _common["batch"]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    """Many segments from few rows."""
    monkeypatch.setattr(vectors_module, "SEGMENT_ROWS", 16)


def open_store(root, **other) -> VectorStore:
    return VectorStore.open(root, **{"model": "m", "revision": "r", "serialiser": "s", "dim": DIM, **other})


def some(n, name="t", seed=0):
    return text_keys([f"{name}{i}" for i in range(n)]), unit(seed, n)


def the(root, pattern) -> Path:
    (path,) = root.glob(f"*/{pattern}")
    return path


def child(script, *args) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMMON + script, *map(str, args)], env=ENV, stdout=subprocess.PIPE, text=True
    )


def assert_holds(store, keys, vectors):
    read, found = store.get(keys)
    assert found.all(), store.damaged
    assert read.dtype == np.float16
    assert read.tobytes() == vectors.tobytes()


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


def test_about_json_tells_a_person_what_this_is(tmp_path):
    open_store(tmp_path).close()
    about = json.loads(the(tmp_path, "about.json").read_text())
    assert about.items() >= {"model": "m", "revision": "r", "serialiser": "s", "dim": DIM, "format": 1}.items()


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


# Kills

# Forks children that put batches until they are killed: at a random time, or before the n-th call to the system.
# Prints "<round> <acknowledged batches>" per kill. A batch is acknowledged through a pipe, after put returned.
KILLER = """
root, mode, rounds, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)

def die_at(n):
    count = [0]
    def counted(name, real):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == n:
                if name == "pwrite":
                    real(args[0], args[1][: len(args[1]) // 2], args[2])  # torn
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("open", "pwrite", "fsync", "fdatasync", "replace", "unlink", "stat", "fstat", "close"):
        setattr(os, name, counted(name, getattr(os, name)))

next_batch, seen = 0, set()
for round in range(rounds):
    fresh = os.path.join(root, str(round)) if mode == "points" else root
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        if mode == "points":
            die_at(round + 1)
        with open_store(fresh) as store:
            for b in range(next_batch, next_batch + (3 if mode == "points" else 10**9)):
                store.put(*batch(b))
                os.write(into, b.to_bytes(8, "little"))
        os._exit(7)
    os.close(into)
    if mode == "random":
        for _ in range(chance.randrange(4)):  # by progress, so that a slow machine is killed at the same places
            seen.add(int.from_bytes(os.read(out, 8), "little"))
        time.sleep(chance.choice([0.001, 0.004, 0.02]) * chance.random())
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    raw = os.read(out, 1 << 20)
    os.close(out)
    done = [int.from_bytes(raw[i:i + 8], "little") for i in range(0, len(raw), 8)]
    seen.update(done)
    print(round, *(sorted(seen) if mode == "random" else done), flush=True)
    if mode == "points" and os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 7
        break
    if mode == "random":
        next_batch = max([next_batch - 1, *seen]) + 3  # what may be there is not put again
        seen.clear()
"""


def assert_only_true_vectors(store, batches, acknowledged):
    for b in batches:
        keys, vectors = batch(b)
        read, found = store.get(keys)
        assert read[found].tobytes() == vectors[found].tobytes()
        assert found.all() or b not in acknowledged, (b, store.damaged)
        assert found.all() or not found.any(), "a put is one transaction"
    assert store.damaged == []


def test_a_kill_at_a_random_time_loses_nothing_acknowledged(tmp_path):
    rounds, acknowledged = 0, set()
    with child(KILLER, tmp_path, "random", 60, 5) as process:
        for line in process.stdout:
            rounds += 1
            done = [int(word) for word in line.split()[1:]]
            acknowledged.update(done)
            with open_store(tmp_path) as store:  # beside the next child
                assert_only_true_vectors(store, done, acknowledged)
    assert process.returncode == 0
    assert rounds == 60
    assert len(acknowledged) >= 60, "the children were killed before they did anything"
    with open_store(tmp_path) as store:
        assert_only_true_vectors(store, range(max(acknowledged) + 3), acknowledged)
        for b in range(max(acknowledged) + 3):
            store.put(*batch(b))
            assert_holds(store, *batch(b))
    assert_no_litter(tmp_path)


def test_a_kill_at_every_call_to_the_system_loses_nothing_acknowledged(tmp_path):
    with child(KILLER, tmp_path, "points", 500, 0) as process:
        lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    assert 30 < len(lines) < 500
    assert lines[-1].split()[1:] == ["0", "1", "2"]
    for line in lines:
        number, *done = line.split()
        with open_store(tmp_path / number) as store:
            assert_only_true_vectors(store, range(3), {int(b) for b in done})
            for b in range(3):
                store.put(*batch(b))
                assert_holds(store, *batch(b))
        assert_no_litter(tmp_path / number)


def assert_no_litter(root):
    with open_store(root):
        pass
    folder = the(root, "about.json").parent
    rows = np.fromiter((path.stat().st_size for path in folder.glob("shard-*")), np.int64)
    assert (rows > 0).all()
    assert len(list(folder.glob("catalogue-*.sqlite"))) == 1
    assert not list(folder.glob("damaged-*"))
    assert not list(folder.glob(".*"))


def test_a_torn_tail_is_not_read_and_not_in_the_way(tmp_path):
    keys, vectors = some(20)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
        with open(the(tmp_path, "shard-*"), "ab") as shard:
            shard.write(b"half a row")
        more, more_vectors = some(20, "more", 1)
        store.put(more, more_vectors)
        assert_holds(store, more, more_vectors)
    with open(the(tmp_path, "shard-*"), "ab") as shard:
        shard.write(b"x" * 5)
    with open_store(tmp_path) as store:
        assert_holds(store, keys, vectors)
        assert_holds(store, more, more_vectors)
        assert store.damaged == []


def test_shards_of_the_dead_are_swept_and_those_of_the_living_kept(tmp_path):
    keys, vectors = some(20)
    with open_store(tmp_path) as living:
        living._own_shard()  # created, nothing catalogued yet
        mine = the(tmp_path, "shard-*")
        dead = mine.with_name("shard-1-abcdef.f16")
        dead.write_bytes(bytes(160))
        stray = mine.with_name("not-a-shard.f16")
        stray.touch()
        with open_store(tmp_path):
            assert mine.exists()
            assert not dead.exists()
            assert stray.exists()
        living.put(keys, vectors)
    with open_store(tmp_path) as store:
        assert mine.exists()
        assert_holds(store, keys, vectors)


def test_a_shard_whose_owner_commits_and_leaves_while_it_is_swept_is_kept(tmp_path, monkeypatch):
    keys, vectors = some(20)
    living = open_store(tmp_path)
    living._own_shard()
    real = vectors_module.fcntl.flock

    def leave_first(fd, operation):
        if "/shard-" in os.readlink(f"/proc/self/fd/{fd}"):
            monkeypatch.undo()
            living.put(keys, vectors)
            living.close()
        real(fd, operation)

    monkeypatch.setattr(vectors_module.fcntl, "flock", leave_first)
    with open_store(tmp_path) as store:
        assert living._closed
        assert_holds(store, keys, vectors)


def test_only_one_process_at_a_time_opens_a_folder(tmp_path):
    with open_store(tmp_path) as store:
        lock = store.folder / "open.lock"
    done = threading.Event()
    thread = threading.Thread(target=lambda: (open_store(tmp_path).close(), done.set()))
    with FileLock(lock):
        thread.start()
        assert not done.wait(0.1)
    assert done.wait(10)
    thread.join()


def test_a_shard_swept_between_its_creation_and_its_lock_is_not_used(tmp_path, monkeypatch):
    keys, vectors = some(20)
    real, left = vectors_module.fcntl.flock, [1]

    def sweep_first(fd, operation):
        if left:
            left.pop()
            the(tmp_path, "shard-*").unlink()
        real(fd, operation)

    with open_store(tmp_path) as store:
        monkeypatch.setattr(vectors_module.fcntl, "flock", sweep_first)
        store.put(keys, vectors)
        assert not left
    with open_store(tmp_path) as store:
        assert_holds(store, keys, vectors)


# Full disks

FAULTS = [("pwrite", errno.ENOSPC), ("fdatasync", errno.EIO), ("open", errno.EMFILE), ("fsync", errno.EIO)]


@pytest.mark.parametrize(("call", "number"), FAULTS)
def test_a_failing_put_raises_loses_nothing_and_can_be_repeated(tmp_path, monkeypatch, call, number):
    keys, vectors = some(20)
    more, more_vectors = some(40, "more", 1)
    with open_store(tmp_path) as store:
        if call in ("pwrite", "fdatasync"):
            store.put(keys, vectors)
        real, left = getattr(os, call), [1]

        def fail(*args, **kwargs):
            if left:  # the second piece: one is already written
                left.pop()
                return real(*args, **kwargs) if call == "pwrite" else fail()
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(CacheError, match=rf"cannot write vectors to .*{os.strerror(number)}"):
                store.put(more, more_vectors)
            assert number != errno.EIO or store._shard_fd is None, "after a failed sync its pages may be gone"
            if call == "pwrite":
                assert the(tmp_path, "shard-*").stat().st_size == 20 * DIM * 2, "a full disk gets its bytes back"
        assert not store.get(more)[1].any()
        store.put(keys, vectors)
        store.put(more, more_vectors)
        for _ in range(2):
            assert_holds(store, keys, vectors)
            assert_holds(store, more, more_vectors)
        assert store.damaged == []


def test_no_descriptor_left_is_no_damage(tmp_path, monkeypatch):
    keys, vectors = some(20)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)

        def fail(*args, **kwargs):
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(vectors_module.os, "open", fail)
            with pytest.raises(CacheError, match="Too many open files"):
                store.get(keys)
        assert_holds(store, keys, vectors)


# Damage


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A closed store of two shards, six segments, with the keys and vectors in it."""
    root = tmp_path_factory.mktemp("filled")
    keys, vectors = some(100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors_module, "SEGMENT_ROWS", 16)
        for part in (slice(0, 40), slice(40, 100)):
            with open_store(root) as store:
                store.put(keys[part], vectors[part])
    return root, keys, vectors


@pytest.fixture
def no_sync(monkeypatch):
    """Leave out the syncs: hundreds of stores are opened, and none has to outlive a power cut."""
    tune = vectors_module._tune

    def tune_without_sync(conn):
        tune(conn)
        conn.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(vectors_module, "_tune", tune_without_sync)
    for call in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, call, lambda fd: None)


def flip(path, place, mask):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def copy_of(filled_root, tmp_path, name="copy"):
    root = tmp_path / name
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(filled_root, root)
    return root


def assert_noticed_or_harmless(root, keys, vectors, silent_loss=False, rounds=1):
    """No wrong vector; what is missing is reported; what is put again stays. Gives what was found at first."""
    first = None
    for _ in range(rounds):
        with open_store(root) as store:
            read, found = store.get(keys)
            assert read[found].tobytes() == vectors[found].tobytes()
            assert found.all() or store.damaged or silent_loss
            store.put(keys[~found], vectors[~found])
            first = found if first is None else first
        if found.all():
            break
    with open_store(root) as store:
        assert_holds(store, keys, vectors)
    return first


@pytest.mark.usefixtures("no_sync")
def test_every_flipped_byte_of_a_shard_is_noticed(filled, tmp_path):
    source, keys, vectors = filled
    chance = random.Random(1)
    for shard in sorted(source.glob("*/shard-*")):
        size = shard.stat().st_size
        for place in [0, size - 1, *chance.sample(range(1, size - 1), 25)]:
            root = copy_of(source, tmp_path)
            flip(root / shard.relative_to(source), place, 1 << chance.randrange(8))
            with open_store(root) as store:
                store.get(keys)
                (message,) = store.damaged
                assert shard.name in message
                assert "checksum mismatch" in message
            found = assert_noticed_or_harmless(copy_of(source, tmp_path, "again"), keys, vectors)
            assert found.all()
            found = assert_noticed_or_harmless(root, keys, vectors, silent_loss=True)
            assert 84 <= found.sum() < 100  # one segment of 16 rows, no more


@pytest.mark.usefixtures("no_sync")
def test_no_flipped_byte_of_the_catalogue_gives_a_wrong_vector(filled, tmp_path):
    source, keys, vectors = filled
    path = the(source, "catalogue-*.sqlite").relative_to(source)
    size = (source / path).stat().st_size
    chance = random.Random(2)
    data = (source / path).read_bytes()
    full = [place for place in range(100, size) if data[place]]  # most of the file is unused zeros
    places = [*range(100), *chance.sample(full, 120), *chance.sample(range(size), 10)]
    lost = 0
    for place in places:
        root = copy_of(source, tmp_path)
        flip(root / path, place, 1 << chance.randrange(8))
        # a flipped key is a key that nobody asks for: lost without a trace, and a few neighbours hidden behind it
        lost += not assert_noticed_or_harmless(root, keys, vectors, silent_loss=True, rounds=6).all()
    assert lost > 50, "the flips hit nothing that matters"


@pytest.mark.usefixtures("no_sync")
def test_no_flipped_byte_of_the_log_gives_a_wrong_vector(tmp_path):
    keys, vectors = some(100)
    with open_store(tmp_path / "live") as store:
        store.put(keys, vectors)
        shutil.copytree(tmp_path / "live", tmp_path / "killed")  # as a kill leaves it
    log = the(tmp_path / "killed", "*.sqlite-wal").relative_to(tmp_path / "killed")
    the(tmp_path / "killed", "*.sqlite-shm").unlink()
    assert assert_noticed_or_harmless(copy_of(tmp_path / "killed", tmp_path), keys, vectors).all()
    chance = random.Random(3)
    size = (tmp_path / "killed" / log).stat().st_size
    for place in [*range(32), *chance.sample(range(32, size), 40)]:
        root = copy_of(tmp_path / "killed", tmp_path)
        flip(root / log, place, 1 << chance.randrange(8))
        assert_noticed_or_harmless(root, keys, vectors, silent_loss=True)


@pytest.mark.usefixtures("no_sync")
def test_no_flipped_byte_of_about_json_gives_a_wrong_vector(filled, tmp_path):
    source, keys, vectors = filled
    path = the(source, "about.json").relative_to(source)
    chance = random.Random(4)
    for place in chance.sample(range((source / path).stat().st_size), 100):
        root = copy_of(source, tmp_path)
        flip(root / path, place, 1 << chance.randrange(8))
        assert_noticed_or_harmless(root, keys, vectors)


FALSE_ENTRIES = {
    "handle to a neighbour": "UPDATE vectors SET handle = handle + 1",
    "handles exchanged": "UPDATE vectors SET handle = (SELECT max(handle) + min(handle) FROM vectors) - handle",
    "handle negative": "UPDATE vectors SET handle = -5",
    "handle a fraction": "UPDATE vectors SET handle = handle + 0.5",
    "handle a text": "UPDATE vectors SET handle = 'x'",
    "check a blob": "UPDATE vectors SET row_check = x'00'",
    "start moved": "UPDATE segments SET start_row = start_row + 1",
    "start negative": "UPDATE segments SET start_row = -1",
    "fewer rows": "UPDATE segments SET n_rows = n_rows - 1",
    "no rows": "UPDATE segments SET n_rows = 0",
    "far too many rows": "UPDATE segments SET n_rows = 1 << 40",
    "segments renumbered": "UPDATE segments SET id = id + 1",
    "another shard": "UPDATE segments SET shard = (SELECT max(shard) FROM segments)",
    "a path": "UPDATE segments SET shard = '../' || shard",
    "a shard with a zero byte": "UPDATE segments SET shard = CAST(x'7300' AS TEXT)",
    "a shard that is no text": "UPDATE segments SET shard = x'ff'",
    "segments exchanged": """
        UPDATE segments SET id = -id WHERE id IN (SELECT max(id) FROM segments);
        UPDATE segments SET id = (SELECT -min(id) FROM segments) WHERE id = (SELECT min(id) FROM segments WHERE id > 0);
        UPDATE segments SET id = (
            SELECT handle >> 24 FROM vectors WHERE handle >> 24 NOT IN (SELECT id FROM segments)
        ) WHERE id < 0;
    """,
    "segments gone": "DELETE FROM segments",
    "table gone": "DROP TABLE vectors",
    "column gone": "ALTER TABLE segments RENAME COLUMN shard TO fragment",
    "version 0": "PRAGMA user_version = 0",
}


@pytest.mark.parametrize("statement", FALSE_ENTRIES.values(), ids=FALSE_ENTRIES.keys())
@pytest.mark.usefixtures("no_sync")
def test_false_entries_are_noticed(filled, tmp_path, statement):
    source, keys, vectors = filled
    root = copy_of(source, tmp_path)
    with contextlib.closing(sqlite3.connect(the(root, "catalogue-*.sqlite"), isolation_level=None)) as db:
        db.executescript(statement)
    found = assert_noticed_or_harmless(root, keys, vectors)
    assert not found.all()


FLIPPED_NAMES = {
    "magic": (b"SQLite format 3", 0, 0x20),
    "write version, which makes it read-only": (b"SQLite format 3", 18, 0x01),
    "read version": (b"SQLite format 3", 19, 0x04),
    "table name, no longer UTF-8": (b"segmentssegments", 0, 0x80),
    "table name": (b"vectorsvectors", 0, 0x01),
    "column name": (b"row_check", 0, 0x01),
    "WITHOUT ROWID": (b"WITHOUT ROWID", 0, 0x20),
}


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize(("text", "offset", "mask"), FLIPPED_NAMES.values(), ids=FLIPPED_NAMES.keys())
def test_a_flip_in_what_sqlite_needs_is_noticed(filled, tmp_path, text, offset, mask):
    source, keys, vectors = filled
    root = copy_of(source, tmp_path)
    path = the(root, "catalogue-*.sqlite")
    flip(path, path.read_bytes().index(text) + offset, mask)
    assert_noticed_or_harmless(root, keys, vectors)
    with open_store(root) as store:
        more, more_vectors = some(20, "more", 7)
        store.put(more, more_vectors)
        assert_holds(store, more, more_vectors)


@pytest.mark.parametrize("statement", FALSE_ENTRIES.values(), ids=FALSE_ENTRIES.keys())
@pytest.mark.usefixtures("no_sync")
def test_a_put_that_nobody_looked_up_before_replaces_false_entries(filled, tmp_path, statement):
    source, keys, vectors = filled
    root = copy_of(source, tmp_path)
    with contextlib.closing(sqlite3.connect(the(root, "catalogue-*.sqlite"), isolation_level=None)) as db:
        db.executescript(statement)
    with open_store(root) as store:
        store.put(keys, vectors)
        read, found = store.get(keys)
        assert read[found].tobytes() == vectors[found].tobytes()
        assert (store.lookup(keys)[found] >= 0).all()
        store.put(keys[~found], vectors[~found])  # entries whose bytes alone are wrong are met by reading only
        assert_holds(store, keys, vectors)


def test_segments_of_two_stores_do_not_pass_for_each_other(tmp_path):
    keys, vectors = some(20)
    for name, rows in (("a", vectors), ("b", unit(5, 20))):
        with open_store(tmp_path / name) as store:
            store.put(keys, rows)
    ours, theirs = (the(tmp_path / name, "shard-*") for name in "ab")
    shutil.copy(theirs, ours)
    with open_store(tmp_path / "a") as store:
        assert not store.get(keys)[1].any()


@pytest.mark.parametrize("cut", [0, 1, 16 * DIM * 2 + 3, None])
def test_a_shard_cut_short_or_missing_is_damaged(tmp_path, cut):
    keys, vectors = some(40)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
    shard = the(tmp_path, "shard-*")
    if cut is None:
        shard.unlink()
    else:
        os.truncate(shard, cut)
    with open_store(tmp_path) as store:
        read, found = store.get(keys)
        assert found.sum() == (16 if cut and cut > 16 * DIM * 2 else 0)
        assert read[found].tobytes() == vectors[found].tobytes()
        assert all(str(shard) in message for message in store.damaged)
        assert len(store.damaged) == 3 - found.sum() // 16
        before = list(store.damaged)
        assert not store.get(keys[~found])[1].any()
        assert store.damaged == before, "dropped, so not met twice"
        store.put(keys, vectors)
        assert_holds(store, keys, vectors)


def test_a_bad_sector_is_damage_of_its_segment_only(tmp_path, monkeypatch):
    keys, vectors = some(40)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
    real = os.pread

    def fail(fd, size, place):
        if place <= 300 < place + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, size, place)

    monkeypatch.setattr(os, "pread", fail)
    with open_store(tmp_path) as store:
        assert store.get(keys)[1].sum() == 24
        assert "Input/output error" in store.damaged[0]


@pytest.mark.parametrize("content", [b"", b"no database at all" * 1000, None])
def test_a_damaged_catalogue_is_set_aside_and_an_empty_one_begun(filled, tmp_path, content):
    source, keys, vectors = filled
    root = copy_of(source, tmp_path)
    path = the(root, "catalogue-*.sqlite")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with open_store(root) as store:
        assert not store.get(keys)[1].any()
        (message,) = store.damaged
        assert str(path) in message
        store.put(keys, vectors)
        assert_holds(store, keys, vectors)
    if content is not None:
        assert the(root, "damaged-*.sqlite").read_bytes() == content
    with open_store(root) as store:
        assert store.damaged == []
        assert_holds(store, keys, vectors)
        assert store.stats()["shards"] == 1, "shards that only the old catalogue named are swept"


def test_stores_that_are_open_follow_to_the_new_catalogue(tmp_path):
    keys, vectors = some(60)
    with open_store(tmp_path) as first, open_store(tmp_path) as second:
        first.put(keys[:20], vectors[:20])
        second.put(keys[20:40], vectors[20:40])
        path = the(tmp_path, "catalogue-*.sqlite")
        db = sqlite3.connect(path)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        path.write_bytes(b"x" * path.stat().st_size)
        with open_store(tmp_path) as third:
            assert len(third.damaged) == 1
            third.put(keys[:20], vectors[:20])
            first.put(keys[20:40], vectors[20:40])  # its connection still holds the old file
            second.put(keys[40:], vectors[40:])
        for store in (first, second):
            assert_holds(store, keys, vectors)
    with open_store(tmp_path) as store:  # the last connection to the old file closed: the new log is still there
        assert_holds(store, keys, vectors)
        assert store.damaged == []


def test_a_catalogue_damaged_while_open_is_replaced_once(tmp_path):
    keys, vectors = some(60)
    with open_store(tmp_path) as first, open_store(tmp_path) as second:
        first.put(keys, vectors)
        db = sqlite3.connect(the(tmp_path, "catalogue-*.sqlite"))
        db.execute("DROP TABLE vectors")
        db.commit()
        db.close()
        assert not first.get(keys)[1].any()
        assert len(first.damaged) == 1
        second.put(keys, vectors)
        assert second.damaged == []
        assert_holds(first, keys, vectors)
        second._stamp = (0,)  # had it met the damage before it noticed the new catalogue:
        second._attach(damage="the same")
        assert_holds(second, keys, vectors)
        assert len(list(tmp_path.glob("*/damaged-*.sqlite"))) == 1


def test_a_cache_cleared_while_open_begins_anew(tmp_path):
    keys, vectors = some(20)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
        shutil.rmtree(store.folder)
        assert not store.get(keys)[1].any()
        store.put(keys, vectors)
        assert_holds(store, keys, vectors)
        with open_store(tmp_path) as other:
            assert_holds(other, keys, vectors)


@pytest.mark.parametrize("where", ["catalogue", "about"])
def test_a_newer_format_is_left_alone_and_another_folder_used(filled, tmp_path, where):
    source, keys, vectors = filled
    root = copy_of(source, tmp_path)
    folder = the(root, "about.json").parent
    if where == "about":
        about = {**json.loads((folder / "about.json").read_text()), "format": 2, "something": "new"}
        (folder / "about.json").write_text(json.dumps(about))
    else:
        with contextlib.closing(sqlite3.connect(the(root, "catalogue-*.sqlite"))) as db:
            db.execute("PRAGMA user_version = 2")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "open.lock"}
    for _ in range(2):
        with open_store(root) as store:
            assert "newer gpumatch (format 2)" in store.damaged[0]
            assert store.folder != folder
            store.put(keys, vectors)
            assert_holds(store, keys, vectors)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "open.lock"} == before


# Speed: the bounds are several times what two cores need, so that only another algorithm breaks them


def test_lookup_of_100_000_keys_is_fast(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors_module, "SEGMENT_ROWS", 16_384)
    keys, _ = some(100_000)
    with open_store(tmp_path) as store:
        store.put(keys, np.resize(unit(0, 1000), (100_000, DIM)))
        start = time.perf_counter()
        handles = store.lookup(np.random.default_rng(0).permutation(keys))
        seconds = time.perf_counter() - start
    assert (handles >= 0).all()
    assert seconds < 3.0


def test_many_shards_do_not_use_up_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors_module, "MAX_MAPS", 4)
    for b in range(12):
        with open_store(tmp_path) as store:
            store.put(*batch(b))
    with open_store(tmp_path) as store:
        before = len(os.listdir("/proc/self/fd"))
        for b in [*range(12), *range(12)]:
            assert_holds(store, *batch(b))
        assert len(os.listdir("/proc/self/fd")) <= before + 4
