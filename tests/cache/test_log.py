"""The log: every committed frame that SQLite would leave out without a word is told of; a torn end is not."""

from __future__ import annotations

import shutil

import pytest

from gpumatch.cache.log import why_log_damaged
from gpumatch.cache.verify import check_folder

from .stores import assert_holds, batch, flip, open_store, the


@pytest.fixture
def killed(tmp_path):
    """A store as a kill leaves it, with three puts in its log."""
    with open_store(tmp_path / "live") as store:
        for b in (1, 2, 3):
            store.put(*batch(b))
            assert why_log_damaged(the(tmp_path / "live", "*-wal")) == ""
        shutil.copytree(tmp_path / "live", tmp_path / "killed")
    return tmp_path / "killed"


def test_a_whole_log_is_whole(killed):
    assert why_log_damaged(the(killed, "*-wal")) == ""
    assert why_log_damaged(killed / "none-wal") == ""


@pytest.mark.parametrize("place", [0, 9, 17, 30, 32, 40, 50, 60, 400, 5000])
def test_a_flip_before_a_commit_is_told(killed, place):
    log = the(killed, "*-wal")
    flip(log, place, 2)
    reason = why_log_damaged(log)
    assert ("header" in reason) == (place < 32)
    assert reason
    assert "catalogue log" in [one.kind for one in check_folder(log.parent).damages]
    with open_store(killed) as store:
        read, found = store.get(batch(3)[0])
        assert read[found].tobytes() == batch(3)[1][found].tobytes()
        assert any("damaged" in said for said in store.damaged)
        for b in (1, 2, 3):
            store.put(*batch(b))
            assert_holds(store, *batch(b))


@pytest.mark.parametrize("cut", [1, 24, 100, 4096, 4119, 4120])
def test_a_torn_end_is_no_damage(killed, cut):
    log = the(killed, "*-wal")
    data = log.read_bytes()
    log.write_bytes(data[:-cut])
    assert why_log_damaged(log) == ""
    log.write_bytes(b"")
    assert why_log_damaged(log) == ""
