"""Canonical values against a slow oracle, one column at a time, and by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.canonical import canonical, comparable, folded
from gpumatch.lake.arrow import as_text


def read(*columns):
    """The canonical values of some columns of distinct values, which are coded, and their letters."""
    distinct = list(dict.fromkeys(value for column in columns for value in column))
    code = np.array([distinct.index(value) for column in columns for value in column], np.int64)
    column = np.repeat(np.arange(len(columns)), [len(values) for values in columns])
    texts, place, coded, keyed, letter = canonical(pa.array(distinct, pa.string()), code, column, len(columns))
    assert len(set(texts.to_pylist())) == len(texts)
    shown = texts.take(pa.array(place)).to_pylist()
    values = [[text for text, of in zip(shown, column, strict=True) if of == i] for i in range(len(columns))]
    assert not (keyed & ~coded).any()
    return values, coded, letter


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
        (["1’234.50", "CHF 5", "-CHF 7"], ["1234.5", "5", "-7"]),
        (["EUR 1,234.50", "-eur 6"], ["1234.5", "-6"]),
        (["-$5", "$-6", "-7"], ["-5", "-6", "-7"]),
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
        (["2020-01-01 10:30", "2020-01-02T10:30:00.000Z"], ["2020-01-01 10:30", "2020-01-02 10:30"]),
        (["2/1/2020 9:05:07.250", "2020-01-02 0:00:10"], ["2020-01-02 09:05:07.25", "2020-01-02 00:00:10"]),
        (["2020-01-01 00:30+02", "2020-01-01T22:00 -0330"], ["2019-12-31 22:30", "2020-01-02 01:30"]),
        (["2020-01-01 24:00", "2020-01-01 10:60", "x 1"], ["2020-01-01 24:00", "2020-01-01 10:60", "x 1"]),
        (["2020-13-45", "2020-00-01", "2021-02-29"], ["2020-13-45", "2020-00-01", "2021-02-29"]),
        (["20230101", "20240229", "20230131"], ["2023-01-01", "2024-02-29", "2023-01-31"]),
        (["20230101", "20230229", "20230131"], ["20230101", "20230229", "20230131"]),  # no date is one too many
        (["18230101", "21010101"], ["18230101", "21010101"]),  # nor are years this far away
        ([*(f"202301{d}" for d in range(10, 28)), "0"], [*(f"2023-01-{d}" for d in range(10, 28)), "0"]),
        (["01.02.23", "31.12.69"], ["2023-02-01", "1969-12-31"]),
        (["1/2/23", "1/31/68"], ["2023-01-02", "2068-01-31"]),
        (["1/2/23", "3/4/23 10:00"], ["2023-02-01", "2023-04-03 10:00"]),
        (["1.2.10", "1.2.11"], ["1.2.10", "1.2.11"]),  # versions
        (["10.20.30", "10.30.10"], ["10.20.30", "10.30.10"]),  # with points the day comes first
        (["01-02-03", "31-12-23"], ["01-02-03", "31-12-23"]),  # the year may come first
        (["x", "1"], ["x", "1"]),
    ],
)
def test_by_hand(written, meant):
    assert read(written)[0] == [meant]


def test_each_column_is_read_in_its_own_way():
    columns, coded, letters = read(["1,5", "2,25"], ["1,5", "b", "c"], ["id 1", "id 2"], ["id 1", "x"], [])
    assert columns == [["1.5", "2.25"], ["1,5", "b", "c"], ["1", "2"], ["id 1", "x"], []]
    assert coded.tolist() == [True, False, True, False, False]
    assert [bool(one) for one in letters] == [False, False, True, False, False]


def test_two_spellings_become_one_text():
    distinct = pa.array(["Évry", "EVRY", "1.0", "1"])
    texts, place, *_ = canonical(distinct, np.arange(4), np.array([0, 0, 1, 1]), 2)
    assert place[0] == place[1]
    assert place[2] == place[3]
    assert texts.take(pa.array(place)).to_pylist() == ["evry", "evry", "1", "1"]


NUMBER = st.builds(
    lambda *parts: "".join(parts),
    st.sampled_from(["", "$", "€ ", "-", "+", "$-", "-$", "EUR ", "chf", "-usd "]),
    st.sampled_from(
        ["0", "7", "007", "12", "1234", "1,234", "1 234", "1’234", "1.234", "1.234,5", "1,234.50", "12,50", ".5"]
    ),
    st.sampled_from(["", "", "", " kg", "kg", "%", " €", ".", ".0"]),
)
DATE = st.builds(
    lambda a, b, year, mark: f"{a}{mark}{b}{mark}{year}",
    st.integers(0, 32), st.integers(0, 14), st.sampled_from([1999, 2020, 20]), st.sampled_from("-/."),
)  # fmt: skip
CLEAR = st.sampled_from(["2020-1-2", "2020/12/31", "1 Jan 2020", "feb. 3, 2020", "2020-01-02T00:00:00Z", "3-mar-1999"])
TIME = st.builds(
    lambda *parts: "".join(parts),
    DATE | CLEAR, st.sampled_from(["T", " ", ""]), st.sampled_from(["0:00", "00:00", "23:59", "12:60", "24:00"]),
    st.sampled_from(["", ":00", ":07", ":61"]), st.sampled_from(["", ".", ".0", ".120", ".000"]),
    st.sampled_from(["", "Z", " utc", "+00:00", "+0530", " -03", "+24:00", "x"]),
)  # fmt: skip
COMPACT = st.builds(
    "{}{:02}{:02}".format, st.sampled_from([1899, 1900, 2024, 2100]), st.integers(1, 12), st.integers(1, 29)
)
KEY = st.builds(
    lambda prefix, mark, n: f"{prefix}{mark}{n}",
    st.sampled_from(["id", "ID", "cust", "Straße", "x"]), st.sampled_from(["", "_", "-", " ", "#"]), st.integers(0, 30),
)  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cn", "Cs", "Co"]), min_size=1, max_size=6)


@given(
    st.lists(
        st.sampled_from([NUMBER, DATE | CLEAR, DATE | CLEAR | TIME, COMPACT, KEY, TEXT]).flatmap(
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
    assert coded.tolist() == [said for _, said, _, _ in expected]
    assert letters.tolist() == [canonical_oracle.packed(said) for *_, said in expected]


INSTANT = st.datetimes(datetime(1950, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))


@given(st.lists(INSTANT, min_size=2, max_size=4, unique=True), st.integers(-720, 720))
@settings(max_examples=30, deadline=None)
def test_one_moment_is_one_value_however_it_is_written(moments, minutes):
    local = [moment.astimezone(timezone(timedelta(minutes=minutes))) for moment in moments]
    ways = [
        [moment.isoformat() for moment in moments],
        [str(moment.replace(tzinfo=None)) for moment in moments],
        [f"{moment:%Y/%m/%d %H:%M:%S.%f000Z}" for moment in moments],
        [f"{moment:%Y-%m-%d %H:%M:%S.%f%z}" for moment in local],
        [moment.isoformat(" ") for moment in local],
        as_text(pa.array(moments, pa.timestamp("us"))).to_pylist(),
        as_text(pa.array(moments, pa.timestamp("ns", "UTC"))).to_pylist(),
    ]
    found, coded, _ = read(*ways)
    assert all(values == found[0] for values in found)
    assert len(set(found[0])) == len(moments)
    assert coded.all()


def letter_of(*columns):
    return read(*columns)[2]


def test_keys_of_another_prefix_number_other_things():
    keys = letter_of(
        ["CUST-1", "CUST-2"], ["customer_7", "customer_8"], ["C1", "C2"], ["1", "2"],
        ["CON-1", "CON-2"], ["CMP1", "CMP2"], ["SUPP-1", "SUPP-2"],
    )  # fmt: skip
    assert comparable(keys[0], keys).tolist() == [True] * 4 + [False] * 3
    assert comparable(keys[2], keys).tolist() == [True] * 6 + [False]
    assert comparable(keys[4:5], keys).tolist() == [False, False, True, True, True, False, False]


def test_prefixes_in_any_script_are_told_apart():
    keys = letter_of(["мир_1", "мир_2"], ["миф_1", "миф_2"], ["日本1", "日本2"], ["日光1", "日光2"], ["日1", "日2"])
    assert comparable(keys[:, None], keys).tolist() == [
        [True, False, False, False, False],
        [False, True, False, False, False],
        [False, False, True, False, True],
        [False, False, False, True, True],
        [False, False, True, True, True],
    ]


def test_numbers_of_another_unit_measure_other_things():
    units = letter_of(
        ["5 kg", "6 kg"], ["7kilogram", "8 kilogram"], ["5", "6"], ["5 km", "6 km"], ["5 lb", "6 lb"], ["€5", "6 €"]
    )
    assert comparable(units[0], units).tolist() == [True, True, True, False, False, False]
    money = letter_of(["$5", "$1,234"], ["5 USD", "6 USD"], ["5", "1234"], ["USD 5", "USD 6"], ["5%", "6%"], ["5 €"])
    assert comparable(money[0], money).tolist() == [True, True, True, True, False, False]


LETTERS = st.text(st.sampled_from("abкм本"), max_size=5)


@given(st.lists(LETTERS, min_size=1, max_size=4))
def test_comparable_against_the_oracle(canonical_oracle, marks):
    packed = np.array([canonical_oracle.packed(mark[:4]) for mark in marks], np.uint32)
    expected = [[not canonical_oracle.apart(one[:4], other[:4]) for other in marks] for one in marks]
    assert comparable(packed[:, None], packed).tolist() == expected


@given(TEXT)
@settings(max_examples=160, deadline=None)
def test_folding_against_the_oracle(canonical_oracle, text):
    assert folded(pa.array([text])).to_pylist() == [canonical_oracle.fold(text)]
