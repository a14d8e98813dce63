"""The headline job: join queries on one lake and union queries on another, matched by the command that a user runs.

    make bench                                                    the two lakes that ship with gpumatch
    make bench ARGS="--join LAKE --union LAKE --union-queries 3095 --cold"

`make bench` runs `headline.py --baseline`: the job in every state, then the predecessor's design (`baseline_cpu.py`) on
the same lakes.

Each run is the gpumatch command in a process of its own, timed from outside. Cold starts with an empty cache directory.
Warm finds the vectors there, but reads, profiles, searches and re-scores the lake again (--no-index-cache). Indexed
finds the index too. Memory is the proportional set size of the process and its children, sampled from outside.
Every stage stands beside its floor, measured on this machine in the same run: see `floors.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import baseline_cpu  # beside this file: Python puts a script's folder on its path
from floors import floors_of
from jobs import append, check_lakes, job, lake_options, say
from rich.console import Console
from rich.table import Table

STATES = ("cold", "warm", "indexed")
FIELDS = (
    "date", "commit", "device", "cores", "torch", "queries", "state", "run", "seconds", "peak_mb", "join_seconds",
    "union_seconds", "stages", "floors", "device_name", "peak_device_mb", "accuracy",
)  # fmt: skip


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
                job(options, cache, Path(scratch), state)  # not counted: puts there what the state means
            for run in range(1 if state == "cold" else options.runs):
                lines.append({"state": state, "run": run} | job(options, cache, Path(scratch), state))
                say(f"{state} run {run}: {lines[-1]['seconds']:.1f} s")
        halves = [(options.join, "join", None), (options.union, "union", options.union_queries)]
        floors = floors_of(halves, lines[0]["device"])
        _append(lines, floors)
        beside = baseline_cpu.compare(options, cache, Path(scratch)) if options.baseline else []
        _report(lines, floors, beside)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lake_options(parser)
    parser.add_argument("--cold", action="store_true", help="run with an empty cache first (encodes every text)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--baseline", action="store_true", help="and the predecessor's design on the same lakes")
    baseline_cpu.add_options(parser.add_argument_group("with --baseline"))
    options = parser.parse_args()
    check_lakes(parser, options)
    return options


def _report(lines: list[dict[str, Any]], floors: dict[str, float], beside: list[dict[str, Any]]) -> None:
    """Print one table: the best run in every state, the floors, and the baseline's forms (both halves) where it ran."""
    first = lines[0]
    where = f"device {first['device']} ({first['device_name']}), {os.cpu_count()} cores"
    table = Table(title=f"{first['queries']:,} queries; {where}; seconds, best run")
    table.add_column("stage")
    best = {
        state: min((line for line in lines if line["state"] == state), key=lambda line: line["seconds"], default=None)
        for state in STATES
    }
    shown = [state for state in STATES if best[state]]
    for heading in [*shown, "floor", *(f"{line['form']}, {line['workers']} workers" for line in beside)]:
        table.add_column(heading, justify="right")

    def row(name: str, ours: Callable[[dict[str, Any]], str], floor: str = "", theirs: str = "") -> None:
        baseline = ("" if not theirs else f"{line[theirs]:.0f}" for line in beside)
        table.add_row(name, *(ours(best[state]) for state in shown), floor, *baseline)

    for name in dict.fromkeys(name for state in shown for name in best[state]["stages"]):
        floor = f"{floors[name]:.2f}" if name in floors else ""
        row(name, lambda line, name=name: f"{line['stages'][name]:.2f}" if name in line["stages"] else "", floor)
    table.add_section()
    row("all", lambda line: f"{line['seconds']:.1f}", theirs="job_seconds")
    row("peak MB", lambda line: f"{line['peak_bytes'] / 2**20:.0f}", theirs="peak_mb")
    row("device's peak MB", lambda line: f"{line['peak_device_bytes'] / 2**20:.0f}")
    for name in dict.fromkeys(name for state in shown for name in best[state]["accuracy"]):
        row(name, lambda line, name=name: f"{line['accuracy'].get(name, float('nan')):.3f}")
    if beside:
        row("times as long as warm", lambda line: "", theirs="times_faster")
    Console(width=120).print(table)


def _append(lines: list[dict[str, Any]], floors: dict[str, float]) -> None:
    append("headline.csv", FIELDS, [_written(line, floors) for line in lines])


def _written(line: dict[str, Any], floors: dict[str, float]) -> dict[str, Any]:
    return {
        "device": line["device"],
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
        "device_name": line["device_name"],
        "peak_device_mb": round(line["peak_device_bytes"] / 2**20),
        "accuracy": json.dumps({name: round(value, 4) for name, value in line["accuracy"].items()}),
    }


if __name__ == "__main__":
    main()
