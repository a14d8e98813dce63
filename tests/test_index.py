"""Index folders: what is saved is what is loaded; a folder holds the old index or the new one, never half of one."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import gpumatch.index
from gpumatch.cache.publish import folder_in_work
from gpumatch.errors import IndexError_
from gpumatch.index import FORMAT, Index, Pools, TableSet, is_index, read_manifest
from gpumatch.profile import Profiles
from gpumatch.text import hash_texts

ODD = [
    "",
    "été",
    "e\u0301te\u0301",
    "\ufeffname",
    "a\x00b",
    "a\u2028b\x85c\r\nd\te",
    "\u202eright to left",
    "😀👩‍👩‍👧",
    "\U0010ffff",
    "'quoted' \"twice\" \\",
    "表",
    "x" * 70_000,
]


def make(oracle, seed=0, dense=True, pools=True):
    _, lake = oracle.table_set(oracle.random_lake(seed)[0], seed)
    index = Index.of(lake if dense else TableSet(lake.profiles, None), about(f"lake {seed}", dense))
    if pools:
        index.pools["0123456789abcdef"] = some_pools(index, seed)
        index.pools["fedcba9876543210"] = some_pools(index, seed + 1)
    return index


def about(lake, dense=True):
    return {"lake": lake, "encoder": "fake@1" if dense else None, "gpumatch": "0", "skipped": [{"name": "é"}]}


def some_pools(index, seed):
    rng, n = np.random.default_rng(seed), index.lake.profiles.n_tables
    ids = rng.integers(-1, n, (n, 4)).astype(np.int32)
    scores = np.where(ids < 0, -np.inf, rng.uniform(0, 1, ids.shape)).astype(np.float32)
    return Pools(ids, scores, rng.uniform(0, 1, n).astype(np.float32))


def test_copies_of_a_table_count_its_values_once(oracle):
    def table(header, *columns):
        return {"header": header, "columns": columns}

    months = [table(["id", "n"], ["a", "b"], ["x", str(month)]) for month in range(5)]
    others = [table(["n", "id"], ["x", "y"], ["a", "c"]), table(["col_1"], ["a"]), table(["col_1"], ["a"])]
    _, lake = oracle.table_set([*months, *others], 0)
    values = Index.of(lake, {}).values
    df = {text: int(values.df[values.find(hash_texts([text]))[0]]) for text in "abxy03c"}
    assert values.n_docs == 2 + 2 + 1 + 1
    assert df == {"a": 4, "b": 1, "x": 2, "y": 1, "0": 1, "3": 1, "c": 1}


def test_numbered_things_are_counted_among_their_like(oracle):
    columns = [("p", ["PAT-1", "PAT-2"]), ("q", ["pat_1", "pat_3"]), ("s", ["SKU-1", "SKU-2"]), ("n", ["1", "2"])]
    _, lake = oracle.table_set([{"header": [name], "columns": [cells]} for name, cells in columns], 0)
    index = Index.of(lake, {})
    assert sorted(index.values.df.tolist()) == [1, 3, 4]
    assert sorted(index.marked_values.df.tolist()) == [1, 1, 1, 1, 2]
    assert index.marked_values.n_docs == index.values.n_docs == 4
    assert np.diff(lake.marked_values.start).tolist() == [2, 2, 2, 0]


@pytest.fixture
def saved(oracle, tmp_path):
    index = make(oracle)
    index.save(tmp_path / "index")
    return index


def arrays_of(index):
    """Every array of an index by name."""
    found = {f.name: getattr(index.lake.profiles, f.name) for f in fields(Profiles) if f.type != "list[str]"}
    found["rows"] = index.rows
    if index.lake.vectors is not None:
        vectors = index.lake.vectors
        found |= {"vectors": vectors.rows, "value": vectors.value, "name": vectors.name, "header": vectors.header}
    for key, pools in index.pools.items():
        found |= {f"{key} {name}": getattr(pools, name) for name in ("ids", "scores", "density")}
    return found


def texts_of(index):
    return {f.name: getattr(index.lake.profiles, f.name) for f in fields(Profiles) if f.type == "list[str]"}


def assert_equal(got, expected):
    ours, theirs = arrays_of(got), arrays_of(expected)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert array.tobytes() == theirs[name].tobytes(), name
    assert texts_of(got) == texts_of(expected)
    assert got.about == expected.about
    for f in fields(expected.vocabularies):
        ours, theirs = getattr(got.vocabularies, f.name), getattr(expected.vocabularies, f.name)
        np.testing.assert_array_equal(ours.term, theirs.term)
        np.testing.assert_array_equal(ours.df, theirs.df)
        assert ours.n_docs == theirs.n_docs


def segment_of(folder):
    return folder / read_manifest(folder)["segment"]


def names_in(folder):
    """What a folder holds, but for a lock file."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith("lock"))


def flip(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


# --- round trips


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("pools", [True, False])
def test_what_is_saved_is_what_is_loaded(oracle, tmp_path, dense, pools):
    index = make(oracle, 1, dense, pools)
    index.save(tmp_path)
    loaded = Index.load(tmp_path)
    assert_equal(loaded, index)
    assert loaded.folder == index.folder == tmp_path
    assert (loaded.lake.vectors is None) == (not dense)


def test_odd_lakes_come_back(oracle, tmp_path):
    for name, lake in {
        "handmade": oracle.handmade()[0],
        "empty": [],
        "no columns": [{"header": [], "columns": []}],
        "no cells": [{"header": ["a"], "columns": [[]]}],
    }.items():
        index = Index.of(oracle.table_set(lake, 0)[1], about(name))
        index.save(tmp_path / name)
        assert_equal(Index.load(tmp_path / name), index)


def with_texts(index, texts):
    """The same index, its headers, names, samples and table names filled from some texts."""
    profiles = index.lake.profiles

    def filled(old):
        return [texts[i % len(texts)] for i in range(len(old))]

    changed = {name: filled(old) for name, old in texts_of(index).items()}
    return replace(index, lake=TableSet(replace(profiles, **changed), index.lake.vectors), folder=None)


def test_odd_texts_come_back(oracle, tmp_path):
    index = with_texts(make(oracle), ODD)
    index = Index.of(index.lake, index.about)
    index.save(tmp_path)
    assert_equal(Index.load(tmp_path), index)
    assert set(texts_of(index)["headers"]) >= set(ODD)


def test_texts_that_are_no_unicode_come_back(oracle, tmp_path):
    # A file name in Latin-1 reaches Python with a lone surrogate, and so does "\\ud800" in a tables.json.
    index = with_texts(make(oracle), [os.fsdecode(b"caf\xe9.csv"), "\ud800"])
    index = Index.of(index.lake, index.about)
    index.save(tmp_path)
    assert_equal(Index.load(tmp_path), index)


def test_a_loaded_index_is_saved_again_bit_for_bit(saved, tmp_path):
    loaded = Index.load(tmp_path / "index")
    loaded.save(tmp_path / "again")
    assert_equal(Index.load(tmp_path / "again"), saved)
    assert read_manifest(tmp_path / "again") == read_manifest(tmp_path / "index")


def test_arrays_are_memory_mapped_and_read_only(saved, tmp_path):
    loaded = Index.load(tmp_path / "index")
    for name, array in arrays_of(loaded).items():
        assert isinstance(array.base, np.memmap), name
        assert not array.flags.writeable, name


def test_no_pickle_is_written_or_read(saved, tmp_path, monkeypatch):
    loads = []
    real = np.load

    def load(*args, **kwargs):
        loads.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(np, "load", load)
    Index.load(tmp_path / "index")
    assert loads
    assert all(kwargs.get("allow_pickle") is False for kwargs in loads)
    for path in segment_of(tmp_path / "index").iterdir():
        assert path.suffix in (".npy", ".arrow")
        if path.suffix == ".npy":
            assert not real(path, allow_pickle=False).dtype.hasobject
    bad = replace(saved, rows=np.array([{}], object))
    with pytest.raises(ValueError, match=r"allow_pickle|[Oo]bject"):
        bad.save(tmp_path / "object")


def test_the_segments_name_depends_on_what_it_holds(oracle, tmp_path):
    make(oracle, 0).save(tmp_path / "a")
    make(oracle, 0).save(tmp_path / "b")
    make(oracle, 0, pools=False).save(tmp_path / "c")
    make(oracle, 1).save(tmp_path / "d")
    names = [segment_of(tmp_path / name).name for name in "abcd"]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert all(name.startswith("segment-") for name in names)


# --- damage


def test_every_damaged_file_is_named_with_the_command_that_rebuilds_it(saved, tmp_path):
    folder = tmp_path / "index"
    paths = sorted(segment_of(folder).iterdir())
    assert {path.name for path in paths} == read_manifest(folder)["files"].keys()
    for path in paths:
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            flip(path, place)
            assert_refused(folder, path)
            path.write_bytes(whole)
        path.write_bytes(whole[:-1])
        assert_refused(folder, path)
        path.write_bytes(whole + b"\0")
        assert_refused(folder, path)
        path.unlink()
        assert_refused(folder, path)
        path.write_bytes(whole)
    assert_equal(Index.load(folder), saved)


def assert_refused(folder, path):
    with pytest.raises(IndexError_) as caught:
        Index.load(folder)
    assert str(path) in str(caught.value)
    assert f"gpumatch index LAKE -o {folder}" in str(caught.value)


def test_an_index_whose_writer_knew_nothing_of_a_file_is_no_index(saved, tmp_path):
    folder = tmp_path / "index"
    manifest = read_manifest(folder)
    (folder / manifest["segment"] / "chance.npy").unlink()
    del manifest["files"]["chance.npy"]
    manifest["checksum"] = gpumatch.index._manifest_checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IndexError_, match=r"lacks .*chance\.npy; rebuild it: gpumatch index"):
        Index.load(folder)


def test_saving_again_mends_a_damaged_segment(saved, tmp_path):
    # What the message says to do: the lake is the same, so its segment has the same name.
    folder = tmp_path / "index"
    flip(segment_of(folder) / "rows.npy")
    with pytest.raises(IndexError_):
        Index.load(folder)
    saved.save(folder)
    assert_equal(Index.load(folder), saved)


def test_what_a_killed_writer_left_is_swept_away(saved, tmp_path):
    folder = tmp_path / "index"
    (folder / ".manifest.json.tmp-1-abcd").write_bytes(b"{")
    saved.save(folder)
    assert {path.name.split("-")[0] for path in folder.iterdir()} == {"manifest.json", "segment", ".lock"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'"x"', b"null", b"{}"],
    ids=["empty", "torn", "binary", "list", "text", "null", "no fields"],
)
def test_a_damaged_manifest_is_refused(saved, tmp_path, content):
    folder = tmp_path / "index"
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(IndexError_, match="gpumatch index LAKE -o"):
        Index.load(folder)
    saved.save(folder)
    assert_equal(Index.load(folder), saved)


@pytest.mark.parametrize(
    "field",
    ["format", "segment", "segment-", "about", "encoder", "fake@1", "lake 0", "pools", "fedcba", "files", "rows.npy"],
)
def test_a_flipped_byte_in_the_manifest_is_noticed(saved, tmp_path, field):
    folder = tmp_path / "index"
    flip(folder / "manifest.json", (folder / "manifest.json").read_bytes().index(field.encode()))
    with pytest.raises(IndexError_, match="gpumatch index LAKE -o"):
        Index.load(folder)


def test_no_manifest(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(IndexError_, match="is no index"):
            Index.load(folder)
        assert not is_index(folder)


@pytest.mark.parametrize("other", [FORMAT + 1, 0, None, "1"])
def test_another_format_is_refused(saved, tmp_path, other):
    folder = tmp_path / "index"
    manifest = read_manifest(folder) | {"format": other}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IndexError_, match=f"format {other}.*reads {FORMAT}.*gpumatch index LAKE -o {folder}"):
        Index.load(folder)
    saved.save(folder)
    assert_equal(Index.load(folder), saved)


# --- where an index may be saved


def test_a_folder_that_holds_something_else_is_left_alone(oracle, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(IndexError_, match="not empty and no index"):
        make(oracle).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_programs_manifest_is_left_alone(oracle, tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "my web app"}')
    (tmp_path / "app.js").write_text("mine")
    with pytest.raises(IndexError_):
        make(oracle).save(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"name": "my web app"}'


def test_a_file_is_no_folder(oracle, tmp_path):
    (tmp_path / "index").write_text("mine")
    with pytest.raises((IndexError_, OSError)):
        make(oracle).save(tmp_path / "index")
    assert (tmp_path / "index").read_text() == "mine"


def test_new_and_empty_folders_are_taken(oracle, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "below"):
        make(oracle).save(folder)
        assert is_index(folder)


# --- publishing


def test_a_new_index_replaces_the_old_one_and_nothing_is_left(oracle, saved, tmp_path):
    folder = tmp_path / "index"
    new = make(oracle, 1)
    new.save(folder)
    assert_equal(Index.load(folder), new)
    assert names_in(folder) == ["manifest.json", segment_of(folder).name]


def test_saving_the_same_again_changes_nothing(saved, tmp_path):
    folder = tmp_path / "index"
    before = {path.name: path.stat().st_mtime_ns for path in segment_of(folder).iterdir()}
    saved.save(folder)
    assert {path.name: path.stat().st_mtime_ns for path in segment_of(folder).iterdir()} == before
    assert names_in(folder) == ["manifest.json", segment_of(folder).name]


def test_a_reader_of_the_old_segment_reads_on(oracle, saved, tmp_path):
    folder = tmp_path / "index"
    reader = Index.load(folder)
    make(oracle, 1).save(folder)
    assert_equal(reader, saved)


def test_a_reader_that_opens_while_another_is_published_gets_one_of_the_two(oracle, saved, tmp_path, monkeypatch):
    folder, new = tmp_path / "index", make(oracle, 1)

    def read(place):
        monkeypatch.undo()
        manifest = read_manifest(place)
        new.save(place)  # between the reader's manifest and its segment
        return manifest

    monkeypatch.setattr(gpumatch.index, "read_manifest", read)
    loaded = Index.load(folder)
    assert_equal(loaded, saved if loaded.about == saved.about else new)


class KilledError(BaseException):
    pass


def die(*_):
    raise KilledError


@pytest.mark.parametrize("where", ["atomic_write_bytes", "_save_texts", "checksum_of", "_fsync"])
def test_a_kill_before_the_manifest_leaves_the_old_index(oracle, saved, tmp_path, monkeypatch, where):
    folder, new = tmp_path / "index", make(oracle, 1)
    monkeypatch.setattr(gpumatch.index, where, die)
    with pytest.raises(KilledError):
        new.save(folder)
    monkeypatch.undo()
    assert_equal(Index.load(folder), saved)
    new.save(folder)
    assert_equal(Index.load(folder), new)
    assert names_in(folder) == ["manifest.json", segment_of(folder).name]


def test_the_segment_is_whole_before_the_manifest_names_it(oracle, tmp_path, monkeypatch):
    seen = []
    real = gpumatch.index.atomic_write_bytes

    def write(path: Path, data: bytes):
        manifest = json.loads(data)
        seen.append({p.name for p in (path.parent / manifest["segment"]).iterdir()} == manifest["files"].keys())
        real(path, data)

    monkeypatch.setattr(gpumatch.index, "atomic_write_bytes", write)
    make(oracle).save(tmp_path)
    assert seen == [True]


def test_what_killed_writers_were_building_is_gone_before_the_manifest_is_there(saved, tmp_path, monkeypatch):
    """A reader that finds the index whole sweeps nothing, so a kill right after the rename must leave nothing to."""
    folder = tmp_path / "index"
    dead = folder / ".building-1234"
    dead.mkdir()
    (dead / "rows.npy").write_bytes(b"1")
    real = gpumatch.index.atomic_write_bytes

    def write_and_die(path: Path, data: bytes):
        real(path, data)
        raise KilledError

    monkeypatch.setattr(gpumatch.index, "atomic_write_bytes", write_and_die)
    with folder_in_work(folder, ".building-") as alive:
        with pytest.raises(KilledError):
            saved.save(folder)
        assert (dead.exists(), alive.exists()) == (False, True)
    assert_equal(Index.load(folder), saved)


def test_threads_and_containers_save_one_index_at_once(oracle, tmp_path):
    """They have one process number: threads of one process, and processes that are number 1 in their containers."""
    indexes, folder = [make(oracle), make(oracle, seed=1)], tmp_path / "index"
    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            for one in [pool.submit(index.save, folder) for index in indexes * 2]:
                one.result()
        assert Index.load(folder).about in [index.about for index in indexes]
        assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".b")) == []


@pytest.mark.parametrize("where", ["atomic_write_bytes", "_save_texts"])
def test_after_a_kill_of_the_first_save_the_next_one_works(oracle, tmp_path, monkeypatch, where):
    index = make(oracle)
    monkeypatch.setattr(gpumatch.index, where, die)
    with pytest.raises(KilledError):
        index.save(tmp_path / "index")
    monkeypatch.undo()
    assert not is_index(tmp_path / "index")
    index.save(tmp_path / "index")
    assert_equal(Index.load(tmp_path / "index"), index)


@pytest.mark.parametrize("number", [(), (28, "No space left on device")])
def test_a_full_disk_is_told_and_nothing_stays_on_it(oracle, saved, tmp_path, monkeypatch, number):
    def full(*given, **named):
        raise OSError(*number or ["153686 requested and 21488 written"])

    before = names_in(tmp_path / "index")
    monkeypatch.setattr(np, "save", full)
    for folder in (tmp_path / "index", tmp_path / "new"):
        with pytest.raises(IndexError_, match=f"^cannot write {folder}: .*; free space or choose another folder$"):
            make(oracle, 1).save(folder)
    assert names_in(tmp_path / "index") == before
    assert_equal(Index.load(tmp_path / "index"), saved)
    assert not (tmp_path / "new").exists()


def test_two_writers_do_not_take_each_others_work(oracle, tmp_path, monkeypatch):
    folder, other, mine = tmp_path / "index", make(oracle, 1), make(oracle, 0)
    real = gpumatch.index._save_texts

    def meanwhile(path, texts):
        monkeypatch.undo()
        other.save(folder)
        real(path, texts)

    other.save(folder)
    monkeypatch.setattr(gpumatch.index, "_save_texts", meanwhile)
    mine.save(folder)
    assert_equal(Index.load(folder), mine)
