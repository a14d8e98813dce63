"""Normal names, words and character grams on spelled-out cases; hashes against xxhash itself, here and elsewhere."""

import subprocess
import sys

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.text import hash_texts, name_grams, normalise_name, placeholders, spelled, words


@pytest.mark.parametrize(
    ("header", "normal"),
    [
        ("Name", "name"),
        ("", ""),
        ("   ", ""),
        ("  First \t\n Name ", "first name"),
        ("a\u00a0b", "a b"),
        ("\u3000ID\u2003", "id"),
        ("\ufeffREF_DATE", "ref_date"),
        ('\u00ef\u00bb\u00bf"REF_DATE"', "ref_date"),
        ('\ufeff"REF_DATE"', "ref_date"),
        ('" REF_DATE "', "ref_date"),
        (' "REF_DATE" ', "ref_date"),
        ("\u201cGEO\u201d", "geo"),
        ("\u00abVille\u00bb", "ville"),
        ("`id`", "id"),
        ("'\"id\"'", "id"),
        ("driver's licence", "driver's licence"),
        ('5" pipe', '5" pipe'),
        ('""', ""),
        ("STRASSE", "strasse"),
        ("ÉTÉ", "été"),
        ("REF_DATE", "ref_date"),
        ("UOM-ID (%)", "uom-id (%)"),
    ],
)
def test_normalise_name(header, normal):
    assert normalise_name(header) == normal


@given(
    st.text(st.characters(exclude_characters="\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb", codec="utf-8"), max_size=20)
)
@settings(max_examples=150, deadline=None)
def test_a_name_without_quotes_only_loses_marks_case_and_blanks(header):
    bare = header.replace("\ufeff", "").replace("\u00ef\u00bb\u00bf", "")
    assert normalise_name(header) == " ".join(bare.split()).lower()


@given(st.text(max_size=20))
@settings(max_examples=150, deadline=None)
def test_quotes_marks_and_blanks_around_a_name_do_not_matter(header):
    normal = normalise_name(header)
    assert normalise_name(f'\ufeff  "{header}"\t') == normalise_name(f'"{header}"')
    assert normalise_name(f"  {header}\n") == normal


def test_words_are_runs_of_letters_digits_and_underscores():
    assert words("ref_date (été 2020), n°3 don't") == ["ref_date", "été", "2020", "n", "3", "don", "t"]
    assert words("") == words(" - / ") == []


def test_name_grams_of_a_long_name_come_by_length_then_place():
    assert name_grams("city") == [" ci", "cit", "ity", "ty ", " cit", "city", "ity ", " city", "city "]


@pytest.mark.parametrize(
    ("name", "grams"),
    [
        ("", ["  "] * 3),
        ("a", [" a "] * 3),
        ("ab", [" ab", "ab ", " ab ", " ab "]),
        ("abc", [" ab", "abc", "bc ", " abc", "abc ", " abc "]),
        ("a b", [" a ", "a b", " b ", " a b", "a b ", " a b "]),
    ],
)
def test_the_whole_padded_name_stands_in_for_the_grams_that_a_short_name_lacks(name, grams):
    assert name_grams(name) == grams


@given(st.text(min_size=3, max_size=30))
@settings(max_examples=100, deadline=None)
def test_name_grams_are_every_window_of_three_to_five(name):
    padded = " " + name + " "
    assert name_grams(name) == [
        padded[i : i + n] for n in (3, 4, 5) for i in range(len(padded)) if i + n <= len(padded)
    ]


def test_hash_texts_is_xxh3_of_the_utf8_bytes():
    texts = ["", "a", "été", "日本", "🙂", "x" * 10_000, "a\x00b", "a"]
    hashes = hash_texts(texts)
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [xxhash.xxh3_64_intdigest(text.encode()) for text in texts]
    assert hashes[1] == hashes[7] == 0xE6C632B61E964E1F


def test_hash_texts_takes_lone_surrogates_generators_and_nothing():
    assert hash_texts(text for text in ["\ud800"]).tolist() == [xxhash.xxh3_64_intdigest(b"\xed\xa0\x80")]
    empty = hash_texts([])
    assert (empty.dtype, empty.shape) == (np.dtype(np.uint64), (0,))


def test_hash_texts_is_the_same_in_every_process():
    code = "from gpumatch.text import hash_texts; print(hash_texts(['a', 'b', 'é']).tolist())"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
        assert done.stdout.strip() == str(hash_texts(["a", "b", "é"]).tolist())


# --- names that say nothing


@pytest.mark.parametrize(
    ("names", "empty"),
    [
        ([], []),
        ([""], [1]),
        (["city"], [0]),
        (["col_1", "col_2", "col_3"], [1, 1, 1]),
        (["c0", "c1"], [1, 1]),
        (["1", "2"], [1, 1]),
        (["col_2", "col_3"], [0, 0]),  # counts from neither 0 nor 1
        (["col_1", "col_3"], [0, 0]),  # one is missing
        (["2010", "2011", "2012"], [0, 0, 0]),
        (["address 1", "address 2", "city", "zip", "name"], [0, 0, 0, 0, 0]),  # fewer than half
        (["address 1", "address 2", "city", "zip"], [1, 1, 0, 0]),
        (["", "city", "zip"], [0, 0, 0]),
        (["", "unnamed: 1", "zip"], [1, 1, 0]),
        (["unnamed: 0", "unnamed_1"], [1, 1]),
        (["?", "--"], [1, 1]),
        (["column 7"], [1]),
        (["route 7"], [0]),
        (["col_1", "col_1", "col_2"], [1, 1, 1]),
    ],
)
def test_placeholders(names, empty):
    assert placeholders(names) == [bool(one) for one in empty]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("firstName", "first name"),
        ("first_name", "first name"),
        (" Größe (cm)", "größe cm"),
        ("ID", "id"),
        ("", ""),
        ("__", ""),
    ],
)
def test_spelled(header, said):
    assert spelled(header) == said
