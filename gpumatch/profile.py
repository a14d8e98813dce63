"""A stream of tables in, struct-of-arrays `Profiles` out: names, types, statistics, hashed values, tokens, a sample.

Works on batches of cells, so memory is bounded by the batch and by the profiles, never by the lake. Never looks at a
table's file name: names leak what a benchmark's truth says.

Axes: T tables, C columns, V values (distinct in their column), W tokens (distinct in their column), S statistics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpumatch.canonical import canonical, is_value
from gpumatch.chance import extremes, of_codes, of_numbers, of_years
from gpumatch.kernels.entries import first_seen
from gpumatch.kernels.ragged import gather_segments, offsets_of
from gpumatch.lake import Table
from gpumatch.text import hash_utf8, normalise_name, spelled

# Tokens and statistics look at a column's first distinct values only: otherwise long columns would drown short ones.
TOKEN_VALUES = 200
# Values in a column's text for the encoder: ten beat three, and more do not fit the encoder's window.
SAMPLE_VALUES = 10
SAMPLE_CHARS = TEXT_CHARS = 100
# A batch ends with the table that reaches one of these two: documents have thousands of bytes a cell, and an Arrow
# array holds no more than 2 GB of text.
BATCH_CELLS, BATCH_BYTES = 1_000_000, 64 << 20
# Batches that are profiled while the next one is read: more threads would wait for Python's lock.
_BATCHES_IN_WORK = 2

_NUMBER = (
    r"^[-+(]?\s*[$\x{20ac}\x{a3}\x{a5}]?\s*"
    r"((\d{1,3}([, \x{a0}]\d{3})+|\d+)(\.\d+)?|\.\d+)([eE][-+]?\d{1,3})?\s*%?\)?$"
)
_NOT_WORD = r"[^\p{L}\p{M}\p{N}_]+"


@dataclass(frozen=True)
class Profiles:
    """What gpumatch knows of a set of tables; every array is indexed by table, by column, or by a CSR offset.

    tables: the T table names.
    table_cols: int64 [T+1], table t has the columns table_cols[t]:table_cols[t+1].
    table_rows: int64 [T], number of rows; -1 - n where a sample of n rows was seen.
    headers: the C column names as written.
    names: the C normal forms of the names.
    numeric: bool [C], declared numeric, or more than half of the looked-at values are numbers.
    stats: float32 [C, S]: log1p of mean and deviation of the value length; share of numbers; signed log1p of their
        mean and deviation; mean share of digits in a value. Over the first 200 distinct values.
    number_range: float64 [C, 2], the smallest and the largest number among them, NaN if there is none.
    value_start: int64 [C+1], and values: uint64 [V], sorted hashes of a column's distinct canonical values.
    coded: bool [C], nearly all values are numbers, dates or numbered keys, of which only the whole says anything.
    letter: uint32 [C], the first four letters of what numbered keys begin with, or of the numbers' unit, 0 of other
        columns (`canonical.comparable`).
    keyed: bool [C], columns of numbered keys.
    chance: float32 [C], how likely a value is among the column's only because so many are: a fraction that is no larger
        than its largest and no finer, a code of as many letters, or a year between its first and last.
    dense: float32 [C, LEVELS], and level: int32 [C], the same of whole numbers (`kernels.chance.Chance`).
    text_start: int64 [C+1], column c has the texts text_start[c]:text_start[c+1], its first 200 canonical values.
    text_bytes: int64 [X+1], text x is text[text_bytes[x]:text_bytes[x+1]]; text: uint8, UTF-8, at most 100 characters.
    token_start: int64 [C+1], tokens: uint64 [W] sorted hashes of the word tokens of the first 200 distinct values,
        token_tf: float32 [W] how often each occurs there.
    sample_start: int64 [C+1], and samples: the first distinct values as written, at most 10 a column.
    """

    tables: list[str]
    table_cols: np.ndarray
    table_rows: np.ndarray
    headers: list[str]
    names: list[str]
    numeric: np.ndarray
    stats: np.ndarray
    number_range: np.ndarray
    value_start: np.ndarray
    values: np.ndarray
    coded: np.ndarray
    letter: np.ndarray
    keyed: np.ndarray
    chance: np.ndarray
    dense: np.ndarray
    level: np.ndarray
    text_start: np.ndarray
    text_bytes: np.ndarray
    text: np.ndarray
    token_start: np.ndarray
    tokens: np.ndarray
    token_tf: np.ndarray
    sample_start: np.ndarray
    samples: list[str]

    @property
    def n_tables(self) -> int:
        """T."""
        return len(self.tables)

    @property
    def n_columns(self) -> int:
        """C."""
        return len(self.headers)


def profile_tables(
    tables: Iterable[Table], seen: Callable[[Profiles], None] = lambda some: None, threads: int = 1
) -> Profiles:
    """Profile tables in the order in which they come.

    Args:
        tables: a stream; each table is freed once its batch is profiled.
        seen: called with the profiles of each batch.
        threads: with more than one, batches are profiled while the next is read.
    """
    profiles = []
    for found in _profiled(_batches(tables), threads):
        profiles.append(found)
        seen(found)
    return _concatenate(profiles)


def _profiled(batches: Iterator[list[Table]], threads: int) -> Iterator[Profiles]:
    if threads == 1:
        yield from map(_profile_batch, batches)
        return
    pool, pending = ThreadPoolExecutor(_BATCHES_IN_WORK), deque[Future[Profiles]]()
    try:
        for batch in batches:
            pending.append(pool.submit(_profile_batch, batch))
            del batch
            while pending and (pending[0].done() or len(pending) > _BATCHES_IN_WORK):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # at the end nothing is left to wait for, and whoever stops a run does not want to wait
        pool.shutdown(wait=False, cancel_futures=True)


def value_texts(profiles: Profiles) -> list[str]:
    """Return each column's values as one text for the encoder, `v1, v2, …`, C of them."""
    starts, samples = profiles.sample_start.tolist(), profiles.samples
    return [", ".join(samples[a:b]) for a, b in pairwise(starts)]


def name_texts(profiles: Profiles) -> list[str]:
    """Return each column's name as words for the encoder, C of them."""
    made = {header: spelled(header) for header in set(profiles.headers)}
    return [made[header] for header in profiles.headers]


def header_texts(profiles: Profiles) -> list[str]:
    """Return each table's header as one text for the encoder, T of them."""
    bounds = profiles.table_cols
    return [" | ".join(profiles.names[bounds[t] : bounds[t + 1]]) for t in range(profiles.n_tables)]


def encoder_texts(profiles: Profiles) -> list[str]:
    """Return every text that vectors are made of, 2C + T: of the columns' values, of their names, of the headers."""
    return value_texts(profiles) + name_texts(profiles) + header_texts(profiles)


def _batches(tables: Iterable[Table]) -> Iterator[list[Table]]:
    batch: list[Table] = []
    cells = n_bytes = 0
    for table in tables:
        batch.append(table)
        cells += table.n_rows * len(table.columns)
        n_bytes += table.n_bytes
        if cells >= BATCH_CELLS or n_bytes >= BATCH_BYTES:
            yield batch
            batch, cells, n_bytes = [], 0, 0
    yield batch


def _profile_batch(batch: list[Table]) -> Profiles:
    columns = [column for table in batch for column in table.columns]
    headers = [name for table in batch for name in table.header]
    declared = [kind for table in batch for kind in table.types]
    n_columns = len(columns)

    # Distinct cells of the batch are looked at once: `distinct` are their texts, `code` tells which one a cell holds.
    cells = pc.utf8_trim_whitespace(pa.concat_arrays(columns)) if columns else pa.array([], pa.string())
    encoded = cells.dictionary_encode()
    distinct: pa.Array = encoded.dictionary
    code = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    column = np.repeat(np.arange(n_columns), [len(array) for array in columns])
    filled = np.append(is_value(distinct), False)[code]  # code -1, a null, reads the appended False
    code, column = code[filled], column[filled]

    code, column, rank = _distinct_values(code, column, n_columns)
    looked_at = rank < TOKEN_VALUES
    numeric, stats, number_range = _statistics(distinct, code[looked_at], column[looked_at], n_columns)
    numeric = np.array(
        [own if kind is None else kind == "numeric" for own, kind in zip(numeric, declared, strict=True)], bool
    )
    lowered = pc.utf8_lower(distinct)
    tokens, token_tf, token_start = _tokens(lowered, code[looked_at], column[looked_at], n_columns)
    canon, place, coded, keyed, letter = canonical(distinct, code, column, n_columns)
    place, of, canon_rank = _distinct_values(place, column, n_columns)
    values, value_start = _hashed_values(canon, place, of, n_columns)
    canonicals = canon, place, of, n_columns
    fractions, dense, level = of_numbers(*canonicals)
    kept = canon_rank < TOKEN_VALUES
    text, text_bytes = _utf8(pc.utf8_slice_codeunits(canon.take(pa.array(place[kept])), 0, TEXT_CHARS))
    shown = rank < SAMPLE_VALUES
    samples = pc.utf8_slice_codeunits(distinct.take(pa.array(code[shown])), 0, SAMPLE_CHARS).to_pylist()
    normal = {header: normalise_name(header) for header in set(headers)}
    return Profiles(
        tables=[table.name for table in batch],
        table_cols=offsets_of(np.array([len(table.columns) for table in batch], np.int64)),
        table_rows=np.array([-1 - table.n_rows if table.sampled else table.n_rows for table in batch], np.int64),
        headers=headers,
        names=[normal[header] for header in headers],
        numeric=numeric,
        stats=stats,
        number_range=number_range,
        value_start=value_start,
        values=values,
        coded=coded,
        letter=letter,
        keyed=keyed,
        chance=np.maximum(fractions, np.maximum(of_codes(*canonicals), of_years(canon, place, of, headers))),
        dense=dense,
        level=level,
        text_start=offsets_of(np.bincount(of[kept], minlength=n_columns)),
        text_bytes=text_bytes,
        text=text,
        token_start=token_start,
        tokens=tokens,
        token_tf=token_tf,
        sample_start=offsets_of(np.bincount(column[shown], minlength=n_columns)),
        samples=samples,
    )


def _distinct_values(code: np.ndarray, column: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct entries (text, column) in the order in which the n columns show them.

    Args:
        code, column: int64 [m], ascending by column.

    Returns:
        (code, column, rank) int64 [k], rank being an entry's place in its column.
    """
    first = first_seen(code, column)
    code, column = code[first], column[first]
    return code, column, np.arange(len(column)) - offsets_of(np.bincount(column, minlength=n))[column]


def _statistics(
    distinct: pa.Array, code: np.ndarray, column: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (numeric: bool [n], stats: float32 [n, S], range: float64 [n, 2]) of the given (column, value) entries."""
    length = pc.utf8_length(distinct).to_numpy(zero_copy_only=False).astype(np.float64)
    digits = _digits(distinct)
    number = _numbers(distinct)
    count = np.maximum(1, np.bincount(column, minlength=n))

    def mean_over(column: np.ndarray, weights: np.ndarray, count: np.ndarray) -> np.ndarray:
        answer: np.ndarray = np.bincount(column, weights, minlength=n) / count
        return answer

    length_mean = mean_over(column, length[code], count)
    length_sd = np.sqrt(mean_over(column, (length[code] - length_mean[column]) ** 2, count))
    parsed = np.isfinite(number[code])
    among, x = column[parsed], number[code][parsed]
    n_numbers = np.bincount(among, minlength=n)
    mean = mean_over(among, x, np.maximum(1, n_numbers))
    deviation = np.sqrt(mean_over(among, (x - mean[among]) ** 2, np.maximum(1, n_numbers)))
    share = n_numbers / count
    digit_share = mean_over(column, digits[code] / np.maximum(1, length[code]), count)
    columns = (
        np.log1p(length_mean),
        np.log1p(length_sd),
        share,
        _signed_log(mean),
        _signed_log(deviation),
        digit_share,
    )
    numeric: np.ndarray = share > 0.5
    return numeric, np.stack(columns, axis=1).astype(np.float32), np.stack(extremes(among, x, n), axis=1)


def _signed_log(x: np.ndarray) -> np.ndarray:
    answer: np.ndarray = np.sign(x) * np.log1p(np.abs(x))
    return answer


def _digits(distinct: pa.Array) -> np.ndarray:
    """Return how many of ASCII's digits each text holds, float64."""
    text, bounds = _utf8(distinct)
    is_digit = text - np.uint8(ord("0")) < 10  # smaller bytes wrap round to large ones
    before = np.zeros(len(text) + 1, np.int32)  # int64 would be most of a batch's memory
    np.cumsum(is_digit, dtype=np.int32, out=before[1:])
    answer: np.ndarray = np.diff(before[bounds]).astype(np.float64)
    return answer


def _numbers(distinct: pa.Array) -> np.ndarray:
    """Return each text as a number, NaN if it is none, without thousands separators, currency and per cent signs."""
    looks = pc.match_substring_regex(distinct, _NUMBER)
    where = np.flatnonzero(looks.to_numpy(zero_copy_only=False).astype(bool))
    bare = pc.replace_substring_regex(distinct.take(pa.array(where)), r"^\+|[^\d.eE+-]", "")
    number = np.full(len(distinct), np.nan)
    # Clipped so that squares stay finite.
    number[where] = np.clip(pc.cast(bare, pa.float64()).to_numpy(zero_copy_only=False), -1e150, 1e150)
    return number


def _tokens(
    lowered: pa.Array, code: np.ndarray, column: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the word tokens of the given entries as CSR (hashes uint64, tf float32, start int64 [n+1])."""
    mask = np.zeros(len(lowered), np.bool_)
    mask[code] = True
    used, entry = np.flatnonzero(mask), (np.cumsum(mask) - 1)[code]
    text = pc.utf8_trim(pc.replace_substring_regex(lowered.take(pa.array(used)), _NOT_WORD, " "), " ")
    split = pc.split_pattern(text, " ")
    flat = split.flatten().dictionary_encode()
    vocabulary, place = _in_order(hash_utf8(*_utf8(flat.dictionary)))
    word = place[flat.indices.to_numpy()]
    lengths = np.diff(split.offsets.to_numpy())
    picked, counts = gather_segments(offsets_of(lengths), entry)
    key, tf = np.unique(np.repeat(column, counts) * max(1, len(vocabulary)) + word[picked], return_counts=True)
    owner, token = np.divmod(key, max(1, len(vocabulary)))
    blank = pc.index(flat.dictionary, "").as_py()
    kept = token != (-1 if blank < 0 else place[blank])  # a value of punctuation only has no words
    owner, token, tf = owner[kept], token[kept], tf[kept]
    return vocabulary[token], tf.astype(np.float32), offsets_of(np.bincount(owner, minlength=n))


def _hashed_values(texts: pa.Array, code: np.ndarray, column: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashed values of each column as CSR (hashes uint64 sorted, start int64 [n+1]); no entry twice."""
    hashes, place = _in_order(hash_utf8(*_utf8(texts)))
    key = np.sort(column * max(1, len(hashes)) + place[code])
    return hashes[key % max(1, len(hashes))], offsets_of(np.bincount(column, minlength=n))


def _in_order(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes sorted, and each one's place among them, int64 [n]: places can be sorted faster than hashes."""
    order = np.argsort(hashes)
    place = np.empty(len(hashes), np.int64)
    place[order] = np.arange(len(hashes))
    return hashes[order], place


def _utf8(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 [B], int64 [n+1]): the bytes of n texts, and where each begins."""
    if not len(texts):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = texts.buffers()
    start = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return np.frombuffer(data or b"", np.uint8)[start[0] : start[-1]], start - start[0]


def _concatenate(parts: list[Profiles]) -> Profiles:
    def joined(field: str) -> np.ndarray:
        return np.concatenate([getattr(part, field) for part in parts])

    def chained(field: str) -> list[str]:
        return [item for part in parts for item in getattr(part, field)]

    def stacked(field: str) -> np.ndarray:
        return offsets_of(np.concatenate([np.diff(getattr(part, field)) for part in parts]))

    return Profiles(
        tables=chained("tables"),
        table_cols=stacked("table_cols"),
        table_rows=joined("table_rows"),
        headers=chained("headers"),
        names=chained("names"),
        numeric=joined("numeric"),
        stats=joined("stats"),
        number_range=joined("number_range"),
        value_start=stacked("value_start"),
        values=joined("values"),
        coded=joined("coded"),
        letter=joined("letter"),
        keyed=joined("keyed"),
        chance=joined("chance"),
        dense=joined("dense"),
        level=joined("level"),
        text_start=stacked("text_start"),
        text_bytes=stacked("text_bytes"),
        text=joined("text"),
        token_start=stacked("token_start"),
        tokens=joined("tokens"),
        token_tf=joined("token_tf"),
        sample_start=stacked("sample_start"),
        samples=chained("samples"),
    )
