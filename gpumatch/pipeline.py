"""Settings, a lake and queries in, result rows out: the only code that knows the order of the stages.

    lake → profile → embed → index ─┐
                                    ├→ search → rescore → results
    queries → profile → embed ──────┘

Prints nothing and parses nothing. `search`, `rescore` and the ranking of their answers meet in `rank`.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from gpumatch import __version__
from gpumatch.alignment import Alignment
from gpumatch.alignment import align as align_tables
from gpumatch.cache.publish import CacheError, make_private_folder
from gpumatch.config import llm_key, llm_price
from gpumatch.embed import Embedder, Vectors, open_store
from gpumatch.errors import IndexError_, LakeError, UsageError
from gpumatch.index import FORMAT, MANIFEST, Index, TableSet, check_folder, is_index
from gpumatch.lake import Lake, Query, QuerySet, Skipped, Table, find_queries, listed, open_lake, table_queries
from gpumatch.lake.rules import PARTLY
from gpumatch.machine import available_memory
from gpumatch.memory import host_plan, sized
from gpumatch.profile import Profiles, encoder_texts, profile_tables
from gpumatch.rank import Asked, answer, devices, ensure_pools
from gpumatch.recipes import TASKS, Recipe
from gpumatch.run import Run
from gpumatch.text import normalise_name
from gpumatch.texts import Texts

if TYPE_CHECKING:  # runs without a language model never load it
    from gpumatch.asking import Asker
    from gpumatch.judge.judge import Judge, Plan

# Query rows by their file; tables from outside the lake by path, or read already; rows of tables of the lake.
Queries = str | Path | Sequence[Table] | QuerySet | None
# Given what the rows depend on, returns how many of them, from the first one on, are there already.
Resume = Callable[[Mapping[str, Any]], int]
# Settings that do not change the answers; of weights the file's content counts and not its name.
_RESOURCES = {"threads", "cache_dir", "cache", "index_cache", "max_memory", "weights"}
_RESOURCES |= {"llm_url", "llm_key_file", "llm_concurrency", "llm_timeout", "llm_deadline", "llm_rpm", "llm_tpm"}
# Settings that answers depend on only if a language model is asked.
_OF_JUDGES = {"llm_model", "llm_max_calls", "llm_max_tokens", "llm_budget", "llm_price", "redact"}


def match(
    source: str | Path | Index,
    run: Run,
    *,
    queries: Queries = None,
    columns: Sequence[str] = (),
    offset: int = 0,
    max_queries: int | None = None,
    resume: Resume = lambda depends: 0,
    anew: bool = True,
) -> Iterator[dict[str, Any]]:
    """Yield one result row for every query row, in their order.

    Args:
        source: a lake, an index folder, or an index that is open.
        queries, columns: as `lake.find_queries`; or tables from outside the lake.
        offset, max_queries: which query rows; the lines are the same ones that a full run gives.
        resume: asked once; the rows that are there already are neither made nor yielded again.
        anew: whether to start over; otherwise what a stopped run of the same has spent on a language model counts.

    Raises:
        LakeError, UsageError, IndexError_, EncoderError, DeviceError: with what to do about it.
    """
    if run.judging:
        _can_ask(run)
    index, wanted, asked = _prepared(source, run, queries, columns)
    stop = len(asked.rows) if max_queries is None else min(len(asked.rows), offset + max_queries)
    depends = _depends(index, wanted, run, devices(index, asked, run)) | {"part of the queries": [offset, max_queries]}
    done = resume(depends)
    run.stats.count("resumed", done)
    if not run.judging:
        yield from answer(index, asked, run, offset + done, stop)
        return
    from gpumatch.asking import Asking

    with _judging(run, depends, anew=anew) as judge:
        asking = Asking(index, asked, run, offset, stop)
        yield from answer(index, asked, run, offset + done, stop, partial(asking.judged, judge))


def plan(
    source: str | Path | Index,
    run: Run,
    *,
    queries: Queries = None,
    columns: Sequence[str] = (),
    offset: int = 0,
    max_queries: int | None = None,
    judge: Asker | None = None,
) -> Plan:
    """Return what `match` would ask a language model; nothing is asked.

    Args, raises: as `match`.
        judge: takes all rankings, in place of the judge that only plans.
    """
    from gpumatch.asking import Asking

    index, _, asked = _prepared(source, run, queries, columns)
    stop = len(asked.rows) if max_queries is None else min(len(asked.rows), offset + max_queries)
    with _judging(run, {}, ask=False, anew=False) as planning:
        Asking(index, asked, run, offset, stop).plan(judge or planning)
        return planning.plan


def _can_ask(run: Run) -> None:
    """Raise, before anything is read, what is missing to ask a language model."""
    if not (run.settings.llm_url and run.settings.llm_model):
        raise UsageError(
            "--layer L1+L2+L3 asks a language model: give --llm-url (an OpenAI-compatible server, such as "
            "http://localhost:8000/v1) and --llm-model; --dry-run shows what would be sent"
        )
    llm_price(run.settings)
    llm_key(run.settings)


@contextlib.contextmanager
def _judging(run: Run, depends: Mapping[str, Any], *, anew: bool, ask: bool = True) -> Iterator[Judge]:
    """Yield the judge that is asked about uncertain candidates; then note what it asked and spent in the statistics."""
    from gpumatch.cache.verdicts import VerdictStore
    from gpumatch.judge.judge import Judge
    from gpumatch.judge.limits import Budget, Price
    from gpumatch.judge.pool import Limits
    from gpumatch.judge.transport import HttpTransport, Transport

    settings = run.settings
    prices = Price(*llm_price(settings))
    budget = Budget(settings.llm_max_calls, settings.llm_max_tokens, settings.llm_budget, prices)
    limits = Limits(
        settings.llm_concurrency, settings.llm_timeout, settings.llm_deadline, settings.llm_rpm, settings.llm_tpm
    )
    key, url, model = llm_key(settings), settings.llm_url or "", settings.llm_model or ""
    name = xxhash.xxh3_128_hexdigest(json.dumps(depends, sort_keys=True).encode())

    def connect() -> Transport:
        return HttpTransport(url, key, settings.llm_concurrency)

    with VerdictStore(run.verdict_folder) as store:
        if anew:
            store.forget(name)
        with Judge(connect if ask else None, model, store, name, limits, budget) as judge:
            yield judge
            for what, n in judge.told().items():
                run.stats.count(what, n)
        if ask:
            try:
                store.put({})
                store.forget(name)
            except CacheError as error:  # the rows are made and paid for: keep them
                run.warn(f"what was spent, and the verdicts since, are not kept for later runs: {error}")


def _prepared(
    source: str | Path | Index, run: Run, queries: Queries, columns: Sequence[str]
) -> tuple[Index, QuerySet, Asked]:
    """Return an open index with the pools that the recipes need, and the query rows, as written and resolved."""
    path = source.folder or Path() if isinstance(source, Index) else Path(source)
    lake = None if isinstance(source, Index) or is_index(path) else _open_lake(source, run)
    wanted = _find_queries(lake, queries, columns, run) if lake is not None else None
    recipes = [run.recipe(task) for task in _tasks(wanted, run)]
    if isinstance(source, Index):
        index = _fitting(source, recipes, run)
    else:
        index = open_index(lake, recipes, run) if lake is not None else _load(path, recipes, run)
    if wanted is None:
        wanted = _find_queries(_indexed_lake(index, path, queries, run), queries, columns, run)
    return index, wanted, _resolve(wanted, index, _outside_tables(wanted, queries, run), run)


def align(a: str | Path | Table, b: str | Path | Table, run: Run, *, keys: bool = False) -> Alignment:
    """Match the columns of two tables, each a file (or a lake of one table) or a table that was read before.

    Args:
        keys: whether to look for what to join the two on.

    Raises:
        LakeError: one of them is no table.
    """
    with run.stats.stage("read", "tables") as stage:
        query, candidate = (one if isinstance(one, Table) else _only_table(one, run) for one in (a, b))
        stage.items += 2
    with run.stats.stage("profile", "columns") as stage:
        profiles = profile_tables([query, candidate])
        stage.items += profiles.n_columns
    return align_tables(query, candidate, _table_set(profiles, run), run, keys=keys)


def _only_table(source: str | Path, run: Run) -> Table:
    if not glob.has_magic(str(source)) and not os.path.lexists(source):
        raise LakeError(f"no table at {source}: give a CSV, TSV or Parquet file")
    lake = open_lake(source, **run.settings.reading)
    run.reads(lake.paths)
    if len(lake.names) != 1:
        raise LakeError(f"{source} holds {len(lake.names)} tables; give the file of one, or a glob that names one")
    table = lake.table(lake.names[0])
    tell(_told(lake), run)
    return table


def update_index(source: str | Path, folder: Path, run: Run) -> tuple[Index, bool]:
    """Build the index of a lake in a folder, or bring it up to date; return it, and whether it had to be built."""
    check_folder(folder)
    lake = _open_lake(source, run)
    recipes = [run.recipe(task) for task in ("join", "union")]
    stamp = {"stamp": lake.stamp(), "follow_links": lake.follow_links}  # before any table is read
    about = _about(lake, run)
    index = _stored(folder, about)
    built = index is None
    if index is None:
        index = _build(lake, about, run)
    before = dict(index.about)
    index.about |= stamp | _place_of(lake)
    if ensure_pools(index, recipes, run) or built or index.about != before:
        _save(index, folder, run)
    tell(index.about, run)
    return index, built


def _depends(index: Index, wanted: QuerySet, run: Run, devices: list[str]) -> dict[str, Any]:
    """Return what result rows depend on, under names that people know."""
    rows = [(row.table, row.column, row.task, row.text) for row in wanted.rows]
    outside = None if wanted.outside is None else wanted.outside.fingerprint()
    asked = json.dumps([rows, outside, sorted(wanted.twins.items())]).encode()
    about = index.about
    left_out = _RESOURCES if run.judging else _RESOURCES | _OF_JUDGES
    depends: dict[str, Any] = {}
    if run.judging:
        from gpumatch.judge.prompt import PROMPT_VERSION

        depends["prompt"] = PROMPT_VERSION
    return depends | {
        "lake": [about["lake"], sorted(one["name"] for one in about["skipped"]) if about.get("incomplete") else []],
        "queries": xxhash.xxh3_128_hexdigest(asked),
        "encoder": about["encoder"],
        "gpumatch": [about["gpumatch"], about["format"]],
        "settings": run.settings.model_dump(mode="json", exclude=left_out) | {"device": devices},
        "weights": [run.recipe(task).key() for task in TASKS],
    }


# --- lake → profile → embed → index


def _open_lake(source: str | Path, run: Run) -> Lake:
    lake = open_lake(source, **run.settings.reading)
    _reads(lake, run)
    aside = lake.left_aside()
    if len(aside) > len(lake.names):  # one or two may be anything
        run.warn(
            f"{lake.opened} has tables/ or a tables.json, so that its {len(aside)} other table files, such as "
            f"{aside[0]}, are not read; give a glob ({lake.opened / '**/*.csv'}) to read them, too"
        )
    _warn_of_memory(lake, run)
    return lake


def _reads(lake: Lake, run: Run) -> None:
    """Declare that a lake is read; what the run writes must not be a table of it, now or the next time."""
    run.reads(lake.paths)
    for option, path in run.written.items():
        if lake.would_read(path):
            raise UsageError(
                f"{option} {path} would be read as a table of {lake.opened} from then on; give {option} another place, "
                f"or a name such as {path.name.partition('.')[0] or 'out'}.jsonl"
            )


def _warn_of_memory(lake: Lake, run: Run) -> None:
    """Warn before the run if it will not fit, with the figures."""
    threads, limit, there = run.settings.threads, run.settings.max_memory, available_memory()
    size = lake.size()
    plan = host_plan(len(lake.names), size, threads, dense=run.dense, device=run.device)
    run.stats.memory_plan["host"] = asdict(plan)
    need = plan.needed
    most, what = (there, "available") if limit is None or there < limit else (limit, "allowed by --max-memory")
    if need <= most:
        return
    less = host_plan(len(lake.names), size, 1, dense=False).needed
    run.warn(
        f"{len(lake.names)} tables of {sized(size)} are expected to need about {sized(need)} of memory, "
        f"and {sized(most)} are {what}; --layer L1 --threads 1 would need about {sized(less)}"
    )


def _indexed_lake(index: Index, folder: Path, queries: Queries, run: Run) -> Lake:
    """Return the lake that an index was built from, if it is still there: it may list its queries beside its tables.

    If query tables are given, the lake's files tell which of them are tables of the lake.
    """
    root = Path(index.about.get("source") or folder)
    if isinstance(queries, str | Path):
        with contextlib.suppress(LakeError):
            return open_lake(index.about.get("opened") or root, **run.settings.reading)
    elif queries is None and not root.is_dir():
        run.warn(
            f"{root}, the lake that was indexed, is gone, and with it any list of queries: every table is a query; "
            "give --queries for others"
        )
    return Lake(root, list(index.lake.profiles.tables))


def table_names(source: Path, **reading: Any) -> set[str]:  # noqa: ANN401 - as open_lake
    """Return the names of the tables of a lake, or of an index.

    Args:
        reading: as `open_lake`.

    Raises:
        LakeError, IndexError_: there is neither.
    """
    return set(Index.load(source).lake.profiles.tables if is_index(source) else open_lake(source, **reading).names)


def lake_behind(source: Path, option: str, **reading: Any) -> Lake:  # noqa: ANN401 - as open_lake
    """Open a lake, or the one that an index was built from: an index keeps no cells.

    Args:
        source: a lake or an index. option: what gave it.
        reading: as `open_lake`; the lake behind an index is read as it was for the index.

    Raises:
        LakeError, IndexError_: there is none, or no longer.
    """
    if not is_index(source):
        return open_lake(source, **reading)
    about = Index.load(source).about
    try:
        return open_lake(about.get("opened") or source, **reading | about.get("reading", {}))
    except LakeError as error:
        raise LakeError(f"the lake behind the index {source}: {error}; or give {option} the lake itself") from error


def open_index(lake: Lake, recipes: Sequence[Recipe], run: Run) -> Index:
    """Return the index of a lake: the one in the cache directory if lake, encoder and version are the same."""
    keep = run.settings.cache and run.settings.index_cache
    with run.stats.stage("open", "tables") as stage:
        about = _about(lake, run)
        folder = run.settings.cache_dir / "indexes" / xxhash.xxh3_128_hexdigest(repr(sorted(about.items())).encode())
        index = _stored(folder, about) if keep else None
        stage.items += len(lake.names) if index else 0
    if index is None:
        index = _build(lake, about, run)
    made = ensure_pools(index, recipes, run)
    if keep and not index.about["incomplete"] and (made or index.folder is None):
        try:
            make_private_folder(folder)  # an index holds values of the lake
            _save(index, folder, run)
        except (CacheError, IndexError_) as error:
            run.warn(f"the index is not kept for later runs: {error}, or give --no-index-cache")
    elif keep:
        with contextlib.suppress(OSError):  # for `cache prune`, which looks at when an index was last used
            os.utime(folder / MANIFEST)
    tell(index.about, run)
    return index


def _build(lake: Lake, about: dict[str, Any], run: Run) -> Index:
    tables = _read_and_embedded(lake, run)
    with run.stats.stage("index", "tables") as stage:
        reading = {"sample_rows": lake.sample_rows, "follow_links": lake.follow_links}
        about = about | _told(lake) | _place_of(lake) | {"reading": reading}
        index = Index.of(tables, about, run.settings.threads)
        stage.items += tables.profiles.n_tables
    return index


def _place_of(lake: Lake) -> dict[str, str]:
    """Return where a lake lies, as an index keeps it."""
    return {"source": str(lake.root.absolute()), "opened": str(lake.opened.absolute())}


def _told(lake: Lake) -> dict[str, Any]:
    """Return what was not read of a lake, or only in part, in the form that an index keeps."""
    skipped, partly = ([asdict(one) for one in some] for some in (lake.skipped, lake.notes))
    return {"skipped": skipped, "partly": partly, "incomplete": lake.incomplete}


def tell(told: Mapping[str, Any], run: Run) -> None:
    """Add what was not read to the run's list, and warn once for each rule by which tables were read only in part."""
    run.stats.skipped.extend(told["skipped"])
    for rule, number in Counter(one["rule"] for one in told["partly"]).items():
        first = next(one for one in told["partly"] if one["rule"] == rule)
        run.stats.warnings.append(
            f"{rule}: {number} tables were read in part ({PARTLY.get(rule, '')}); {first['name']}: {first['found']}"
        )


def _read_and_embedded(lake: Lake, run: Run) -> TableSet:
    """Read, profile and embed tables; texts are embedded while the tables after theirs are read."""
    if not run.dense:
        return TableSet(_profiled(lake, run), None)
    columns: list[int] = []
    with _embedder(run) as embedder:
        profiled = 0

        def seen(some: Profiles) -> None:
            nonlocal profiled
            columns.append(some.n_columns)
            profiled += some.n_tables  # not those that are read, which are a batch or three ahead
            embedder.give(encoder_texts(some), profiled / max(1, len(lake.names)))

        profiles = _profiled(lake, run, seen)
        rows, places = _embedded(embedder, run)
    return TableSet(profiles, Vectors.of(rows, places, columns))


def _profiled(lake: Lake, run: Run, seen: Callable[[Profiles], None] = lambda some: None) -> Profiles:
    """Read and profile tables; only the time that the run waits for profiling, beside reading, counts as profiling."""
    read = run.stats.stages.get("read")
    before = read.seconds if read else 0.0
    with run.stats.stage("profile", "columns") as stage:
        profiles = profile_tables(_read(lake, run), seen, run.settings.threads)
        stage.items += profiles.n_columns
    stage.seconds -= run.stats.stages["read"].seconds - before
    return profiles


def _read(lake: Lake, run: Run) -> Iterator[Table]:
    tables = lake.tables()
    while True:
        with run.stats.stage("read", "tables") as stage:
            table = next(tables, None)
        if table is None:
            return
        stage.items += 1
        run.step("read", stage.items, len(lake.names))
        yield table


def _table_set(profiles: Profiles, run: Run) -> TableSet:
    """Embed profiled tables."""
    if not run.dense:
        return TableSet(profiles, None)
    rows, place = _vectors_of(encoder_texts(profiles), run)
    return TableSet(profiles, Vectors.of(rows, [place], [profiles.n_columns]))


def _vectors_of(texts: Sequence[str], run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of the distinct ones among some texts, and the row of each text."""
    with _embedder(run) as embedder:
        embedder.give(texts)
        rows, (place,) = _embedded(embedder, run)
    return rows, place


@contextlib.contextmanager
def _embedder(run: Run) -> Iterator[Embedder]:
    encoder = run.open_encoder()

    def progress(done: int, found: int) -> None:
        run.step("encode", done, found)

    with _vector_root(run) as root, open_store(root, encoder) as store:
        with Embedder(encoder, store, device=run.device, progress=progress) as embedder:
            yield embedder
        run.stats.warnings.extend(store.damaged)


def _embedded(embedder: Embedder, run: Run) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the vectors of the distinct texts, and the rows of each `give`'s texts."""
    with run.stats.stage("encode", "texts") as stage:
        rows, places, counts = embedder.finish()
        stage.items += counts.encoded
        if counts.encoded:  # a user's own encoder need not say which
            stage.worked_on(str(getattr(run.encoder, "device", "")))
    run.stats.count("texts", counts.texts)
    run.stats.count("encoded", counts.encoded)
    return rows, places


@contextlib.contextmanager
def _vector_root(run: Run) -> Iterator[Path]:
    if run.settings.cache:
        yield run.settings.cache_dir / "vectors"
        return
    with tempfile.TemporaryDirectory(prefix="gpumatch-") as folder:
        yield Path(folder)


def _about(lake: Lake, run: Run) -> dict[str, Any]:
    """Return what an index depends on: equal for equal indexes."""
    return {"lake": lake.fingerprint(), "encoder": _encoder_name(run), "gpumatch": __version__, "format": FORMAT}


def _encoder_name(run: Run) -> str | None:
    if not run.dense:
        return None
    encoder = run.open_encoder()
    return f"{encoder.model}@{encoder.revision}"


def _stored(folder: Path, about: dict[str, Any]) -> Index | None:
    """Return the index in a folder if it is whole and depends on the same things; else None, and it is rebuilt.

    None also if a file that could not be read when it was built may be readable now.
    """
    with contextlib.suppress(IndexError_):
        index = Index.load(folder)
        if all(index.about.get(name) == value for name, value in (about | {"incomplete": False}).items()):
            return index
    return None


def _load(folder: Path, recipes: Sequence[Recipe], run: Run) -> Index:
    """Open an index that the user names; if it does not fit the settings that is an error, and it is not rebuilt."""
    run.reads([folder])
    return _fitting(load_index(folder, run), recipes, run)


def load_index(folder: Path, run: Run) -> Index:
    """Open an index folder; `Index.load` raises what is wrong with it. A lake that has changed since is a warning."""
    with run.stats.stage("open", "tables") as stage:
        index = Index.load(folder)
        stage.items += index.lake.profiles.n_tables
    if changes := _changes_since(index):
        lake = index.about["opened"]
        run.warn(
            f"{folder} is older than its lake {lake}: {changes}; gpumatch index {lake} -o {folder} brings it up to date"
        )
    return index


def _changes_since(index: Index) -> str:
    """Say what has changed in the lake that an index was built from; empty where nothing has, or it is not there."""
    about = index.about
    try:
        names, stamp = listed(about["opened"], follow_links=about["follow_links"])
    except (KeyError, LakeError, OSError):  # an index in the cache is looked up by what its files hold
        return ""
    if stamp == about["stamp"]:
        return ""
    if names is None:
        return "its file was written to"
    tables = set(index.lake.profiles.tables)
    added, removed = len(names - tables - {one["name"] for one in about["skipped"]}), len(tables - names)
    told = [f"{n} {what}" for n, what in ((added, "added"), (removed, "removed")) if n]
    return f"tables: {', '.join(told)}" if told else "files were written to"


def _fitting(index: Index, recipes: Sequence[Recipe], run: Run) -> Index:
    """Return an open index with the pools that the recipes need, or say why it does not fit the settings.

    Pools that it lacks are made in memory: the folder may be somebody else's, or hold a newer index by now.
    """
    folder = index.folder or Path("INDEX")
    built_with, asked_for = index.about["encoder"], _encoder_name(run)
    if asked_for is not None and built_with is None:
        raise UsageError(f"{folder} was indexed for L1; add --layer L1, or rebuild it: gpumatch index LAKE -o {folder}")
    if asked_for is not None and built_with != asked_for:
        raise UsageError(
            f"{folder} was indexed with the encoder {built_with}, not with {asked_for}; name that one with --encoder, "
            f"or rebuild the index: gpumatch index LAKE -o {folder}"
        )
    ensure_pools(index, recipes, run)
    tell(index.about, run)
    return index


def _save(index: Index, folder: Path, run: Run) -> None:
    with run.stats.stage("store", "tables") as stage:
        index.save(folder)
        stage.items += index.lake.profiles.n_tables


# --- queries → profile → embed


def _find_queries(lake: Lake, queries: Queries, columns: Sequence[str], run: Run) -> QuerySet:
    if isinstance(queries, QuerySet):
        _confident(queries, run)
        return queries
    if queries is None or isinstance(queries, str | Path):
        found = find_queries(lake, queries, run.settings.task, columns)
        if found.listed is not None:
            run.reads([found.listed])
        _confident(found, run)
        if found.outside is not None:
            _reads(found.outside, run)
        if queries is None and found.listed is not None:
            run.say(f"{found.listed} lists the queries; --queries takes others")
        elif queries is None and (table := lake.root / "queries.csv").is_file():
            run.warn(f"{table} has no column query_table or query_text: it is a table, and every table is a query")
        return found
    if run.settings.task == "auto":
        raise UsageError("query tables from outside the lake have no task_type; give task='join' or task='union'")
    return QuerySet(table_queries([table.name for table in queries], columns, run.settings.task, "the query tables"))


def _confident(wanted: QuerySet, run: Run) -> None:
    if run.settings.min_confidence and any(row.text is not None for row in wanted.rows):
        where = f", as in {wanted.listed}," if wanted.listed else ""
        raise UsageError(
            f"--min-confidence goes by confidences, and rows with query_text{where} have none; leave out one of the two"
        )


def _tasks(wanted: QuerySet | None, run: Run) -> list[str]:
    """Return the tasks whose pools are needed; while an index is built, and queries are not known, by the settings."""
    if wanted is not None:
        return sorted({row.task for row in wanted.rows})
    return ["join", "union"] if run.settings.task == "auto" else [run.settings.task]


def _outside_tables(wanted: QuerySet, queries: Queries, run: Run) -> TableSet | None:
    if wanted.outside is not None:
        tables = _read_and_embedded(wanted.outside, run)
        tell(_told(wanted.outside), run)
        return tables
    if queries is None or isinstance(queries, str | Path | QuerySet):
        return None
    return _table_set(profile_tables(queries), run)


def _resolve(wanted: QuerySet, index: Index, outside: TableSet | None, run: Run) -> Asked:
    """Find each query row's table and column; a row for which that fails is listed as skipped and has no matches."""
    rows = wanted.rows
    tables = outside or index.lake
    place = {name: i for i, name in enumerate(tables.profiles.tables)}
    table = np.array([-1 if row.table is None else place.get(row.table, -1) for row in rows], np.int64)
    unread = {one["name"] for one in index.about["skipped"]}  # listed already
    gone = {
        row.table: Skipped(row.table, "query-table", "not a table of the lake")
        for row in rows
        if row.table is not None and row.table not in place and row.table not in unread
    }
    if rows and (table < 0).all() and all(row.table is not None for row in rows):
        names = {row.table for row in rows}
        if wanted.outside is not None or not gone:
            skipped = (index.about if wanted.outside is None else _told(wanted.outside))["skipped"]
            lacking = [f"{one['name']}: {one['rule']}: {one['found']}" for one in skipped if one["name"] in names]
            why = "; ".join(lacking[:3])
            raise LakeError(f"none of the query tables can be read ({why}); mend them, or give others with --queries")
        raise LakeError(
            f"none of the {len(names)} query tables is in the lake (the first is {rows[0].table!r}); "
            "give the folder that holds them: --queries FOLDER"
        )
    exclude = table.copy()  # which changes below
    if outside is not None:
        in_lake = {name: i for i, name in enumerate(index.lake.profiles.tables)}
        exclude = np.array([in_lake.get(wanted.twins.get(row.table or "", ""), -1) for row in rows], np.int64)
    column = np.full(len(rows), -1, np.int64)
    missing = list(gone.values()) if outside is None else []
    for i, row in enumerate(rows):
        if row.table is not None and row.column is not None and table[i] >= 0:
            column[i] = column_of(tables.profiles, int(table[i]), row.column)
            if column[i] < 0:
                missing.append(Skipped(row.table, "query-column", f"it has no column {row.column!r}"))
                table[i] = -1
    if missing and (table < 0).all() and all(row.column is not None for row in rows):
        first = place[missing[-1].name]
        there = tables.profiles.headers[slice(*tables.profiles.table_cols[first : first + 2])]
        raise LakeError(
            f"none of the query tables has the column that is asked for ({missing[-1].name}: {missing[-1].found}, but "
            f"{', '.join(map(repr, there[:10])) or 'none'}{', …' * (len(there) > 10)}); name one that is there"
        )
    run.stats.skipped.extend(asdict(one) for one in missing)
    _tell_repeated(
        [(row, place[row.table]) for row in rows if row.column is not None and row.table in place], tables, run
    )
    return Asked(rows, tables, table, column, exclude, *_texts(rows, run))


def _tell_repeated(asked: Iterable[tuple[Query, int]], tables: TableSet, run: Run) -> None:
    """Warn where a column that is asked for shares its name with others of its table."""
    headers, start = tables.profiles.headers, tables.profiles.table_cols
    repeated = [
        (row.table, row.column) for row, t in asked if headers[start[t] : start[t + 1]].count(str(row.column)) > 1
    ]
    if repeated:
        table, column = repeated[0]
        told = f"the first is taken (of {table}, {column!r})"
        run.warn(f"{len(repeated)} query columns have a name that others of their table have: {told}")


def _texts(rows: Sequence[Query], run: Run) -> tuple[Texts, np.ndarray]:
    """Return the distinct texts of some query rows, and which of them each row has, int64 [n], -1 for none."""
    texts = list(dict.fromkeys(row.text for row in rows if row.text is not None))
    place = {text: i for i, text in enumerate(texts)}
    vectors = None
    if texts and run.dense:
        found, at = _vectors_of(texts, run)
        vectors = found[at].astype(np.float32)
    return Texts.of(texts, vectors), np.array([-1 if row.text is None else place[row.text] for row in rows], np.int64)


def column_of(profiles: Profiles, table: int, name: str) -> int:
    """Return the first column with that header, else the first with its normal form, else -1."""
    columns = range(int(profiles.table_cols[table]), int(profiles.table_cols[table + 1]))
    exact = (c for c in columns if profiles.headers[c] == name)
    alike = (c for c in columns if profiles.names[c] == normalise_name(name))
    return next(exact, next(alike, -1))
