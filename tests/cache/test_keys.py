"""Keys: stable, framed, cheap to sort, and bytes for SQLite."""

from __future__ import annotations

import sqlite3

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from gpumatch.cache.catalogue import row_checks
from gpumatch.cache.folder import _about_check
from gpumatch.cache.keys import KEY, namespace, text_keys
from gpumatch.cache.shards import Segment

any_text = st.text(st.characters(exclude_categories=()))


def test_keys_are_the_digests_of_the_utf8_bytes_in_order():
    texts = ["", "a", "straße", "a\0", "\ud800"]
    keys = text_keys(texts)
    assert keys.dtype == KEY
    assert keys.tolist() == [xxhash.xxh3_128_digest(t.encode("utf-8", "surrogatepass")) for t in texts]


def test_a_known_key_never_changes():
    # written down once: a change would silently orphan every cache in the field
    assert text_keys(["gpumatch"])[0].tobytes().hex() == "74b9065ac71388107775e24f97252fe4"
    assert namespace("m", "r", "s") == "3df8beec398b21087cc43bf01aedf591"


def test_known_checks_never_change():
    # likewise: a change would call every cache in the field damaged
    segment = Segment(5, "shard-1-ab.f16", start_row=3, n_rows=2, checksum=0)
    handles = segment.handles()
    assert handles.tolist() == [83886080, 83886081]
    assert segment.shard_rows(handles).tolist() == [3, 4]
    assert segment.checksum_of([b"12", b"34"]) == 3521211596438097364
    assert row_checks(text_keys(["gpumatch", "x"]), handles).tolist() == [-4006086163127219478, 8870153779438820798]
    assert _about_check({"format": 1, "dim": 384}) == "0f40b947ceb9b894"


def test_no_texts_give_no_keys():
    assert text_keys([]).shape == (0,)
    assert text_keys([]).dtype == KEY


@given(st.lists(any_text, max_size=20))
def test_equal_texts_and_only_they_share_a_key(texts):
    keys = text_keys(texts)
    assert len(np.unique(keys)) == len(set(texts))


def test_trailing_zero_bytes_survive_numpy_and_sqlite():
    keys = np.frombuffer(bytes(15) + b"\1" + b"\1" + bytes(15), dtype=KEY)
    db = sqlite3.connect(":memory:")
    try:
        db.execute("CREATE TABLE t (key BLOB PRIMARY KEY)")
        db.executemany("INSERT INTO t VALUES (?)", [(key,) for key in keys.tolist()])
        stored = [row[0] for row in db.execute("SELECT key FROM t ORDER BY key")]
    finally:
        db.close()
    assert stored == np.sort(keys).tolist() == [bytes(15) + b"\1", b"\1" + bytes(15)]


def test_namespace_frames_its_parts():
    assert namespace("a", "bc", "s") != namespace("ab", "c", "s")
    assert namespace("a", "b", "cs") != namespace("a", "bc", "s")
    assert namespace("", "a", "") != namespace("a", "", "")


@given(any_text, any_text, any_text)
def test_namespace_is_a_plain_file_name(model, revision, serialiser):
    name = namespace(model, revision, serialiser)
    assert len(name) == 32
    assert set(name) <= set("0123456789abcdef")
