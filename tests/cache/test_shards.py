"""Shards: torn tails, sweeping, full disks; no flipped, cut or unreadable byte gives a wrong vector."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil

import numpy as np
import pytest

from gpumatch.cache import shards
from gpumatch.cache.publish import CacheError

from .stores import DIM, assert_holds, assert_noticed_or_harmless, batch, copy_of, flip, open_store, some, the, unit


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
        living._writer.begin()  # created, nothing catalogued yet
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
    living._writer.begin()
    real = fcntl.flock

    def leave_first(fd, operation):
        if "/shard-" in os.readlink(f"/proc/self/fd/{fd}"):
            monkeypatch.undo()
            living.put(keys, vectors)
            living.close()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", leave_first)
    with open_store(tmp_path) as store:
        assert living._closed
        assert_holds(store, keys, vectors)


def test_a_shard_swept_between_its_creation_and_its_lock_is_not_used(tmp_path, monkeypatch):
    keys, vectors = some(20)
    real, left = fcntl.flock, [1]

    def sweep_first(fd, operation):
        if left:
            left.pop()
            the(tmp_path, "shard-*").unlink()
        real(fd, operation)

    with open_store(tmp_path) as store:
        monkeypatch.setattr(fcntl, "flock", sweep_first)
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
            assert number != errno.EIO or store._writer._fd is None, "after a failed sync its pages may be gone"
            if call == "pwrite":
                assert the(tmp_path, "shard-*").stat().st_size == 20 * DIM * 2, "a full disk gets its bytes back"
        assert not store.get(more)[1].any()
        store.put(keys, vectors)
        store.put(more, more_vectors)
        for _ in range(2):
            assert_holds(store, keys, vectors)
            assert_holds(store, more, more_vectors)
        assert store.damaged == []


def test_a_system_without_fdatasync_syncs_all_the_same(tmp_path, monkeypatch):
    keys, vectors = some(20)
    real, synced = os.fsync, []

    def sync(fd):
        synced.append(os.fstat(fd).st_size)
        real(fd)

    monkeypatch.delattr(os, "fdatasync")
    monkeypatch.setattr(os, "fsync", sync)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
        assert 20 * DIM * 2 in synced
        assert_holds(store, keys, vectors)


def test_a_put_that_cannot_look_at_its_shard_leaves_it_whole(tmp_path, monkeypatch):
    keys, vectors = some(20)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
        real = os.stat

        def fail(path, *args, **kwargs):
            if "shard-" in str(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", fail)
            with pytest.raises(CacheError, match="cannot write vectors"):
                store.put(*some(20, "more", 1))
        assert_holds(store, keys, vectors)


def test_no_descriptor_left_is_no_damage(tmp_path, monkeypatch):
    keys, vectors = some(20)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)

        def fail(*args, **kwargs):
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fail)
            with pytest.raises(CacheError, match="Too many open files"):
                store.get(keys)
        assert_holds(store, keys, vectors)


@pytest.mark.parametrize(("named", "left"), [(0, 100), (1, 1), (40, 40), (100, 100), (160, 100)])
def test_only_what_follows_the_named_rows_is_cut(tmp_path, named, left):
    path = tmp_path / "shard-1-ab.f16"
    path.write_bytes(bytes(100))
    assert shards.cut_tail(path, lambda: named) == 100 - left
    assert path.stat().st_size == left
    path.unlink()
    assert shards.cut_tail(path, lambda: named) == 0


# Reading


def test_calls_that_read_less_than_asked_are_repeated(tmp_path, monkeypatch):
    keys, vectors = some(40)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, place: real(fd, min(size, 7), place))
    with open_store(tmp_path) as store:
        assert_holds(store, keys, vectors)
        assert store.damaged == []


def test_a_segment_is_read_in_pieces_of_a_mebibyte(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SEGMENT_ROWS", 16_384)
    rows = np.random.default_rng(0).normal(size=(16_384, 33)).astype(np.float16)
    writer = shards.ShardWriter(tmp_path, 33)
    (segment,) = writer.append(rows)
    writer.close()
    pieces = list(shards.ShardReader(tmp_path, 33).iter_bytes(segment))
    assert [len(piece) for piece in pieces] == [2**20, rows.nbytes - 2**20]
    assert b"".join(pieces) == rows.tobytes()


def test_a_shard_cut_while_it_is_read_is_damaged(tmp_path, monkeypatch):
    keys, vectors = some(10)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", lambda fd, size, place: b"")
            assert not store.get(keys)[1].any()
        (message,) = store.damaged
        assert "the file is too short" in message


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOMEM])
def test_a_shard_that_cannot_be_mapped_is_damaged_only_where_it_is_gone(tmp_path, monkeypatch, number):
    keys, vectors = some(10)

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with open_store(tmp_path) as store:
        store.put(keys, vectors)
        with monkeypatch.context() as patch:
            patch.setattr(np, "memmap", fail)
            if number == errno.ENOENT:
                assert not store.get(keys)[1].any()
                assert "No such file" in store.damaged[0]
                return
            with pytest.raises(CacheError, match=r"cannot map .*shard-.*Cannot allocate memory"):
                store.get(keys)
        assert_holds(store, keys, vectors)
        assert store.damaged == []


# Damage


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
            found = assert_noticed_or_harmless(root, keys, vectors, told_before=True)
            assert 84 <= found.sum() < 100  # one segment of 16 rows, no more


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


def test_many_shards_do_not_use_up_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MAPS", 4)
    for b in range(12):
        with open_store(tmp_path) as store:
            store.put(*batch(b))
    with open_store(tmp_path) as store:
        before = len(os.listdir("/proc/self/fd"))
        for b in [*range(12), *range(12)]:
            assert_holds(store, *batch(b))
        assert len(os.listdir("/proc/self/fd")) <= before + 4
