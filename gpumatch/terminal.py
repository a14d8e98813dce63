"""Progress, statistics and metrics in; lines for people on standard error, tables as text out.

Silent where standard error is no terminal, but for warnings. Never writes to standard output by itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from gpumatch.cache.publish import atomic_write_bytes
from gpumatch.config import Settings
from gpumatch.demo import DemoLine
from gpumatch.metrics import Comparison, Evaluation
from gpumatch.results import to_line
from gpumatch.run import Run
from gpumatch.stats import RunStats

_SHOWN_SKIPPED = 5


class Terminal:
    """A run with someone watching: a bar a stage while it works, one table when it ends."""

    def __init__(self, settings: Settings, *, quiet: bool = False, stats: Path | None = None) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._stats = stats
        self._progress = Progress(
            TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self._console, transient=True, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._bars: dict[str, TaskID] = {}
        self.run = Run(settings, progress=self._tell)
        self._memory = self.run.stats.watch_memory()

    def __enter__(self) -> Terminal:
        """Begin to watch."""
        self._memory.__enter__()
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bars; after a whole run print its statistics and write --stats."""
        self._progress.__exit__(kind, error, trace)
        self._memory.__exit__(None, None, None)
        if kind is not None:
            return
        stats = self.run.stats
        if self._stats is not None:
            atomic_write_bytes(self._stats, (json.dumps(stats.to_dict(), indent=1) + "\n").encode())
        self._console.print(stats_table(stats))
        for warning in stats.warnings:
            self._console.print(f"warning: {warning}", markup=False, highlight=False)
        for one in stats.skipped[:_SHOWN_SKIPPED]:
            self._console.print(f"skipped {one['name']}: {one['rule']}: {one['found']}", markup=False, highlight=False)
        if len(stats.skipped) > _SHOWN_SKIPPED:
            self._console.print(f"… and {len(stats.skipped) - _SHOWN_SKIPPED} more; --stats FILE lists all")

    def _tell(self, stage: str, done: int, total: int) -> None:
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._bars[stage], completed=done, total=total or None)


@contextmanager
def writing(output: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a writer of result rows to standard output, or to OUT.partial, renamed to OUT when all are written."""
    if output is None:
        yield partial(_write, sys.stdout)
        sys.stdout.flush()
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(output.name + ".partial")
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        yield partial(_write, file)
    unfinished.replace(output)


def _write(file: TextIO, row: dict[str, Any]) -> None:
    file.write(to_line(row))


def stats_table(stats: RunStats) -> Table:
    """Return the table that closes every run."""
    told = stats.to_dict()
    table = Table(
        title=f"{told['seconds']:.1f} s, peak memory {told['peak_host_bytes'] / 2**20:.0f} MB, {stats.device}"
    )
    table.add_column("stage")
    for heading in ("seconds", "items", "items/s"):
        table.add_column(heading, justify="right")
    for name, stage in stats.stages.items():
        rate = f"{stage.items / stage.seconds:,.0f}" if stage.seconds and stage.items else ""
        table.add_row(name, f"{stage.seconds:.2f}", f"{stage.items:,} {stage.unit}" if stage.items else "", rate)
    return table


def evaluation_table(found: Evaluation) -> str:
    """Return an evaluation as text."""
    table = Table(title=f"{found.n_queries} queries with an answer in the lake, coverage {found.coverage:.1%}")
    for heading in ("metric", "mean", "95% from", "to"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, mean, low, high in found.rows():
        table.add_row(name, f"{mean:.3f}", f"{low:.3f}", f"{high:.3f}")
    table.add_row("Hit@1, truth either way", f"{found.hit1_symmetric:.3f}", "", "")
    return _as_text(table)


def comparison_table(compared: Comparison) -> str:
    """Return a paired comparison as text: a is --against, b the results."""
    table = Table(title=f"{compared.n_queries} queries, paired bootstrap")
    for heading in ("metric", "against", "results", "difference", "95% from", "to", "p"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, a, b, difference, low, high, p in compared.rows():
        table.add_row(name, f"{a:.3f}", f"{b:.3f}", f"{difference:+.3f}", f"{low:+.3f}", f"{high:+.3f}", f"{p:.3f}")
    return _as_text(table)


def demo_table(lines: list[DemoLine]) -> str:
    """Return the table that closes the demo."""
    table = Table(title="OpenData subset: join 169 tables, union 288 tables, 100 queries each")
    for heading in ("task", "layer", "Hit@1", "Hit@3", "Hit@5", "R@5", "MAP", "seconds", "peak MB", "results"):
        table.add_column(
            heading, justify="right" if heading[0].isupper() or heading in ("seconds", "peak MB") else "left"
        )
    for line in lines:
        values = [f"{line.found.means[name]:.3f}" for name in ("Hit@1", "Hit@3", "Hit@5", "R@5", "MAP")]
        table.add_row(
            line.task, line.layer, *values, f"{line.seconds:.1f}", f"{line.peak_bytes / 2**20:.0f}", str(line.results)
        )
    return _as_text(table)


def _as_text(table: Table) -> str:
    console = Console(width=120, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()
