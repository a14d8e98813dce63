"""The folder: one catalogue is current, whatever is damaged, cleared, or written by a later version."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import sqlite3
import threading

import pytest

from gpumatch.cache.publish import CacheError, FileLock
from gpumatch.cache.vectors import MAX_FOLDERS

from .stores import DIM, assert_holds, assert_noticed_or_harmless, copy_of, flip, open_store, some, the


def test_about_json_tells_a_person_what_this_is(tmp_path):
    open_store(tmp_path).close()
    about = json.loads(the(tmp_path, "about.json").read_text())
    assert about.items() >= {"model": "m", "revision": "r", "serialiser": "s", "dim": DIM, "format": 1}.items()


def test_what_is_stored_is_its_owners_alone(tmp_path):
    with open_store(tmp_path / "root") as store:
        store.put(*some(20))
        modes = {path.name: path.stat().st_mode & 0o777 for path in store.folder.rglob("*")}
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert len(modes) == 6
    assert set(modes.values()) == {0o600}


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


@pytest.mark.usefixtures("no_sync")
def test_no_flipped_byte_of_about_json_gives_a_wrong_vector(filled, tmp_path):
    source, keys, vectors = filled
    path = the(source, "about.json").relative_to(source)
    chance = random.Random(4)
    for place in chance.sample(range((source / path).stat().st_size), 100):
        root = copy_of(source, tmp_path)
        flip(root / path, place, 1 << chance.randrange(8))
        assert_noticed_or_harmless(root, keys, vectors)


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
        second._model_folder._stamp = (0,)  # had it met the damage before it noticed the new catalogue:
        second._attach(damage="the same")
        assert_holds(second, keys, vectors)
        assert len(list(tmp_path.glob("*/damaged-*.sqlite"))) == 1


def test_nothing_is_put_into_a_catalogue_whose_name_could_not_be_published(tmp_path, monkeypatch):
    keys, vectors = some(20)
    with open_store(tmp_path) as store:
        store.put(keys, vectors)
        with contextlib.closing(sqlite3.connect(the(tmp_path, "catalogue-*.sqlite"))) as db:
            db.execute("DROP TABLE vectors")
        real = os.replace

        def fail(source, target):
            if str(target).endswith("about.json"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(CacheError, match=r"cannot write .*about\.json"):
                store.get(keys)
        store.put(keys, vectors)
    with open_store(tmp_path) as store:
        assert_holds(store, keys, vectors)


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


def test_folders_of_later_versions_are_left_one_after_another_but_not_for_ever(tmp_path):
    for newer in range(MAX_FOLDERS):
        with open_store(tmp_path) as store:
            assert len(store.damaged) == newer
            folder = store.folder
        (folder / "about.json").write_text(json.dumps({"format": 2}))
    assert len(list(tmp_path.iterdir())) == MAX_FOLDERS == 10
    with pytest.raises(CacheError, match=rf"{folder} was written by a newer gpumatch"):
        open_store(tmp_path)
