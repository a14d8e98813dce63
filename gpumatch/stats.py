"""Stages that begin and end in, one table of seconds, items and peak memory out. Never changes what a stage does."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import psutil

from gpumatch.errors import MemoryLimitError
from gpumatch.machine import descendants

_SAMPLE_SECONDS = 0.1
# PSS is summed again when the resident set has grown by this factor, and after so many seconds in any case: pages that
# were shared count fully when the other processes end. Below the limit, summing takes at most this share of a core.
_GROWN, _LOOK_SECONDS, _SHARE = 1.02, 5.0, 0.02
_PACKAGES = ("gpumatch", "torch", "numpy", "numba", "pyarrow", "sentence-transformers")


@dataclass
class Stage:
    """Seconds spent in a stage (it may be entered many times), what it handled, and where, if it had a choice."""

    seconds: float = 0.0
    items: int = 0
    unit: str = ""
    device: str = ""

    def worked_on(self, device: str) -> None:
        """Note where it has worked; work on the CPU besides does not hide a GPU."""
        if self.device in ("", "cpu"):
            self.device = device or self.device


@dataclass
class RunStats:
    """What a run did: stages in the order in which they began, peak memory, counters and settings.

    resolved_device: what the run may use, "cpu" or "cuda"; `device` is what it has used.
    over_limit: the stages that were at work when memory went over its limit; empty if it never has.
    """

    resolved_device: str = "cpu"
    stages: dict[str, Stage] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    memory_plan: dict[str, dict[str, int]] = field(default_factory=dict)
    peak_host_bytes: int = 0
    over_limit: str = ""
    started: float = field(default_factory=time.perf_counter)
    _at_work: list[str] = field(default_factory=list)
    _last: str = "start"

    @contextmanager
    def stage(self, name: str, unit: str = "", device: str = "") -> Iterator[Stage]:
        """Time a block as part of a stage; add to `.items` inside it. Threads may be in several at once.

        Args:
            device: where it works; empty for stages that always work on the CPU.

        Raises:
            MemoryLimitError: as `check_memory`.
        """
        self.check_memory()
        stage = self.stages.setdefault(name, Stage(unit=unit))
        stage.worked_on(device)
        self._at_work.append(name)
        self._last = name
        begun = time.perf_counter()
        try:
            yield stage
        finally:
            self._at_work.remove(name)
            stage.seconds += time.perf_counter() - begun

    def count(self, name: str, n: int) -> None:
        """Add to a counter."""
        self.counters[name] = self.counters.get(name, 0) + n

    @contextmanager
    def watch_memory(self, limit: int | None = None, over: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Watch the proportional set size of this process and its children, at once and then up to ten times a second.

        Summing PSS blocks allocations and slows with what is mapped, so it is done only when RSS, a cheap upper bound,
        has grown, and the less often the longer it takes.

        Args:
            limit: bytes; above them `over_limit` is set and `over` is called, once, in another thread.
        """
        done = threading.Event()

        def watch() -> None:
            seen, looked, again = 0, 0.0, 0.0
            while not done.is_set():
                resident, now = resident_set_size(), time.monotonic()
                may = now >= again or (limit is not None and resident > limit)
                if (resident > seen * _GROWN and may) or now - looked >= _LOOK_SECONDS:
                    seen, looked = resident, now
                    self.peak_host_bytes = max(self.peak_host_bytes, proportional_set_size())
                    again = now + (time.monotonic() - now) / _SHARE
                    too_much = limit is not None and self.peak_host_bytes > limit
                    if too_much and not self.over_limit and not done.is_set():
                        self.over_limit = ", ".join(dict.fromkeys(tuple(self._at_work))) or self._last
                        over()
                done.wait(_SAMPLE_SECONDS)

        _forget_peak()
        watcher = threading.Thread(target=watch, name="gpumatch-memory", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self.peak_host_bytes = max(self.peak_host_bytes, proportional_set_size())

    @property
    def device(self) -> str:
        """What the run has used: "cpu" if nothing was worth another device."""
        return next((stage.device for stage in self.stages.values() if stage.device not in ("", "cpu")), "cpu")

    def check_memory(self) -> None:
        """End a run that has gone over its memory limit, in whatever thread this is called.

        Raises:
            MemoryLimitError: it has; whoever catches it says what to do.
        """
        if self.over_limit:
            raise MemoryLimitError("the run has gone over its limit of memory")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for --stats."""
        return {
            "seconds": round(time.perf_counter() - self.started, 3),
            "stages": {
                name: {"seconds": round(stage.seconds, 3), "items": stage.items, "unit": stage.unit}
                | ({"device": stage.device} if stage.device else {})
                for name, stage in self.stages.items()
            },
            "memory_plan": self.memory_plan,
            "peak_host_bytes": self.peak_host_bytes,
            "peak_device_bytes": _peak_device_bytes(self.device),
            "counters": self.counters,
            "skipped": self.skipped,
            "warnings": self.warnings,
            "device": self.device,
            "resolved_device": self.resolved_device,
            "python": platform.python_version(),
            "versions": _versions(),
            "settings": self.settings,
        }


def resident_set_size() -> int:
    """Return the resident set in bytes of this process and its children; pages that they share count for each."""
    return sum(_of_processes(lambda process: int(process.memory_info().rss)))


def proportional_set_size() -> int:
    """Return the PSS in bytes of this process and its children; RSS if the system tells no PSS."""
    return sum(_of_processes(_proportional))


def _proportional(process: psutil.Process) -> int:
    memory = process.memory_full_info()
    return int(getattr(memory, "pss", 0) or memory.rss)


def _of_processes(ask: Callable[[psutil.Process], int]) -> Iterator[int]:
    yield ask(psutil.Process())
    for pid in descendants():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile, or is another user's
            yield ask(psutil.Process(pid))


def _peak_device_bytes(device: str) -> int:
    torch = sys.modules.get("torch")
    if not device.startswith("cuda") or torch is None or not torch.cuda.is_initialized():
        return 0  # and none was used
    return int(torch.cuda.max_memory_allocated())


def _forget_peak() -> None:
    """Reset the device's peak, which another run in this process may have raised."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
