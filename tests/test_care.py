"""The care of the cache: what is wrong is found by name and mended by the command that is said; what is whole stays."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner
from word_encoder import embed_texts

import gpumatch.run
from gpumatch import care, cli, embed, pipeline
from gpumatch.cache import shards
from gpumatch.cache.inspect import VectorReader
from gpumatch.cache.keys import text_keys
from gpumatch.cache.publish import folder_in_work
from gpumatch.cache.shards import Segment
from gpumatch.cache.verdicts import ASIDE, FILE, VerdictStats, VerdictStore, secret_of
from gpumatch.config import Settings
from gpumatch.embed import Vectors, open_store
from gpumatch.errors import UsageError
from gpumatch.index import FORMAT, Index, TableSet, read_manifest
from gpumatch.lake import Table
from gpumatch.profile import encoder_texts, profile_tables
from gpumatch.results import to_line
from gpumatch.run import Run

DIM = 8


class FakeEncoder:
    """Gives every text a unit vector of its own."""

    model, revision, dim = "fake", "0123456789abcdef", DIM

    def __init__(self):
        self.encoded = []

    def lengths(self, texts):
        return np.array([len(text) for text in texts])

    def encode(self, texts):
        self.encoded += texts
        return np.stack([self.vector(text) for text in texts])

    def vector(self, text):
        seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        row = np.random.default_rng(seed).normal(size=self.dim)
        return (row / np.linalg.norm(row)).astype(np.float32)


def tables(n=12, seed=0):
    rng = np.random.default_rng(seed)
    words = ["oslo", "bergen", "paris", "rome", "lyon", "nice"]
    made = []
    for i in range(n):
        names = [f"name {j}" for j in rng.permutation(9)[: rng.integers(1, 5)]]
        cells = [[words[j] for j in rng.integers(0, 6, 4)] for _ in names]
        columns = tuple(pa.array(column, pa.string()) for column in cells)
        made.append(Table(f"t{i:02}", tuple(names), columns, (None,) * len(names)))
    return made


def build(cache_dir, made, encoder, *, layer="L1+L2", **about):
    """Put an index of some tables where the pipeline keeps it, with a name of its own."""
    profiles = profile_tables(made)
    vectors = None
    if layer != "L1":
        with open_store(cache_dir / "vectors", encoder) as store:
            rows, place, _ = embed_texts(encoder_texts(profiles), encoder, store, device="cpu")
            vectors = Vectors.of(rows, [place], [profiles.n_columns])
    told = {"lake": "x", "encoder": None if vectors is None else f"{encoder.model}@{encoder.revision}"}
    told |= {
        "gpumatch": gpumatch.__version__,
        "format": FORMAT,
        "source": "/somewhere/lake",
        "skipped": [],
        "partly": [],
    }
    index = Index.of(TableSet(profiles, vectors), told | about)
    name = hashlib.md5(f"{layer} {sorted(about.items())} {made[0].name}".encode(), usedforsecurity=False).hexdigest()
    index.save(cache_dir / "indexes" / name)
    return index


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(shards, "SEGMENT_ROWS", 16)
    monkeypatch.setitem(embed.BATCH_TEXTS, "cpu", 20)


@pytest.fixture
def encoder():
    return FakeEncoder()


@pytest.fixture
def cache(tmp_path, encoder, small_segments):
    build(tmp_path / "cache", tables(), encoder)
    return tmp_path / "cache"


def a_run(cache, encoder):
    return Run(Settings(cache_dir=cache, device="cpu", threads=1), encoder=encoder)


def verify(cache, encoder=None, **more):
    return care.verify(a_run(cache, encoder or FakeEncoder()), **more)


def vector_folder(cache):
    (folder,) = (cache / "vectors").iterdir()
    return folder


def index_folder(cache):
    (folder,) = (cache / "indexes").iterdir()
    return folder


def the(folder, pattern):
    return sorted(folder.glob(pattern))[0]


def flip(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 4
    path.write_bytes(data)


def state_of(root):
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted([root, *root.rglob("*")])
    }


@contextlib.contextmanager
def catalogue(cache):
    with contextlib.closing(
        sqlite3.connect(the(vector_folder(cache), "catalogue-*.sqlite"), isolation_level=None)
    ) as db:
        yield db


def rewrite_rows(cache, change):
    """Change the rows of the first segment, with a checksum that fits."""
    folder = vector_folder(cache)
    with catalogue(cache) as db:
        segment = Segment.from_row(db.execute("SELECT * FROM segments ORDER BY shard, start_row").fetchone())
        rows = np.memmap(folder / segment.shard, "<f2", "r+", segment.start_row * 2 * DIM, (segment.n_rows, DIM))
        change(rows)
        rows.flush()
        checksum = segment.checksum_of([rows.tobytes()])
        db.execute("UPDATE segments SET checksum = ? WHERE id = ?", (checksum, segment.id))


def swap(rows):
    rows[[0, 1]] = rows[[1, 0]]


# --- stats


def test_stats_tell_what_is_there(cache, encoder):
    build(cache, tables(3, 1), encoder, layer="L1")
    (cache / "thesis.txt").write_text("mine")
    found = care.stats(cache)
    (vectors,) = found.vectors
    assert vectors.rows == len(encoder.encoded)
    assert vectors.about["model"] == "fake"
    kinds = {(one.layer, one.encoder, one.tables, one.trouble) for one in found.indexes}
    assert kinds == {("L1", None, 3, ""), ("L1+L2", "fake@0123456789abcdef", 12, "")}
    assert all(one.age_days < 1 and one.columns > one.tables for one in found.indexes)
    assert all(
        one.bytes == sum(p.stat().st_size for p in one.folder.rglob("*") if p.is_file()) for one in found.indexes
    )
    assert found.foreign == [cache / "thesis.txt"]
    assert found.totals["vectors"] == vectors.rows
    assert found.totals["bytes"] == vectors.bytes + sum(one.bytes for one in found.indexes)
    assert found.totals["reclaimable"] == 0


def test_stats_and_verify_change_nothing(cache):
    before = state_of(cache)
    care.stats(cache)
    assert verify(cache).damages == []
    care.prune(cache, dry_run=True)
    assert state_of(cache) == before
    assert care.stats(cache / "nowhere").totals["bytes"] == 0
    assert not (cache / "nowhere").exists()


def test_a_column_without_values_is_no_damage(tmp_path, encoder):
    columns = (pa.array([None, ""], pa.string()), pa.array(["oslo", "rome"], pa.string()))
    build(tmp_path / "cache", [Table("t", ("empty", "city"), columns, (None, None))], encoder)
    assert verify(tmp_path / "cache").damages == []


def test_an_index_that_is_damaged_or_of_another_version_is_said_to_be_of_no_use(cache, encoder):
    build(cache, tables(4), encoder, gpumatch="0.0.1")
    folder = build(cache, tables(5), encoder, lake="y").folder
    (folder / "manifest.json").write_text(json.dumps(read_manifest(folder) | {"format": FORMAT + 1}))
    found = {one.trouble: one for one in care.stats(cache).indexes}
    assert sorted(found) == [
        "",
        f"index format {FORMAT + 1}, this gpumatch reads {FORMAT}",
        "of gpumatch 0.0.1, this is 0.1.0",
    ]
    assert care.stats(cache).totals["reclaimable"] == sum(one.bytes for why, one in found.items() if why)


# --- verify


def test_a_whole_cache_is_whole(cache, encoder):
    found = verify(cache)
    assert found.damages == []
    assert found.notes == []
    (sample,) = found.samples
    assert (sample.known, sample.encoded) == (len(encoder.encoded), min(64, len(encoder.encoded)))
    assert sample.least_cosine > 0.9999
    assert found.indexes == 1
    assert found.files == len(list(index_folder(cache).rglob("*.*"))) - 1  # the lock


def test_the_sample_depends_on_the_seed_alone(cache):
    def sampled(**more):
        fresh = FakeEncoder()
        verify(cache, fresh, sample=9, **more)
        return sorted(fresh.encoded)

    assert len(sampled()) == 9
    assert sampled() == sampled(seed=0) != sampled(seed=1)


def test_texts_of_no_index_are_sampled_from_the_lake(cache, tmp_path, encoder):
    index = Index.load(index_folder(cache))
    index.save(tmp_path / "lake.idx")
    care.clear(cache, vectors=False)
    found = verify(cache)
    assert (found.damages, found.samples) == ([], [])
    assert "gpumatch cache verify --lake LAKE" in found.notes[0]
    found = verify(cache, lake=tmp_path / "lake.idx")
    assert (found.damages, found.notes, found.samples[0].known) == ([], [], len(encoder.encoded))


def test_another_encoder_is_asked_for(cache):
    other = FakeEncoder()
    other.revision = "2"
    found = verify(cache, other)
    assert found.damages == []
    assert other.encoded == []
    assert "GPUMATCH_ENCODER" in found.notes[0]


DAMAGES = {
    "segment": lambda cache: flip(the(vector_folder(cache), "shard-*"), 33),
    "missing shard": lambda cache: the(vector_folder(cache), "shard-*").unlink(),
    "catalogue": lambda cache: the(vector_folder(cache), "catalogue-*").write_bytes(b"nothing" * 900),
    "about.json": lambda cache: flip(vector_folder(cache) / "about.json"),
    "vector": lambda cache: rewrite_rows(cache, lambda rows: rows.__setitem__(3, rows[3] * 2)),
    "wrong vectors": lambda cache: rewrite_rows(cache, swap),
    "index file": lambda cache: flip(the(index_folder(cache), "segment-*/rows.npy")),
    "index manifest": lambda cache: flip(index_folder(cache) / "manifest.json", 40),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_by_name_and_the_command_mends_it(cache, encoder, kind):
    fresh = {text: encoder.vector(text).astype(np.float16) for text in encoder.encoded}
    DAMAGES[kind](cache)
    before = state_of(cache)
    found = verify(cache, sample=10**6)
    assert kind in [one.kind for one in found.damages]
    assert state_of(cache) == before
    for one in found.damages:
        assert one.mend in ("gpumatch cache prune", "gpumatch cache clear --vectors", "gpumatch cache clear")
    if kind == "wrong vectors":
        assert "index vectors" in [one.kind for one in found.damages]
        care.clear(cache)
    else:
        planned = care.prune(cache, dry_run=True)
        assert state_of(cache) == before
        removed = care.prune(cache)
        assert removed.leftovers
        assert {one.what for one in removed.leftovers} <= {one.what for one in planned.leftovers}
    assert verify(cache, sample=10**6).damages == []
    build(cache, tables(), FakeEncoder())
    assert verify(cache, sample=10**6).damages == []
    reader = VectorReader(vector_folder(cache), DIM)
    vectors, there = reader.get(text_keys(list(fresh)))
    assert there.all()
    assert vectors.tobytes() == np.stack(list(fresh.values())).tobytes()


def test_an_encoder_of_another_length_is_named(cache):
    wide = FakeEncoder()
    wide.dim = 2 * DIM
    assert [one.kind for one in verify(cache, wide).damages] == ["dimension"]


def test_other_versions_are_noted_and_pruned(cache, encoder):
    other = build(cache, tables(4), encoder, gpumatch="0.0.1").folder
    found = verify(cache)
    assert found.damages == []
    assert str(other) in found.notes[0]
    assert "gpumatch cache prune" in found.notes[0]
    care.prune(cache)
    assert not other.exists()
    assert verify(cache).notes == []


# --- prune and clear


def answers(cache, lake, encoder):
    settings = Settings(cache_dir=cache, device="cpu", threads=1, task="union")
    return [to_line(row) for row in pipeline.match(lake, Run(settings, encoder=encoder))]


@pytest.mark.parametrize("kind", [*DAMAGES, "all at once"])
def test_after_pruning_a_new_run_answers_as_from_a_fresh_cache(tmp_path, small_segments, kind):
    lake, cache = tmp_path / "lake", tmp_path / "cache"
    lake.mkdir()
    for table in tables():
        rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
        (lake / f"{table.name}.csv").write_text("\n".join(",".join(row) for row in (table.header, *rows)) + "\n")
    expected = answers(tmp_path / "fresh", lake, FakeEncoder())
    assert answers(cache, lake, FakeEncoder()) == expected
    for one in DAMAGES if kind == "all at once" else [kind]:
        with contextlib.suppress(sqlite3.Error):  # of a catalogue that is already damaged
            DAMAGES[one](cache)
    assert verify(cache, lake=lake, sample=10**6).damages
    if kind == "wrong vectors":
        care.clear(cache)
    care.prune(cache)
    assert verify(cache, lake=lake, sample=10**6).damages == []
    assert answers(cache, lake, FakeEncoder()) == expected
    assert verify(cache, lake=lake, sample=10**6).damages == []


def test_indexes_that_were_not_used_for_long_go_only_when_asked(cache, encoder):
    young, old = index_folder(cache), build(cache, tables(4), encoder, lake="y").folder
    then = time.time() - 10 * 86_400
    os.utime(old / "manifest.json", (then, then))
    assert care.prune(cache).leftovers == []
    assert care.prune(cache, older_than=care.seconds_of("2w")).leftovers == []
    removed = care.prune(cache, older_than=care.seconds_of("9d"))
    assert all("not used for 10.0 days" in one.what for one in removed.leftovers)
    assert removed.bytes > 1000
    assert young.exists()
    assert not old.exists()


def test_an_index_of_whose_lake_there_is_a_newer_one_goes(cache, encoder, command):
    """Not one of another path, encoder or reading, nor of another lake at the same path, as in containers."""

    def indexed(made, days, **more):
        told = {"lake": f"{days}", "opened": "/lake", "reading": {"sample_rows": 9, "follow_links": False}} | more
        folder = build(cache, made, encoder, **told).folder
        os.utime(folder / "manifest.json", (time.time() - days * 86_400,) * 2)
        return folder

    others = [dataclasses.replace(one, name=f"other {one.name}") for one in tables(8)]
    stay = [
        index_folder(cache),
        indexed(tables(9), 1),
        indexed(tables(8), 2, opened="/elsewhere"),
        indexed(tables(8), 3, reading={"sample_rows": 8, "follow_links": False}),
        indexed(tables(8), 4, layer="L1"),
        indexed(others, 5),
    ]
    old, older = indexed(tables(8), 6), indexed(tables(8), 7)
    newest = stay[1].name
    assert {one.folder: one.newer for one in care.stats(cache).indexes if one.newer} == {old: newest, older: newest}
    assert care.stats(cache).totals["reclaimable"] == sum(map(_bytes_of, (old, older))) > 0
    assert f"{old}: superseded by {newest}, a newer one of its lake" in command("stats").stdout
    dry = care.prune(cache, dry_run=True)
    assert {one.what for one in dry.leftovers} == {f"index, superseded by {newest}, a newer one of its lake"}
    os.utime(old / "manifest.json")  # it is used again: now that is the newest
    assert {one.path.relative_to(cache / "indexes").parts[0] for one in care.prune(cache).leftovers} == {
        newest, older.name,
    }  # fmt: skip
    assert sorted((cache / "indexes").iterdir()) == sorted({*stay, old} - {stay[1]})


def _bytes_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("age", "seconds"), [("12h", 43_200), ("30d", 2_592_000), ("2 w", 1_209_600)])
def test_ages(age, seconds):
    assert care.seconds_of(age) == seconds


@pytest.mark.parametrize("age", ["", "30", "d", "-1d", "1y", "1.5d"])
def test_no_ages(age):
    with pytest.raises(UsageError, match="--older-than 30d"):
        care.seconds_of(age)


def test_what_killed_builders_left_goes_and_what_living_ones_build_stays(cache):
    folder = index_folder(cache)
    (folder / ".building-1234").mkdir()
    (folder / ".building-1234" / "rows.npy").write_bytes(b"1234")
    (folder / "segment-old").mkdir()
    (folder / "segment-old" / "rows.npy").write_bytes(b"12")
    with folder_in_work(folder, ".building-") as building:
        (building / "rows.npy").write_bytes(b"1")
        assert care.stats(cache).totals["reclaimable"] == 6
        assert care.prune(cache, dry_run=True).bytes == 6
        assert care.prune(cache).bytes == 6
        left = sorted(path.name for path in folder.iterdir() if path.name.startswith((".b", "seg")))
        assert left == [building.name, read_manifest(folder)["segment"]]
        care.clear(cache)
        assert (building / "rows.npy").exists()


def test_clear_takes_the_caches_own_and_names_the_rest(cache):
    mine = [
        cache / "thesis.txt", cache / "vectors" / "notes", vector_folder(cache) / "shard.bak",
        cache / "indexes" / "my lake", index_folder(cache) / "readme", the(index_folder(cache), "segment-*") / "a.csv",
    ]  # fmt: skip
    for path in mine:
        path.write_text("mine")
    (cache / "link").symlink_to(cache / "vectors")
    removed = care.clear(cache)
    assert removed.bytes > 10_000
    assert sorted(removed.kept) == sorted([*mine, cache / "link"])
    assert all(path.read_text() == "mine" for path in mine)
    left = [path for path in cache.rglob("*") if path.is_file() and path.name not in ("open.lock", ".lock")]
    assert sorted(left) == sorted(mine)


def test_clear_of_one_kind_leaves_the_other(cache):
    care.clear(cache, indexes=False)
    assert list((cache / "vectors").iterdir()) == []
    assert Index.load(index_folder(cache)).lake.vectors is not None
    care.clear(cache, vectors=False)
    assert list((cache / "indexes").iterdir()) == []


def test_an_index_that_is_open_while_the_cache_is_cleared_goes_on_and_is_saved_again(cache, tmp_path):
    folder = index_folder(cache)
    index = Index.load(folder)
    rows = index.rows.tobytes()
    care.clear(cache)
    assert index.rows.tobytes() == rows
    index.save(folder)
    assert Index.load(folder).rows.tobytes() == rows


# --- the command line


@pytest.fixture
def command(cache, encoder, monkeypatch):
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(cache))
    monkeypatch.setattr(gpumatch.run, "open_encoder", lambda *_: FakeEncoder())

    def invoke(*words, **more):
        return CliRunner().invoke(cli.app, ["cache", *map(str, words)], **more)

    return invoke


def test_stats_as_a_table_and_as_json(command, cache, encoder):
    shown = command("stats")
    assert shown.exit_code == 0
    assert "fake" in shown.stdout
    assert "0123456789ab" in shown.stdout
    found = json.loads(command("stats", "--json").stdout)
    assert found["totals"]["vectors"] == found["vectors"][0]["rows"] == len(encoder.encoded)
    assert found["indexes"][0]["usable"] is True
    assert found["root"] == str(cache)


def test_verify_exits_with_1_where_something_is_wrong(command, cache):
    whole = command("verify")
    assert (whole.exit_code, whole.stderr) == (0, "")
    assert whole.stdout.splitlines()[-1].endswith("whole")
    assert json.loads(command("verify", "--json").stdout)["whole"] is True
    flip(the(vector_folder(cache), "shard-*"), 3)
    damaged = command("verify", "--sample", 5)
    assert damaged.exit_code == 1
    assert f"segment: {the(vector_folder(cache), 'shard-*')}" in damaged.stdout
    assert "mend it: gpumatch cache prune" in damaged.stdout
    told = json.loads(command("verify", "--json").stdout)
    assert (told["whole"], told["damages"][0]["kind"], told["damages"][0]["texts"]) == (False, "segment", 16)
    pruned = command("prune")
    assert pruned.exit_code == 0
    assert "checksum mismatch" in pruned.stdout
    assert command("verify").exit_code == 0


def test_notes_go_to_standard_error(command, cache):
    care.clear(cache, vectors=False)
    found = command("verify")
    assert found.exit_code == 0
    assert "gpumatch cache verify --lake LAKE" in found.stderr
    assert "note:" not in found.stdout


def test_prune_says_what_it_would_do(command, cache):
    (vector_folder(cache) / "damaged-catalogue-00.sqlite").write_bytes(bytes(1000))
    before = state_of(cache)
    assert "0.001 MB would be freed" in command("prune", "--dry-run").stdout
    assert state_of(cache) == before
    told = json.loads(command("prune", "--json").stdout)
    assert (told["bytes"], told["dry_run"], len(told["removed"])) == (1000, False, 1)
    wrong = command("prune", "--older-than", "soon")
    assert isinstance(wrong.exception, UsageError)


def test_clear_asks_or_needs_yes(command, cache, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpumatch", "cache", "clear"])
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert "--yes" in said.err
    assert str(cache) in said.err
    assert vector_folder(cache).exists()
    only = command("clear", "--indexes", "--yes")
    assert only.exit_code == 0
    assert list((cache / "indexes").iterdir()) == []
    assert vector_folder(cache).exists()
    assert command("clear", "--yes", "--json").exit_code == 0
    assert care.stats(cache).totals["bytes"] == 0


@pytest.mark.parametrize(("answer", "left"), [("n\n", 1), ("y\n", 0)])
def test_clear_asks_on_a_terminal(command, cache, monkeypatch, answer, left):
    real = CliRunner.isolation

    @contextlib.contextmanager
    def at_a_terminal(self, *args, **kwargs):
        with real(self, *args, **kwargs) as streams:
            monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
            yield streams

    monkeypatch.setattr(CliRunner, "isolation", at_a_terminal)
    found = command("clear", input=answer)
    assert found.exit_code == (1 if left else 0)
    assert "Delete all vectors and indexes and verdicts in" in found.stderr
    assert len(list((cache / "vectors").iterdir())) == left


# --- verdicts


@pytest.fixture
def judged(cache):
    """The cache, with verdicts, one of them damaged, a damaged store that was put aside, and somebody's notes."""
    folder = cache / "verdicts"
    with VerdictStore(folder) as store:
        store.put({bytes([i]) * 16: b"body" for i in range(5)})
    with contextlib.closing(sqlite3.connect(folder / FILE)) as base, base:
        base.execute("UPDATE verdict SET body = ? WHERE key = ?", (b"other", b"\1" * 16))
    (folder / f"{FILE}{ASIDE}").write_bytes(b"x" * 100)
    (folder / "notes.txt").write_text("mine")
    secret_of(folder)
    return cache


def test_verdicts_are_counted_proved_pruned_and_cleared(judged, command):
    folder = judged / "verdicts"
    found = care.stats(judged)
    assert (found.totals["verdicts"], found.verdicts.damaged) == (5, 0)
    assert found.totals["reclaimable"] == 100
    assert folder / "notes.txt" in found.foreign
    assert "5 verdicts" in command("stats").stdout
    assert json.loads(command("stats", "--json").stdout)["verdicts"]["rows"] == 5
    proved = command("verify")
    assert proved.exit_code == 1
    assert "1 of 5 verdicts fail their checksum" in proved.stdout
    assert [path for path, _ in removed_files(care.prune(judged, dry_run=True))] == [folder / f"{FILE}{ASIDE}"]
    assert (folder / f"{FILE}{ASIDE}").exists()
    care.prune(judged)
    assert not (folder / f"{FILE}{ASIDE}").exists()
    vectors = care.stats(judged).totals["vectors"]
    assert command("clear", "--verdicts", "--yes").exit_code == 0
    assert (care.stats(judged).totals["verdicts"], care.stats(judged).totals["vectors"]) == (0, vectors)
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "open.lock"}


def removed_files(removed):
    return [(one.path, one.bytes) for one in removed.leftovers]


def test_a_store_that_cannot_be_read_is_told(cache, command):
    (cache / "verdicts").mkdir()
    (cache / "verdicts" / FILE).write_bytes(b"no database" * 1000)
    assert "cannot be read" in care.stats(cache).verdicts.trouble
    assert "cannot be read" in command("stats").stdout
    assert "clear --verdicts" in command("verify").stdout


def test_verdicts_that_cannot_be_looked_at_are_noted_and_not_called_damaged(cache, command, monkeypatch):
    stats = VerdictStats(cache / "verdicts", trouble="cannot be read: unable to open database file")
    monkeypatch.setattr(care, "verdict_stats", lambda *_, **__: stats)
    found = command("verify")
    assert found.exit_code == 0
    assert "its verdicts were not proved: cannot be read" in found.stderr


# --- beside others

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_care import *
from gpumatch.errors import IndexError_
from gpumatch.profile import encoder_texts
shards.SEGMENT_ROWS = 16
cache, me, stop = Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
turn = me
while not stop.exists():
    made = tables(6, turn % 5)
    index = build(cache, made, FakeEncoder(), lake=turn % 5)
    texts = encoder_texts(index.lake.profiles)
    places = index.lake.vectors.place
    for text, row in zip(texts, places):
        assert index.lake.vectors.rows[row].tobytes() == FakeEncoder().vector(text).astype(np.float16).tobytes()
    try:
        loaded = Index.load(index.folder)
    except IndexError_:
        assert sys.argv[5] == "clear"
    else:
        assert loaded.rows.tobytes() == index.rows.tobytes()
    turn += 1
    print(turn, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["prune", "clear"])
def test_beside_four_builders(tmp_path, how):
    import subprocess

    cache, stop = tmp_path / "cache", tmp_path / "stop"
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(cache)]
    builders = [
        subprocess.Popen([*command, str(me), str(stop), how], stdout=subprocess.PIPE, text=True) for me in range(4)
    ]
    turns = 0
    try:
        for builder in builders:
            assert builder.stdout.readline()
        end = time.monotonic() + 4
        while time.monotonic() < end or turns <= 5:  # on a busy machine a turn takes long
            turns += 1
            care.stats(cache)
            assert verify(cache).damages == []
            care.prune(cache)
            if how == "clear" and turns % 5 == 4:
                care.clear(cache)
    finally:
        stop.touch()
        said = [builder.communicate(timeout=60)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0] * 4
    assert all(len(lines.split()) > 1 for lines in said)
    care.prune(cache)
    assert verify(cache).damages == []
    assert care.stats(cache).totals["reclaimable"] == 0
