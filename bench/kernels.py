"""How fast the ops of kernels/ are on this device: beside torch and the libraries that have them, and their floors.

    python bench/kernels.py [--only topk maxsim overlap] [--lake LAKE] [--rows N …] [--queries N …] [--device cpu|cuda]

Inputs are random, and every answer is checked against float64 before it is timed; then all systems take turns. The
floor is what binds of bytes (each input read once, the answer written once) and operations, at the rates that copying
and a large product reach in the same run: float32 products on a CPU, float16 ones on a GPU. gpumatch's topk on a CPU
may go below it, since it multiplies 16-bit integers. The lake is where overlap is compared with libraries that take
minutes: they are asked a sample, and what is printed is extrapolated from it.

Libraries that are not installed are left out: pip install faiss-cpu fast-maxsim datasketch
SetSimilaritySearch; on a GPU faiss-gpu-cu13-cuvs, late-interaction-kernels and flash-maxsim.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from floors import product_rate
from jobs import append, say
from kernel_systems import Case, Estimate, cases
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

OPS = ("topk", "maxsim", "overlap")
FIELDS = (
    "date", "commit", "cores", "device", "driver", "versions", "op", "size", "system", "runs", "q20", "median", "q80",
    "floor", "of_floor", "times", "peak_mb", "of_scores",
)  # fmt: skip
PACKAGES = (
    "torch", "numpy", "numba", "scipy", "triton", "faiss-cpu", "faiss-gpu", "faiss-gpu-cu13-cuvs", "fast-maxsim",
    "late-interaction-kernels", "flash-maxsim", "cupy-cuda13x", "datasketch", "SetSimilaritySearch",
)  # fmt: skip
LEAST_RUNS, MOST_RUNS = 5, 30


def main() -> None:
    """Measure every case, print the table and append it to bench/results/kernels.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--rows", nargs="+", type=int, help="rows of topk")
    parser.add_argument("--queries", nargs="+", type=int, help="queries of topk")
    parser.add_argument("--lake", type=Path, help="lake whose columns overlap is measured on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=10.0, help="for the runs of one system, once there are enough")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    copied, product = _copy_rate(options.device), _product_rate(options.device)
    say(f"ceilings: copying {copied / 1e9:.0f} GB/s, products {product / 1e12:.2f} T operations/s")
    about = _about(options.device)
    lines: list[dict[str, Any]] = []
    for case in cases(options.device, options.threads, options.rows, options.queries, options.lake, options.only):
        say(f"{case.op}: {case.size}")
        floor = max(case.bytes / copied, case.operations / product)
        found = [about | line for line in _measured(case, floor, options.device, options.seconds)]
        append("kernels.csv", FIELDS, found)
        lines += found
        gc.collect()
    _report(lines, about["device"])


def _measured(case: Case, floor: float, device: str, budget: float) -> list[dict[str, Any]]:
    """Check all systems, then let them take turns until each has had its seconds."""
    seconds: dict[str, list[float]] = {}
    peak: dict[str, float] = {}
    for name, run in case.systems.items():
        run()  # compiles, and makes what is kept
        gc.collect()
        with _Peak(device) as watched:
            answer = run()
        try:
            case.check(name, answer.answer if isinstance(answer, Estimate) else answer)
        except AssertionError as error:
            if not seconds:
                raise
            say(f"left out: {error}")
            continue
        peak[name] = watched.bytes / 2**20
        seconds[name] = [answer.seconds] if isinstance(answer, Estimate) else []
        del answer
    turns = [name for name in seconds if not seconds[name]]
    while turns:
        for name in list(turns):
            seconds[name].append(_timed(case.systems[name], device))
            spent, runs = sum(seconds[name]), len(seconds[name])
            if runs >= MOST_RUNS or (runs >= LEAST_RUNS and spent >= budget):
                turns.remove(name)
    ours = statistics.median(seconds[next(iter(seconds))])
    found = []
    for name, runs in seconds.items():
        low, median, high = np.quantile(runs, (0.2, 0.5, 0.8))
        line = {"op": case.op, "size": case.size, "system": name, "runs": len(runs)}
        line |= {"q20": low, "median": median, "q80": high, "floor": floor, "of_floor": floor / median}
        line |= {"times": median / ours, "peak_mb": peak[name]}
        line["of_scores"] = peak[name] * 2**20 / case.full_bytes if case.full_bytes else ""
        found.append(line)
    return found


def _timed(run: Callable[[], Any], device: str) -> float:
    _wait(device)
    begun = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


class _Peak:
    """The most memory that a block of code had beyond what was there before; of the process, or of torch's device."""

    def __init__(self, device: str) -> None:
        self._device, self.bytes = device, 0

    def __enter__(self) -> _Peak:
        if self._device != "cpu":
            torch.cuda.synchronize()
            self._before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return self
        self._process, self._done = psutil.Process(), threading.Event()
        with contextlib.suppress(OSError, AttributeError):  # what was freed would be used again, and not be seen
            ctypes.CDLL(None).malloc_trim(0)
        self._before = self._process.memory_info().rss
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device != "cpu":
            self.bytes = torch.cuda.max_memory_allocated() - self._before
            return
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)


def _copy_rate(device: str) -> float:
    """Return the bytes a second that copying reads and writes."""
    source = torch.ones(256 * 2**20 if device != "cpu" else 64 * 2**20, device=None if device == "cpu" else device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_timed(lambda: target.copy_(source), device) for _ in range(10))


def _product_rate(device: str) -> float:
    """Return the operations a second of a large product, of float32 on a CPU, of float16 elsewhere."""
    if device == "cpu":
        return product_rate()
    b = torch.randn((8192, 8192), device=device, dtype=torch.float16)
    b @ b
    return 2 * 8192**3 / min(_timed(lambda: b @ b, device) for _ in range(20))


def _about(device: str) -> dict[str, str]:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    name, driver = _cpu_name(), ""
    if device != "cpu":
        name = torch.cuda.get_device_name()
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return {"device": name, "driver": driver, "versions": ", ".join(versions)}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def _report(lines: list[dict[str, Any]], device: str) -> None:
    table = Table(title=f"Ops on {device}, {os.cpu_count()} cores; times: of gpumatch's median")
    for heading in (
        "op",
        "size",
        "system",
        "median, s",
        "20% to 80%",
        "of the floor",
        "times",
        "MB more",
        "of all scores",
    ):
        table.add_column(heading, justify="left" if heading in ("op", "size", "system") else "right")
    last = None
    for line in lines:
        case = line["op"], line["size"]
        table.add_row(
            *(case if case != last else ("", "")), line["system"], f"{line['median']:.4g}",
            f"{line['q20']:.4g} to {line['q80']:.4g}", f"{line['of_floor']:.0%}", f"{line['times']:.2f}",
            f"{line['peak_mb']:.0f}", f"{line['of_scores']:.1%}" if line["of_scores"] != "" else "",
        )  # fmt: skip
        last = case
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
