"""The headline job's commands, run in processes of their own and watched from outside: seconds, memory, statistics.

And where what was measured goes: a line at the end of a CSV file in bench/results/.

Memory is the proportional set size of a process and its children, so that what they share counts once.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from gpumatch.demo import lake_path
from gpumatch.metrics import evaluate
from gpumatch.records import load_truth

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def lake_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the job is."""
    parser.add_argument("--join", type=Path, default=lake_path("join"), help="lake of the join queries")
    parser.add_argument("--union", type=Path, default=lake_path("union"), help="lake of the union queries")
    parser.add_argument("--union-queries", type=int, help="first query rows of the union lake; all without it")
    parser.add_argument("--cache", type=Path, help="cache directory to use and keep; a fresh one without it")


def check_lakes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program where a lake is missing."""
    for lake in (options.join, options.union):
        if not lake.exists():
            parser.error(f"no lake at {lake}: give --join and --union")


def tasks_of(options: argparse.Namespace) -> tuple[tuple[str, Path, int | None], ...]:
    """Return (task, lake, number of query rows or None for all) of both halves of the job."""
    return ("join", options.join, None), ("union", options.union, options.union_queries)


def job(options: argparse.Namespace, cache: Path, scratch: Path, state: str) -> dict[str, Any]:
    """Run both commands one after the other; return seconds, peak bytes, and the statistics of each.

    The results lie in scratch/TASK.jsonl afterwards.
    """
    done: dict[str, Any] = {"seconds": 0.0, "peak_bytes": 0, "peak_device_bytes": 0, "queries": 0, "accuracy": {}}
    done["stages"] = {"start": 0.0}
    for task, lake, limit in tasks_of(options):
        stats = scratch / f"{task}.json"
        command = [sys.executable, "-m", "gpumatch", "match", str(lake), "--task", task, "-q"]
        command += ["-o", str(scratch / f"{task}.jsonl"), "--stats", str(stats)]
        command += [] if state == "indexed" else ["--no-index-cache"]
        command += ["--max-queries", str(limit)] if limit else []
        (scratch / f"{task}.jsonl").unlink(missing_ok=True)
        seconds, peak = timed(command, os.environ | {"GPUMATCH_CACHE_DIR": str(cache)})
        told = json.loads(stats.read_text())
        with (scratch / f"{task}.jsonl").open("rb") as results:
            done["queries"] += sum(1 for _ in results)
        done["seconds"] += seconds
        done["peak_bytes"] = max(done["peak_bytes"], peak)
        done[task] = {"seconds": seconds, "peak_bytes": peak, "stats": told}
        done["stages"]["start"] += seconds - told["seconds"]
        for name, stage in told["stages"].items():
            done["stages"][name] = done["stages"].get(name, 0.0) + stage["seconds"]
        # whichever stages were worth it: states of one machine are compared
        done["device"], done["device_name"] = told["resolved_device"], device_name(told)
        done["versions"] = told["versions"]
        done["peak_device_bytes"] = max(done["peak_device_bytes"], told["peak_device_bytes"])
        done["accuracy"] |= _accuracy(task, lake, scratch / f"{task}.jsonl")
    done["stages"]["rest"] = done["seconds"] - sum(done["stages"].values())
    return done


def device_name(stats: Mapping[str, Any]) -> str:
    """Return what the device of a run is called: the processor's or the graphics card's model."""
    if stats["resolved_device"] == "cuda":
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0] or "a GPU"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "a CPU"


def _accuracy(task: str, lake: Path, results: Path) -> dict[str, float]:
    """Return Hit@1 and MAP of some results where the lake's folder has their truth."""
    truth = lake / "ground_truth.json"
    if not truth.is_file():
        return {}
    found = evaluate([json.loads(line) for line in results.read_bytes().splitlines()], load_truth(truth)).means
    return {f"{task} {name}": found[name] for name in ("Hit@1", "MAP")}


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Run a command, its output thrown away; return its seconds and the peak of its summed proportional set size."""
    begun = time.perf_counter()
    peak = 0
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
        try:
            while child.poll() is None:
                looked = time.perf_counter()
                peak = max(peak, _pss(child.pid))
                # Adding up the pages of many processes takes the kernel a while, in which they get no new ones: never
                # more than a fiftieth of a core.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.1, 50 * (time.perf_counter() - looked)))
        except BaseException:
            child.terminate()
            raise
    seconds = time.perf_counter() - begun
    if child.returncode not in (0, 4):
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    return seconds, peak


def _pss(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):  # one has ended meanwhile: the next look counts what is left
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().pss
    return total


def append(name: str, fields: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to bench/results/NAME, with today's date, the commit and the cores where those are among the fields.

    Fields that a line has besides are left out; floats are rounded to six decimals.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / name
    about = {"date": datetime.date.today().isoformat(), "commit": commit(), "cores": os.cpu_count()}
    fresh = not path.exists()
    if not fresh:
        with path.open(newline="", encoding="utf-8") as file:
            if next(csv.reader(file), None) != list(fields):
                sys.exit(f"{path.relative_to(ROOT)} has other columns; move it away")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        if fresh:
            writer.writeheader()
        for line in lines:
            cells = about | dict(line)
            writer.writerow({key: round(cell, 6) if isinstance(cell, float) else cell for key, cell in cells.items()})


def commit() -> str:
    """Return the commit that is measured, "-dirty" where files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr)
