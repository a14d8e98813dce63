"""Bags of byte 3-grams against counted slices."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumatch.kernels.grams import gram_bags


def counted(groups):
    """[(gram, times)] of each group of texts, by rising gram."""
    bags = []
    for texts in groups:
        padded = [b" " + text + b" " for text in texts]
        bags.append(sorted(Counter(text[i : i + 3] for text in padded for i in range(len(text) - 2)).items()))
    return bags


def found(groups):
    texts = [text for group in groups for text in group]
    bounds = np.cumsum([0, *map(len, texts)])
    start, gram, tf = gram_bags(np.frombuffer(b"".join(texts), np.uint8), bounds, np.cumsum([0, *map(len, groups)]))
    assert (start.dtype, gram.dtype, tf.dtype) == (np.int64, np.uint64, np.float32)
    assert start[-1] == len(gram) == len(tf)
    named = [int(number).to_bytes(3, "big") for number in gram]
    pairs = list(zip(named, tf.tolist(), strict=True))
    return [pairs[a:b] for a, b in pairwise(start)]


@pytest.mark.parametrize(
    "groups",
    [[], [[]], [[b""]], [[b"a"]], [[b"aaaa"]], [[b"ab", b"ab"], [], [b"ba"]], [["日本".encode(), b"\xff\x00\x01"]]],
)
def test_by_hand(groups):
    assert found(groups) == counted(groups)


@given(st.lists(st.lists(st.binary(max_size=6) | st.text("ab ", max_size=6).map(str.encode), max_size=4), max_size=4))
def test_any_texts(groups):
    assert found(groups) == counted(groups)
