"""The catalogue: no flipped byte and no false entry gives a wrong vector."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3

import pytest

from gpumatch.cache import catalogue
from gpumatch.cache.publish import CacheError

from .stores import assert_holds, assert_noticed_or_harmless, copy_of, flip, open_store, some, the


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
        lost += not assert_noticed_or_harmless(root, keys, vectors).all()
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
        assert_noticed_or_harmless(root, keys, vectors)


FALSE_ENTRIES = {
    "handle to a neighbour": "UPDATE vectors SET handle = handle + 1",
    "handles exchanged": "UPDATE vectors SET handle = (SELECT max(handle) + min(handle) FROM vectors) - handle",
    "handle negative": "UPDATE vectors SET handle = -5",
    "handle a fraction": "UPDATE vectors SET handle = handle + 0.5",
    "handle a text": "UPDATE vectors SET handle = 'x'",
    "check a blob": "UPDATE vectors SET row_check = x'00'",
    "start moved": "UPDATE segments SET start_row = start_row + 1",
    "start beyond any file": "UPDATE segments SET start_row = 1 << 62",
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
    "column added": "ALTER TABLE segments ADD COLUMN fragment",
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


def lock(store):
    """Another process writes for longer than anybody waits."""
    other = sqlite3.connect(store._catalogue.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other.close


def fill_the_disk(store):
    (pages,) = store._catalogue._conn.execute("PRAGMA page_count").fetchone()
    store._catalogue._conn.execute(f"PRAGMA max_page_count = {pages}")
    return lambda: store._catalogue._conn.execute("PRAGMA max_page_count = 1000000")


def mistake(store):
    store._catalogue.close()
    return store._attach


@pytest.mark.parametrize(("hinder", "said"), [(lock, "locked"), (fill_the_disk, "full"), (mistake, "closed database")])
def test_what_says_nothing_about_the_file_is_not_called_damage(filled, tmp_path, monkeypatch, hinder, said):
    monkeypatch.setattr(catalogue, "BUSY_SECONDS", 0.01)
    source, keys, vectors = filled
    more, more_vectors = some(2000, "more", 7)
    with open_store(copy_of(source, tmp_path)) as store:
        end = hinder(store)
        with pytest.raises(CacheError, match=rf"cannot use the vector catalogue .*{said}.*free space"):
            store.put(more, more_vectors)
        end()
        store.put(more, more_vectors)
        assert store.damaged == []
        assert_holds(store, keys, vectors)
        assert_holds(store, more, more_vectors)
    assert not list(tmp_path.glob("*/*/damaged-*"))


def test_a_catalogue_is_never_made_over_what_is_there(tmp_path):
    (tmp_path / "catalogue-0.sqlite").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        catalogue.Catalogue.create(tmp_path / "catalogue-0.sqlite")
    assert (tmp_path / "catalogue-0.sqlite").read_bytes() == b"mine"
