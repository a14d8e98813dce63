"""Every field of Profiles against a slow pure-Python oracle, on generated tables and on hand-made ones."""

import math
import re
import unicodedata
import weakref
from collections import Counter
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from chance_oracle import LEVELS, dense_up_to, fixed, level
from hypothesis import given, settings
from hypothesis import strategies as st

import gpumatch.profile
from gpumatch.lake import Table
from gpumatch.profile import Profiles, encoder_texts, header_texts, name_texts, profile_tables, value_texts
from gpumatch.text import normalise_name


@pytest.fixture(scope="module", autouse=True)
def _oracle_of_values(canonical_oracle):
    """Make canonical_oracle importable: tests is no package."""


# --- the oracle: one column at a time, one cell at a time


@dataclass(frozen=True)
class Limits:
    token_values: int = 200
    text_chars: int = 100
    sample_values: int = 10
    sample_chars: int = 100


def total(numbers):
    """A plain sum from left to right; sum() compensates from Python 3.12 on."""
    result = 0.0
    for number in numbers:
        result += number
    return result


def mean_of(numbers):
    return total(numbers) / len(numbers) if numbers else 0.0


def deviation_of(numbers):
    mean = mean_of(numbers)
    return math.sqrt(mean_of([(x - mean) * (x - mean) for x in numbers]))


def signed_log(x):
    return math.copysign(math.log1p(abs(x)), x)


def is_value(cell):
    return cell != "" and not re.fullmatch(r":?-+:?|[\u2010-\u2015]+", cell)


def lower(text):
    """Simple lower case, one code point for one: only "İ" has more in Python."""
    return "".join(character.lower()[0] for character in text)


def take(text, allowed):
    """Split off the leading characters that are allowed."""
    rest = text.lstrip(allowed)
    return text[: len(text) - len(rest)], rest


BLANK = " \t\n\f\r"
DIGIT = "0123456789"


def is_whole(text):
    """Digits, or groups of three of them after a first group of one to three."""
    if text and set(text) <= set(DIGIT):
        return True
    first, *groups = re.split("[, \u00a0]", text)
    return (
        1 <= len(first) <= 3
        and len(groups) > 0
        and all(len(group) == 3 for group in groups)
        and set(first + "".join(groups)) <= set(DIGIT)
    )


def number_of(text):
    """The number that a cell holds, or None; cents, percent and parentheses change nothing in it."""
    sign, rest = (text[:1], text[1:]) if text[:1] in ("-", "+", "(") else ("", text)
    rest = rest.lstrip(BLANK)
    if rest[:1] in ("$", "€", "£", "¥"):
        rest = rest[1:].lstrip(BLANK)
    rest = rest.removesuffix(")").removesuffix("%").rstrip(BLANK)
    mantissa, mark, exponent = rest.replace("E", "e").partition("e")
    if mark and not re.fullmatch("[-+]?[0-9]{1,3}", exponent):
        return None
    whole, point, fraction = mantissa.partition(".")
    if point and not (fraction and set(fraction) <= set(DIGIT)):
        return None
    if not is_whole(whole) and not (whole == "" and point):
        return None
    digits = "".join(character for character in whole if character in DIGIT)
    value = float(f"{'-' if sign == '-' else ''}{digits}{point}{fraction}{mark}{exponent}")
    return min(max(value, -1e150), 1e150)


def word_tokens(text):
    """Runs of letters, marks, numbers and underscores of a lowered text."""
    spaced = "".join(c if c == "_" or unicodedata.category(c)[0] in "LMN" else " " for c in lower(text))
    return [token for token in spaced.split(" ") if token]


def h(text):
    return xxhash.xxh3_64_intdigest(text.encode())


def column_of(header, cells, declared, limits):
    """What Profiles holds of one column, as plain values."""
    from canonical_oracle import canonical, packed

    distinct = list(dict.fromkeys(cell.strip() for cell in cells if cell is not None and is_value(cell.strip())))
    looked_at = distinct[: limits.token_values]
    numbers = [number for value in looked_at if (number := number_of(value)) is not None]
    share = len(numbers) / max(1, len(looked_at))
    values, coded, keyed, letters = canonical(distinct)
    values = list(dict.fromkeys(values))
    tokens = Counter(h(token) for value in looked_at for token in word_tokens(value))
    return {
        "header": header,
        "name": normalise_name(header),
        "numeric": share > 0.5 if declared is None else declared == "numeric",
        "stats": [
            math.log1p(mean_of([float(len(value)) for value in looked_at])),
            math.log1p(deviation_of([float(len(value)) for value in looked_at])),
            share,
            signed_log(mean_of(numbers)),
            math.log1p(deviation_of(numbers)),
            mean_of([sum(c in DIGIT for c in value) / len(value) for value in looked_at]),
        ],
        "range": [min(numbers), max(numbers)] if numbers else None,
        "values": sorted(map(h, values)),
        "coded": coded,
        "letter": packed(letters),
        "keyed": keyed,
        "chance": float(np.float32(fixed(values, header))),
        "dense": [float(np.float32(dense_up_to(values, up_to))) for up_to in range(LEVELS)],
        "level": level(values),
        "texts": [value[: limits.text_chars] for value in values[: limits.token_values]],
        "tokens": sorted(tokens.items()),
        "samples": [value[: limits.sample_chars] for value in distinct[: limits.sample_values]],
    }


# --- Profiles as plain values


def columns_of(profiles):
    """Undo the struct of arrays."""
    v, w, s, x = profiles.value_start, profiles.token_start, profiles.sample_start, profiles.text_start
    raw = profiles.text.tobytes()
    texts = [raw[a:b].decode() for a, b in pairwise(profiles.text_bytes.tolist())]
    return [
        {
            "header": profiles.headers[c],
            "name": profiles.names[c],
            "numeric": bool(profiles.numeric[c]),
            "stats": profiles.stats[c].tolist(),
            "range": None if np.isnan(profiles.number_range[c]).any() else profiles.number_range[c].tolist(),
            "values": profiles.values[v[c] : v[c + 1]].tolist(),
            "coded": bool(profiles.coded[c]),
            "letter": int(profiles.letter[c]),
            "keyed": bool(profiles.keyed[c]),
            "chance": float(profiles.chance[c]),
            "dense": profiles.dense[c].tolist(),
            "level": int(profiles.level[c]),
            "texts": texts[x[c] : x[c + 1]],
            "tokens": list(
                zip(
                    profiles.tokens[w[c] : w[c + 1]].tolist(),
                    profiles.token_tf[w[c] : w[c + 1]].tolist(),
                    strict=True,
                )
            ),
            "samples": profiles.samples[s[c] : s[c + 1]],
        }
        for c in range(profiles.n_columns)
    ]


DTYPES = {
    "table_cols": np.int64,
    "table_rows": np.int64,
    "numeric": np.bool_,
    "stats": np.float32,
    "number_range": np.float64,
    "value_start": np.int64,
    "values": np.uint64,
    "coded": np.bool_,
    "letter": np.uint32,
    "keyed": np.bool_,
    "chance": np.float32,
    "dense": np.float32,
    "level": np.int32,
    "text_start": np.int64,
    "text_bytes": np.int64,
    "text": np.uint8,
    "token_start": np.int64,
    "tokens": np.uint64,
    "token_tf": np.float32,
    "sample_start": np.int64,
}


def check(tables, limits=None):
    """Compare the profiles of some tables with the oracle, and return them."""
    profiles = profile_tables(iter(tables))
    assert {field: getattr(profiles, field).dtype for field in DTYPES} == DTYPES
    assert profiles.tables == [table.name for table in tables]
    assert (profiles.n_tables, profiles.n_columns) == (len(tables), sum(len(table.columns) for table in tables))
    assert np.diff(profiles.table_cols).tolist() == [len(table.columns) for table in tables]
    assert profiles.table_rows.tolist() == [-1 - table.n_rows if table.sampled else table.n_rows for table in tables]
    assert profiles.stats.shape == (profiles.n_columns, 6)
    assert profiles.number_range.shape == (profiles.n_columns, 2)
    expected = [
        column_of(header, cells.to_pylist(), declared, limits or Limits())
        for table in tables
        for header, cells, declared in zip(table.header, table.columns, table.types, strict=True)
    ]
    found = columns_of(profiles)
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have.pop("stats"), want.pop("stats"), rtol=1e-6, atol=1e-30)
    assert found == expected
    for field, flat in (
        ("table_cols", found),
        ("value_start", profiles.values),
        ("token_start", profiles.tokens),
        ("text_bytes", profiles.text),
    ):
        bounds = getattr(profiles, field)
        assert (bounds[0], bounds[-1]) == (0, len(flat))
    assert (profiles.sample_start[0], profiles.sample_start[-1]) == (0, len(profiles.samples))
    return profiles


def table(name="t", sampled=False, types=None, **columns):
    """A table from keyword columns of cells."""
    arrays = tuple(pa.array(cells, pa.string()) for cells in columns.values())
    return Table(name, tuple(columns), arrays, types or (None,) * len(columns), sampled)


def only(cells, declared=None):
    """The one column of a one-column table, checked against the oracle."""
    return columns_of(check([table(types=(declared,), a=cells)]))[0]


def same(left, right):
    """Tell whether two profiles are equal to the last bit."""
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        if isinstance(a, np.ndarray)
        else a == b
        for a, b in ((getattr(left, field.name), getattr(right, field.name)) for field in fields(Profiles))
    )


# --- generated tables

NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.integers(-(10**9), 10**9).map("{:,}".format),
    st.integers(0, 10**7).map(lambda n: f"{n:,}".replace(",", "\u00a0")),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e6, 1e6).map("{:,.2f}".format),
    st.tuples(
        st.sampled_from(["", "-", "+", "(", "- ", "+\t", "(("]),
        st.sampled_from(["", "$", "€", "£", "¥", "$ ", "₹", "US$"]),
        st.sampled_from(
            ["0", "7", "12", "1234", "1,234", "1 234 567", "1,23", "12,3456", ".5", "5.", "1,234.5", "0.25"]
        ),
        st.sampled_from(["", "e5", "E-3", "e+12", "e999", "e-999", "e1000", "e", "e 5"]),
        st.sampled_from(["", "%", " %", ")", "%)", " ", " )", "%%"]),
    ).map("".join),
    st.sampled_from(["1e999", "-1e999", "1e-999", "9" * 400, "-" + "9" * 200, "٣", "½", "1_000", "0x1F", "nan", "inf"]),
)
SILENT = st.sampled_from(
    ["", " ", "\t\n", "\u00a0", "\u2003", "-", "--", ":--:", ":-", "-:", "—", "–‐", "−", ":", "- -"]
)
LETTER = st.characters(codec="utf-8", exclude_categories=["Cn", "Cs", "Co"])
TEXTS = st.one_of(
    st.text(LETTER, max_size=12),
    st.sampled_from(
        ["Paris", "paris", "PARIS ", " Paris", "New York", "new  york", "İstanbul", "istanbul", "ΑΣ", "ας"]
    ),
    st.sampled_from(
        ["e\u0301t\u00e9", "a_b-c", "x.y@z.org", "2020-01-31", "日本 語", "🙂🙂", "नमस्ते", "a\x00b", "a\x1cb"]
    ),
    st.text(st.sampled_from("ab -_1"), max_size=6),
)
CELL = st.one_of(st.none(), SILENT, NUMBERS, TEXTS)
HEADER = st.text(st.sampled_from('aB "_\ufeff'), max_size=5)


@st.composite
def a_table(draw):
    n_rows = draw(st.integers(0, 7))
    n_columns = draw(st.integers(0, 4))
    row = st.lists(CELL, min_size=n_rows, max_size=n_rows)
    return Table(
        draw(st.sampled_from(["a.csv", "b.csv", "sub/ü.csv"])),
        tuple(draw(HEADER) for _ in range(n_columns)),
        tuple(pa.array(draw(row), pa.string()) for _ in range(n_columns)),
        tuple(draw(st.sampled_from([None, None, None, "numeric", "string"])) for _ in range(n_columns)),
        draw(st.booleans()),
    )


@given(st.lists(a_table(), max_size=4))
@settings(max_examples=120, deadline=None)
def test_generated_tables_against_the_oracle(tables):
    check(tables)


@given(st.lists(a_table(), max_size=3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_three_limits_against_the_oracle(tables, token_values, sample_values, sample_chars):
    limits = Limits(token_values, sample_values, sample_chars)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vars(limits).items():
            patch.setattr(gpumatch.profile, name.upper(), value)
        check(tables, limits)


@given(st.lists(a_table(), max_size=5), st.sampled_from([1, 2, 5, 13]))
@settings(max_examples=80, deadline=None)
def test_the_batch_size_changes_no_bit(tables, cells):
    whole = profile_tables(tables)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpumatch.profile, "BATCH_CELLS", cells)
        batches = list(gpumatch.profile._batches(tables))
        assert same(profile_tables(tables), whole)
    sizes = [[one.n_rows * len(one.columns) for one in batch] for batch in batches]
    assert [one for batch in batches for one in batch] == tables
    assert all(sum(batch) >= cells > sum(batch[:-1]) for batch in sizes[:-1])
    assert sum(sizes[-1]) < cells


def test_a_batch_ends_with_the_table_that_fills_it(monkeypatch):
    monkeypatch.setattr(gpumatch.profile, "BATCH_CELLS", 4)
    tables = [table("two", a=["1", "2"]), table("none"), table("two too", a=["1"], b=["2"]), table("five", a=["x"] * 5)]
    batches = [[one.name for one in batch] for batch in gpumatch.profile._batches(tables)]
    assert batches == [["two", "none", "two too"], ["five"], []]
    assert check(tables).table_rows.tolist() == [2, 0, 1, 5]


def test_a_batch_ends_with_the_text_that_fills_it_too(monkeypatch):
    monkeypatch.setattr(gpumatch.profile, "BATCH_BYTES", 3_000)
    flat = pa.array(["x" * 700, "y" * 700])
    long = Table("long", ("a", "b"), (flat.slice(0, 1), flat.slice(1, 1)), (None, None))  # as readers slice one array
    tables = [table("none"), long, table("short", a=["1"]), table("longer", a=["z" * 5_000]), long, long]
    batches = [[one.name for one in batch] for batch in gpumatch.profile._batches(tables)]
    assert batches == [["none", "long", "short", "longer"], ["long", "long"]]
    check(tables)


@given(st.text(LETTER, max_size=6) | NUMBERS.map(str.strip))
@settings(max_examples=300, deadline=None)
def test_which_cells_are_numbers_against_the_parser(text):
    found = gpumatch.profile._numbers(pa.array([text]))[0]
    expected = number_of(text)
    assert math.isnan(found) if expected is None else found == expected


# --- hand-made tables


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12.0),
        ("-12", -12.0),
        ("- 12", -12.0),
        ("+12.50", 12.5),
        (".5", 0.5),
        ("+.5", 0.5),
        ("-.5", -0.5),
        ("1,234,567.89", 1234567.89),
        ("1 234", 1234.0),
        ("1\u00a0234", 1234.0),
        ("$1,234", 1234.0),
        ("-$5", -5.0),
        ("€ 5", 5.0),
        ("£5", 5.0),
        ("¥5", 5.0),
        ("12%", 12.0),
        ("12.5 %", 12.5),
        ("1e5", 1e5),
        ("1.5E-3", 1.5e-3),
        ("-2e+2", -200.0),
        ("007", 7.0),
        ("1e999", 1e150),
        ("-1e999", -1e150),
        ("1e-999", 0.0),
        ("9" * 400, 1e150),
    ],
)
def test_numbers(text, number):
    assert gpumatch.profile._numbers(pa.array([text])).tolist() == [number]


@pytest.mark.parametrize(
    "text",
    ["", "-", "$", "%", "e5", "5.", "1.2.3", "12,34", "1,2345", "1234,567", "5-", "--5", "$-5", "1e", "1e1000"],
)
def test_no_numbers(text):
    assert gpumatch.profile._numbers(pa.array([text])).tolist() == pytest.approx([math.nan], nan_ok=True)


@pytest.mark.parametrize(
    "text",
    [
        "1 e5",
        "2020-01-31",
        "12:30",
        "192.168.0.1",
        "12 km",
        "x12",
        "٣",
        "½",
        "0x1F",
        "1_000",
        "nan",
        "inf",
        "5%%",
        "€$5",
    ],
)
def test_what_only_looks_like_a_number(text):
    assert gpumatch.profile._numbers(pa.array([text])).tolist() == pytest.approx([math.nan], nan_ok=True)


def test_statistics_of_four_numbers_spelled_out():
    column = only(["1", "10", "10", "1000", "-", None, "$1,000"])
    lengths = [1, 2, 4, 6]
    mean_length = 13 / 4
    spread = math.sqrt(sum((n - mean_length) ** 2 for n in lengths) / 4)
    mean = 2011 / 4
    deviation = math.sqrt(((1 - mean) ** 2 + (10 - mean) ** 2 + 2 * (1000 - mean) ** 2) / 4)
    profiles = profile_tables([table(a=["1", "10", "10", "1000", "-", None, "$1,000"])])
    assert profiles.stats[0].tolist() == pytest.approx(
        [math.log1p(mean_length), math.log1p(spread), 1, math.log1p(mean), math.log1p(deviation), (3 + 4 / 6) / 4]
    )
    assert column["numeric"] is True
    assert column["samples"] == ["1", "10", "1000", "$1,000"]


def test_the_mean_of_negative_numbers_keeps_its_sign():
    profiles = check([table(a=["-7", "-9"])])
    assert profiles.stats[0, 3:5].tolist() == pytest.approx([-math.log1p(8), math.log1p(1)])


def test_distinct_values_come_in_order_of_appearance_with_their_own_case():
    column = only(["b", " A", "a ", "b", None, "A", "", "c"])
    assert column["samples"] == ["b", "A", "a", "c"]
    assert column["values"] == sorted([h("a"), h("b"), h("c")])
    assert column["tokens"] == sorted([(h("a"), 2.0), (h("b"), 1.0), (h("c"), 1.0)])


def test_blanks_and_dash_rows_are_no_values():
    column = only(["", " ", None, "-", "---", ":---:", ":--", "--:", "–", "———", "\u00a0", "‐"])
    assert (column["values"], column["tokens"], column["samples"]) == ([], [], [])
    assert column["numeric"] is False
    assert [only([cell])["samples"] for cell in (":", "- -", "-a", "−", "::", ":-:-:")] == [
        [":"],
        ["- -"],
        ["-a"],
        ["−"],
        ["::"],
        [":-:-:"],
    ]


def test_tokens_and_statistics_look_at_the_first_200_distinct_values_only():
    words = [f"w{i}" for i in range(200)]
    late = [str(i) for i in range(1000)]
    column = only([*words, *words, "", *late])
    assert column["tokens"] == sorted((h(word), 1.0) for word in words)
    assert column["numeric"] is False
    assert column["samples"] == words[:10]
    assert len(column["values"]) == 1200
    first, longer = (profile_tables([table(a=cells)]).stats for cells in (words, [*words, *late]))
    assert first.tolist() == longer.tolist()
    assert only([*late, *words])["numeric"] is True


def test_samples_are_cut_at_100_characters_and_values_are_not():
    long = "é" * 150
    column = only([long, long + "x"])
    assert column["samples"] == ["é" * 100, "é" * 100]
    assert column["values"] == sorted([h("e" * 150), h("e" * 150 + "x")])
    assert column["texts"] == ["e" * 100, "e" * 100]


def test_word_tokens_keep_marks_and_underscores_and_count_in_values():
    column = only(["a_b-c c", "E\u0301t\u00c9", "नमस्ते", "...", "2020-01-01"])
    expected = {"a_b": 1, "c": 2, "e\u0301t\u00e9": 1, "नमस्ते": 1, "2020": 1, "01": 2}
    assert column["tokens"] == sorted((h(token), float(tf)) for token, tf in expected.items())


def test_more_than_half_numbers_is_numeric_and_half_is_not():
    assert only(["1", "x"])["numeric"] is False
    assert only(["1", "2", "x"])["numeric"] is True
    assert only(["1", "1", "1", "x"])["numeric"] is False  # distinct values count


def test_a_declared_type_wins_over_the_values_and_leaves_the_statistics_alone():
    assert only(["x", "y"], "numeric")["numeric"] is True
    assert only(["1", "2"], "string")["numeric"] is False
    assert only([], "numeric")["numeric"] is True
    stats = [
        profile_tables([table(types=(kind,), a=["1", "x"])]).stats.tolist() for kind in (None, "numeric", "string")
    ]
    assert stats[0] == stats[1] == stats[2]


def test_digits_are_those_of_ascii_and_their_share_is_a_mean_over_values():
    profiles = check([table(a=["12ab", "٣٣", "5"])])
    assert profiles.stats[0, 5] == pytest.approx((0.5 + 0 + 1) / 3)


def test_the_same_cells_in_two_columns_are_profiled_apart():
    profiles = check([table("t", a=["x", "y"], b=["y", "x"]), table("u", c=["y", None])])
    assert [column["samples"] for column in columns_of(profiles)] == [["x", "y"], ["y", "x"], ["y"]]


def test_columns_may_be_slices_of_longer_arrays():
    cells = pa.array(["no", "yes", None, "y 2", "no"], pa.string())
    profiles = check([Table("t", ("a",), (cells.slice(1, 3),), (None,))])
    assert profiles.samples == ["yes", "y 2"]
    assert profiles.table_rows.tolist() == [3]


def test_no_tables():
    profiles = check([])
    assert (profiles.tables, profiles.headers, profiles.samples) == ([], [], [])
    assert profiles.stats.shape == (0, 6)


def test_no_columns_no_rows_and_a_sample():
    profiles = check(
        [
            table("none"),
            table("empty", a=[], b=[]),
            table("blank", a=[None, ""]),
            table("sample", sampled=True, a=["x", "y"]),
            table("none too"),
        ]
    )
    assert profiles.table_cols.tolist() == [0, 0, 2, 3, 4, 4]
    assert profiles.table_rows.tolist() == [0, 0, 2, -3, 0]
    assert profiles.stats[:3].tolist() == [[0.0] * 6] * 3
    assert profiles.value_start.tolist() == [0, 0, 0, 0, 2]


def test_headers_stay_as_written_and_names_are_normal():
    cells = pa.array(["x"], pa.string())
    profiles = check([Table("t", ('\ufeff"Ref Date"', "", "ID", "ID"), (cells,) * 4, (None,) * 4)])
    assert profiles.headers == ['\ufeff"Ref Date"', "", "ID", "ID"]
    assert profiles.names == ["ref date", "", "id", "id"]


def test_the_file_name_shows_in_nothing_but_the_name():
    one, two = (profile_tables([table(name, a=["x", "1"])]) for name in ("truth_a.csv", "z.csv"))
    assert (one.tables, two.tables) == (["truth_a.csv"], ["z.csv"])
    assert same(one, Profiles(**(vars(two) | {"tables": one.tables})))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("limit", ["BATCH_CELLS", "BATCH_BYTES"])
def test_tables_are_let_go_once_their_batch_is_profiled(monkeypatch, limit, threads):
    monkeypatch.setattr(gpumatch.profile, limit, 1)
    seen, most = [], 0

    def stream():
        nonlocal most
        for i in range(12):
            one = table(f"t{i}", a=[str(i)])
            seen.append(weakref.ref(one))
            most = max(most, sum(ref() is not None for ref in seen))
            yield one

    assert profile_tables(stream(), threads=threads).n_tables == 12
    assert most <= (4 if threads == 1 else 6)  # a worker lets go of its batch a moment after it is done


def test_texts_for_the_encoder():
    profiles = check([table("t", City=["Paris", "Rome"], n=["1", "2"]), table("u"), table("v", Empty=[])])
    assert value_texts(profiles) == ["Paris, Rome", "1, 2", ""]
    assert name_texts(profiles) == ["city", "n", "empty"]
    assert header_texts(profiles) == ["city | n", "", "empty"]
    assert encoder_texts(profiles) == [*value_texts(profiles), *name_texts(profiles), *header_texts(profiles)]


@pytest.mark.parametrize(
    ("header", "cells", "chance"),
    [
        ("year", range(2000, 2030), 1),
        ("founded_Year", range(2000, 2030, 3), 10 / 28),
        ("emp_id", range(2000, 2030), 0),  # ids that begin there are no years
        ("year", range(1, 30), 0),
        ("code", ["us", "ca", "mx"], 3 / 26**2),
        ("code", ["us", "ca", "canada"], 0),
        ("share", ["0.1", "0.2", "0.9"], 3 / 9),
    ],
)
def test_how_likely_a_column_holds_a_value_because_it_holds_so_many(header, cells, chance):
    profiles = check([table(**{header: [str(cell) for cell in cells]})])
    assert profiles.chance[0] == np.float32(chance)
