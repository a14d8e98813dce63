"""A results file that is whole or not there, and rows of a stopped run that the same command keeps."""

import json
import os
import random

import pytest

from gpumatch.errors import OutputError
from gpumatch.journal import Journal

MADE_FROM = {"lake": "a", "settings": {"k": 20}}
ROWS = [json.dumps({"query_table": f"täble {n}", "matches": list(range(n % 7))}) + "\n" for n in range(1000)]
WHOLE = "".join(ROWS)


class Stopped(BaseException):
    """What a kill, Ctrl-C or an error is to the journal."""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs" / "out.jsonl"


def write(out, rows=ROWS, *, stop_at=None, made_from=MADE_FROM, said=None, fresh=False):
    """Write rows, those that are there left out, and stop before row number `stop_at`; return the rows kept."""
    with Journal(out, fresh=fresh, say=[].append if said is None else said.append) as journal:
        kept = journal.begin(made_from)
        for row, line in enumerate(rows[kept:], start=kept):
            if row == stop_at:
                raise Stopped
            journal.write(line)
        return kept


def killed(out, rows):
    """Leave what kill -9 leaves after some rows: no checkpoint but the regular ones, and no last words."""
    child = os.fork()
    if child == 0:
        journal = Journal(out).__enter__()
        journal.begin(MADE_FROM)
        for line in ROWS[:rows]:
            journal.write(line)
        journal._file.flush()
        os._exit(0)
    os.waitpid(child, 0)


def left_over(out):
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def test_a_run_that_ends_leaves_its_file_and_nothing_else(out):
    assert write(out) == 0
    assert out.read_text("utf-8") == WHOLE
    assert left_over(out) == []


def test_what_a_killed_writer_left_half_is_swept_away(out):
    out.parent.mkdir()
    (out.parent / ".out.jsonl.partial.journal.tmp-1-ab").write_bytes(b"{")
    (out.parent / ".outer.jsonl.partial.journal.tmp-1-ab").write_bytes(b"{")
    write(out)
    assert sorted(path.name for path in out.parent.iterdir()) == [".outer.jsonl.partial.journal.tmp-1-ab", "out.jsonl"]


def test_nothing_stands_under_the_final_name_before_the_end(out):
    with pytest.raises(Stopped):
        write(out, stop_at=999)
    assert not out.exists()


@pytest.mark.parametrize("at", [0, 1, 255, 256, 257, 700, 999])
def test_a_stopped_run_is_continued_from_where_it_stopped(out, at):
    said = []
    with pytest.raises(Stopped):
        write(out, stop_at=at, said=said)
    assert write(out, said=said) == at
    assert out.read_text("utf-8") == WHOLE
    assert left_over(out) == []
    assert len(said) == (2 if at else 0)


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 600, 1000])
def test_a_killed_run_is_continued_from_its_last_checkpoint(out, rows):
    killed(out, rows)
    assert write(out) == rows // 256 * 256
    assert out.read_text("utf-8") == WHOLE


def test_a_run_killed_before_the_rename_is_only_renamed(out):
    with pytest.raises(Stopped):
        write(out, [*ROWS, "never written"], stop_at=1000)
    assert write(out) == 1000
    assert out.read_text("utf-8") == WHOLE


def test_many_stops_give_the_same_file(out):
    stops = random.Random(7)
    for _ in range(40):
        with pytest.raises(Stopped):
            write(out, stop_at=stops.randrange(1000) if not (done := rows_of(out)) else stops.randrange(done, 1000))
    write(out)
    assert out.read_text("utf-8") == WHOLE


def rows_of(out):
    partial = out.with_name("out.jsonl.partial")
    return partial.read_text("utf-8").count("\n") if partial.exists() else 0


def test_another_lake_starts_over_and_says_which_part_is_another(out):
    said = []
    with pytest.raises(Stopped):
        write(out, stop_at=500)
    other = MADE_FROM | {"lake": "b"}
    assert write(out, ["x\n"], made_from=other, said=said) == 0
    assert out.read_text() == "x\n"
    assert len(said) == 1
    assert "was begun with another lake; starting over" in said[0]


def test_a_part_that_is_new_or_gone_starts_over(out):
    for other in (MADE_FROM | {"encoder": "e"}, {"lake": "a"}):
        with pytest.raises(Stopped):
            write(out, stop_at=500)
        assert write(out, made_from=other) == 0


def test_fresh_starts_over(out):
    with pytest.raises(Stopped):
        write(out, stop_at=500)
    assert write(out, fresh=True) == 0
    assert out.read_text("utf-8") == WHOLE


def test_fresh_touches_no_other_journal(out):
    other = out.with_name("other.jsonl")
    with pytest.raises(Stopped):
        write(other, stop_at=500)
    write(out, fresh=True)
    assert write(other) == 500


def test_an_earlier_results_file_stays_until_the_new_one_is_whole(out):
    write(out, ["old\n"])
    with pytest.raises(Stopped):
        write(out, stop_at=10)
    assert out.read_text() == "old\n"
    write(out)
    assert out.read_text("utf-8") == WHOLE


def test_two_processes_never_write_one_file(out):
    with Journal(out) as journal:
        journal.begin(MADE_FROM)
        with pytest.raises(OutputError, match=r"another gpumatch is writing .*out\.jsonl\.partial"), Journal(out):
            pass
        journal.write(ROWS[0])
    assert out.read_text("utf-8") == ROWS[0]


def test_a_folder_is_no_results_file(tmp_path):
    with pytest.raises(OutputError, match="is a folder; give -o a file"), Journal(tmp_path):
        pass


def test_rows_that_were_changed_are_made_again(out):
    with pytest.raises(Stopped):
        write(out, stop_at=600)
    partial = out.with_name("out.jsonl.partial")
    data = bytearray(partial.read_bytes())
    at = len("".join(ROWS[:300]).encode())
    data[at] ^= 1
    partial.write_bytes(data)
    assert write(out) == 256
    assert out.read_text("utf-8") == WHOLE


def test_a_flipped_digit_of_a_checkpoint_skips_no_row(out):
    with pytest.raises(Stopped):
        write(out, stop_at=600)
    log = out.with_name("out.jsonl.partial.journal")
    log.write_bytes(log.read_bytes().replace(b'"rows": 600', b'"rows": 601'))
    assert write(out) == 512
    assert out.read_text("utf-8") == WHOLE


@pytest.mark.parametrize("seed", range(60))
def test_no_flipped_byte_of_either_file_changes_the_results(out, seed):
    with pytest.raises(Stopped):
        write(out, stop_at=600)
    spot = random.Random(seed)
    victim = out.with_name(spot.choice(["out.jsonl.partial", "out.jsonl.partial.journal"]))
    data = bytearray(victim.read_bytes())
    data[spot.randrange(len(data))] ^= 1 << spot.randrange(8)
    victim.write_bytes(data)
    assert write(out) in (0, 256, 512, 600)
    assert out.read_text("utf-8") == WHOLE


@pytest.mark.parametrize("name", ["out.jsonl.partial", "out.jsonl.partial.journal"])
def test_either_file_may_be_cut_short_or_gone(out, name):
    for keep in (0, 1, 40, 300, None):
        with pytest.raises(Stopped):
            write(out, stop_at=600)
        victim = out.with_name(name)
        if keep is None:
            victim.unlink()
        else:
            victim.write_bytes(victim.read_bytes()[:keep])
        assert write(out) in (0, 256, 512, 600)
        assert out.read_text("utf-8") == WHOLE


def test_a_full_disk_is_told_by_the_name_of_the_file(out, monkeypatch):
    def full(fd):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("gpumatch.journal.atomic_write_bytes", lambda path, data: path.write_bytes(data))
    with pytest.raises(OutputError, match=r"cannot write .*out\.jsonl\.partial: No space left on device; free some"):
        write(out)
    assert not out.exists()
    monkeypatch.undo()
    assert write(out) == 768
    assert out.read_text() == WHOLE
