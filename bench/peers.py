"""gpumatch beside other people's libraries: accuracy, seconds and memory on lakes with a truth.

    python bench/peers.py                                   the two lakes that ship with gpumatch
    python bench/peers.py NAME=TASK:LAKE[:QUERIES] …        other lakes; truth and queries lie in the lake's folder
    python bench/peers.py --valentine PYTHON …              valentine's schema matchers, too

`peer_systems.py` says what the others do. Whole rankings, ties averaged, at table level: a table is right whichever of
its columns is named. Every system runs in a process of its own, start-up and reading included. gpumatch is its two
commands, `gpumatch index` and `gpumatch match INDEX` (-k 0); its index encodes the texts that --cache lacks.

`schema_matchers.py` says what valentine does: it orders gpumatch's survivors anew, so its seconds hold no search. It
wants other versions than constraints.txt has, hence an environment of its own, whose Python PYTHON is:

    python -m venv .venv-valentine && .venv-valentine/bin/pip install -e '.[valentine]'

`difference` is a system's MAP less gpumatch's on the same queries, with a paired bootstrap over them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import SYNTAX, Case, cases_with_truths, for_rows  # a script finds what lies beside it
from jobs import append, say, timed
from peer_systems import SYSTEMS
from rich.console import Console
from rich.table import Table
from schema_matchers import MATCHERS

from gpumatch.metrics import compare, evaluate, score_queries
from gpumatch.records import Key

OWN = "gpumatch"
SHOWN = ("Hit@1", "Hit@5", "R@5", "P@10", "MAP")
FIELDS = (
    "date", "commit", "cores", "lake", "task", "tables", "queries", "system", "version", "index_seconds",
    "query_seconds", "peak_mb", *SHOWN, "difference", "from", "to",
)  # fmt: skip
SEED = 0

Line = dict[str, Any]


def main() -> None:
    """Run every system on every lake, print one table and append it to bench/results/peers.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar=SYNTAX)
    parser.add_argument("--cache", type=Path, help="gpumatch's cache directory; a fresh one without it")
    parser.add_argument("--valentine", metavar="PYTHON", help="a Python that has gpumatch and valentine")
    parser.add_argument("--valentine-queries", type=int, metavar="N", help="only N queries a lake, drawn by a seed")
    options = parser.parse_args()
    try:
        cases = cases_with_truths(options.cases)
        versions = {name: importlib.metadata.version(system.distribution) for name, system in SYSTEMS.items()}
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed: pip install -c constraints.txt -e '.[bench]'")
    if options.valentine and subprocess.run([options.valentine, "-c", "import gpumatch, valentine"]).returncode:
        parser.error(f"--valentine {options.valentine} lacks one of them; make one as --help says")
    lines: list[Line] = []
    for case, truth in cases:
        measured = _measured(case, truth, versions, options)
        append("peers.csv", FIELDS, measured)  # lake by lake: a stopped run keeps what it has
        lines += measured
    _report(lines)


def _measured(case: Case, truth: list[Line], versions: dict[str, str], options: argparse.Namespace) -> list[Line]:
    """Return a line for every system on one lake, gpumatch last."""
    with tempfile.TemporaryDirectory(prefix="gpumatch-bench-") as scratch:
        say(f"{case.name}: {OWN}")
        own = _gpumatch(case, options.cache, Path(scratch))
        truth = for_rows(truth, own["rows"])
        lines = []
        for system, version in versions.items():
            say(f"{case.name}: {system}")
            run = _peer(sys.executable, "peer_systems.py", case, system, scratch)
            lines.append(_line(case, system, run | {"version": version}, truth, own))
        asked = drawn(own["rows"], truth, options.valentine_queries)
        for system in MATCHERS if options.valentine else ():
            say(f"{case.name}: {system}, {len(asked)} queries")
            more = {"rows": own["path"], "asked": asked}
            run = _peer(options.valentine, "schema_matchers.py", case, system, scratch, **more)
            lines.append(_line(case, system, run, truth, own, asked))
    return [*lines, _line(case, OWN, own, truth, own)]


def drawn(rows: Sequence[Line], truth: Sequence[Line], n: int | None) -> list[Key]:
    """Return n of the queries that have a truth, the same ones every time; all of them where there are no more."""
    keys = score_queries(rows, truth, level="table").keys
    return keys if n is None or n >= len(keys) else random.Random(SEED).sample(keys, n)


def _peer(python: str, script: str, case: Case, system: str, scratch: str, **more: Any) -> Line:  # noqa: ANN401
    out = Path(scratch) / "peer.json"
    spec = {
        "system": system,
        "lake": str(case.lake),
        "task": case.task,
        "queries": case.queries and str(case.queries),
        "out": str(out),
    }
    path = str(Path(__file__).resolve().with_name(script))
    seconds, peak = timed([python, path, json.dumps(spec | more)], dict(os.environ))
    told = json.loads(out.read_text(encoding="utf-8"))
    return told | {"query_seconds": seconds - told["index_seconds"], "peak_bytes": peak}


def _gpumatch(case: Case, cache: Path | None, scratch: Path) -> Line:
    index, out, stats = scratch / "gpumatch.idx", scratch / "gpumatch.jsonl", scratch / "gpumatch.json"
    with tempfile.TemporaryDirectory(dir=scratch) as fresh:
        environment = os.environ | {"GPUMATCH_CACHE_DIR": str(cache or fresh)}
        command = [sys.executable, "-m", "gpumatch", "index", str(case.lake), "-o", str(index), "-q"]
        index_seconds, index_peak = timed(command, environment)
        command = [sys.executable, "-m", "gpumatch", "match", str(index), "--task", case.task, "-k", "0", "-q"]
        command += ["-o", str(out), "--stats", str(stats)]
        command += ["--queries", str(case.query_path)] if case.query_path else []
        query_seconds, peak = timed(command, environment)
    with out.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    tables = json.loads(stats.read_text())["stages"]["open"]["items"]
    return {
        "tables": tables,
        "rows": rows,
        "path": str(out),
        "version": importlib.metadata.version(OWN),
        "index_seconds": index_seconds,
        "query_seconds": query_seconds,
        "peak_bytes": max(index_peak, peak),
    }


def _line(
    case: Case, system: str, run: Line, truth: Sequence[Line], own: Line, asked: Sequence[Key] | None = None
) -> Line:
    found = evaluate(run["rows"], truth, level="table", queries=asked, resamples=1)
    change = compare(own["rows"], run["rows"], truth, level="table", queries=asked).differences["MAP"]
    apart = {"difference": change.difference, "from": change.low, "to": change.high}
    return {
        "lake": case.name,
        "task": case.task,
        "tables": run["tables"],
        "queries": found.n_queries,
        "system": system,
        "version": run["version"],
        "index_seconds": round(run["index_seconds"], 2),
        "query_seconds": round(run["query_seconds"], 2),
        "peak_mb": round(run["peak_bytes"] / 2**20),
        **found.means,
        **(apart if system != OWN else {}),
    }


def _report(lines: Sequence[Line]) -> None:
    table = Table(title=f"Whole rankings, ties averaged; {os.cpu_count()} cores")
    for heading in ("lake", "task", "queries", "system", "index s", "query s", "MB", *SHOWN, "difference", "95%"):
        table.add_column(heading, justify="left" if heading in ("lake", "task", "system") else "right")
    for line in lines:
        own = line["system"] == OWN
        apart = () if own else (f"{line['difference']:+.3f}", f"{line['from']:+.3f} to {line['to']:+.3f}")
        table.add_row(
            line["lake"], line["task"], str(line["queries"]), line["system"], f"{line['index_seconds']:.1f}",
            f"{line['query_seconds']:.1f}", str(line["peak_mb"]), *(f"{line[name]:.3f}" for name in SHOWN),
            *apart, end_section=own,
        )  # fmt: skip
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
