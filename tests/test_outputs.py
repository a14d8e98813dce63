"""Files that the user names: made as other programs make them, and never in place of a link, a pipe or a device."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpumatch import outputs
from gpumatch.errors import OutputError, UsageError


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_may_read(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        outputs.write(tmp_path / "s.json", "é")
    finally:
        os.umask(before)
    assert (tmp_path / "s.json").stat().st_mode & 0o777 == mode
    assert (tmp_path / "s.json").read_bytes() == "é".encode()


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "s.json")
    for text in ("one", "two"):
        outputs.prepare(tmp_path / "link", "--stats")
        outputs.write(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "s.json").read_text() == text
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["s.json"]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    outputs.prepare(tmp_path / "pipe", "--stats")
    outputs.write(tmp_path / "pipe", "told")
    reader.join()
    assert found == ["told"]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("kind", ["a file", "a pipe"])
def test_our_own_streams_are_gone_on_with(tmp_path, kind):
    """/dev/stdout may be a file: to rename over it, or to open it anew, would lose what was printed."""
    code = (
        "from pathlib import Path; from gpumatch import outputs\n"
        "print('before'); outputs.write(Path('/dev/fd/1'), 'told\\n'); print('after')\n"
    )
    with (tmp_path / "out").open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, text=True, stdout=file if kind == "a file" else subprocess.PIPE
        )
    assert ((tmp_path / "out").read_text() if kind == "a file" else done.stdout) == "before\ntold\nafter\n"


def test_folders_are_made_before_the_run(tmp_path):
    outputs.prepare(tmp_path / "a" / "b" / "s.json", "--stats")
    outputs.write(tmp_path / "a" / "b" / "s.json", "told")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "s.json"]


def test_what_is_in_the_way_is_said_with_the_option(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"is a folder; give --stats a file in it"):
        outputs.prepare(tmp_path, "--stats")
    with pytest.raises(OutputError, match=r"cannot write .*file/s.json: .*; give --skipped another place"):
        outputs.prepare(tmp_path / "file" / "s.json", "--skipped")
    monkeypatch.setattr(os, "access", lambda place, how: place != tmp_path)  # root may write everywhere
    with pytest.raises(OutputError, match=r"is not to be written to; give -o another place"):
        outputs.prepare(tmp_path / "s.json", "-o")


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "s.json").write_text("old")

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        outputs.write(tmp_path / "s.json", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("own", [None, type("Logger", (), {})()], ids=["not even opened", "no file"])
def test_our_own_streams_may_be_none(own, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", own)
    outputs.write(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


@pytest.mark.parametrize("other", ["a", "./b/../a", "link", "hard", "dangling"])
def test_two_outputs_are_not_one_file(tmp_path, other):
    (tmp_path / "b").mkdir()
    if other != "./b/../a":
        (tmp_path / "a").write_text("x")
        (tmp_path / "hard").hardlink_to(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    first = tmp_path / ("none" if other == "dangling" else "a")
    with pytest.raises(UsageError, match=r"^-o and --stats are both .*; give one of them another place"):
        outputs.keep_apart({"-o": first, "--stats": tmp_path / other})
    outputs.keep_apart({"-o": first, "--stats": tmp_path / "c", "--skipped": tmp_path / "b" / "a"})


def test_what_takes_all_that_comes_may_be_named_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe", Path("/dev/stdout")):
        outputs.keep_apart({"-o": path, "--stats": path}, [path])


def test_an_output_is_nothing_that_is_read(tmp_path):
    (tmp_path / "read").mkdir()
    (tmp_path / "read" / "a.csv").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "read" / "a.csv")
    for output in (tmp_path / "read" / "a.csv", tmp_path / "link"):
        with pytest.raises(UsageError, match=rf"^-o {output} would replace an input of the run; give -o another place"):
            outputs.keep_apart({"-o": output}, [tmp_path / "b.csv", tmp_path / "read" / "a.csv"])
    outputs.keep_apart({"-o": tmp_path / "read" / "b.csv"}, [tmp_path / "read" / "a.csv"])
    for folder in (tmp_path / "read", tmp_path / "none"):
        with pytest.raises(UsageError, match=rf"^--stats .*s.json lies in {folder}; give --stats another place"):
            outputs.keep_apart({"-o": tmp_path / "o", "--stats": folder / "b" / "s.json"}, [folder])
