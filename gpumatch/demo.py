"""The lake that ships with gpumatch in, measured answers of each task and layer out."""

from __future__ import annotations

import importlib.resources
import time
from dataclasses import dataclass
from pathlib import Path

from gpumatch import pipeline
from gpumatch.metrics import Evaluation, evaluate
from gpumatch.recipes import LAYERS
from gpumatch.records import load_truth
from gpumatch.results import to_line
from gpumatch.run import Run


@dataclass(frozen=True)
class DemoRun:
    """One task at one layer on one of the two shipped lakes."""

    task: str
    layer: str
    lake: Path


@dataclass(frozen=True)
class DemoLine:
    """What one run of the demo gave."""

    task: str
    layer: str
    found: Evaluation
    seconds: float
    peak_bytes: int
    results: Path


def lake_path(task: str) -> Path:
    """Return the folder of the shipped join or union lake."""
    return Path(str(importlib.resources.files("gpumatch"))) / "demo_lake" / task


def plan(layer: str | None) -> list[DemoRun]:
    """Return both tasks at every layer, or at the given one."""
    return [DemoRun(task, one, lake_path(task)) for task in ("join", "union") for one in LAYERS if layer in (None, one)]


def measure(one: DemoRun, run: Run, folder: Path) -> DemoLine:
    """Match every query of a shipped lake, keep the results in `folder`, and score them against its truth."""
    begun = time.perf_counter()
    rows = list(pipeline.match(one.lake, run))
    seconds = time.perf_counter() - begun
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / f"{one.task}-{one.layer}.jsonl"
    results.write_text("".join(map(to_line, rows)), encoding="utf-8")
    found = evaluate(rows, load_truth(one.lake / "ground_truth.json"))
    return DemoLine(one.task, one.layer, found, seconds, run.stats.peak_host_bytes, results)
