"""gpumatch beside other people's libraries: accuracy, seconds and memory on lakes with a truth.

    python bench/peers.py                                   the two lakes that ship with gpumatch
    python bench/peers.py NAME=TASK:LAKE[:QUERIES] …        other lakes; truth and queries lie in the lake's folder

`peer_systems.py` says what the others do. Whole rankings, ties averaged, at table level: a table is right whichever of
its columns is named. Every system runs in a process of its own, start-up and reading included. gpumatch is its two
commands, `gpumatch index` and `gpumatch match INDEX` (-k 0); its index encodes the texts that --cache lacks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import SYNTAX, Case, cases_of  # beside this file: Python puts a script's folder on its path
from jobs import append, say, timed
from peer_systems import SYSTEMS
from rich.console import Console
from rich.table import Table

from gpumatch.errors import GpumatchError
from gpumatch.metrics import evaluate, load_truth

OWN = "gpumatch"
SHOWN = ("Hit@1", "Hit@5", "R@5", "P@10", "MAP")
FIELDS = (
    "date", "commit", "cores", "lake", "task", "tables", "queries", "system", "version", "index_seconds",
    "query_seconds", "peak_mb", *SHOWN,
)  # fmt: skip

Line = dict[str, Any]


def main() -> None:
    """Run every system on every lake, print one table and append it to bench/results/peers.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar=SYNTAX)
    parser.add_argument("--cache", type=Path, help="gpumatch's cache directory; a fresh one without it")
    options = parser.parse_args()
    try:
        cases = cases_of(options.cases)
        truths = [load_truth(case.truth) for case in cases]
        versions = {name: importlib.metadata.version(system.distribution) for name, system in SYSTEMS.items()}
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed: pip install -c constraints.txt -e '.[bench]'")
    except (ValueError, GpumatchError) as error:
        parser.error(str(error))
    versions[OWN] = importlib.metadata.version(OWN)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="gpumatch-bench-") as scratch:
        for case, truth in zip(cases, truths, strict=True):
            for system, version in versions.items():
                say(f"{case.name}: {system}")
                run = _gpumatch(case, options.cache, Path(scratch)) if system == OWN else _peer(case, system, scratch)
                lines.append({"system": system, "version": version} | _line(case, run, truth))
            append("peers.csv", FIELDS, lines[-len(versions) :])  # lake by lake: a stopped run keeps what it has
    _report(lines)


def _peer(case: Case, system: str, scratch: str) -> Line:
    out = Path(scratch) / "peer.json"
    spec = {
        "system": system,
        "lake": str(case.lake),
        "task": case.task,
        "queries": case.queries and str(case.queries),
        "out": str(out),
    }
    script = str(Path(__file__).resolve().with_name("peer_systems.py"))
    seconds, peak = timed([sys.executable, script, json.dumps(spec)], dict(os.environ))
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
        "index_seconds": index_seconds,
        "query_seconds": query_seconds,
        "peak_bytes": max(index_peak, peak),
    }


def _line(case: Case, run: Line, truth: Sequence[Line]) -> Line:
    found = evaluate(run["rows"], truth, level="table", resamples=1)
    return {
        "lake": case.name,
        "task": case.task,
        "tables": run["tables"],
        "queries": found.n_queries,
        "index_seconds": round(run["index_seconds"], 2),
        "query_seconds": round(run["query_seconds"], 2),
        "peak_mb": round(run["peak_bytes"] / 2**20),
        **found.means,
    }


def _report(lines: Sequence[Line]) -> None:
    table = Table(title=f"Whole rankings, ties averaged; {os.cpu_count()} cores")
    for heading in ("lake", "task", "queries", "system", "index s", "query s", "MB", *SHOWN):
        table.add_column(heading, justify="left" if heading in ("lake", "task", "system") else "right")
    for line in lines:
        table.add_row(
            line["lake"], line["task"], str(line["queries"]), line["system"], f"{line['index_seconds']:.1f}",
            f"{line['query_seconds']:.1f}", str(line["peak_mb"]), *(f"{line[name]:.3f}" for name in SHOWN),
            end_section=line["system"] == OWN,
        )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
