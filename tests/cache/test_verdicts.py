"""Verdicts outlive the process, a damaged file is put aside, and what a run has spent adds up over processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from gpumatch.cache.publish import CacheError
from gpumatch.cache.verdicts import (
    ASIDE,
    FILE,
    Spent,
    VerdictStats,
    VerdictStore,
    is_own,
    remove_verdicts,
    secret_of,
    verdict_stats,
)


def key(i):
    return i.to_bytes(16, "big")


def test_what_is_put_is_there_for_the_next_process(tmp_path):
    with VerdictStore(tmp_path / "v") as store:
        store.put({key(1): b"one", key(2): b"two"})
        store.put({key(1): b"another"})  # what is there stays
        assert store.get([key(1), key(3), key(1)]) == {key(1): b"one"}
    with VerdictStore(tmp_path / "v") as store:
        assert store.get(map(key, range(3000))) == {key(1): b"one", key(2): b"two"}
    assert oct((tmp_path / "v").stat().st_mode & 0o777) == "0o700"
    assert all(is_own(path.name) for path in (tmp_path / "v").iterdir())
    assert not is_own("notes.txt")


def test_a_store_in_memory_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VerdictStore(None) as store:
        store.put({key(1): b"one"})
        store.spend("r", Spent(1, 2, 3))
        assert store.get([key(1)]) == {key(1): b"one"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("body", [b"same", "one", 1])
def test_a_row_that_is_not_what_was_put_is_not_there(tmp_path, body):
    with VerdictStore(tmp_path) as store:
        store.put({key(1): b"one", key(2): b"two"})
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as base, base:
        base.execute("UPDATE verdict SET body = ? WHERE key = ?", (body, key(1)))
    with VerdictStore(tmp_path) as store:
        assert store.get([key(1), key(2)]) == {key(2): b"two"}
    found = verdict_stats(tmp_path, prove=True)
    assert (found.rows, found.damaged, found.trouble) == (2, 1, "")


@pytest.mark.parametrize("damage", ["garbage", "zeros", "cut"])
def test_a_damaged_file_is_put_aside_and_begun_anew(tmp_path, damage):
    with VerdictStore(tmp_path) as store:
        store.put({key(i): b"x" * 500 for i in range(200)})
    path = tmp_path / FILE
    data = path.read_bytes()
    path.write_bytes(
        {"garbage": b"no database" * 100, "zeros": b"\0" * len(data), "cut": data[: len(data) // 2]}[damage]
    )
    with VerdictStore(tmp_path) as store:
        assert store.get([key(1)]) == {}
        store.put({key(1): b"again"})
    with VerdictStore(tmp_path) as store:
        assert store.get([key(1)]) == {key(1): b"again"}
    assert (tmp_path / f"{FILE}{ASIDE}").exists() or damage == "zeros"
    assert all(is_own(entry.name) for entry in tmp_path.iterdir())


def test_a_second_damage_leaves_nothing_that_is_not_the_stores(tmp_path):
    for _ in range(3):
        (tmp_path / FILE).write_bytes(b"no database" * 100)
        with VerdictStore(tmp_path) as store:
            store.put({key(1): b"x"})
    assert all(is_own(entry.name) for entry in tmp_path.iterdir())
    assert len([entry for entry in tmp_path.iterdir() if entry.name == f"{FILE}{ASIDE}"]) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match="file"), VerdictStore(tmp_path / "file" / "v"):
        pass


def fill(store):
    """No page more: SQLite says of the file what it says of a full disk."""
    pages = store._base.execute("PRAGMA page_count").fetchone()[0]
    store._base.execute(f"PRAGMA max_page_count={pages}")


def test_what_cannot_be_kept_is_named_and_there_for_this_process_and_tried_again(tmp_path):
    with VerdictStore(tmp_path) as store:
        fill(store)
        for i in (1, 2):
            with pytest.raises(CacheError, match=rf"cannot write .*{FILE}: .*full.*GPUMATCH_CACHE_DIR"):
                store.put({key(i): b"x" * 10_000})
        assert store.get(map(key, range(4))) == {key(1): b"x" * 10_000, key(2): b"x" * 10_000}
        store._base.execute("PRAGMA max_page_count=1000")
        store.put({key(3): b"y"})
    with VerdictStore(tmp_path) as store:
        assert set(store.get(map(key, range(4)))) == {key(1), key(2), key(3)}


def test_a_lock_is_waited_for_once_and_named_and_what_came_meanwhile_is_kept_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("gpumatch.cache.verdicts._BUSY_SECONDS", 0.05)
    opened = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    with VerdictStore(tmp_path) as store, contextlib.closing(opened) as other:
        other.execute("BEGIN IMMEDIATE")
        for refused in (
            lambda: store.put({key(1): b"one"}), lambda: store.spend("r", Spent(1)), lambda: store.forget("r"),
        ):  # fmt: skip
            with pytest.raises(CacheError, match="is locked; "):
                refused()
            assert store._base.execute("PRAGMA busy_timeout").fetchone() == (0,)
        assert store.get([key(1)]) == {key(1): b"one"}
        assert store.spent("r") == Spent()
        other.execute("ROLLBACK")
    with VerdictStore(tmp_path) as store:
        assert store.get([key(1)]) == {key(1): b"one"}


def test_a_table_that_is_gone_is_an_error_for_people(tmp_path):
    with VerdictStore(tmp_path) as store:
        store._base.executescript("DROP TABLE verdict; DROP TABLE spent")
        for asked in (lambda: store.get([key(1)]), lambda: store.spent("r")):
            with pytest.raises(CacheError, match="cannot read"):
                asked()


def test_spending_adds_up_and_is_forgotten(tmp_path):
    with VerdictStore(tmp_path) as store:
        assert store.spent("a") == Spent()
        store.spend("a", Spent(1, 100, 50))
        store.spend("b", Spent(9, 9, 9))
    with VerdictStore(tmp_path) as store:
        store.spend("a", Spent(0, -30, -20))
        assert store.spent("a") == Spent(1, 70, 30)
        store.forget("a")
        assert (store.spent("a"), store.spent("b")) == (Spent(), Spent(9, 9, 9))


def test_several_threads_and_stores_write_at_once(tmp_path):
    stores = [VerdictStore(tmp_path) for _ in range(3)]
    for store in stores:
        store.__enter__()

    def write(n):
        for i in range(40):
            stores[n % 3].put({key(1000 * n + i): b"%d" % i})
            stores[n % 3].spend("r", Spent(1, 1, 1))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].spent("r") == Spent(240, 240, 240)
    assert len(stores[1].get(key(1000 * n + i) for n in range(6) for i in range(40))) == 240
    for store in stores:
        store.__exit__(None, None, None)


def clear(folder):
    remove_verdicts(folder, "cleared")


def put_aside(folder):
    for path in list(folder.iterdir()):
        path.replace(f"{path}{ASIDE}")


@pytest.mark.parametrize("take_away", [clear, put_aside, shutil.rmtree])
def test_a_store_whose_file_goes_while_it_is_open_goes_on_in_a_new_one(tmp_path, take_away):
    folder = tmp_path / "v"
    with VerdictStore(folder) as store:
        with VerdictStore(folder) as other:
            store.put({key(1): b"one"})
            store.spend("r", Spent(5, 50, 20))
            take_away(folder)
            other.put({key(2): b"two"})
            store.put({key(3): b"three"})
            store.spend("r", Spent(0, -10, -5))
            other.spend("r", Spent(1, 1, 1))
            with VerdictStore(folder) as later:
                assert later.get(map(key, range(4))) == {key(2): b"two", key(3): b"three"}
                assert later.spent("r") == Spent(6, 41, 16)
        store.put({key(4): b"four"})  # who closes leaves the others their log
    with VerdictStore(folder) as store:
        assert set(store.get(map(key, range(5)))) == {key(2), key(3), key(4)}


def test_a_clear_leaves_nothing_and_takes_only_what_is_the_stores(tmp_path):
    clear(tmp_path / "nowhere")
    with VerdictStore(tmp_path / "v"):
        secret_of(tmp_path / "v")
    clear(tmp_path / "v")
    assert list(tmp_path.iterdir()) == []
    with VerdictStore(tmp_path / "v"):
        (tmp_path / "v" / "notes.txt").write_text("mine")
    clear(tmp_path / "v")
    assert {path.name for path in (tmp_path / "v").iterdir()} == {"notes.txt", "open.lock"}


def state_of(folder):
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in sorted(folder.iterdir())
    }


@pytest.mark.parametrize("how", ["closed", "killed", "without its log's index"])
def test_counting_leaves_the_folder_as_it_was(tmp_path, how):
    folder = tmp_path / "v"
    with VerdictStore(folder) as store:
        store.put({key(1): b"one"})
        if how != "closed":
            folder = shutil.copytree(folder, tmp_path / "killed")
            if how != "killed":
                (folder / f"{FILE}-shm").unlink()
    before = state_of(folder)
    for prove in (False, True):
        found = verdict_stats(folder, prove=prove)
        assert (found.rows, found.damaged, found.trouble) == (1, 0, "")
        assert found.bytes == sum(len(data) for _, _, data in before.values())
    assert state_of(folder) == before


@pytest.fixture
def unwritable():
    """A folder of one verdict in which this process may write nothing, whoever it is."""
    with tempfile.TemporaryDirectory() as made:
        folder, user = Path(made), os.geteuid()
        with VerdictStore(folder) as store:
            store.put({key(1): b"one"})
        (folder / FILE).chmod(0o444)
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_a_folder_that_cannot_be_written_is_counted_and_proved(unwritable):
    found = verdict_stats(unwritable, prove=True)
    assert (found.rows, found.damaged, found.trouble) == (1, 0, "")


def test_what_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    with VerdictStore(tmp_path):
        pass

    def refused(*_):
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("gpumatch.cache.verdicts.connect", refused)
        found = verdict_stats(tmp_path)
    assert (found.trouble, found.ruined) == ("cannot be read: unable to open database file", False)
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    assert verdict_stats(tmp_path).ruined


def test_a_file_that_is_just_begun_is_not_called_damaged(tmp_path):
    (tmp_path / FILE).touch()
    assert verdict_stats(tmp_path, prove=True) == VerdictStats(tmp_path)


def test_a_file_that_goes_while_it_is_counted_or_deleted_is_no_error(tmp_path, monkeypatch):
    with VerdictStore(tmp_path / "v") as store:
        store.put({key(1): b"one"})
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: [*real(self), self / f"{FILE}-wal"])
    assert verdict_stats(tmp_path / "v").rows == 1
    clear(tmp_path / "v")
    assert not (tmp_path / "v" / FILE).exists()


def test_a_kill_loses_nothing_that_put_has_returned_for(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom gpumatch.cache.verdicts import VerdictStore\n"
        "with VerdictStore(Path(sys.argv[1])) as store:\n"
        "    for i in range(10**9):\n"
        "        store.put({i.to_bytes(16, 'big'): b'x' * 100})\n"
        "        print(i, flush=True)\n"
    )
    for wait in (5, 60, 200):
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
            for _ in range(wait):
                child.stdout.readline()
            os.kill(child.pid, signal.SIGKILL)
            told = [int(line) for line in child.stdout if line.endswith("\n")]
        last = max([wait - 1, *told])
        with VerdictStore(tmp_path) as store:
            assert len(store.get(map(key, range(last + 1)))) == last + 1


def test_the_secret_stays_and_is_the_owners_alone(tmp_path):
    first = secret_of(tmp_path / "v")
    assert secret_of(tmp_path / "v") == first != secret_of(tmp_path / "w")
    assert len(first) == 32
    assert oct((tmp_path / "v" / "secret").stat().st_mode & 0o777) == "0o600"
    assert secret_of(None) != secret_of(None)
    (tmp_path / "v" / "secret").write_bytes(b"short")
    assert len(secret_of(tmp_path / "v")) == 32
