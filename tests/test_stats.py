"""What a run reports: stages that add up, memory that is there, and plain data."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from gpumatch.config import Settings
from gpumatch.errors import MemoryLimitError
from gpumatch.machine import descendants
from gpumatch.run import Run
from gpumatch.stats import RunStats, proportional_set_size, resident_set_size


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_stage_adds_up_over_its_visits(clock):
    stats = RunStats(started=clock[0])
    for seconds, items in ((1.5, 2), (0.25, 3)):
        with stats.stage("search", "queries") as stage:
            clock[0] += seconds
            stage.items += items
        clock[0] += 10  # between the visits
    assert stats.to_dict()["stages"] == {"search": {"seconds": 1.75, "items": 5, "unit": "queries"}}
    assert stats.to_dict()["seconds"] == 21.75


def test_stages_come_in_the_order_in_which_they_began(clock):
    stats = RunStats()
    for name in ("b", "a", "b", "c"):
        with stats.stage(name):
            pass
    assert list(stats.to_dict()["stages"]) == ["b", "a", "c"]


def test_a_stage_that_fails_is_timed_and_the_error_goes_on(clock):
    stats = RunStats()

    def fail():
        with stats.stage("x"):
            clock[0] += 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert stats.stages["x"].seconds == 2


def test_a_runs_device_is_what_its_stages_used():
    """Not what they might have used: for small jobs a GPU is not got going."""
    stats = RunStats(resolved_device="cuda")
    for name, device in (("read", ""), ("encode", "cpu"), ("search", "cpu")):
        with stats.stage(name, device=device):
            pass
    told = stats.to_dict()
    assert (told["device"], told["resolved_device"]) == ("cpu", "cuda")
    assert [stage.get("device") for stage in told["stages"].values()] == [None, "cpu", "cpu"]
    stats.stages["encode"].worked_on("cuda")
    with stats.stage("encode", device="cpu"):
        pass
    assert stats.to_dict()["device"] == stats.stages["encode"].device == "cuda"


@pytest.mark.parametrize("at_work", [["search"], ["search", "rescore"], []])
def test_what_was_at_work_when_memory_went_over_its_limit_is_told(monkeypatch, at_work):
    """Whatever began last for the first time, and whatever ends before somebody asks."""
    monkeypatch.setattr("gpumatch.stats._SAMPLE_SECONDS", 0.001)
    stats, over = RunStats(), threading.Event()
    for name in ("search", "rescore", "write"):
        with stats.stage(name):
            pass
    with contextlib.ExitStack() as stages:
        for name in at_work:
            stages.enter_context(stats.stage(name))
        with stats.watch_memory(1, over.set):
            assert over.wait(5)
    assert stats.over_limit == (", ".join(at_work) or "write")
    with pytest.raises(MemoryLimitError), stats.stage("search"):
        pytest.fail("it should have ended")


def test_memory_is_looked_at_at_once(monkeypatch):
    """A short run is over before the second look."""
    monkeypatch.setattr("gpumatch.stats._SAMPLE_SECONDS", 3600)
    stats, over = RunStats(), threading.Event()
    with stats.watch_memory(1, over.set):
        assert over.wait(5)
        with pytest.raises(MemoryLimitError):
            stats.check_memory()


@pytest.mark.parametrize("limit", [None, 10**9, 5])
def test_summing_what_takes_long_rests_unless_memory_may_be_over_its_limit(monkeypatch, limit):
    resident, looks, many = itertools.count(10, 10), [], threading.Event()

    def told():
        if len(asked) >= 20:
            many.set()
        asked.append(next(resident))
        return asked[-1]

    asked = []
    monkeypatch.setattr("gpumatch.stats._SAMPLE_SECONDS", 0.001)
    monkeypatch.setattr("gpumatch.stats._SHARE", 1e-12)  # whatever a sum takes, it rests for hours
    monkeypatch.setattr("gpumatch.stats._GROWN", 1)
    monkeypatch.setattr("gpumatch.stats.resident_set_size", told)
    monkeypatch.setattr("gpumatch.stats.proportional_set_size", lambda: looks.append(asked[-1]) or 1)
    with RunStats().watch_memory(limit):
        assert many.wait(5)
    if limit == 5:  # pages that are shared may be what is above it: each time it has grown it is summed again
        assert looks[:20] == asked[:20]
    else:
        assert looks == [asked[0], asked[-1]]  # at once, and in the end


def test_a_run_that_is_over_is_not_ended(monkeypatch):
    looking, go_on = threading.Event(), threading.Event()

    def slow():
        looking.set()
        return go_on.wait(5) * 10

    def join(thread):
        go_on.set()
        wait(thread)

    wait = threading.Thread.join
    monkeypatch.setattr(threading.Thread, "join", join)
    monkeypatch.setattr("gpumatch.stats.proportional_set_size", slow)
    stats, over = RunStats(), threading.Event()
    with stats.watch_memory(1, over.set):
        assert looking.wait(5)
    assert (stats.over_limit, stats.peak_host_bytes, over.is_set()) == ("", 10, False)


def test_counters_add_up():
    stats = RunStats()
    stats.count("texts", 3)
    stats.count("texts", 4)
    stats.count("encoded", 0)
    assert stats.counters == {"texts": 7, "encoded": 0}


def test_two_runs_share_nothing():
    one, other = RunStats(), RunStats()
    one.count("x", 1)
    one.skipped.append({"table": "t"})
    one.warnings.append("w")
    with one.stage("s"):
        pass
    assert [other.counters, other.skipped, other.warnings, other.stages] == [{}, [], [], {}]


def test_proportional_set_size_is_that_of_a_process():
    found = proportional_set_size()
    assert isinstance(found, int)
    assert 2**20 < found < psutil.virtual_memory().total


def test_what_a_process_has_begun_counts():
    code = "import sys; block = bytearray(b'x') * (64 * 2**20); print(flush=True); sys.stdin.read()"
    alone = proportional_set_size(), resident_set_size()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        child.stdout.read(1)
        assert child.pid in descendants()
        assert proportional_set_size() > alone[0] + 60 * 2**20
        assert resident_set_size() > alone[1] + 60 * 2**20
        child.stdin.close()


def test_a_process_that_has_ended_meanwhile_counts_nothing(monkeypatch):
    whole = proportional_set_size()
    monkeypatch.setattr("gpumatch.stats.descendants", lambda: [2**22 + 1])
    assert whole / 2 < proportional_set_size() < whole * 2


def test_without_pss_the_resident_set_counts(monkeypatch):
    monkeypatch.setattr(psutil.Process, "memory_full_info", psutil.Process.memory_info)
    monkeypatch.setattr("gpumatch.stats.descendants", list)
    assert proportional_set_size() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert resident_set_size() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def test_the_peak_of_memory_is_seen_after_it_has_gone():
    stats, before = RunStats(), proportional_set_size() - 16 * 2**20
    with stats.watch_memory():
        block = np.ones(96 * 2**20, np.uint8)
        deadline = time.monotonic() + 5
        while stats.peak_host_bytes < before + block.nbytes and time.monotonic() < deadline:
            time.sleep(0.02)
        del block
    assert stats.peak_host_bytes > proportional_set_size() + 48 * 2**20
    assert "gpumatch-memory" not in [thread.name for thread in threading.enumerate()]


def test_a_short_run_has_a_peak_too():
    stats = RunStats()
    with pytest.raises(KeyError), stats.watch_memory():
        raise KeyError
    assert stats.peak_host_bytes > 0
    assert "gpumatch-memory" not in [thread.name for thread in threading.enumerate()]


def test_a_runs_report_is_json():
    run = Run(Settings(device="cpu", cache_dir=Path("/somewhere"), k=7))
    with run.stats.stage("read", "tables") as stage:
        stage.items += 2
    run.stats.count("texts", 3)
    run.stats.skipped.append({"table": "bad.csv", "rule": "encoding", "found": "é"})
    found = json.loads(json.dumps(run.stats.to_dict(), allow_nan=False))
    assert found == run.stats.to_dict() | {"seconds": found["seconds"]}
    assert (found["device"], found["peak_device_bytes"]) == ("cpu", 0)
    assert found["settings"]["k"] == 7
    assert found["settings"]["cache_dir"] == "/somewhere"
    assert found["settings"].keys() == Settings.model_fields.keys()
    assert {"torch", "numpy"} <= found["versions"].keys()
    assert found["counters"] == {"texts": 3}
    assert found["skipped"][0]["table"] == "bad.csv"
