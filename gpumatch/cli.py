"""Command lines in, exit codes out: data on standard output, everything said to people on standard error.

Only parses and prints; what a command does is in `pipeline`. Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from gpumatch import __version__
from gpumatch.errors import GpumatchError, UsageError, printable
from gpumatch.memory import told

if TYPE_CHECKING:
    from gpumatch.config import Settings

app = typer.Typer(
    name="gpumatch",
    help="Find, in a lake of tables, the tables that each query table can be joined or unioned with.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The heading in `match --help` under which the options of layer 3 stand.
L3 = "A language model (--layer L1+L2+L3)"


def _place(text: str | None) -> Path | None:
    """Return a path; an empty one is what an unset variable leaves, and would be the current folder."""
    if text == "":
        raise typer.BadParameter("the path is empty; give . for the current folder")
    return None if text is None else Path(text)


def _file(path: Path | None) -> Path | None:
    """Return the file to write, or None for standard output, which - stands for."""
    return None if path == Path("-") else path


# A lake or a table is taken as text: typer makes the current folder of an empty one before a callback sees it.
_PLACE: Any = {"path_type": str, "callback": _place}

LakeArg = Annotated[
    Path, typer.Argument(**_PLACE, help="folder of CSV, TSV or Parquet files, tables.json, DuckDB file, or glob")
]
QueriesOpt = Annotated[str | None, typer.Option(help="queries.json or .csv; or a folder, file or glob of query tables")]
ColumnOpt = Annotated[
    list[str] | None, typer.Option("--column", help="column of the --queries tables to join on; may be repeated")
]
TaskOpt = Annotated[str | None, typer.Option(help="join, union, or auto: each query row's task_type")]
LayerOpt = Annotated[str | None, typer.Option(help="L1 (no encoder) or L1+L2", show_default="L1+L2")]
MatchLayerOpt = Annotated[
    str | None, typer.Option(help="L1 (no encoder), L1+L2, or L1+L2+L3 (asks a language model)", show_default="L1+L2")
]
KOpt = Annotated[
    int | None, typer.Option("-k", min=0, help="matches of each query at most; 0 for all", show_default="20")
]
ConfidenceOpt = Annotated[
    float | None, typer.Option(min=0, max=1, help="leave out matches with less confidence", show_default="0")
]
DeviceOpt = Annotated[str | None, typer.Option(help="auto, cpu or cuda", show_default="auto")]
BackendOpt = Annotated[
    str | None, typer.Option(help="library that searches: torch, faiss or cupy", show_default="torch")
]
EncoderOpt = Annotated[str | None, typer.Option(help="folder or hub id of a sentence-transformers model")]
WeightsOpt = Annotated[Path | None, typer.Option(help="TOML file of weights to score with; see docs/REFERENCE.md")]
ThreadsOpt = Annotated[int | None, typer.Option(min=1, help="CPU threads", show_default="all")]
CacheOpt = Annotated[
    bool | None, typer.Option("--cache/--no-cache", help="reuse and store vectors and indexes in the cache directory")
]
IndexCacheOpt = Annotated[
    bool | None, typer.Option("--index-cache/--no-index-cache", help="reuse and store indexes in the cache directory")
]
MemoryOpt = Annotated[str | None, typer.Option(help="stop the run if it needs more memory than this, such as 4GB")]
JsonOpt = Annotated[bool, typer.Option("--json", help="print JSON")]
SampleOpt = Annotated[
    int | None, typer.Option(min=1, help="rows read per table; longer tables are sampled", show_default="100000")
]
LinksOpt = Annotated[
    bool | None, typer.Option("--follow-links/--no-follow-links", help="follow links to folders, and out of the lake")
]
SkippedOpt = Annotated[Path | None, typer.Option(help="JSON file to write: what could not be read, and why")]
StatsOpt = Annotated[Path | None, typer.Option(help="JSON file to write: the run's statistics")]
QuietOpt = Annotated[bool, typer.Option("-q", "--quiet", help="print nothing but errors and results")]


@app.command(
    epilog="Examples:  gpumatch match lake/ --task join -k 5   |   "
    "gpumatch match lake/ --queries new/ --task union -o out.jsonl"
)
def match(
    lake: LakeArg,
    queries: QueriesOpt = None,
    column: ColumnOpt = None,
    task: TaskOpt = None,
    layer: MatchLayerOpt = None,
    k: KOpt = None,
    min_confidence: ConfidenceOpt = None,
    offset: Annotated[int, typer.Option(min=0, help="query rows to leave out at the start")] = 0,
    max_queries: Annotated[int | None, typer.Option(min=0, help="query rows to answer at most")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", callback=_file, help="results file; standard output without it")
    ] = None,
    device: DeviceOpt = None,
    backend: BackendOpt = None,
    encoder: EncoderOpt = None,
    weights: WeightsOpt = None,
    threads: ThreadsOpt = None,
    cache: CacheOpt = None,
    index_cache: IndexCacheOpt = None,
    max_memory: MemoryOpt = None,
    sample_rows: SampleOpt = None,
    follow_links: LinksOpt = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="do not continue a stopped run of this -o; start over")
    ] = False,
    skipped: SkippedOpt = None,
    stats: StatsOpt = None,
    quiet: QuietOpt = False,
    llm_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server, such as http://localhost:8000/v1", rich_help_panel=L3)
    ] = None,
    llm_model: Annotated[str | None, typer.Option(help="name of the model on that server", rich_help_panel=L3)] = None,
    llm_key_file: Annotated[
        Path | None, typer.Option(help="file with the server's key; or GPUMATCH_LLM_API_KEY", rich_help_panel=L3)
    ] = None,
    llm_max_calls: Annotated[int | None, typer.Option(min=0, help="calls at most", rich_help_panel=L3)] = None,
    llm_max_tokens: Annotated[int | None, typer.Option(min=0, help="tokens at most", rich_help_panel=L3)] = None,
    llm_budget: Annotated[
        float | None, typer.Option(min=0, help="cost at most, in the currency of --llm-price", rich_help_panel=L3)
    ] = None,
    llm_price: Annotated[
        str | None, typer.Option(help="price of a million tokens in and out: 0.15,0.60", rich_help_panel=L3)
    ] = None,
    llm_concurrency: Annotated[
        int | None, typer.Option(min=1, help="calls at the same time", show_default="16", rich_help_panel=L3)
    ] = None,
    llm_timeout: Annotated[
        float | None, typer.Option(help="seconds for a call, retries included", show_default="120", rich_help_panel=L3)
    ] = None,
    llm_deadline: Annotated[
        float | None, typer.Option(help="seconds for all calls together", rich_help_panel=L3)
    ] = None,
    llm_rpm: Annotated[float | None, typer.Option(help="calls a minute at most", rich_help_panel=L3)] = None,
    llm_tpm: Annotated[float | None, typer.Option(help="tokens a minute at most", rich_help_panel=L3)] = None,
    redact: Annotated[
        bool | None,
        typer.Option("--redact/--no-redact", help="send shapes and hashes instead of values", rich_help_panel=L3),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="print what would be asked and the text of one request; send nothing", rich_help_panel=L3
        ),
    ] = False,
) -> None:
    """Rank, for every query table, the lake's tables that it can be joined or unioned with (JSON Lines)."""
    from gpumatch import pipeline
    from gpumatch.results import to_line
    from gpumatch.terminal import Terminal, writing

    settings = _settings(
        task=task,
        layer=layer,
        k=k,
        min_confidence=min_confidence,
        device=device,
        backend=backend,
        encoder=encoder,
        weights=weights,
        threads=threads,
        cache=cache,
        index_cache=index_cache,
        max_memory=max_memory,
        sample_rows=sample_rows,
        follow_links=follow_links,
        llm_url=llm_url,
        llm_model=llm_model,
        llm_key_file=llm_key_file,
        llm_max_calls=llm_max_calls,
        llm_max_tokens=llm_max_tokens,
        llm_budget=llm_budget,
        llm_price=llm_price,
        llm_concurrency=llm_concurrency,
        llm_timeout=llm_timeout,
        llm_deadline=llm_deadline,
        llm_rpm=llm_rpm,
        llm_tpm=llm_tpm,
        redact=redact,
    )
    watching = Terminal(settings, quiet=quiet, output=None if dry_run else output, stats=stats, skipped=skipped)
    if dry_run:
        from gpumatch.terminal import plan_text

        if settings.layer != "L1+L2+L3":
            raise UsageError("--dry-run shows what a language model would be asked; add --layer L1+L2+L3")
        with watching as terminal:
            plan = pipeline.plan(
                lake, terminal.run, queries=queries, columns=column or (), offset=offset, max_queries=max_queries
            )
        typer.echo(plan_text(plan, settings))
        raise typer.Exit(4 if terminal.run.stats.skipped else 0)
    with watching as terminal, writing(output, terminal, fresh=fresh) as sink:
        rows = pipeline.match(
            lake,
            terminal.run,
            queries=queries,
            columns=column or (),
            offset=offset,
            max_queries=max_queries,
            resume=sink.begin,
            anew=fresh or output is None,
        )
        for row in rows:
            sink.write(to_line(row))
    raise typer.Exit(4 if terminal.run.stats.skipped else 0)


@app.command(
    epilog="Examples:  gpumatch align a.csv b.csv --top 3   |   gpumatch align orders.csv customers.csv --task join"
)
def align(
    table_a: Annotated[Path, typer.Argument(**_PLACE, help="a table file")],
    table_b: Annotated[Path, typer.Argument(**_PLACE, help="the table file that it is matched with")],
    task: Annotated[
        str, typer.Option(help="union: candidates of each column and a one-to-one alignment; join: keys to join on")
    ] = "union",
    top: Annotated[int, typer.Option(min=0, help="candidates of each column, or keys, at most; 0 for all")] = 20,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", callback=_file, help="JSON Lines file; standard output without it")
    ] = None,
    layer: LayerOpt = None,
    device: DeviceOpt = None,
    encoder: EncoderOpt = None,
    weights: WeightsOpt = None,
    threads: ThreadsOpt = None,
    cache: CacheOpt = None,
    sample_rows: SampleOpt = None,
    stats: StatsOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Match the columns of two tables (JSON Lines): which belong together, or what to join them on."""
    from gpumatch import outputs, pipeline
    from gpumatch.results import to_line
    from gpumatch.terminal import Terminal

    if task not in ("join", "union"):
        raise UsageError(f"--task is {task!r}; expected join or union")
    settings = _settings(
        layer=layer,
        device=device,
        encoder=encoder,
        weights=weights,
        threads=threads,
        cache=cache,
        sample_rows=sample_rows,
    )
    with Terminal(settings, quiet=quiet, output=output, stats=stats) as terminal:
        found = pipeline.align(table_a, table_b, terminal.run, keys=task == "join")
        rows = found.key_rows(top) if task == "join" else found.rows(top)
        lines = "".join(map(to_line, rows))
        if output is not None:
            outputs.write(output, lines)
    if output is None:
        typer.echo(lines, nl=False)


@app.command(epilog="Examples:  gpumatch index lake/ -o lake.idx   |   gpumatch match lake.idx --task join")
def index(
    lake: LakeArg,
    output: Annotated[Path, typer.Option("-o", "--output", help="index folder to build or bring up to date")],
    layer: LayerOpt = None,
    device: DeviceOpt = None,
    encoder: EncoderOpt = None,
    weights: WeightsOpt = None,
    threads: ThreadsOpt = None,
    cache: CacheOpt = None,
    max_memory: MemoryOpt = None,
    sample_rows: SampleOpt = None,
    follow_links: LinksOpt = None,
    skipped: SkippedOpt = None,
    stats: StatsOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Build the index of a lake, or bring it up to date."""
    from gpumatch import pipeline
    from gpumatch.terminal import Terminal

    settings = _settings(
        layer=layer,
        device=device,
        encoder=encoder,
        weights=weights,
        threads=threads,
        cache=cache,
        max_memory=max_memory,
        sample_rows=sample_rows,
        follow_links=follow_links,
    )
    with Terminal(settings, quiet=quiet, stats=stats, skipped=skipped, index=output) as terminal:
        built, fresh = pipeline.update_index(lake, output, terminal.run)
    tables = built.lake.profiles
    if not quiet:
        done = "built" if fresh else "up to date"
        typer.echo(f"{output}: {tables.n_tables} tables, {tables.n_columns} columns, {done}", err=True)
    raise typer.Exit(4 if terminal.run.stats.skipped else 0)


@app.command(
    name="eval",
    epilog="Examples:  gpumatch eval out.jsonl --truth truth.json   |   "
    "gpumatch eval new.jsonl --truth truth.csv --against old.jsonl   |   "
    "gpumatch eval all.jsonl --truth truth.csv --pool",
)
def evaluate(
    results: Annotated[Path, typer.Argument(help="results file of gpumatch match")],
    truth: Annotated[
        Path, typer.Option(help="JSON or CSV rows with query_table, candidate_table and optional columns")
    ],
    lake: Annotated[
        Path | None, typer.Option(**_PLACE, help="leave out true candidates that this lake or index does not have")
    ] = None,
    follow_links: LinksOpt = None,
    against: Annotated[Path | None, typer.Option(help="another results file, compared by a paired bootstrap")] = None,
    level: Annotated[str, typer.Option(help="table, column, or auto: column if the truth has columns")] = "auto",
    pool: Annotated[
        bool, typer.Option("--pool", help="for results made with -k 0: share of the truth that search proposed")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Score results against a ground truth: ties averaged, 95% bootstrap intervals."""
    import json

    from gpumatch import metrics
    from gpumatch.records import load_results, load_truth
    from gpumatch.terminal import comparison_table, evaluation_table, pool_table, unanswered_line

    if pool and against is not None:
        raise UsageError("--pool and --against exclude each other; give one of the two")
    names = None
    if lake is not None:
        from gpumatch.pipeline import table_names

        names = table_names(lake, **_settings(follow_links=follow_links).reading)
    rows, answers = load_results(results), load_truth(truth)
    if against is not None:
        compared = metrics.compare(load_results(against), rows, answers, lake_tables=names, level=level)
        print(json.dumps(compared.to_dict()) if as_json else comparison_table(compared))  # noqa: T201
        return
    found: metrics.PoolRecall | metrics.Evaluation
    if pool:
        found = metrics.pool_recall(rows, answers, lake_tables=names, level=level)
        table = pool_table(found)
    else:
        found = metrics.evaluate(rows, answers, lake_tables=names, level=level)
        table = evaluation_table(found)
    print(json.dumps(found.to_dict()) if as_json else table)  # noqa: T201
    if line := unanswered_line(found):
        typer.echo(printable(line), err=True)


@app.command(
    epilog="Examples:  gpumatch explain out.jsonl a.csv b.csv   |   gpumatch explain out.jsonl a.csv b.csv --lake lake/"
)
def explain(
    results: Annotated[Path, typer.Argument(help="results file of gpumatch match")],
    query: Annotated[str, typer.Argument(help="name of the query table")],
    candidate: Annotated[str, typer.Argument(help="name of one of its matches")],
    column: Annotated[str | None, typer.Option(help="the query column, if the table was queried by several")] = None,
    task: Annotated[str | None, typer.Option(help="join or union, if the table was queried for both")] = None,
    lake: Annotated[
        Path | None, typer.Option(**_PLACE, help="the lake or its index, to show values that matching columns share")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(**_PLACE, help="folder, file or glob of the query table, if outside the lake"),
    ] = None,
    follow_links: LinksOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Say why a match is there: its columns, each signal with weight and contribution, and what comes next."""
    from gpumatch.explain import explain as explained
    from gpumatch.explain import with_shared_values
    from gpumatch.records import load_results
    from gpumatch.terminal import explanation_text

    found = explained(load_results(results, once=False), query, candidate, column, task)
    if lake is not None and found.columns:
        from gpumatch.pipeline import lake_behind

        reading = _settings(follow_links=follow_links).reading
        there = lake_behind(lake, "--lake", **reading)
        of_query = there if queries is None else lake_behind(queries, "--queries", **reading)
        query_table = of_query.table(found.query_table)
        if candidate in there.names:
            found = with_shared_values(found, query_table, there.table(candidate))
        else:
            typer.echo(printable(f"warning: {candidate} is no longer in {lake}: no shared values are shown"), err=True)
    _print(found, explanation_text, as_json)


@app.command(
    epilog="Examples:  gpumatch report out.jsonl -o out.html   |   gpumatch report out.jsonl -o out.csv   |   "
    "gpumatch report out.jsonl -o out.parquet"
)
def report(
    results: Annotated[Path, typer.Argument(help="results file of gpumatch match")],
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write: .html, .csv, .parquet or .jsonl")],
) -> None:
    """Write results for people and their tools: one HTML page, or a CSV or Parquet row a match."""
    from gpumatch import outputs
    from gpumatch.records import load_results
    from gpumatch.results import Matches

    outputs.keep_apart({"-o": output}, [results])
    Matches(load_results(results, once=False)).write(output)


@app.command(epilog="Examples:  gpumatch demo   |   gpumatch demo -o runs/demo --layer L1")
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for the results")] = Path("runs/demo"),
    layer: LayerOpt = None,
    device: DeviceOpt = None,
    threads: ThreadsOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Match the lake that ships with gpumatch, join and union, layer by layer, and score the answers."""
    from gpumatch import demo as shipped
    from gpumatch.terminal import Terminal, demo_table

    lines = []
    for one in shipped.plan(layer):
        settings = _settings(task=one.task, layer=one.layer, k=0, device=device, threads=threads)
        with Terminal(settings, quiet=True) as terminal:
            lines.append(shipped.measure(one, terminal.run, output))
            if not quiet:
                typer.echo(f"{one.task} {one.layer}: done", err=True)
    print(demo_table(lines))  # noqa: T201


@app.command(epilog="Examples:  gpumatch doctor   |   gpumatch doctor --quick --json")
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="do not load the encoder or use a GPU")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check the machine, the installation, the settings and the cache; exit code 1 where something fails."""
    import io
    import json

    from gpumatch import doctor as medicine

    # An encoding that lacks a letter of some path must not end the command that tells so.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    checks = []
    for check in medicine.examine(quick=quick):
        checks.append(check)
        if not as_json:
            typer.echo(medicine.to_text(check))
    if as_json:
        typer.echo(json.dumps(medicine.to_json(checks), indent=1))
    raise typer.Exit(medicine.exit_code(checks))


config_app = typer.Typer(
    help="Show the settings.",
    no_args_is_help=True,
    epilog="Examples:  gpumatch config show   |   gpumatch config show --json",
)
app.add_typer(config_app, name="config")


@config_app.command(epilog="Examples:  gpumatch config show   |   GPUMATCH_K=5 gpumatch config show --json")
def show(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    origin: Annotated[bool, typer.Option("--origin/--no-origin", help="show where each value comes from")] = True,
) -> None:
    """Show every setting, and whether a GPUMATCH_ variable, gpumatch.toml or the default gives it."""
    import json

    from gpumatch.config import settings_json, settings_text, shown_settings, unknown_settings

    shown = shown_settings()
    if as_json:
        typer.echo(json.dumps(settings_json(shown), indent=1))
        return
    typer.echo(settings_text(shown, origin=origin))
    for line in unknown_settings():
        typer.echo(printable(f"warning: {line}"), err=True)


cache_app = typer.Typer(
    help="Look at, prove, prune or clear the vectors and indexes in GPUMATCH_CACHE_DIR.",
    no_args_is_help=True,
    epilog="Examples:  gpumatch cache stats   |   gpumatch cache verify   |   gpumatch cache prune --older-than 30d",
)
app.add_typer(cache_app, name="cache")


@cache_app.command(name="stats", epilog="Examples:  gpumatch cache stats   |   gpumatch cache stats --json")
def cache_stats(as_json: JsonOpt = False) -> None:
    """Count what is in the cache, and what is of no use; changes nothing."""
    from gpumatch import care
    from gpumatch.terminal import cache_table

    _print(care.stats(_settings().cache_dir), cache_table, as_json)


@cache_app.command(epilog="Examples:  gpumatch cache verify   |   gpumatch cache verify --lake lake/ --sample 1000")
def verify(
    lake: Annotated[Path | None, typer.Option(**_PLACE, help="lake or index to take texts from too")] = None,
    sample: Annotated[int, typer.Option(min=0, help="how many texts of each model to encode anew")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="seed by which those texts are drawn")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Prove that the cache holds what was written, and true vectors; exit code 1 where it does not."""
    from gpumatch import care
    from gpumatch.run import Run
    from gpumatch.terminal import verified_text

    run = Run(_settings())
    with run.watched():
        found = care.verify(run, lake=lake, sample=sample, seed=seed)
    _print(found, verified_text, as_json)
    if not as_json:
        for note in found.notes:
            typer.echo(printable(f"note: {note}"), err=True)
    raise typer.Exit(1 if found.damages else 0)


@cache_app.command(epilog="Examples:  gpumatch cache prune --dry-run   |   gpumatch cache prune --older-than 30d")
def prune(
    older_than: Annotated[
        str | None, typer.Option(help="also delete indexes unused for this long, such as 30d")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be deleted")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Delete what nobody can reach or use: damaged entries and indexes, and what killed processes left."""
    from gpumatch import care
    from gpumatch.terminal import removed_text

    age = None if older_than is None else care.seconds_of(older_than)
    _print(care.prune(_settings().cache_dir, older_than=age, dry_run=dry_run), removed_text, as_json)


@cache_app.command(epilog="Examples:  gpumatch cache clear   |   gpumatch cache clear --indexes --yes")
def clear(
    vectors: Annotated[bool, typer.Option("--vectors", help="delete only the vectors")] = False,
    indexes: Annotated[bool, typer.Option("--indexes", help="delete only the indexes")] = False,
    verdicts: Annotated[bool, typer.Option("--verdicts", help="delete only the verdicts of language models")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="delete without asking")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Delete all vectors, indexes and verdicts, or some of these; what is not the cache's stays."""
    from gpumatch import care
    from gpumatch.terminal import removed_text

    asked = {"vectors": vectors, "indexes": indexes, "verdicts": verdicts}
    which = {name: wanted or not any(asked.values()) for name, wanted in asked.items()}
    what = " and ".join(name for name, wanted in which.items() if wanted)
    root = _settings().cache_dir
    if not yes and not sys.stdin.isatty():
        raise UsageError(f"clear would delete all {what} in {root}, and there is no terminal to ask; add --yes")
    if not yes:
        typer.confirm(f"Delete all {what} in {root}?", abort=True, err=True)
    _print(care.clear(root, **which), removed_text, as_json)


def _print(found: Any, as_text: Callable[[Any], str], as_json: bool) -> None:  # noqa: ANN401 - what care returns
    import json

    print(json.dumps(found.to_dict(), indent=1) if as_json else as_text(found))  # noqa: T201


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gpumatch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def _settings(**given: Any) -> Settings:  # noqa: ANN401 - whatever the flags are
    """Return the settings of this run; flags that were not given leave room for the environment and gpumatch.toml."""
    from gpumatch.config import load_settings

    return load_settings(**{name: value for name, value in given.items() if value is not None})


def main() -> None:
    """Run the command line; what people can act on becomes one line and an exit code, never a traceback."""
    # The imports behind a command make half a million objects that live as long as it does: looking through them for
    # cycles every few hundred allocations costs up to half a second.
    gc.set_threshold(1_000_000, 20, 100)
    # The same end as Ctrl-C: journals are closed, and process 1 of a container ends at all.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.unraisablehook = _arrive_again
    try:
        with told():
            _run()
    except GpumatchError as error:
        _end(error, error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError:  # the reader of our standard output has what it wanted (head, say)
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # a full disk, a folder that cannot be written
        _end(error, 1)


def _run() -> None:
    try:
        app()
    except SystemExit as ended:
        before = ended.__context__
        while before is not None:  # typer and rich end the process themselves where a reader has gone, with code 1
            if isinstance(before, BrokenPipeError | KeyboardInterrupt):
                raise before from None
            before = before.__context__
        if sys.stdout is not None:  # not even opened
            sys.stdout.flush()  # what has not arrived is not done
        raise


def script() -> NoReturn:
    """Do what `main` does and end at once: taking apart what a run has built takes Python up to two seconds."""
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)  # noqa: T201
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader has gone
            stream.flush()
    os._exit(code)


def _arrive_again(lost: sys.UnraisableHookArgs) -> None:
    """Have a signal come once more that came amid a callback from C (compilers have some), which lets no error out."""
    number = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(lost.exc_type)
    if number is None:
        sys.__unraisablehook__(lost)
    else:  # by another thread: from here it would be lost again
        _thread.start_new_thread(_send_again, (number,))


def _send_again(number: int) -> None:
    """Send a signal to the main thread as soon as that has left `_arrive_again`."""
    main_thread, inside = threading.main_thread().ident or 0, True
    while inside:
        time.sleep(0.01)
        frame = sys._current_frames().get(main_thread)
        while frame is not None and frame.f_code is not _arrive_again.__code__:
            frame = frame.f_back
        inside = frame is not None
    signal.pthread_kill(main_thread, number)


def _end(said: object, code: int) -> NoReturn:
    print(printable(f"gpumatch: {said}"), file=sys.stderr)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    script()
