"""Publishing: whole or not at all; locks name their holder and die with it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import gpumatch.cache
from gpumatch.cache.publish import (
    CacheError,
    FileLock,
    atomic_write_bytes,
    folder_in_work,
    is_in_work,
    make_private_folder,
    sweep_unless_in_work,
)

ENV = {**os.environ, "PYTHONPATH": str(Path(gpumatch.cache.__file__).parents[2])}

HOLD = """
import sys
from pathlib import Path
from gpumatch.cache.publish import FileLock
with FileLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

REWRITE = """
import itertools, sys
from pathlib import Path
from gpumatch.cache.publish import atomic_write_bytes
for n in itertools.count():
    atomic_write_bytes(Path(sys.argv[1]), bytes([n % 256]) * 200_000)
    print(n, flush=True)
"""


def test_a_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a.json"
    atomic_write_bytes(path, b"long old content")
    atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_short_writes_are_completed(tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:3], offset))
    atomic_write_bytes(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "replace"])
def test_a_failing_call_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    atomic_write_bytes(path, b"old")

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(CacheError, match=r"cannot write .*/a: .*No space left"):
            atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_synced_before_the_rename_and_the_name_after(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    atomic_write_bytes(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_kill_shows_old_or_new_never_a_mixture(tmp_path):
    path = tmp_path / "a"
    for pause in (0.0, 0.003, 0.011):
        with subprocess.Popen(
            [sys.executable, "-c", REWRITE, str(path)], env=ENV, stdout=subprocess.PIPE, text=True
        ) as child:
            child.stdout.readline()
            for _ in range(20):
                data = path.read_bytes()
                assert len(data) == 200_000
                assert data == data[:1] * 200_000
            time.sleep(pause)
            child.send_signal(signal.SIGKILL)
            last = int((child.stdout.read().split() or [0])[-1])
        data = path.read_bytes()
        assert data in (bytes([last % 256]) * 200_000, bytes([(last + 1) % 256]) * 200_000)


def test_folders_are_private(tmp_path):
    folder = tmp_path / "a" / "b"
    make_private_folder(folder)
    make_private_folder(folder)
    for made in (folder, folder.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(CacheError, match=r"cannot create the cache folder .*/a"):
        make_private_folder(tmp_path / "a")


def test_a_lock_timeout_names_the_file_and_the_holder_and_a_kill_frees_it(tmp_path):
    path = tmp_path / "x.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(CacheError, match=rf"{path}, held by process {child.pid};"), FileLock(path, timeout=0.05):
            pass
        child.send_signal(signal.SIGKILL)
    with FileLock(path, timeout=1):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_lock_excludes_other_threads(tmp_path):
    inside, most = [0], [0]

    def work():
        for _ in range(20):
            with FileLock(tmp_path / "x.lock"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_the_lock_of_a_deleted_file_does_not_count(tmp_path, monkeypatch):
    path = tmp_path / "x.lock"
    real, left = fcntl.flock, [1]

    def delete_first(fd, operation):
        if left:  # between the opening and the locking, as when a cache is cleared
            left.pop()
            path.unlink()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", delete_first)
    with FileLock(path):
        assert not left
        with pytest.raises(CacheError, match="waited"), FileLock(path, timeout=0.05):
            pass


def test_a_lock_is_not_reentrant(tmp_path):
    lock = FileLock(tmp_path / "x.lock")
    with lock, pytest.raises(CacheError, match="this very object"), lock:
        pass


def test_a_folder_is_in_work_until_its_writer_is_done_or_dead(tmp_path):
    with folder_in_work(tmp_path, ".new-") as first, folder_in_work(tmp_path, ".new-") as second:
        assert first != second
        assert is_in_work(first)
        assert is_in_work(second)
        second.rename(tmp_path / "done")
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
    assert not is_in_work(tmp_path / "done")
    assert not is_in_work(first)


def test_who_sweeps_before_the_folder_is_locked_makes_it_be_made_anew(tmp_path, monkeypatch):
    real, swept = fcntl.flock, []

    def flock(fd, how):
        real(fd, how)
        if not swept:
            (made,) = tmp_path.iterdir()
            swept.append(made)
            made.rmdir()

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_in_work(tmp_path, ".new-") as made:
        assert made.is_dir()
        assert swept != [made]


def test_where_nothing_can_be_locked_every_folder_may_be_in_work(tmp_path, monkeypatch):
    def flock(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_in_work(tmp_path, ".new-") as made:
        assert is_in_work(made)


BUILD = """
import sys
from pathlib import Path
from gpumatch.cache.publish import folder_in_work
with folder_in_work(Path(sys.argv[1]), ".new-") as made:
    (made / "part").write_bytes(b"1")
    print(made, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_leaves_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV, text=True
    )
    made = Path(writer.stdout.readline().strip())
    sweep_unless_in_work(made)
    assert is_in_work(made)
    assert (made / "part").exists()
    writer.kill()
    writer.communicate()
    assert not is_in_work(made)
    assert made.exists()
    sweep_unless_in_work(made)
    assert not made.exists()


def test_who_sweeps_all_the_time_takes_no_writers_folder(tmp_path):
    done = threading.Event()

    def sweep():
        while not done.is_set():
            for path in tmp_path.glob(".new-*"):
                sweep_unless_in_work(path)

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for one in sweepers:
        one.start()
    try:
        for _ in range(300):
            with folder_in_work(tmp_path, ".new-") as made:
                (made / "part").write_bytes(b"1")
                assert is_in_work(made)
                (made / "part").unlink()
    finally:
        done.set()
        for one in sweepers:
            one.join()
