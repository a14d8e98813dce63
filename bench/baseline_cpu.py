"""The predecessor's design, rebuilt, beside gpumatch on the same queries: seconds a query, memory, and its answers.

    python bench/baseline_cpu.py                                     the two lakes that ship with gpumatch
    python bench/baseline_cpu.py --join LAKE --union LAKE --union-queries 3095 --cache DIR

One task a query in a pool of processes (`pool.py` has its two forms, own and shared); each task loops over the lake's
tables in Python (`per_pair.py`), L1 first over all of them, then the whole score on as many survivors as gpumatch has.

Wherever there is a choice it favours the baseline: gpumatch's own reader, profiles and idf at start-up; the density of
each candidate comes from gpumatch's index, where gpumatch computes it in every warm run; no matching columns are looked
for; no worker waits for another. Seconds a query leave start-up out. gpumatch runs warm in between, by the command that
headline.py runs; its start-up counts.

A sample of each lake's queries is run, drawn by seed, and the whole job is extrapolated from it. A worker of the form
`own` encodes at most the lake's distinct texts, however many queries it gets, so encoding is extrapolated apart. It is
most of what a short sample costs, so that form is asked the first --own-queries of the sample only.
"""

from __future__ import annotations

import argparse
import cProfile
import datetime
import io
import json
import os
import pstats
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compare import REASONS, Line, Matches, agreement, both, extrapolated, ratios
from jobs import RESULTS, append, check_lakes, job, lake_options, say, tasks_of, timed
from per_pair import VECTOR_FILES
from pool import STARTS, Worker, threads_of
from rich.console import Console
from rich.table import Table

from gpumatch.lake import find_queries, open_lake
from gpumatch.recipes import LAYERS, recipe_for

GOALS = {"times_faster": 100, "times_less_memory": 4}
FIELDS = (
    "date", "commit", "cores", "lake", "task", "tables", "queries", "sample", "form", "start", "workers",
    "start_seconds", "start_parts", "sample_seconds_per_query", "encode_share", "seconds_per_query", "job_seconds",
    "encode_seconds", "peak_mb", "overlap", *REASONS, "score_gap", "gpumatch_seconds", "gpumatch_answering_seconds",
    "gpumatch_peak_mb", "times_faster", "times_less_memory",
)  # fmt: skip
PROFILED_QUERIES, PROFILE_LINES = 10, 15


def main() -> None:
    """Measure every form and number of workers, print the ratios and append them to bench/results/baseline.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lake_options(parser)
    add_options(parser)
    options = parser.parse_args()
    check_lakes(parser, options)
    with tempfile.TemporaryDirectory(prefix="gpumatch-bench-") as scratch:
        compare(options, options.cache or Path(scratch) / "cache", Path(scratch))


def add_options(parser: Any) -> None:  # noqa: ANN401 - a parser, or a group of one
    """Add the options that say what of the baseline is run."""
    workers = f"1,{os.cpu_count()},8"
    parser.add_argument("--queries", type=int, default=30, help="queries drawn from each lake")
    parser.add_argument("--own-queries", type=int, default=8, help="how many of them the form own is asked")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--forms", type=_forms, default="own,shared", help="which of own and shared")
    parser.add_argument("--workers", type=_numbers, default=workers, help=f"numbers of workers, {workers}")


def _forms(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(STARTS):
        raise argparse.ArgumentTypeError(f"no form {', '.join(sorted(unknown))}; there are {' and '.join(STARTS)}")
    return list(dict.fromkeys(text.split(",")))


def _numbers(text: str) -> list[int]:
    numbers = list(dict.fromkeys(int(number) for number in text.split(",")))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("at least one worker is needed")
    return numbers


def compare(options: argparse.Namespace, cache: Path, scratch: Path) -> list[Line]:
    """Run gpumatch and the baseline by turns; print one table and append it to bench/results/baseline.csv.

    Returns:
        The lines of both halves together, one for each form and number of workers.
    """
    halves = [_prepare(options, task, lake, limit, cache, scratch) for task, lake, limit in tasks_of(options)]
    job(options, cache, scratch, "warm")  # not counted: the vectors are in the cache and the files in memory after it
    ours, runs = [], []
    for form in options.forms:
        for workers in options.workers:
            ours.append(job(options, cache, scratch, "warm"))
            say(f"gpumatch, warm: {ours[-1]['seconds']:.1f} s")
            for half in halves:
                runs.append(_run(half, form, workers, options, scratch))
                say(f"{form}, {workers} workers, {half['task']}: {runs[-1]['sample_seconds_per_query']:.2f} s a query")
    lines = _lines(halves, runs, ours, scratch)
    _report(lines)
    append("baseline.csv", FIELDS, [_written(line) for line in lines])
    text = "".join(_profiled(half) for half in halves)
    (RESULTS / "baseline_profile.txt").write_text(text, encoding="utf-8")
    return [line for line in lines if line["task"] == "both"]


# --- measuring


def _prepare(
    options: argparse.Namespace, task: str, lake: Path, limit: int | None, cache: Path, scratch: Path
) -> dict[str, Any]:
    """Draw the queries, and lay vectors and density out as files; not part of any time."""
    from gpumatch.index import Index

    command = [sys.executable, "-m", "gpumatch", "index", str(lake), "-o", str(scratch / f"{task}.idx"), "-q"]
    subprocess.run(command, env=os.environ | {"GPUMATCH_CACHE_DIR": str(cache)}, stdout=subprocess.DEVNULL, check=True)
    index = Index.load(scratch / f"{task}.idx")
    folder = scratch / f"{task}-prepared"
    write_prepared(index, task, folder)
    place = {name: i for i, name in enumerate(index.lake.profiles.tables)}
    rows = find_queries(open_lake(lake), None, task).rows[:limit]
    usable = [i for i, row in enumerate(rows) if row.table in place and not (row.column and task == "join")]
    if not usable:
        sys.exit(f"{lake}: no query row without a column whose table is in the lake")
    return {
        "task": task,
        "lake": str(lake),
        "name": f"{lake.resolve().parent.name}/{lake.resolve().name}",
        "folder": str(folder),
        "queries": len(rows),
        # (row of the results, number of the table), in the order in which they were drawn
        "drawn": [
            (i, place[rows[i].table])
            for i in random.Random(options.seed).sample(usable, min(options.queries, len(usable)))
        ],
        "tables_in_lake": index.lake.profiles.n_tables,
        "texts": len(index.lake.vectors.rows),
    }


def write_prepared(index: Any, task: str, folder: Path) -> None:  # noqa: ANN401 - gpumatch.index.Index
    """Write the vectors and the density of an index's tables as files that workers map."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in VECTOR_FILES:
        np.save(folder / f"{name}.npy", getattr(index.lake.vectors, name))
    pools = index.pools.get(recipe_for(task, LAYERS[1]).key())
    np.save(folder / "density.npy", np.zeros(index.lake.profiles.n_tables) if pools is None else pools.density)


def _run(half: Line, form: str, workers: int, options: argparse.Namespace, scratch: Path) -> Line:
    """Run one form in a process of its own; return what it told, and the peak of its tree's memory."""
    drawn = half["drawn"][: options.own_queries] if form == "own" else half["drawn"]
    tables = [table for _, table in drawn]
    spec = _spec(half, form, workers) | {"tables": tables, "out": str(scratch / "baseline.json")}
    threads = str(threads_of(workers))
    # Threads of NumPy's products, of torch's and of the tokeniser: no worker takes the cores of another.
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, threads)
    script = str(Path(__file__).resolve().with_name("pool.py"))
    _, peak = timed([sys.executable, script, json.dumps(spec)], environment)
    told = json.loads(Path(spec["out"]).read_text())
    return {**half, **spec, **told, "sample": len(tables), "peak_mb": peak / 2**20}


def _spec(half: Line, form: str, workers: int) -> Line:
    return {key: half[key] for key in ("lake", "task", "folder")} | {
        "form": form,
        "workers": workers,
        "start": STARTS[form],
    }


# --- what follows from it


def _lines(halves: Sequence[Line], runs: Sequence[Line], ours: Sequence[Line], scratch: Path) -> list[Line]:
    """Return a line for each half of each run, and then one for both halves together."""
    found = {half["task"]: _gpumatchs(scratch / f"{half['task']}.jsonl", half["drawn"]) for half in halves}
    date = f"{datetime.datetime.now():%Y-%m-%d %H:%M}"
    lines = []
    for run in runs:
        answers = {int(table): matches for table, matches in run["answers"].items()}
        compared = agreement(answers, {table: found[run["task"]][table] for table in answers})
        line = run | extrapolated(run) | compared | {"lake": run["name"], "tables": run["tables_in_lake"]}
        lines.append(line | ratios(line, [one[run["task"]] for one in ours]))
    for join, union in zip(lines[::2], lines[1::2], strict=True):
        line = both(join, union)
        lines.append(line | ratios(line, ours, line["gpumatch_answering_seconds"]))
    return [{"date": date} | line for line in lines]


def _gpumatchs(results: Path, drawn: Sequence[tuple[int, int]]) -> dict[int, Matches]:
    """Return gpumatch's best matches of the drawn queries, by table number."""
    table_of = dict(drawn)
    found = {}
    with results.open("rb") as file:
        for row, line in enumerate(file):
            if row in table_of:
                found[table_of[row]] = [(match["table"], match["score"]) for match in json.loads(line)["matches"]]
    return found


# --- telling it

# Heading → what a line says there.
COLUMNS = {
    "task": lambda line: line["task"],
    "form": lambda line: line["form"],
    "workers": lambda line: str(line["workers"]),
    "sample": lambda line: str(line["sample"]),
    "start s": lambda line: f"{line['start_seconds']:.1f}",
    "s/query": lambda line: f"{line['seconds_per_query']:.3f}",
    "job s": lambda line: f"{line['job_seconds']:.0f}",
    "encode s": lambda line: f"{line['encode_seconds']:.0f}",
    "peak MB": lambda line: f"{line['peak_mb']:.0f}",
    "top 10": lambda line: f"{line['overlap']:.3f}",
    "gpumatch s": lambda line: f"{line['gpumatch_seconds']:.1f}",
    "MB": lambda line: f"{line['gpumatch_peak_mb']:.0f}",
    "× time": lambda line: f"{line['times_faster']:.1f}",
    "× MB": lambda line: f"{line['times_less_memory']:.1f}",
}


def _report(lines: Sequence[Line]) -> None:
    table = Table(title=f"{os.cpu_count()} cores; job: all queries, start-up apart, extrapolated; gpumatch: warm run")
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading in ("task", "form") else "right")
    for line in lines:
        table.add_row(*(show(line) for show in COLUMNS.values()), end_section=line["task"] != "join")
    Console(width=140).print(table)
    for line in lines:
        who = f"{line['form']}, {line['workers']} workers, {line['task']}"
        if line["task"] == "both":
            _say_goals(line, who)
            continue
        shares = ", ".join(f"{name} {line[name]:.3f}" for name in REASONS if line[name])
        print(f"{who}: largest difference of scores {line['score_gap']:.1e}; not shared: {shares or 'none'}")


def _say_goals(line: Line, who: str) -> None:
    answering = line["gpumatch_answering_seconds"]
    bare = (line["job_seconds"] - line["encode_seconds"]) / line["gpumatch_seconds"]
    met = {name: "met" if line[name] >= goal else "not met" for name, goal in GOALS.items()}
    print(
        f"{who}: {1000 * line['seconds_per_query']:.0f} ms a query, "
        f"gpumatch {1000 * line['gpumatch_seconds'] / line['queries']:.1f} ms with start-up and "
        f"{1000 * answering / line['queries']:.1f} ms without\n"
        f"    {line['times_faster']:.1f} times faster (goal {GOALS['times_faster']}: {met['times_faster']}), "
        f"{bare:.1f} times with encoding left out, {line['job_seconds'] / answering:.1f} times without any start-up; "
        f"{line['times_less_memory']:.1f} times less memory "
        f"(goal {GOALS['times_less_memory']}: {met['times_less_memory']})"
    )


def _written(line: Line) -> Line:
    parts = {name: round(seconds, 2) for name, seconds in line.get("start_parts", {}).items()}
    return line | {"start_parts": json.dumps(parts)}


def _profiled(half: Line) -> str:
    """Return the functions that one worker of the form shared spends most time in."""
    worker = Worker(_spec(half, "shared", 1))
    profiler = cProfile.Profile()
    asked = [table for _, table in half["drawn"][:PROFILED_QUERIES]]
    profiler.enable()
    for table in asked:
        worker.answer(table)
    profiler.disable()
    out = io.StringIO()
    pstats.Stats(profiler, stream=out).strip_dirs().sort_stats("tottime").print_stats(PROFILE_LINES)
    kept = [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
    head = f"{half['name']}, {half['task']}, {len(asked)} queries, one worker of the form shared\n"
    return head + "\n".join(kept) + "\n\n"


if __name__ == "__main__":
    main()
