"""Looking, proving, pruning: each damage is found by name, what is whole is never called damaged, and stays."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time

import numpy as np
import pytest

from gpumatch.cache import catalogue, shards, verify
from gpumatch.cache.catalogue import Catalogue, DamagedCatalogueError, row_checks
from gpumatch.cache.folder import _about_check
from gpumatch.cache.inspect import VectorReader, folder_stats, foreign_entries, vector_folders
from gpumatch.cache.publish import MAX_CLEARED, CacheError, FileLock
from gpumatch.cache.remove import clear_folder, prune_folder
from gpumatch.cache.shards import Segment
from gpumatch.cache.vectors import MAX_TRIES
from gpumatch.cache.verify import check_folder

from .stores import DIM, assert_holds, batch, child, copy_of, flip, open_store, some, the, unit

pytestmark = pytest.mark.usefixtures("no_sync")


@pytest.fixture
def root(filled, tmp_path):
    return copy_of(filled[0], tmp_path)


def only(root):
    (folder,) = vector_folders(root)
    return folder


def state_of(root):
    """Every name, its bytes and its times."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes() if path.is_file() else None)
        for path in sorted([root, *root.rglob("*")])
    }


def edit(root, *statements):
    with contextlib.closing(sqlite3.connect(the(root, "catalogue-*.sqlite"), isolation_level=None)) as db:
        for statement in statements:
            db.execute(*statement) if isinstance(statement, tuple) else db.execute(statement)


def sealed(root, change):
    """Change the rows of the first segment and give it the checksum that fits: only looking at the vectors tells."""
    with contextlib.closing(sqlite3.connect(the(root, "catalogue-*.sqlite"), isolation_level=None)) as db:
        segment = Segment.from_row(db.execute("SELECT * FROM segments ORDER BY shard, start_row").fetchone())
        path = the(root, segment.shard)
        rows = np.memmap(path, "<f2", "r+", segment.start_row * DIM * 2, (segment.n_rows, DIM))
        change(rows)
        rows.flush()
        checksum = segment.checksum_of([rows.tobytes()])
        db.execute("UPDATE segments SET checksum = ? WHERE id = ?", (checksum, segment.id))
    return path


# Looking


def test_stats_count_what_is_there(root, filled):
    found = folder_stats(only(root))
    assert found.about.items() >= {"model": "m", "revision": "r", "serialiser": "s", "dim": DIM}.items()
    with open_store(root) as store:
        stats = store.stats()
    assert (found.rows, found.segments, found.shards) == (100, stats["segments"], 2)
    assert found.bytes >= stats["bytes"] - 200_000
    assert (found.reclaimable, found.unnamed_rows, found.trouble, found.foreign) == (0, 0, "", [])


def test_what_is_absent_has_nothing(tmp_path):
    assert vector_folders(tmp_path / "nowhere") == foreign_entries(tmp_path / "nowhere") == []
    assert folder_stats(tmp_path / "nowhere").bytes == 0
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("how", ["closed", "killed", "without its log's index"])
def test_looking_and_proving_change_nothing(tmp_path, how):
    keys, vectors = some(100)
    with open_store(tmp_path / "live") as store:
        store.put(keys, vectors)
        shutil.copytree(tmp_path / "live", tmp_path / "killed")
    if how == "closed":
        root = tmp_path / "live"
    else:
        root = tmp_path / "killed"
        if how != "killed":
            the(root, "*-shm").unlink()
    before = state_of(root)
    found, proof = folder_stats(only(root)), check_folder(only(root))
    reader = VectorReader(only(root), DIM)
    assert reader.get(keys)[0].tobytes() == vectors.tobytes()
    assert reader.lookup(keys).all()
    assert prune_folder(only(root), dry_run=True) == []
    assert state_of(root) == before
    assert (found.rows, found.trouble, proof.rows, proof.damages) == (100, "", 100, [])


def test_what_a_living_process_has_not_yet_written_out_is_seen(tmp_path):
    with open_store(tmp_path) as store:
        for b in range(5):
            store.put(*batch(b))
            found, proof = folder_stats(store.folder), check_folder(store.folder)
            assert found.rows == proof.rows == store.stats()["rows"]
            assert (found.reclaimable, proof.damages) == (0, [])


def test_a_log_whose_index_is_just_being_made_is_no_damage(tmp_path, monkeypatch):
    with open_store(tmp_path) as store:
        store.put(*batch(0))
        looked = Catalogue.open_as.__func__

        def busy(cls, path, how):
            if "mode=ro" not in how:
                return looked(cls, path, how)
            error = sqlite3.OperationalError("attempt to write a readonly database")
            error.sqlite_errorcode = sqlite3.SQLITE_READONLY_CANTINIT
            raise DamagedCatalogueError(path, str(error)) from error

        monkeypatch.setattr(Catalogue, "open_as", classmethod(busy))
        seen = folder_stats(only(tmp_path))
        monkeypatch.setattr(Catalogue, "open_as", classmethod(looked))
        assert (seen.trouble, seen.rows) == ("", len(batch(0)[0]))
        assert seen.rows == folder_stats(only(tmp_path)).rows


def test_of_no_use_is_what_nothing_leads_to(root):
    folder = only(root)
    (folder / "shard-1-abc.f16").write_bytes(bytes(160))
    (folder / "damaged-catalogue-00.sqlite").write_bytes(bytes(50))
    (folder / "catalogue-00.sqlite").write_bytes(bytes(30))
    (folder / ".about.json.tmp-1-00").write_bytes(bytes(20))
    with open(sorted(folder.glob("shard-*-????????????????.f16"))[0], "ab") as file:
        file.write(bytes(7))
    (folder / "thesis.txt").write_text("mine")
    found = folder_stats(folder)
    assert sorted(one.bytes for one in found.leftovers) == [7, 20, 30, 50, 160]
    assert found.reclaimable == 267
    assert [path.name for path in found.foreign] == ["thesis.txt"]
    assert prune_folder(folder, dry_run=True) == found.leftovers
    assert prune_folder(folder) == found.leftovers
    assert folder_stats(folder).leftovers == []
    assert (folder / "thesis.txt").read_text() == "mine"


# Damage, each kind by name


def a_shard(root):
    return sorted(root.glob("*/shard-*"))[0]


def flipped_shard(root):
    flip(a_shard(root), 21, 4)
    return "segment", a_shard(root), 16


def cut_shard(root):
    os.truncate(a_shard(root), 3 * DIM * 2)
    return "segment", a_shard(root), None


def missing_shard(root):
    path = a_shard(root)
    path.unlink()
    return "missing shard", path, None


def flipped_catalogue(root):
    path = the(root, "catalogue-*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as db:
        check = db.execute("SELECT row_check FROM vectors ORDER BY key LIMIT 1 OFFSET 50").fetchone()[0]
    flip(path, path.read_bytes().index(check.to_bytes(8, "big", signed=True)) + 3, 8)
    return "catalogue rows", path, 1


def damaged_catalogue(root):
    path = the(root, "catalogue-*.sqlite")
    path.write_bytes(b"no database at all" * 1000)
    return "catalogue", path, None


def flipped_page(root):
    path = the(root, "catalogue-*.sqlite")
    flip(path, 100, 1)  # the kind of the first page, which names the tables
    return "catalogue", path, None


def missing_catalogue(root):
    path = the(root, "catalogue-*.sqlite")
    path.unlink()
    return "missing catalogue", path, None


def damaged_about(root):
    flip(the(root, "about.json"), 30, 1)
    return "about.json", the(root, "about.json"), None


def lost_segment(root):
    edit(root, "DELETE FROM segments WHERE id = (SELECT min(id) FROM segments)")
    return "catalogue rows", the(root, "catalogue-*.sqlite"), None


def norm_of_two(root):
    def change(rows):
        rows[3] *= 2

    return "vector", sealed(root, change), 1


def not_a_number(root):
    def change(rows):
        rows[2, 1] = np.nan

    return "vector", sealed(root, change), 1


def zeros(root):
    def change(rows):
        rows[4:6] = 0

    return "vector", sealed(root, change), 2


def constant(root):
    def change(rows):
        rows[0] = 1 / np.sqrt(DIM)

    return "vector", sealed(root, change), 1


def wrong_dim(root):
    path = the(root, "about.json")
    about = json.loads(path.read_text())
    del about["check"]
    about["dim"] = 2 * DIM
    path.write_text(json.dumps({**about, "check": _about_check(about)}))
    return "dimension", path, 100


def shared_row(root):
    """Two keys name one row, both with a check that fits."""
    with contextlib.closing(sqlite3.connect(the(root, "catalogue-*.sqlite"), isolation_level=None)) as db:
        handle = db.execute("SELECT handle FROM vectors ORDER BY handle LIMIT 1").fetchone()[0]
        shard = db.execute("SELECT shard FROM segments WHERE id = ?", (handle >> 24,)).fetchone()[0]
        key = db.execute("SELECT key FROM vectors ORDER BY handle DESC LIMIT 1").fetchone()[0]
        check = int(row_checks(np.array([key], "V16"), np.array([handle]))[0])
        db.execute("UPDATE vectors SET handle = ?, row_check = ? WHERE key = ?", (handle, check, key))
    return "shared row", the(root, shard), 2


DAMAGES = [
    flipped_shard, cut_shard, missing_shard, flipped_catalogue, damaged_catalogue, flipped_page, missing_catalogue,
    damaged_about, lost_segment, norm_of_two, not_a_number, zeros, constant, wrong_dim, shared_row,
]  # fmt: skip
ALL_LOST = [cut_shard, missing_shard, damaged_catalogue, flipped_page, missing_catalogue, damaged_about, wrong_dim]


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_found_by_name_and_pruned(root, filled, damage):
    _, keys, vectors = filled
    kind, place, texts = damage(root)
    before = state_of(root)
    proof = check_folder(only(root))
    found = [one for one in proof.damages if (one.kind, one.place.name) == (kind, place.name)]
    assert found, proof.damages
    assert texts is None or sum(one.texts for one in found) == texts
    assert all(one.mend.startswith("gpumatch cache ") for one in proof.damages)
    assert {one.kind for one in proof.damages} <= {kind, "catalogue rows", "catalogue"}
    planned = prune_folder(only(root), dry_run=True)
    assert planned
    assert state_of(root) == before

    assert prune_folder(only(root))
    proofs = [check_folder(folder) for folder in vector_folders(root)]
    assert [proof.damages for proof in proofs] in ([], [[]])
    with open_store(root) as store:
        read, there = store.get(keys)
        assert store.damaged == []
        store.put(keys[~there], vectors[~there])
        assert_holds(store, keys, vectors)
    if damage not in ALL_LOST:
        assert there.sum() >= 84, "what is whole stays"
    assert read[there].tobytes() == vectors[there].tobytes()
    assert check_folder(only(root)).damages == []


@pytest.mark.parametrize("false", [3, 4])
def test_a_catalogue_of_too_many_false_rows_is_made_anew(root, filled, monkeypatch, false):
    _, keys, vectors = filled
    monkeypatch.setattr(verify, "MAX_FALSE_ROWS", 3)
    edit(root, f"UPDATE vectors SET row_check = 0 WHERE key IN (SELECT key FROM vectors LIMIT {false})")
    name = the(root, "catalogue-*.sqlite")
    proof = check_folder(only(root))
    assert [(one.kind, one.texts) for one in proof.damages] == [("catalogue rows", false)]
    assert proof.ruined == ("4 of 100 rows cannot be true" if false == 4 else "")
    assert len(proof.false_rows) == 3
    prune_folder(only(root))
    assert name.exists() is (false == 3)
    with open_store(root) as store:
        read, there = store.get(keys)
        assert read[there].tobytes() == vectors[there].tobytes()
        assert (there.sum(), store.damaged) == (100 - false, [])


def test_pruning_makes_a_catalogue_anew_of_what_is_true_in_it(root, filled):
    _, keys, vectors = filled
    path = the(root, "catalogue-*.sqlite")
    edit(root, "CREATE TABLE stray (x)", "INSERT INTO stray VALUES (1)")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'stray'").fetchone()[0]
        size = db.execute("PRAGMA page_size").fetchone()[0]
    flip(path, (page - 1) * size, 0xFF)
    assert [one.kind for one in check_folder(only(root)).damages] == ["catalogue"]
    prune_folder(only(root))
    assert not path.exists()
    assert list(root.glob("*/damaged-*")) == []
    with open_store(root) as store:
        assert_holds(store, keys, vectors)
        assert store.damaged == []


def test_however_many_rows_are_looked_at_at_once(root, filled, monkeypatch):
    _, keys, vectors = filled
    monkeypatch.setattr(catalogue, "ENTRIES_AT_ONCE", 7)
    monkeypatch.setattr(catalogue, "KEYS_PER_QUERY", 7)
    proof, found = check_folder(only(root)), folder_stats(only(root))
    assert (proof.rows, proof.damages, found.rows, found.unnamed_rows) == (100, [], 100, 0)
    edit(root, "UPDATE vectors SET row_check = 0 WHERE key IN (SELECT key FROM vectors ORDER BY key DESC LIMIT 9)")
    assert [one.texts for one in check_folder(only(root)).damages] == [9]
    with open_store(root) as store:
        read, there = store.get(keys)
        assert read[there].tobytes() == vectors[there].tobytes()
        assert there.sum() == 91


def test_a_later_versions_folder_is_neither_judged_nor_pruned(root):
    edit(root, "PRAGMA user_version = 2")
    (only(root) / "damaged-catalogue-00.sqlite").touch()
    before = state_of(root)
    proof = check_folder(only(root))
    assert (proof.damages, proof.segments, proof.rows) == ([], 0, 0)
    assert "newer gpumatch" in proof.note
    assert "newer gpumatch" in folder_stats(only(root)).trouble
    assert prune_folder(only(root)) == []
    assert state_of(root) == before


# Pruning


def test_rows_that_no_key_names_are_given_back(tmp_path):
    keys, vectors = some(100)
    with open_store(tmp_path) as first, open_store(tmp_path) as second:
        first.put(keys, vectors)
        second.put(
            np.concatenate([keys, some(30, "more", 3)[0]]), np.concatenate([unit(1, 100), some(30, "more", 3)[1]])
        )
        assert folder_stats(first.folder).unnamed_rows == 100
        assert folder_stats(first.folder).reclaimable == 0, "a living process holds the shard"
    folder = only(tmp_path)
    found = folder_stats(folder)
    assert found.reclaimable == 100 * DIM * 2
    with open_store(tmp_path) as reader:
        assert_holds(reader, keys, vectors)
        (one,) = prune_folder(folder)
        assert one.what == "rows that no key names"
        assert_holds(reader, keys, vectors)
        assert_holds(reader, *some(30, "more", 3))
        assert reader.damaged == []
    after = folder_stats(folder)
    assert (after.rows, after.unnamed_rows, after.reclaimable) == (130, 0, 0)
    assert after.bytes <= found.bytes
    assert sum(path.stat().st_size for path in folder.glob("shard-*")) == 130 * DIM * 2
    assert check_folder(folder).damages == []


def test_a_reader_that_finds_a_row_moved_reads_it_again(tmp_path, monkeypatch):
    keys, vectors = some(60)
    with open_store(tmp_path) as first, open_store(tmp_path) as second:
        first.put(keys[:30], vectors[:30])
        second.put(keys, vectors)
    with open_store(tmp_path) as reader:
        real = shards.ShardReader.why_broken

        def prune_first(self, segment):
            monkeypatch.undo()
            assert prune_folder(reader.folder)
            return real(self, segment)

        monkeypatch.setattr(shards.ShardReader, "why_broken", prune_first)
        assert_holds(reader, keys, vectors)
        assert reader.damaged == []


def test_a_shard_of_the_living_is_neither_cut_nor_swept(tmp_path):
    keys, vectors = some(20)
    with open_store(tmp_path) as store:
        fd = store._writer.begin()
        os.pwrite(fd, bytes(48), 0)
        assert prune_folder(store.folder) == []
        store.put(keys, vectors)
        assert prune_folder(store.folder) == []
        assert_holds(store, keys, vectors)


# Clearing


def test_clear_leaves_what_is_not_the_caches(root):
    folder = only(root)
    (folder / "thesis.txt").write_text("mine")
    (folder / "shard-1-ab.f16").mkdir()
    (folder / "about.json.bak").write_text("mine")
    gone = clear_folder(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "about.json.bak",
        "open.lock",
        "shard-1-ab.f16",
        "thesis.txt",
    ]
    assert {"about.json"} < {one.path.name for one in gone}
    for path in (folder / "thesis.txt", folder / "about.json.bak"):
        path.unlink()
    (folder / "shard-1-ab.f16").rmdir()
    clear_folder(folder)
    assert vector_folders(root) == []


def test_a_cleared_store_that_is_open_begins_anew(root, filled):
    _, keys, vectors = filled
    with open_store(root) as store:
        assert_holds(store, keys, vectors)
        clear_folder(store.folder)
        assert not store.folder.exists()
        assert not store.get(keys)[1].any()
        store.put(keys, vectors)
        assert_holds(store, keys, vectors)
        assert store.damaged == []


@pytest.mark.parametrize("call", ["append", "enter"])
def test_a_put_amid_which_the_cache_is_cleared_is_stored(tmp_path, monkeypatch, call):
    from gpumatch.cache.catalogue import Catalogue
    from gpumatch.cache.shards import ShardWriter

    keys, vectors = some(20)
    owner = {"append": ShardWriter, "enter": Catalogue}[call]
    real = getattr(owner, call)

    def clear_first(self, *args, **kwargs):
        monkeypatch.setattr(owner, call, real)
        clear_folder(store.folder)
        return real(self, *args, **kwargs)

    with open_store(tmp_path) as store:
        store.put(*some(10, "before", 5))
        monkeypatch.setattr(owner, call, clear_first)
        store.put(keys, vectors)
        assert_holds(store, keys, vectors)
        assert store.damaged == []
    with open_store(tmp_path) as store:
        assert_holds(store, keys, vectors)


@pytest.mark.parametrize("times", [1, MAX_TRIES - 1, MAX_TRIES])
def test_a_put_amid_which_the_cache_is_cleared_again_and_again_ends(tmp_path, monkeypatch, times):
    real, left = Catalogue.enter, [*range(times)]

    def clear_first(self, *args):
        if left:
            left.pop()
            clear_folder(store.folder)
        return real(self, *args)

    monkeypatch.setattr(Catalogue, "enter", clear_first)
    with open_store(tmp_path) as store:
        if times < MAX_TRIES == 10:
            store.put(*some(20))
            assert_holds(store, *some(20))
        else:
            with pytest.raises(CacheError, match=r"is cleared all the time; try again"):
                store.put(*some(20))
        assert not left


@pytest.mark.parametrize("times", [1, MAX_CLEARED, MAX_CLEARED + 1])
def test_a_folder_cleared_while_it_is_opened_is_made_again(tmp_path, monkeypatch, times):
    real, left = FileLock.__enter__, [*range(times)]

    def vanish(self):
        if left:
            left.pop()
            self.path.parent.rmdir()
        return real(self)

    monkeypatch.setattr(FileLock, "__enter__", vanish)
    if times > MAX_CLEARED:
        with pytest.raises(CacheError, match="cannot open the lock file"):
            open_store(tmp_path)
    else:
        with open_store(tmp_path) as store:
            store.put(*some(10))
            assert_holds(store, *some(10))
    assert not left


# Beside others

WRITER = """
root, me, stop = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
b = me
while not stop.exists():
    with open_store(root) as store:
        for _ in range(6):
            keys, vectors = batch(b % 60)
            read, found = store.get(keys)
            assert read[found].tobytes() == vectors[found].tobytes()
            store.put(keys, vectors)
            b += 1 + me
        assert not store.damaged, store.damaged
    print(b, flush=True)
"""


@pytest.mark.parametrize("clearing", [False, True], ids=["", "clearing too"])
def test_beside_four_writers_nothing_whole_is_called_damaged(tmp_path, clearing):
    root, stop = tmp_path / "root", tmp_path / "stop"
    root.mkdir()
    writers = [child(WRITER, root, me, stop) for me in range(4)]
    turn, end = 0, time.monotonic() + 4
    try:
        for writer in writers:
            writer.stdout.readline()
        while time.monotonic() < end or turn <= 10:  # on a busy machine a turn takes long
            turn += 1
            for folder in vector_folders(root):
                found = folder_stats(folder)
                assert found.trouble == "" or "no about.json" in found.trouble
                assert check_folder(folder).damages == []
                prune_folder(folder)
                if clearing and turn % 8 == 7:
                    clear_folder(folder)
    finally:
        stop.touch()
        said = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    assert all(int(lines.split()[-1]) > 2 for lines in said)
    prune_folder(only(root))
    proof, found = check_folder(only(root)), folder_stats(only(root))
    assert (proof.damages, found.reclaimable) == ([], 0)
    with open_store(root) as store:
        for b in range(60):
            keys, vectors = batch(b)
            read, there = store.get(keys)
            assert read[there].tobytes() == vectors[there].tobytes()
            assert clearing or there.all()
