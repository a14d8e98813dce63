"""How fast verdicts come in from a server that takes its time, and what that costs: calls a second, memory, in flight.

    python bench/judge_load.py                 16 calls at once, 300 ms each, of 22 candidates
    python bench/judge_load.py --pairs 20000 200000      the memory of so many candidates

The server is `scripted_server.py` in a process of its own; the pool, its prompts and its store on disk are gpumatch's.
Ideal is concurrency / latency calls a second. Memory is the peak resident size of the process that asks, above what it
has before it asks. The last line is a server that refuses every connection.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import socket
import tempfile
import time
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from jobs import append, say  # beside this file: Python puts a script's folder on its path
from rich.console import Console
from rich.table import Table
from scripted_server import ScriptedServer

from gpumatch.cache.verdicts import VerdictStore
from gpumatch.judge.judge import AHEAD
from gpumatch.judge.pool import Limits, Pool
from gpumatch.judge.prompt import Question, Shown, compact
from gpumatch.judge.reply import Verdict
from gpumatch.judge.transport import HttpTransport

FIELDS = (
    "date", "commit", "cores", "server", "latency", "concurrency", "calls", "candidates", "seconds", "calls_a_second",
    "ideal", "of_ideal", "most_in_flight", "peak_mb", "missing",
)  # fmt: skip
BATCH = 256
# Tables of the lake that candidates are drawn from.
_LAKE = 2000


def main() -> None:
    """Measure every number of candidates, print one table and append it to bench/results/judge_load.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.3)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--width", type=int, default=22, help="candidates of a call")
    parser.add_argument("--pairs", type=int, nargs="+", default=[11_000, 33_000])
    options = parser.parse_args()
    lines = []
    for pairs in options.pairs:
        ours, theirs = multiprocessing.Pipe()
        serving = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, options.latency))
        serving.start()
        url = ours.recv()
        asking = multiprocessing.get_context("spawn").Process(
            target=_ask, args=(theirs, url, pairs // options.width, options.width, options.concurrency)
        )
        asking.start()
        found = ours.recv()
        asking.join()
        ours.send("stop")
        found["most_in_flight"] = ours.recv()
        serving.join()
        ideal = options.concurrency / options.latency
        found |= {
            "server": "answers",
            "latency": options.latency,
            "concurrency": options.concurrency,
            "candidates": pairs,
            "ideal": ideal,
        }
        found["of_ideal"] = found["calls_a_second"] / ideal
        say(f"{pairs:,} candidates: {found['of_ideal']:.1%} of the ideal")
        lines.append(found)
    lines.append(_dead(options.concurrency, options.width))
    _report(lines)
    append("judge_load.csv", FIELDS, lines)


def _dead(concurrency: int, width: int, calls: int = 1000) -> dict[str, Any]:
    """Return what so many calls cost of a server that refuses every connection."""
    with socket.socket() as taken, VerdictStore(None) as store:
        taken.bind(("127.0.0.1", 0))  # and not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        begun = time.perf_counter()
        with Pool(lambda: HttpTransport(url, None, concurrency), "m", store, "run", Limits(concurrency)) as pool:
            missing = _missing([pool.ask(_question(i, width)) for i in range(calls)])
        seconds = time.perf_counter() - begun
    told = {"server": "dead", "concurrency": concurrency, "calls": calls, "candidates": calls * width}
    return told | {"seconds": seconds, "missing": missing}


def _serve(pipe: Connection, latency: float) -> None:
    with ScriptedServer(latency=latency) as server:
        pipe.send(server.url)
        pipe.recv()
        pipe.send(server.most_in_flight)


def _ask(pipe: Connection, url: str, calls: int, width: int, concurrency: int) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gpumatch-bench-"))
        store = stack.enter_context(VerdictStore(Path(folder)))
        limits = Limits(concurrency)
        pool = stack.enter_context(Pool(lambda: HttpTransport(url, None, concurrency), "m", store, "run", limits))
        _round(pool, 0, concurrency, width)  # connections, and what is loaded at first use
        for i in range(_LAKE):
            _shown(i)
        before = peak = psutil.Process().memory_info().rss
        begun, missing = time.perf_counter(), 0
        waiting: list[Any] = []
        for start in range(concurrency, concurrency + calls, BATCH):
            stop = min(start + BATCH, concurrency + calls)
            waiting.append([pool.ask(_question(i, width)) for i in range(start, stop)])
            if len(waiting) > AHEAD:
                missing += _missing(waiting.pop(0))
            peak = max(peak, psutil.Process().memory_info().rss)
        for batch in waiting:
            missing += _missing(batch)
        seconds = time.perf_counter() - begun
        peak = max(peak, psutil.Process().memory_info().rss)
    told = {"calls": calls, "seconds": seconds, "calls_a_second": calls / seconds, "missing": missing}
    pipe.send(told | {"peak_mb": (peak - before) / 2**20})


def _round(pool: Pool, start: int, n: int, width: int) -> None:
    for future in [pool.ask(_question(start + i, width)) for i in range(n)]:
        future.result()


def _missing(batch: list[Any]) -> int:
    return sum(not isinstance(answer, Verdict) for future in batch for answer in future.result())


def _question(i: int, width: int) -> Question:
    chance = random.Random(i)
    return Question("union", _made(f"q{i}"), [_shown(j) for j in chance.sample(range(_LAKE), width)])


def _made(name: str) -> Shown:
    columns = [{"name": f"{name} {c}", "type": "text", "values": ["some value", "another value"]} for c in range(12)]
    return Shown(compact({"columns": columns}))


@cache
def _shown(i: int) -> Shown:
    """Return what is shown of a lake table, made once, as a run does it."""
    return _made(f"c{i}")


def _report(lines: list[dict[str, Any]]) -> None:
    table = Table(title=f"Verdicts from a server that takes its time, or is not there; {os.cpu_count()} cores")
    headings = ("server", "candidates", "calls", "seconds", "calls/s", "ideal", "of ideal", "in flight", "MB more")
    for heading in (*headings, "missing"):
        table.add_column(heading, justify="right")
    for line in lines:
        cells = [line["server"], f"{line['candidates']:,}", f"{line['calls']:,}", f"{line['seconds']:.1f}"]
        if "ideal" in line:
            cells += [f"{line['calls_a_second']:.1f}", f"{line['ideal']:.1f}", f"{line['of_ideal']:.1%}"]
            cells += [str(line["most_in_flight"]), f"{line['peak_mb']:.1f}"]
        else:
            cells += [""] * 5
        table.add_row(*cells, f"{line['missing']:,}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
