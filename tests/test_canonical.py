"""Canonical values against a slow oracle, one column at a time, and by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.canonical import canonical, comparable, folded


def read(*columns):
    """The canonical values of some columns of distinct values, which are coded, and what their keys begin with."""
    distinct = list(dict.fromkeys(value for column in columns for value in column))
    code = np.array([distinct.index(value) for column in columns for value in column], np.int64)
    column = np.repeat(np.arange(len(columns)), [len(values) for values in columns])
    texts, place, coded, letter = canonical(pa.array(distinct, pa.string()), code, column, len(columns))
    assert len(set(texts.to_pylist())) == len(texts)
    shown = texts.take(pa.array(place)).to_pylist()
    values = [[text for text, of in zip(shown, column, strict=True) if of == i] for i in range(len(columns))]
    return values, coded, [chr(one) if one else "" for one in letter]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["ÉVRY", "  new   york ", "Straße", "\uff21\uff22"], ["evry", "new york", "straße", "ab"]),
        (["1,234", "5 000", "007", ".50", "-0", "+3.10", "-2'500"], ["1234", "5000", "7", "0.5", "0", "3.1", "-2500"]),
        (["12,5", "1.234,50", "7"], ["12.5", "1234.5", "7"]),
        (["1,234", "12,345"], ["1234", "12345"]),  # in both ways; the first counts
        (["5 kg", "7kg", "9"], ["5", "7", "9"]),
        (["$5", "$6.00", "7"], ["5", "6", "7"]),
        (["50%", "7.5 %"], ["50", "7.5"]),
        (["5 kg", "7 m", "9"], ["5 kg", "7 m", "9"]),  # no unit is usual
        (["1", "2", "12a", "3", "4", "5"], ["1", "2", "12a", "3", "4", "5"]),
        (["cust_42", "cust_007"], ["42", "7"]),
        (["CUST-1", "cust-2"], ["1", "2"]),
        (["cust_42"], ["cust_42"]),  # one value does not tell
        (["a1", "b2"], ["a1", "b2"]),
        (
            ["01/02/2020", "2020-03-04", "15.1.2020", "5 Mar 2019", "March 7, 2019"],
            ["2020-02-01", "2020-03-04", "2020-01-15", "2019-03-05", "2019-03-07"],
        ),
        (["01/13/2020", "1/2/2020"], ["2020-01-13", "2020-01-02"]),
        (["2020-01-01 00:00:00", "2020-01-02"], ["2020-01-01", "2020-01-02"]),
        (["2020-01-01 10:30", "2020-01-02"], ["2020-01-01 10:30", "2020-01-02"]),
        (["2020-13-45", "2020-00-01"], ["2020-13-45", "2020-00-01"]),
        (["x", "1"], ["x", "1"]),
    ],
)
def test_by_hand(written, meant):
    assert read(written)[0] == [meant]


def test_each_column_is_read_in_its_own_way():
    columns, coded, letters = read(["1,5", "2,25"], ["1,5", "b", "c"], ["id 1", "id 2"], ["id 1", "x"], [])
    assert columns == [["1.5", "2.25"], ["1,5", "b", "c"], ["1", "2"], ["id 1", "x"], []]
    assert coded.tolist() == [True, False, True, False, False]
    assert letters == ["", "", "i", "", ""]


def test_two_spellings_become_one_text():
    distinct = pa.array(["Évry", "EVRY", "1.0", "1"])
    texts, place, *_ = canonical(distinct, np.arange(4), np.array([0, 0, 1, 1]), 2)
    assert place[0] == place[1]
    assert place[2] == place[3]
    assert texts.take(pa.array(place)).to_pylist() == ["evry", "evry", "1", "1"]


NUMBER = st.builds(
    lambda *parts: "".join(parts),
    st.sampled_from(["", "$", "€ ", "-", "+", "$-"]),
    st.sampled_from(["0", "7", "007", "12", "1234", "1,234", "1 234", "1.234", "1.234,5", "1,234.50", "12,50", ".5"]),
    st.sampled_from(["", "", "", " kg", "kg", "%", " €", ".", ".0"]),
)
DATE = st.builds(
    lambda a, b, year, mark: f"{a}{mark}{b}{mark}{year}",
    st.integers(0, 32), st.integers(0, 14), st.sampled_from([1999, 2020, 20]), st.sampled_from("-/."),
)  # fmt: skip
CLEAR = st.sampled_from(["2020-1-2", "2020/12/31", "1 Jan 2020", "feb. 3, 2020", "2020-01-02T00:00:00Z", "3-mar-1999"])
KEY = st.builds(
    lambda prefix, mark, n: f"{prefix}{mark}{n}",
    st.sampled_from(["id", "ID", "cust", "Straße", "x"]), st.sampled_from(["", "_", "-", " ", "#"]), st.integers(0, 30),
)  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cn", "Cs", "Co"]), min_size=1, max_size=6)


@given(
    st.lists(
        st.sampled_from([NUMBER, DATE | CLEAR, KEY, TEXT]).flatmap(
            lambda kind: st.lists(kind | st.sampled_from(["1", "x"]), max_size=6, unique=True)
        ),
        max_size=3,
    )
)
@settings(max_examples=160, deadline=None)
def test_against_the_oracle(canonical_oracle, columns):
    columns = [list(dict.fromkeys(value.strip() for value in column if value.strip())) for column in columns]
    found, coded, letters = read(*columns)
    expected = [canonical_oracle.canonical(column) for column in columns]
    assert found == [values for values, *_ in expected]
    assert coded.tolist() == [said for _, said, _ in expected]
    assert letters == [letter for *_, letter in expected]


def test_keys_of_other_letters_number_other_things():
    *_, letters = read(
        ["CUST-1", "CUST-2"], ["customer_7", "customer_8"], ["SUPP-1", "SUPP-2"], ["1", "2"], ["5 kg", "6 kg"]
    )
    assert letters == ["c", "c", "s", "", ""]
    codes = np.array([ord(one) if one else 0 for one in letters], np.uint32)
    assert comparable(codes[0], codes).tolist() == [True, True, False, True, True]


@given(TEXT)
@settings(max_examples=160, deadline=None)
def test_folding_against_the_oracle(canonical_oracle, text):
    assert folded(pa.array([text])).to_pylist() == [canonical_oracle.fold(text)]
