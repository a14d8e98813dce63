"""Command lines in, exit codes out: data on standard output, everything said to people on standard error.

Only parses and prints; what a command does is in `pipeline`. Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from gpumatch import __version__
from gpumatch.cache.publish import CacheError
from gpumatch.errors import GpumatchError

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

LakeArg = Annotated[Path, typer.Argument(help="folder of CSV, TSV or Parquet files, tables.json, or glob")]
QueriesOpt = Annotated[str | None, typer.Option(help="queries.json or .csv; or a folder, file or glob of query tables")]
TaskOpt = Annotated[str | None, typer.Option(help="join, union, or auto: each query row's task_type")]
LayerOpt = Annotated[str | None, typer.Option(help="L1 (no encoder) or L1+L2  [default: L1+L2]")]
KOpt = Annotated[int | None, typer.Option("-k", min=0, help="matches a query; 0 for all survivors  [default: 20]")]
DeviceOpt = Annotated[str | None, typer.Option(help="auto, cpu or cuda  [default: auto]")]
EncoderOpt = Annotated[str | None, typer.Option(help="folder or hub id of a sentence-transformers model")]
ThreadsOpt = Annotated[int | None, typer.Option(min=1, help="CPU threads  [default: all]")]
CacheOpt = Annotated[
    bool | None, typer.Option("--cache/--no-cache", help="keep vectors and indexes in the cache directory")
]
IndexCacheOpt = Annotated[
    bool | None, typer.Option("--index-cache/--no-index-cache", help="reuse and keep indexes there")
]
StatsOpt = Annotated[Path | None, typer.Option(help="write the run's statistics as JSON")]
QuietOpt = Annotated[bool, typer.Option("-q", "--quiet", help="say nothing but errors")]


@app.command(
    epilog="Examples:  gpumatch match lake/ --task join -k 5   |   "
    "gpumatch match lake/ --queries new/ --task union -o out.jsonl"
)
def match(
    lake: LakeArg,
    queries: QueriesOpt = None,
    task: TaskOpt = None,
    layer: LayerOpt = None,
    k: KOpt = None,
    offset: Annotated[int, typer.Option(min=0, help="first query row")] = 0,
    max_queries: Annotated[int | None, typer.Option(min=0, help="query rows to answer")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="results file; standard output without it")
    ] = None,
    device: DeviceOpt = None,
    encoder: EncoderOpt = None,
    threads: ThreadsOpt = None,
    cache: CacheOpt = None,
    index_cache: IndexCacheOpt = None,
    stats: StatsOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Rank, for every query table, the lake's tables that it can be joined or unioned with (JSON Lines)."""
    from gpumatch import pipeline
    from gpumatch.terminal import Terminal, writing

    settings = _settings(
        task=task,
        layer=layer,
        k=k,
        device=device,
        encoder=encoder,
        threads=threads,
        cache=cache,
        index_cache=index_cache,
    )
    with Terminal(settings, quiet=quiet, stats=stats) as terminal, writing(output) as sink:
        rows = pipeline.match(lake, terminal.run, queries=queries, offset=offset, max_queries=max_queries)
        for row in rows:
            sink(row)
    raise typer.Exit(4 if terminal.run.stats.skipped else 0)


@app.command(epilog="Examples:  gpumatch index lake/ -o lake.idx   |   gpumatch match lake.idx --task join")
def index(
    lake: LakeArg,
    output: Annotated[Path, typer.Option("-o", "--output", help="index folder to build or bring up to date")],
    layer: LayerOpt = None,
    device: DeviceOpt = None,
    encoder: EncoderOpt = None,
    threads: ThreadsOpt = None,
    cache: CacheOpt = None,
    stats: StatsOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Build the index of a lake, or bring it up to date."""
    from gpumatch import pipeline
    from gpumatch.terminal import Terminal

    settings = _settings(layer=layer, device=device, encoder=encoder, threads=threads, cache=cache)
    with Terminal(settings, quiet=quiet, stats=stats) as terminal:
        built, fresh = pipeline.update_index(lake, output, terminal.run)
    tables = built.lake.profiles
    typer.echo(f"{output}: {tables.n_tables} tables, {tables.n_columns} columns, {'built' if fresh else 'up to date'}")
    raise typer.Exit(4 if terminal.run.stats.skipped else 0)


@app.command(
    name="eval",
    epilog="Examples:  gpumatch eval out.jsonl --truth truth.json   |   "
    "gpumatch eval new.jsonl --truth truth.csv --against old.jsonl",
)
def evaluate(
    results: Annotated[Path, typer.Argument(help="results of gpumatch match")],
    truth: Annotated[
        Path, typer.Option(help="JSON or CSV rows with query_table, candidate_table and optional columns")
    ],
    lake: Annotated[Path | None, typer.Option(help="leave out true candidates that this lake does not have")] = None,
    against: Annotated[Path | None, typer.Option(help="another results file, compared by a paired bootstrap")] = None,
    level: Annotated[str, typer.Option(help="table, column, or auto: columns where the truth has them")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Score results against a ground truth: ties averaged, 95% bootstrap intervals."""
    import json

    from gpumatch import metrics
    from gpumatch.terminal import comparison_table, evaluation_table

    names = None
    if lake is not None:
        from gpumatch.lake import open_lake

        names = set(open_lake(lake).names)
    rows, answers = metrics.load_results(results), metrics.load_truth(truth)
    if against is not None:
        compared = metrics.compare(metrics.load_results(against), rows, answers, lake_tables=names, level=level)
        print(json.dumps(compared.to_dict()) if as_json else comparison_table(compared))  # noqa: T201
        return
    found = metrics.evaluate(rows, answers, lake_tables=names, level=level)
    print(json.dumps(found.to_dict()) if as_json else evaluation_table(found))  # noqa: T201


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
    from pydantic import ValidationError

    from gpumatch.config import Settings
    from gpumatch.errors import UsageError

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UsageError(f"{name} = {first['input']!r}: {first['msg']}") from error


def main() -> None:
    """Run the command line; a GpumatchError becomes one line and its exit code, never a traceback."""
    # The imports behind a command make half a million objects that live as long as it does: looking through them for
    # cycles every few hundred allocations costs a quarter of a second.
    gc.set_threshold(100_000, 20, 100)
    try:
        app()
    except GpumatchError as error:
        _end(error, error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError:
        # The reader of our standard output has gone (head, say); there is nobody left to tell.
        sys.stderr.close()
        sys.exit(141)
    except (OSError, CacheError) as error:  # a full disk, a folder that cannot be written
        _end(error, 1)


def _end(said: object, code: int) -> NoReturn:
    print(f"gpumatch: {said}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
