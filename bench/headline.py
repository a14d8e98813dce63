"""The headline job: join queries on one lake and union queries on another, matched by the command that a user runs.

    make bench                                                    the two lakes that ship with gpumatch
    make bench ARGS="--join LAKE --union LAKE --union-queries 3095 --cold"

Each run is the gpumatch command in a process of its own, timed from outside. Cold starts with an empty cache directory.
Warm finds the vectors there, but reads, profiles, searches and re-scores the lake again (--no-index-cache). Indexed
finds the index too. Memory is the proportional set size of the process and its children, sampled from outside.
Every stage stands beside its floor, measured on this machine in the same run: see `floors.py`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from floors import floors_of  # beside this file: Python puts a script's folder on its path
from rich.console import Console
from rich.table import Table

from gpumatch.demo import lake_path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
STATES = ("cold", "warm", "indexed")


def main() -> None:
    """Run the job in every state, print one table and append it to bench/results/headline.csv."""
    options = _options()
    lines = []
    with tempfile.TemporaryDirectory(prefix="gpumatch-bench-") as scratch:
        cache = options.cache or Path(scratch) / "cache"
        for state in STATES if options.cold else STATES[1:]:
            if state == "cold":
                shutil.rmtree(cache, ignore_errors=True)
            else:
                _job(options, cache, Path(scratch), state)  # not counted: puts there what the state means
            for run in range(1 if state == "cold" else options.runs):
                lines.append({"state": state, "run": run} | _job(options, cache, Path(scratch), state))
                _say(f"{state} run {run}: {lines[-1]['seconds']:.1f} s")
    floors = floors_of([(options.join, "join", None), (options.union, "union", options.union_queries)])
    _report(lines, floors)
    _append(lines, floors)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--join", type=Path, default=lake_path("join"), help="lake of the join queries")
    parser.add_argument("--union", type=Path, default=lake_path("union"), help="lake of the union queries")
    parser.add_argument("--union-queries", type=int, help="first query rows of the union lake; all without it")
    parser.add_argument("--cold", action="store_true", help="run with an empty cache first (encodes every text)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="cache directory to use and keep; a fresh one without it")
    options = parser.parse_args()
    for lake in (options.join, options.union):
        if not lake.exists():
            parser.error(f"no lake at {lake}: give --join and --union")
    return options


def _job(options: argparse.Namespace, cache: Path, scratch: Path, state: str) -> dict[str, Any]:
    """Run both commands one after the other; return seconds, peak bytes, and the statistics of each."""
    job: dict[str, Any] = {"seconds": 0.0, "peak_bytes": 0, "stages": {}}
    for task, lake, limit in (("join", options.join, None), ("union", options.union, options.union_queries)):
        stats = scratch / f"{task}.json"
        command = [sys.executable, "-m", "gpumatch", "match", str(lake), "--task", task, "-q"]
        command += ["-o", str(scratch / f"{task}.jsonl"), "--stats", str(stats)]
        command += [] if state == "indexed" else ["--no-index-cache"]
        command += ["--max-queries", str(limit)] if limit else []
        seconds, peak = _timed(command, os.environ | {"GPUMATCH_CACHE_DIR": str(cache)})
        told = json.loads(stats.read_text())
        with (scratch / f"{task}.jsonl").open("rb") as results:
            job["queries"] = job.get("queries", 0) + sum(1 for _ in results)
        job["seconds"] += seconds
        job["peak_bytes"] = max(job["peak_bytes"], peak)
        job[task] = {"seconds": seconds, "stats": told}
        job["stages"].setdefault("start", 0.0)
        job["stages"]["start"] += seconds - told["seconds"]
        for name, stage in told["stages"].items():
            job["stages"][name] = job["stages"].get(name, 0.0) + stage["seconds"]
        job["device"], job["versions"] = told["device"], told["versions"]
    job["stages"]["rest"] = job["seconds"] - sum(job["stages"].values())
    return job


def _timed(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Run a command; return its seconds and the peak of its summed proportional set size."""
    begun = time.perf_counter()
    child = subprocess.Popen(command, env=environment)
    peak = 0
    while child.poll() is None:
        peak = max(peak, _pss(child.pid))
        time.sleep(0.1)
    seconds = time.perf_counter() - begun
    if child.returncode not in (0, 4):
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    return seconds, peak


def _pss(pid: int) -> int:
    total = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in tree:
            total += process.memory_full_info().pss
    except psutil.Error:
        pass
    return total


def _report(lines: list[dict[str, Any]], floors: dict[str, float]) -> None:
    table = Table(
        title=f"{lines[0]['queries']:,} queries, {lines[0]['device']}, {os.cpu_count()} cores; seconds, best run"
    )
    table.add_column("stage")
    best = {
        state: min((line for line in lines if line["state"] == state), key=lambda line: line["seconds"], default=None)
        for state in STATES
    }
    shown = [state for state in STATES if best[state]]
    for heading in [*shown, "floor"]:
        table.add_column(heading, justify="right")
    names = dict.fromkeys(name for state in shown for name in best[state]["stages"])
    for name in names:
        values = [best[state]["stages"].get(name) for state in shown]
        floor = floors.get(name)
        table.add_row(name, *("" if v is None else f"{v:.2f}" for v in values), "" if floor is None else f"{floor:.2f}")
    table.add_section()
    table.add_row("all", *(f"{best[state]['seconds']:.1f}" for state in shown), "")
    table.add_row("peak MB", *(f"{best[state]['peak_bytes'] / 2**20:.0f}" for state in shown), "")
    Console(width=100).print(table)


def _append(lines: list[dict[str, Any]], floors: dict[str, float]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "headline.csv"
    fields = [
        "date",
        "commit",
        "device",
        "cores",
        "torch",
        "queries",
        "state",
        "run",
        "seconds",
        "peak_mb",
        "join_seconds",
        "union_seconds",
        "stages",
        "floors",
    ]
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        if fresh:
            writer.writeheader()
        for line in lines:
            writer.writerow(
                {
                    "date": datetime.date.today().isoformat(),
                    "commit": _commit(),
                    "device": line["device"],
                    "cores": os.cpu_count(),
                    "torch": line["versions"].get("torch"),
                    "queries": line["queries"],
                    "state": line["state"],
                    "run": line["run"],
                    "seconds": round(line["seconds"], 2),
                    "peak_mb": round(line["peak_bytes"] / 2**20),
                    "join_seconds": round(line["join"]["seconds"], 2),
                    "union_seconds": round(line["union"]["seconds"], 2),
                    "stages": json.dumps({name: round(value, 2) for name, value in line["stages"].items()}),
                    "floors": json.dumps({name: round(value, 3) for name, value in floors.items()}),
                }
            )


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
