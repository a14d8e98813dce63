"""Progress, statistics and metrics in; lines for people on standard error, tables as text out.

If standard error is no terminal, only warnings are printed. Never writes to standard output by itself.
"""

from __future__ import annotations

import _thread
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from gpumatch import outputs
from gpumatch.config import Settings, llm_price, unknown_settings
from gpumatch.errors import printable
from gpumatch.journal import Journal
from gpumatch.run import Run
from gpumatch.stats import RunStats

if TYPE_CHECKING:  # for other commands' output: `match` never loads them
    from gpumatch.cache.inspect import Leftover
    from gpumatch.care import CacheStats, Removed, Verified
    from gpumatch.demo import DemoLine
    from gpumatch.explain import Explanation
    from gpumatch.judge.judge import Plan
    from gpumatch.metrics import Comparison, Evaluation, PoolRecall

_SHOWN_SKIPPED = 5
_SHOWN_LEAD = 4
# The least time between two drawings of a bar: a lake has thousands of tables.
_BAR_SECONDS = 0.05


class Terminal:
    """A run with someone watching: a bar for each stage while it works, one table when it ends.

    Args:
        stats, skipped: files to write at the end; output: the file that the command writes itself.
        index: the folder that the command makes or brings up to date; no other output may be in it.

    Raises:
        UsageError, OutputError: two outputs are the same file, or one is a file that is read, or cannot be written.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        quiet: bool = False,
        output: Path | None = None,
        stats: Path | None = None,
        skipped: Path | None = None,
        index: Path | None = None,
    ) -> None:
        named = {"-o": output, "--stats": stats, "--skipped": skipped}
        written = {option: path for option, path in named.items() if path is not None}
        outputs.keep_apart(written, [] if index is None else [index])
        self._console = Console(stderr=True, quiet=quiet)
        self._stats = stats
        self._skipped = skipped
        self._progress = Progress(
            TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self._console, transient=True, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._bars: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}
        self._said: set[str] = set()
        self.run = Run(settings, progress=self._tell, say=self.say, written=written)
        for option, path in written.items():
            outputs.prepare(path, option)
        # not SIGINT, which a script's background jobs ignore
        self._memory = self.run.watched(lambda: _thread.interrupt_main(signal.SIGTERM))

    def __enter__(self) -> Terminal:
        """Begin to watch."""
        self._progress.__enter__()
        if self._console.is_terminal:
            from gpumatch.kernels import compiled  # loads numba, which a run needs anyway and other commands do not

            compiled.on_compiling = self._compiling
        for line in unknown_settings():
            self.run.warn(line)
        self._memory.__enter__()  # last: it may end at once whatever comes after it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bars; after a whole run print its statistics, and then write --stats and --skipped."""
        self._progress.__exit__(kind, error, trace)
        self._memory.__exit__(kind, error, trace)
        stats = self.run.stats
        if kind is not None:
            return
        self._console.print(stats_table(stats))
        if self.run.judging and "calls" in stats.counters:
            self.say(verdicts_line(stats))
        for warning in stats.warnings:
            if warning not in self._said:
                self.say(f"warning: {warning}")
        for one in stats.skipped[:_SHOWN_SKIPPED]:
            self.say(f"skipped {one['name']}: {one['rule']}: {one['found']}")
        if len(stats.skipped) > _SHOWN_SKIPPED:
            self.say(f"… and {len(stats.skipped) - _SHOWN_SKIPPED} more; --skipped FILE lists all")
        if self._stats is not None:
            outputs.write(self._stats, _json(stats.to_dict()))
        if self._skipped is not None:
            outputs.write(self._skipped, _json(stats.skipped))

    def say(self, text: str) -> None:
        """Tell people something while the run goes on."""
        self._said.add(text.removeprefix("warning: "))
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _compiling(self) -> None:
        text = "compiling gpumatch's loops for this processor: once, some fifteen seconds in all"
        if text not in self._said:
            self.say(text)

    def _tell(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told.get(stage, 0) < _BAR_SECONDS and done != total:
            return
        self._told[stage] = now
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._bars[stage], completed=done, total=total or None)


def _json(told: object) -> str:
    return json.dumps(told, indent=1) + "\n"


class Stream:
    """Result rows on a stream, which holds nothing of an earlier run; has the methods of a `Journal`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def begin(self, depends: Mapping[str, Any]) -> int:
        """Return 0."""
        return 0

    def write(self, line: str) -> None:
        """Write one row."""
        self._file.write(line)


@contextmanager
def writing(output: Path | None, terminal: Terminal, *, fresh: bool) -> Iterator[Journal | Stream]:
    """Yield what takes result rows: standard output, or a file that is published when all of them are written."""
    if output is None:
        yield Stream(sys.stdout)
        sys.stdout.flush()
        return
    stream = outputs.opened_stream(output)
    if stream is not None:
        with stream:
            yield Stream(stream)
        return
    with Journal(outputs.target_of(output), fresh=fresh, say=terminal.say) as journal:
        yield journal


def stats_table(stats: RunStats) -> Table:
    """Return the table that closes every run."""
    told = stats.to_dict()
    table = Table(
        title=f"{told['seconds']:.1f} s, peak memory {told['peak_host_bytes'] / 2**20:.0f} MB, {stats.device}"
    )
    table.add_column("stage")
    for heading in ("seconds", "items", "items/s"):
        table.add_column(heading, justify="right")
    table.add_column("device")
    for name, stage in stats.stages.items():
        rate = f"{stage.items / stage.seconds:,.0f}" if stage.seconds and stage.items else ""
        items = f"{stage.items:,} {stage.unit}" if stage.items else ""
        table.add_row(name, f"{stage.seconds:.2f}", items, rate, stage.device)
    return table


def verdicts_line(stats: RunStats) -> str:
    """Return what was asked of a language model, as one line."""
    n = stats.counters
    return (
        f"{n['verdicts given']:,} of {n['verdicts asked']:,} verdicts given in {n['calls']:,} calls, "
        f"{n['verdicts known']:,} known already; {n['prompt tokens']:,} tokens of prompts, "
        f"{n['reply tokens']:,} of replies"
    )


def plan_text(plan: Plan, settings: Settings) -> str:
    """Return what would be asked, and one request as it would be sent."""
    from gpumatch.judge.limits import Price  # loads the HTTP client, which other commands do without
    from gpumatch.judge.pool import FORMS

    cost = Price(*llm_price(settings)).of(plan.cost.prompt, plan.cost.reply)
    lines = [
        f"{plan.cost.calls:,} calls for {plan.rows:,} query rows, about {plan.candidates:,} candidates "
        f"({plan.known:,} more are known already)",
        f"at most {plan.cost.prompt:,} tokens of prompts and {plan.cost.reply:,} of replies"
        + (f", cost at most {cost:.2f}" if settings.llm_price else "; --llm-price tells the cost"),
    ]
    if plan.example is not None:
        # A request as it would be sent, but for the marker, which is a new one every time.
        body = plan.example.body(settings.llm_model or "", "0" * 16, FORMS[0])
        lines += ["one request, as it would be sent:", body.decode()]
    return "\n".join(lines)


def evaluation_table(found: Evaluation) -> str:
    """Return an evaluation as text."""
    table = Table(title=f"{found.n_queries} queries with an answer, coverage {found.coverage:.1%}")
    for heading in ("metric", "mean", "95% from", "to"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, mean, low, high in found.rows():
        table.add_row(name, f"{mean:.3f}", f"{low:.3f}", f"{high:.3f}")
    table.add_row("Hit@1, truth either way", f"{found.hit1_symmetric:.3f}", "", "")
    return _as_text(table)


def pool_table(found: PoolRecall) -> str:
    """Return the recall of pools as text."""
    table = Table(title=f"{found.n_queries} queries with an answer")
    for heading in ("pool", "mean", "95% from", "to"):
        table.add_column(heading, justify="left" if heading == "pool" else "right")
    table.add_row("recall", *(f"{value:.3f}" for value in (found.recall, *found.interval)))
    table.add_row("matches a query", f"{found.mean_size:.1f}", "", "")
    table.add_row("queries that have all", str(found.n_whole), "", "")
    return _as_text(table)


def unanswered_line(found: Evaluation | PoolRecall) -> str:
    """Return which queries of the truth the results lack, as a warning; empty where they lack none."""
    n = found.n_unanswered
    of = f"{n} of the {found.n_queries} queries of the truth, such as {found.first_unanswered}"
    return f"warning: {of}, are not among those of the results and count 0" if n else ""


def comparison_table(compared: Comparison) -> str:
    """Return a paired comparison as text: a is --against, b the results."""
    table = Table(title=f"{compared.n_queries} queries, paired bootstrap")
    for heading in ("metric", "against", "results", "difference", "95% from", "to", "p"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, a, b, difference, low, high, p in compared.rows():
        table.add_row(name, f"{a:.3f}", f"{b:.3f}", f"{difference:+.3f}", f"{low:+.3f}", f"{high:+.3f}", f"{p:.3f}")
    return _as_text(table)


def explanation_text(found: Explanation) -> str:
    """Return why a match is there, as text."""
    asked = found.query_table if found.query_column is None else f"{found.query_table}, column {found.query_column}"
    table = Table(title=_cell(f"{asked} → {found.table}"), title_justify="left")
    for heading in ("signal", "value", "weight", "contribution", "formula"):
        table.add_column(heading, justify="left" if heading in ("signal", "formula") else "right", overflow="fold")
    for part in found.parts:
        value = "not known" if part.value is None else f"{part.value:.4f}"
        table.add_row(part.signal, value, f"{part.weight:g}", f"{part.contribution:.4f}", escape(part.formula))
    if found.density:
        table.add_row("density", "", "", f"{found.density:.4f}", "taken off for being like many tables of its lake")
    sure = "" if found.confidence is None else f", confidence {found.confidence:.4f}"
    first = f"{found.task}, rank {found.rank} of {found.of}, score {found.score:.6f}{sure} ({found.layer})"
    lines = [*_verdict_lines(found.verdict), "columns that match" if found.columns else "no columns match"]
    for one in found.columns:
        q, c = (f"{one[side]['name']!r} (column {one[side]['index']})" for side in ("query", "candidate"))
        said = ""
        if "shared" in one:
            pairs = zip(one["shared"], one["shared_as"], strict=True)
            shared = [repr(a) if a == b else f"{a!r} = {b!r}" for a, b in pairs]
            said = f"; shared: {', '.join(shared) or 'no value'}"
        lines.append(f"  {one['score']:.4f}  {q} ↔ {c}{said}")
    if found.runner_up is None:
        lines.append("no match comes after it")
    elif not found.lead:
        lines.append(f"level with the next, {found.runner_up}: ties stand in the order of their names")
    else:
        gap = sum(difference for _, difference in found.lead)
        parts = ", ".join(f"{name} {difference:+.4f}" for name, difference in found.lead[:_SHOWN_LEAD])
        lines.append(f"ahead of the next, {found.runner_up}, by {gap:.4f}: {parts}")
    return "\n".join([printable(first), _as_text(table), *map(printable, lines)])


def _verdict_lines(verdict: Mapping[str, Any] | None) -> list[str]:
    if verdict is None:
        return []
    of = f" (asked of {verdict['of']}, which has the same columns)" if "of" in verdict else ""
    if verdict["says"] is None:
        return [f"a language model was asked{of} and gave no verdict: {verdict['why']}"]
    return [
        f"a language model says {verdict['says']}{of}: score {verdict['score_before']:.6f} moved by "
        f"{verdict['moved']:+.6f}; the model's words: {verdict['words']!r}"
    ]


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
            line.task, line.layer, *values, f"{line.seconds:.1f}", f"{line.peak_bytes / 2**20:.0f}",
            _cell(line.results),
        )  # fmt: skip
    return _as_text(table)


def cache_table(found: CacheStats) -> str:
    """Return what is in a cache directory as text, a table of vectors and one of indexes."""
    vectors = Table(title=_cell(f"vectors in {found.root}"), title_justify="left")
    for heading in ("model", "revision", "form", "dim", "vectors", "segments", "shards", "MB", "of no use"):
        vectors.add_column(heading, justify="left" if heading in ("model", "revision", "form") else "right")
    for one in found.vectors:
        shown = {"model": 24, "revision": 12, "serialiser": 24, "dim": 24}
        name = [_cell(str(one.about.get(key, "?"))[:most]) for key, most in shown.items()]
        numbers = [f"{n:,}" for n in (one.rows, one.segments, one.shards)]
        vectors.add_row(*name, *numbers, _megabytes(one.bytes), _megabytes(one.reclaimable))
    indexes = Table(title="indexes", title_justify="left")
    for heading in ("index", "lake", "layer", "encoder", "tables", "columns", "MB", "days", "gpumatch"):
        right = heading in ("tables", "columns", "MB", "days")
        indexes.add_column(heading, justify="right" if right else "left", overflow="fold" if not right else "ellipsis")
    for entry in found.indexes:
        counts = ["?" if n is None else f"{n:,}" for n in (entry.tables, entry.columns)]
        told = [_cell(x or "") for x in (entry.source, entry.layer, (entry.encoder or "").split("@")[0])]
        made = (entry.gpumatch or "?") + (" (no use)" if entry.trouble or entry.newer else "")
        age = f"{entry.age_days:.1f}"
        indexes.add_row(_cell(entry.folder.name[:8]), *told, *counts, _megabytes(entry.bytes), age, _cell(made))
    totals = found.totals
    tables = [_as_text(table) for table, rows in ((vectors, found.vectors), (indexes, found.indexes)) if rows]
    troubles = [(one.folder, one.trouble) for one in found.vectors] + [
        (one.folder, one.trouble or (one.newer and f"superseded by {one.newer}, a newer one of its lake"))
        for one in found.indexes
    ]
    lines = [f"{folder}: {trouble}" for folder, trouble in troubles if trouble]
    if found.verdicts.trouble:
        lines.append(f"{found.verdicts.folder}: {found.verdicts.trouble}")
    lines += [f"{path}: not the cache's" for path in found.foreign]
    lines.append(
        f"{found.root}: {_number(totals['vectors'], 'vector', 'vectors')}, "
        f"{_number(totals['indexes'], 'index', 'indexes')}, {_number(totals['verdicts'], 'verdict', 'verdicts')}, "
        f"{_megabytes(totals['bytes'])} MB; "
        f"{_megabytes(totals['reclaimable'])} MB of no use"
        + (": gpumatch cache prune" if totals["reclaimable"] else "")
    )
    return "\n".join([*tables, *map(printable, lines)])


def verified_text(found: Verified) -> str:
    """Return what checking the cache has found: a block for each damage, then what was checked."""
    lines = []
    for one in found.damages:
        texts = "" if one.texts is None else f"; {one.texts:,} texts"
        lines += [f"{one.kind}: {one.place}", f"  {one.found}{texts}", f"  mend it: {one.mend}"]
    lines += [
        f"{one.model}: {one.encoded} of {one.known:,} texts at hand encoded anew"
        + ("" if one.least_cosine is None else f", least cosine {one.least_cosine:.6f}")
        for one in found.samples
    ]
    verdict = _number(len(found.damages), "damage", "damages") if found.damages else "whole"
    vectors, segments = _number(found.vectors, "vector", "vectors"), _number(found.segments, "segment", "segments")
    indexes, files = _number(found.indexes, "index", "indexes"), _number(found.files, "file", "files")
    judged = _number(found.verdicts, "verdict", "verdicts")
    lines.append(f"{found.root}: {vectors} in {segments}, {indexes} of {files}, {judged}: {verdict}")
    return "\n".join(map(printable, lines))


def removed_text(removed: Removed) -> str:
    """Return what was deleted, or would be: a line for each reason in each folder of vectors and each index."""
    groups: dict[tuple[Path, str], list[Leftover]] = {}
    for one in removed.leftovers:
        home = next((place for place in one.path.parents if place.parent.name in ("vectors", "indexes")), one.path)
        groups.setdefault((home, one.what), []).append(one)
    lines = []
    for (home, what), group in groups.items():
        where = group[0].path if len(group) == 1 else f"{len(group)} files in {home}"
        lines.append(f"{_megabytes(sum(one.bytes for one in group)):>10} MB  {where}: {what}")
    lines += [f"stays: {path}: not the cache's" for path in removed.kept]
    verb = "would be freed" if removed.dry_run else "freed"
    return "\n".join(map(printable, [*lines, f"{_megabytes(removed.bytes)} MB {verb}"]))


def _number(n: int, one: str, more: str) -> str:
    return f"{n:,} {one if n == 1 else more}"


def _megabytes(n: int) -> str:
    return f"{n / 1e6:,.1f}" if n >= 100_000 or not n else f"{n / 1e6:,.6f}".rstrip("0")


def _cell(told: object) -> str:
    """Return a text for a cell of a table: shown as it is, on one line."""
    return escape(printable(str(told)))


def _as_text(table: Table) -> str:
    console = Console(width=120, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()
