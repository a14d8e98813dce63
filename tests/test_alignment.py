"""Columns of two tables: the same scores as a join by column, and an assignment that no other one beats."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import gpumatch
from gpumatch.alignment import one_to_one
from gpumatch.cli import app
from gpumatch.errors import LakeError
from gpumatch.pipeline import align
from gpumatch.run import Run

PEOPLE = "full_name,birth_year,home town\nAnn Lee,1980,Oslo\nBob Ray,1991,Bergen\nCy Fox,1979,Évry\nDi Poe,1980,Oslo\n"
STAFF = 'City,Employee Name,Salary,Year of Birth\noslo,"Lee, Ann",10,1980\nevry,Fox Cy,20,1979\noslo,Poe Di,30,1980\n'


@pytest.fixture
def tables(tmp_path):
    for name, text in (("people.csv", PEOPLE), ("staff.csv", STAFF)):
        (tmp_path / name).write_text(text)
    return tmp_path / "people.csv", tmp_path / "staff.csv"


def run_of(**settings):
    return Run(gpumatch.Settings(**({"layer": "L1"} | settings)))


def test_columns_worded_differently_are_aligned(tables):
    found = align(*tables, run_of())
    assert found.pairs.tolist() == [[0, 1], [1, 3], [2, 0]]
    assert found.alike.shape == (3, 4)
    assert ((found.alike >= 0) & (found.alike <= 1)).all()
    assert found.keys is None
    rows = list(found.rows(2))
    assert [row["query_column"]["name"] for row in rows] == ["full_name", "birth_year", "home town"]
    assert [len(row["columns"]) for row in rows] == [2, 2, 2]
    for i, row in enumerate(rows):
        scores = [one["score"] for one in row["columns"]]
        assert scores == sorted(found.alike[i], reverse=True)[:2]
        (aligned,) = (one for one in row["columns"] if one.get("aligned"))
        assert aligned["candidate"]["index"] == dict(found.pairs.tolist())[i]


def test_the_aligned_column_is_shown_though_it_is_not_among_the_best(tables, tmp_path):
    (tmp_path / "twice.csv").write_text("Year of Birth,Year of Birth \n1980,1980\n1979,1979\n")
    (tmp_path / "once.csv").write_text("Year of Birth,x\n1980,q\n1979,1980\n")
    rows = list(align(tmp_path / "twice.csv", tmp_path / "once.csv", run_of()).rows(1))
    assert [[one.get("aligned", False) for one in row["columns"]] for row in rows] == [[True], [False, True]]


def test_all_candidates_are_in_order_and_ties_by_position(tables):
    for row in align(*tables, run_of()).rows(0):
        order = [(-one["score"], one["candidate"]["index"]) for one in row["columns"]]
        assert order == sorted(order)
        assert len(order) == 4


def test_keys_are_of_the_same_likeness(tables):
    found = align(*tables, run_of(), keys=True)
    best = next(found.key_rows(1))
    assert (
        best["columns"]
        == [
            {
                "query": {"index": 1, "name": "birth_year"},
                "candidate": {"index": 3, "name": "Year of Birth"},
                "score": found.alike[1, 3],
            },
            {
                "query": {"index": 2, "name": "home town"},
                "candidate": {"index": 0, "name": "City"},
                "score": found.alike[2, 0],
            },
        ]
        or len(best["columns"]) == 1
    )
    assert {"score", "key_side", "query_uniqueness", "expected_rows"} <= best.keys()
    assert len(list(found.key_rows(0))) == len(found.keys) >= len(list(found.key_rows(2))) == 2


def test_a_lake_of_several_tables_is_no_table(tables):
    with pytest.raises(LakeError, match="holds 2 tables; give the file of one"):
        align(tables[0].parent, tables[1], run_of())


def test_what_was_read_in_part_is_told(tmp_path):
    (tmp_path / "wide.csv").write_text(",".join(f"n{i}" for i in range(2_001)) + "\n")
    (tmp_path / "b.csv").write_text("n1,x\n1,2\n")
    run = run_of()
    align(tmp_path / "wide.csv", tmp_path / "b.csv", run)
    assert [warning.split(":")[0] for warning in run.stats.warnings] == ["columns-cut"]


def test_a_key_is_the_same_from_either_side(tmp_path):
    """Thirty of a thousand customers have ordered: hardly any customer is in the orders, and all orders have one."""
    customers = "".join(f"{7919 * n % 100_003},{n % 50}\n" for n in range(1_000))
    orders = "".join(f"{7919 * (n % 30) % 100_003},{n % 50}\n" for n in range(300))
    (tmp_path / "customers.csv").write_text("customer,day\n" + customers)
    (tmp_path / "orders.csv").write_text("buyer,day\n" + orders)
    both = [tmp_path / "customers.csv", tmp_path / "orders.csv"]
    there, back = (align(*pair, run_of(), keys=True).keys for pair in (both, both[::-1]))
    assert there[0].columns == back[0].columns == ((0, 0),)
    assert there[0].score == back[0].score
    assert (there[0].fit.side, back[0].fit.side) == ("query", "candidate")


def test_equal_columns_are_aligned_in_their_order():
    assert one_to_one(np.full((3, 3), 0.5)).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert one_to_one(np.full((2, 4), 0.5)).tolist() == [[0, 0], [1, 1]]


def test_frames_and_files(tables):
    frame = {"City": ["oslo", "evry"], "Year of Birth": ["1980", "1979"]}
    found = gpumatch.align(tables[0], frame, layer="L1", keys=True)
    assert found.pairs.tolist() == [[1, 1], [2, 0]]
    assert found.keys


def test_the_command_writes_lines(tables, tmp_path):
    out = tmp_path / "made" / "columns.jsonl"
    done = CliRunner().invoke(app, ["align", *map(str, tables), "--layer", "L1", "--top", "3", "-q", "-o", str(out)])
    assert (done.exit_code, done.stdout) == (0, "")
    assert list(map(json.loads, out.read_text().splitlines())) == list(align(*tables, run_of()).rows(3))
    assert out.stat().st_mode == tables[0].stat().st_mode
    done = CliRunner().invoke(app, ["align", *map(str, tables), "--layer", "L1", "--top", "2", "-q", "--task", "join"])
    assert list(map(json.loads, done.stdout.splitlines())) == list(align(*tables, run_of(), keys=True).key_rows(2))
    assert CliRunner().invoke(app, ["align", *map(str, tables), "--task", "mix"]).exit_code != 0


@given(st.integers(0, 4), st.integers(0, 4), st.data())
@settings(max_examples=100, deadline=None)
def test_no_assignment_is_worth_more(n, m, data):
    cells = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
    alike = np.array(data.draw(st.lists(cells, min_size=n * m, max_size=n * m))).reshape(n, m)
    pairs = one_to_one(alike)
    assert len(set(pairs[:, 0].tolist())) == len(set(pairs[:, 1].tolist())) == len(pairs)
    assert (alike[pairs[:, 0], pairs[:, 1]] > 0).all()
    small = alike if n <= m else alike.T
    best = max(sum(small[i, j] for i, j in enumerate(order)) for order in permutations(range(max(n, m)), min(n, m)))
    assert alike[pairs[:, 0], pairs[:, 1]].sum() == pytest.approx(best)
