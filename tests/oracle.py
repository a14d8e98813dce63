"""Small tables in, every signal out: the formulas of gpumatch.recipes.SIGNALS written down once more, in loops.

Works on strings, dictionaries and float64; takes nothing from gpumatch but the containers that `table_set` fills for
the other side of a comparison.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pyarrow as pa
from canonical_oracle import apart, canonical
from chance_oracle import LEVELS, dense_up_to, fixed, level

from gpumatch import embed, index, lake, profile

DIM = 8

# --- tables


@dataclass(frozen=True, eq=False)
class Column:
    """One column: its header and cells as written, the vectors of its values and of its name (float64 [D])."""

    header: str
    cells: tuple[str | None, ...]
    value_vector: np.ndarray
    name_vector: np.ndarray

    @cached_property
    def name(self) -> str:
        """Lower case, BOM and quotes stripped, blanks collapsed."""
        bare = self.header.replace("\ufeff", "").strip().strip("\"'`")
        return " ".join(bare.split()).lower()

    @cached_property
    def distinct(self) -> list[str]:
        """The different trimmed cells that say something, in the order in which they are met."""
        cells = [cell.strip() for cell in self.cells if cell is not None]
        return [cell for cell in dict.fromkeys(cells) if cell and not re.fullmatch(r":?-+:?", cell)]

    @cached_property
    def canonical(self) -> list[str]:
        """The different canonical values, in the order in which they are met."""
        return list(dict.fromkeys(canonical(self.distinct)[0]))

    @cached_property
    def coded(self) -> bool:
        """Whether nearly all values are numbers, dates or numbered keys."""
        return canonical(self.distinct)[1]

    @cached_property
    def letter(self) -> str:
        """What numbered keys begin with, the numbers' unit, or nothing."""
        return canonical(self.distinct)[3]

    @cached_property
    def marked(self) -> set[tuple[str, str]]:
        """The values, each with the first letter of the column's."""
        return {(self.letter[0], value) for value in self.values if self.letter}

    @cached_property
    def chance(self) -> tuple[float, int, list[float]]:
        """(of a value that is no whole number, how far the whole ones reach, what share it has up to each level)."""
        return (
            fixed(self.canonical, self.header),
            level(self.canonical),
            [dense_up_to(self.canonical, up_to) for up_to in range(LEVELS)],
        )

    @cached_property
    def values(self) -> set[str]:
        """What containment compares."""
        return set(self.canonical)

    @cached_property
    def value_grams(self) -> Counter[bytes]:
        """Byte 3-grams of the first 200 canonical values, each between two blanks."""
        return sum(map(grams_of, self.canonical[:200]), Counter())

    @cached_property
    def tokens(self) -> Counter[str]:
        """Words of the first 200 distinct values."""
        return Counter(word for value in self.distinct[:200] for word in re.findall(r"\w+", value.lower()))

    @cached_property
    def grams(self) -> Counter[str]:
        """Character 3-, 4- and 5-grams of the name between two blanks; a shorter text stands for each that it lacks."""
        text = f" {self.name} "
        return Counter(
            gram for n in (3, 4, 5) for gram in ([text[i : i + n] for i in range(len(text) - n + 1)] or [text])
        )

    @cached_property
    def numbers(self) -> list[float]:
        """The numbers among the first 200 distinct values."""
        return [x for x in map(_number, self.distinct[:200]) if x is not None]

    @cached_property
    def stats(self) -> np.ndarray:
        """Length (mean, deviation), share of numbers, numbers (mean, deviation), share of digits; logarithms."""
        values = self.distinct[:200]
        if not values:
            return np.zeros(6)
        lengths = [len(value) for value in values]
        numbers = self.numbers or [0.0]
        share = sum(_number(value) is not None for value in values) / len(values)
        digits = np.mean([sum(ch in "0123456789" for ch in value) / len(value) for value in values])
        mean, deviation = np.mean(numbers), np.std(numbers)
        return np.array(
            [
                math.log(1 + np.mean(lengths)),
                math.log(1 + np.std(lengths)),
                share,
                math.copysign(math.log(1 + abs(mean)), mean),
                math.log(1 + deviation),
                digits,
            ]
        )


def grams_of(value: str) -> Counter[bytes]:
    text = b" " + value[:100].encode() + b" "
    return Counter(text[i : i + 3] for i in range(len(text) - 2))


def _number(value: str) -> float | None:
    if not re.fullmatch(r"[-+]?\$?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?([eE][-+]?\d+)?%?", value):
        return None
    return float(re.sub("[$,%]", "", value))


@dataclass(frozen=True, eq=False)
class Table:
    """Some columns, and the vector of the header text (float64 [D])."""

    columns: tuple[Column, ...]
    header_vector: np.ndarray

    @cached_property
    def named(self) -> dict[Column, bool]:
        """Whether each column's name says anything."""
        empty = {column: not re.search(r"\w", column.name) for column in self.columns}
        for column in self.columns:
            if re.fullmatch(r"unnamed:?[ _]*[0-9]*", column.name):
                empty[column] = True
        for column in self.columns:
            parts = re.fullmatch(r"(.*?)([0-9]{1,4})", column.name)
            if not parts:
                continue
            alike = {
                other: int(found[2])
                for other in self.columns
                if (found := re.fullmatch(r"(.*?)([0-9]{1,4})", other.name)) and found[1] == parts[1]
            }
            numbers = set(alike.values())
            counts = min(numbers) < 2 and numbers == set(range(min(numbers), max(numbers) + 1)) and len(numbers) > 1
            if counts and len(alike) >= len(self.columns) / 2:
                empty[column] = True
        stem = "(col|column|field|var|attr|attribute|feature|v|c|x|f|_c)?"
        if len(self.columns) == 1 and re.fullmatch(stem + "[ _-]?[0-9]+", self.columns[0].name):
            empty[self.columns[0]] = True
        few = sum(empty.values()) < len(self.columns) / 2
        return {column: few or not said for column, said in empty.items()}

    @cached_property
    def names(self) -> set[str]:
        """The different names that say something."""
        return {column.name for column in self.columns if self.named[column]}

    @cached_property
    def positions(self) -> Counter[tuple[str, int]]:
        """Each name that says something with its position."""
        return Counter((column.name, position) for position, column in enumerate(self.columns) if self.named[column])


class Frequencies:
    """In how many of n documents a term occurs."""

    def __init__(self, documents):
        documents = list(documents)
        self.n = len(documents)
        self.df = Counter(term for document in documents for term in set(document))

    def idf(self, term):
        return 1 + math.log((1 + self.n) / (1 + self.df[term]))

    def tfidf(self, counts):
        weights = {term: count * self.idf(term) for term, count in counts.items()}
        length = math.sqrt(sum(weight**2 for weight in weights.values()))
        return {term: weight / length for term, weight in weights.items()}


class Lake:
    """Document frequencies: of grams of names over different names, of positions over tables, else over columns."""

    def __init__(self, tables):
        columns = [column for table in tables for column in table.columns]
        self.names = Frequencies({column.name} for column in columns)
        self.tokens = Frequencies(column.tokens for column in columns)
        self.positions = Frequencies(table.positions for table in tables)
        self.grams = Frequencies({column.name: column.grams for column in columns}.values())
        self.values = Frequencies(_families(tables, lambda column: column.values).values())
        self.marked = Frequencies(_families(tables, lambda column: column.marked).values())
        self.value_grams = Frequencies(column.value_grams for column in columns)


def _families(tables, values):
    """The values of all columns that stand at one place under the same header, unless that says nothing."""
    found = {}
    for table in tables:
        header = tuple(column.name for column in table.columns) if any(table.named.values()) else table
        for place, column in enumerate(table.columns):
            found.setdefault((header, place), set()).update(values(column))
    return found


# --- similarities


def dot(a: dict, b: dict) -> float:
    return sum(weight * b.get(term, 0.0) for term, weight in a.items())


@cache
def _grams(lake, column):
    return lake.grams.tfidf(column.grams)


@cache
def _tokens(lake, column):
    return lake.tokens.tfidf(column.tokens)


def names_alike(lake, a, b):
    return dot(_grams(lake, a), _grams(lake, b))


def values_alike(lake, a, b):
    return dot(_tokens(lake, a), _tokens(lake, b))


def vectors_alike(a, b):
    return min(1.0, max(0.0, float(a @ b)))


def known(q, a, c, b):
    return q.named[a] and c.named[b]


def names_or_none(lake, q, a, c, b):
    return names_alike(lake, a, b) if known(q, a, c, b) else None


def name_vectors_or_none(q, a, c, b):
    return vectors_alike(a.name_vector, b.name_vector) if known(q, a, c, b) else None


def mean_of(x, y):
    return y if x is None else (x + y) / 2


def product_of(x, y):
    return y if x is None else x * y


def stats_alike(a, b):
    return math.exp(-float(((a.stats - b.stats) ** 2).sum()) / 2)


def profiles_alike(a, b):
    return stats_alike(a, b) if a.name == b.name else 0.0


def forward(q, c, alike):
    """The mean over q's columns of the best of c's columns."""
    best = [max((alike(a, b) for b in c.columns), default=0.0) for a in q.columns]
    return sum(best) / len(best) if best else 0.0


def both(q, c, alike):
    return (forward(q, c, alike) + forward(c, q, lambda b, a: alike(a, b))) / 2


# --- signals of pairs of tables; NaN where there is no name to go by


def of_names(signal):
    def given(lake, q, c):
        nothing = any(table.columns and not any(table.named.values()) for table in (q, c))
        return math.nan if nothing else signal(lake, q, c)

    return given


def name_overlap(lake, q, c):
    total = sum(lake.names.idf(name) for name in q.names)
    return sum(lake.names.idf(name) for name in q.names & c.names) / total if total else 0.0


def name_cosine(lake, q, c):
    return dot(lake.names.tfidf(dict.fromkeys(q.names, 1)), lake.names.tfidf(dict.fromkeys(c.names, 1)))


def name_position(lake, q, c):
    return dot(lake.positions.tfidf(q.positions), lake.positions.tfidf(c.positions))


def lexical(lake, q, c):
    return lambda a, b: mean_of(names_or_none(lake, q, a, c, b), values_alike(lake, a, b))


def dense(q, c):
    return lambda a, b: mean_of(name_vectors_or_none(q, a, c, b), dense_values(a, b))


def dense_values(a, b):
    return vectors_alike(a.value_vector, b.value_vector)


def profile_of_named(q, c):
    """The mean over q's named columns of the best same-named column of c."""
    best = [max((profiles_alike(a, b) for b in c.columns if c.named[b]), default=0.0) for a in q.columns if q.named[a]]
    return sum(best) / len(best) if best else 0.0


def value_grams_alike(lake, a, b):
    return dot(lake.value_grams.tfidf(a.value_grams), lake.value_grams.tfidf(b.value_grams))


def pooled_columns(q, c):
    if not (q.columns and c.columns):
        return 0.0
    x, y = (
        np.sum([column.name_vector * table.named[column] + column.value_vector for column in table.columns], axis=0)
        for table in (q, c)
    )
    return vectors_alike(x / np.linalg.norm(x), y / np.linalg.norm(y))


def header_text(lake, q, c):
    return vectors_alike(q.header_vector, c.header_vector)


def rarities(lake, a, b):
    """How rare each value of both is: among all columns, or if both have letters among those that begin with a's."""
    of, there = lake.values, a.values & b.values
    if a.letter and b.letter:
        of, there = lake.marked, a.marked & b.marked
    most = math.log((1 + of.n) / 3)
    return [min(1, math.log((1 + of.n) / (1 + of.df[value])) / most) if most > 0 else 1 for value in there]


def chance_of(a, b):
    """How likely one of two columns holds a value of the other, the likelier way."""
    if canonical(a.distinct)[2] and canonical(b.distinct)[2]:
        return 0.0
    (fix, reach, of_whole), (other_fix, other_reach, of_other_whole) = a.chance, b.chance
    up_to = min(reach, other_reach)
    return max(fix, other_fix, *((of_whole[up_to], of_other_whole[up_to]) if up_to >= 0 else ()))


def beyond_chance(share, most, a, b, n):
    """What is left of a share of n values, at most so much, of what chance does not find, or two deviations more."""
    chance = chance_of(a, b)
    usual = chance + 2 * math.sqrt(chance * (1 - chance) / max(1, n))
    return max(0.0, share - most * usual) / (1 - chance) if usual < 1 else 0.0


def most_of(lake, a, b, least):
    """What a shares with a column like b that holds all its values, those left out that are not rare enough."""
    of, values = (lake.marked, a.marked) if a.letter and b.letter else (lake.values, a.values)
    most = math.log((1 + of.n) / 3)
    found = [min(1, math.log((1 + of.n) / (1 + of.df[value])) / most) if most > 0 else 1 for value in values]
    return sum(one for one in found if one >= least) / (1 + len(values))


def key_share(lake, a, b):
    """(share, the rarity of all that is shared)."""
    n = min(len(a.values), len(b.values))
    if apart(a.letter, b.letter) or n < 2:
        return 0.0, 0.0
    most = max(most_of(lake, x, y, 0.5) for x, y in ((a, b), (b, a)) if len(x.values) == n)
    share = beyond_chance(sum(one for one in rarities(lake, a, b) if one >= 0.5) / (1 + n), most, a, b, n)
    return share, share * (1 + n)


def power(n):
    return 1 + 4 * 2 ** (-n / 8)


def key_containment(lake, q, c):
    share, n = max((key_share(lake, a, b) for a in q.columns for b in c.columns), default=(0.0, 0.0))
    return share ** power(n) if share > 0.4 else 0.0


TABLE_SIGNALS = {
    "name_overlap": of_names(name_overlap),
    "name_cosine": of_names(name_cosine),
    "name_position": of_names(name_position),
    "lexical_maxsim": lambda lake, q, c: forward(q, c, lexical(lake, q, c)),
    "lexical_maxsim_both": lambda lake, q, c: both(q, c, lexical(lake, q, c)),
    "name_value_maxsim": lambda lake, q, c: both(
        q, c, lambda a, b: product_of(names_or_none(lake, q, a, c, b), values_alike(lake, a, b))
    ),
    "profile": of_names(lambda lake, q, c: profile_of_named(q, c)),
    "profile_both": of_names(lambda lake, q, c: (profile_of_named(q, c) + profile_of_named(c, q)) / 2),
    "token_profile_maxsim": lambda lake, q, c: both(q, c, lambda a, b: values_alike(lake, a, b) * stats_alike(a, b)),
    "column_count": lambda lake, q, c: math.exp(-abs(math.log(1 + len(q.columns)) - math.log(1 + len(c.columns)))),
    "dense_maxsim": lambda lake, q, c: forward(q, c, dense(q, c)),
    "dense_maxsim_both": lambda lake, q, c: both(q, c, dense(q, c)),
    "dense_value_maxsim": lambda lake, q, c: forward(q, c, dense_values),
    "dense_profile_maxsim": lambda lake, q, c: both(q, c, lambda a, b: dense_values(a, b) * stats_alike(a, b)),
    "header_text": of_names(header_text),
    "value_gram_maxsim": lambda lake, q, c: both(q, c, lambda a, b: value_grams_alike(lake, a, b)),
    "value_overlap_maxsim": lambda lake, q, c: forward(q, c, containment),
    "pooled_columns": lambda lake, q, c: pooled_columns(q, c),
    "key_containment": lambda lake, q, c: key_containment(lake, q, c),
}


# --- signals of pairs of columns; q and c are their tables


def of_column_names(signal):
    return lambda lake, q, a, c, b: signal(lake, a, b) if known(q, a, c, b) else math.nan


def of_values_that_say_something(signal):
    def known(lake, q, a, c, b):
        of_whole_numbers = a.chance[1] >= 0 and b.chance[1] >= 0
        return math.nan if of_whole_numbers and chance_of(a, b) >= 0.9 else signal(lake, a, b)

    return known


def containment(a, b):
    return len(a.values & b.values) / len(a.values) if a.values else 0.0


def number_range(x, y):
    if not (x and y):
        return math.nan
    whole = max(*x, *y) - min(*x, *y)
    return max(0.0, min(max(x), max(y)) - max(min(x), min(y))) / whole if whole else 1.0


def number_distribution(a, b):
    if not (a.numbers and b.numbers):
        return math.nan
    (mean, sd), (mean_b, sd_b) = ((column.stats[3], max(0.01, column.stats[4])) for column in (a, b))
    return _bhattacharyya(mean, sd, mean_b, sd_b)


@cache
def _bhattacharyya(mean, sd, mean_b, sd_b):
    """The integral of the root of the product of two normal densities, by the trapezoidal rule."""
    step = min(sd, sd_b) / 3
    x = np.arange(min(mean - 9 * sd, mean_b - 9 * sd_b), max(mean + 9 * sd, mean_b + 9 * sd_b), step)
    densities = (
        np.exp(-(((x - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi)) for m, s in ((mean, sd), (mean_b, sd_b))
    )
    return float(np.sqrt(math.prod(densities)).sum() * step)


def named_containment(lake, a, b):
    if a.name != b.name:
        return 0.0
    contained = 0.0 if apart(a.letter, b.letter) else containment(a, b)
    return (1 + beyond_chance(contained, 1, a, b, len(a.values))) / 2


def rare_containment(lake, a, b):
    n = len(a.values)
    share = beyond_chance(sum(rarities(lake, a, b)) / (1 + n), most_of(lake, a, b, 0), a, b, n)
    return share ** power(share * (1 + n))


def value_cosine(lake, a, b):
    if not (a.coded or b.coded):
        return math.nan
    return dot(*(lake.values.tfidf(dict.fromkeys(column.values, 1)) for column in (a, b)))


def value_maxsim(lake, a, b):
    if a.coded or b.coded:
        return math.nan
    q, c = ([_value(lake, value) for value in column.canonical[:n]] for column, n in ((a, 30), (b, 100)))
    return sum(max((dot(x, y) for y in c), default=0.0) for x in q) / max(1, len(q))


@cache
def _value(lake, value):
    return lake.value_grams.tfidf(grams_of(value))


def of_what_is_numbered(formula):
    """0 where the keys of both columns begin with other letters, or their numbers have other units."""

    def signal(lake, q, a, c, b):
        found = formula(lake, q, a, c, b)
        return 0.0 if apart(a.letter, b.letter) and not math.isnan(found) else found

    return signal


COLUMN_SIGNALS = {
    "name_cosine": lambda lake, q, a, c, b: of_names(name_cosine)(lake, q, c),
    "name_grams": of_column_names(names_alike),
    "name_vectors": of_column_names(lambda lake, a, b: vectors_alike(a.name_vector, b.name_vector)),
    "value_grams": of_what_is_numbered(of_values_that_say_something(value_grams_alike)),
    "value_maxsim": lambda lake, q, a, c, b: value_maxsim(lake, a, b),
    "value_cosine": of_what_is_numbered(of_values_that_say_something(value_cosine)),
    "named_containment": of_column_names(named_containment),
    "rare_containment": of_what_is_numbered(lambda lake, q, a, c, b: rare_containment(lake, a, b)),
    "containment": of_what_is_numbered(lambda lake, q, a, c, b: containment(a, b)),
    "number_range": lambda lake, q, a, c, b: number_range(a.numbers, b.numbers),
    "number_distribution": lambda lake, q, a, c, b: number_distribution(a, b),
    "value_jaccard": of_what_is_numbered(
        lambda lake, q, a, c, b: len(a.values & b.values) / max(1, len(a.values | b.values))
    ),
}


def similarity(lake, q, c, with_vectors):
    """What decides which columns match: the mean of what is known of every two, [columns of q, columns of c]."""
    out = np.zeros((len(q.columns), len(c.columns)))
    for i, a in enumerate(q.columns):
        for j, b in enumerate(c.columns):
            parts = [names_or_none(lake, q, a, c, b), values_alike(lake, a, b)]
            if with_vectors:
                parts += [name_vectors_or_none(q, a, c, b), dense_values(a, b)]
            out[i, j] = np.mean([part for part in parts if part is not None])
    return out


# --- the same tables for gpumatch


def table_set(specs, seed):
    """Return ([Table], gpumatch's TableSet) of tables given as {"header": [...], "columns": [[cells]]}.

    The vectors are drawn from a few that all sets share, so that columns of two sets can have the same one; some point
    away from each other.
    """
    pool = np.random.default_rng(0).normal(size=(12, DIM))
    pool[11] = -pool[0]
    pool = (pool / np.linalg.norm(pool, axis=1, keepdims=True)).astype(np.float16)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(pool))
    n_columns = sum(len(spec["header"]) for spec in specs)
    value, name = (rng.integers(0, len(pool), n_columns).astype(np.int32) for _ in range(2))
    header = rng.integers(0, len(pool), len(specs)).astype(np.int32)
    vectors = embed.Vectors(pool[drawn], value, name, header)

    tables, at = [], 0
    for spec, row in zip(specs, header, strict=True):
        columns = []
        for written, cells in zip(spec["header"], spec["columns"], strict=True):
            of = (vectors.rows[row[at]].astype(np.float64) for row in (value, name))
            columns.append(Column(written, tuple(cells), *of))
            at += 1
        tables.append(Table(tuple(columns), vectors.rows[row].astype(np.float64)))
    profiles = profile.profile_tables(
        lake.Table(
            f"t{i:03}",
            tuple(spec["header"]),
            tuple(pa.array(cells, pa.string()) for cells in spec["columns"]),
            (None,) * len(spec["header"]),
        )
        for i, spec in enumerate(specs)
    )
    return tables, index.TableSet(profiles, vectors)


# --- lakes


def handmade():
    """Return (lake, queries from outside) with what is odd: no columns, no values, names that repeat or are blank."""

    def table(header, *columns):
        return {"header": header, "columns": columns}

    cities = ["Oslo", "Bergen", "Oslo", " Paris ", "New York", None, "", "--"]
    numbers = ["1", "2,500", "-3.5", "40%", "x", "", "7e2", "$8"]
    nothing = [None, "", " ", "-", ":--:", None, "---", ""]
    lake = [
        table(["City", "Population", "city ", "Note"], cities, numbers, cities[::-1], nothing),
        table(["City", "Population", "city ", "Note"], cities, numbers, cities[::-1], nothing),
        table([]),
        table(["note", "NOTE", '"Note"'], nothing, nothing, nothing),
        table(["id"], [str(n) for n in range(300)]),
        table(["\ufeffId", "id "], [str(n) for n in range(150, 400)], ["same"] * 250),
        table(["", "a", "ab", "abc"], cities, ["A", "a", "A a", "a-a", "a", "b", "", None], numbers, cities),
        table([], *[]),
        table(["population", "city"], numbers, cities),
        table(
            ["Einwohner", "Stadt", "année"], numbers[::-1], ["Köln", "ÉVRY", "évry", "oslo", "x_1", "", "b", "c"], []
        ),
        table(["col_1", "col_2", "col_3"], cities, numbers, nothing),
        table(["", "Unnamed: 1", "City"], cities, numbers, cities),
        table(["col_2", "col_1", "City", "id"], numbers, cities, cities, numbers),
        table([f"column {i}" for i in range(33)], *[[f"value {i} {j % 3}" for j in range(8)] for i in range(33)]),
        table(["empty", "rows"], [], []),
        table(["day", "price", "key"], ["1/2/2020", "14/2/2020"], ["$1,200.50", "$7"], ["cust_7", "cust_08"]),
        table(["Day", "Price", "Key"], ["2020-02-01", "2020-02-03"], ["1200.5", "8"], ["7", "9"]),
        table(["n", "row"], ["1", "2", "3", "4"], ["0", "1", "2", "oslo"]),
        table(["City"], ["Oslo", "Bergen"]),
    ]
    lake[9]["columns"] = (*lake[9]["columns"][:2], [None] * 8)
    queries = [
        table(["City", "Population"], cities, numbers),
        table(["nobody has this", "nor this"], ["zzz", "yyy"], ["oslo", "zzz"]),
        table(["nobody has this", "nobody has this", "city"], ["zzz", "yyy"], ["zzz", "yyy"], ["OSLO", "zzz"]),
        table([]),
        table(["", " ", "''"], ["a", "b"], nothing[:2], ["a", "a"]),
        table(["Note"], nothing),
        table(["id", "id"], [str(n) for n in range(280, 290)], ["999", "1000", "1001"] + [None] * 7),
        table(["n", "row", "key"], ["1", "2", "3"], ["4", "3", "2", "1"], ["id 7", "id 9"]),
        table(["cities"], ["Oslo (N)", "bergen", "new-york", "pariss"]),
        table([f"column {i}" for i in range(40)], *[[f"value {i} {j % 4}" for j in range(8)] for i in range(40)]),
    ]
    return lake, queries


NAMES = ["id", "City", "city name", "Country", "year", "Year ", "population", "", "total area", "area", "a"]
STRANGE = ["vfrk", "id of nothing", "qwerty city"]
WORDS = ["oslo", "Bergen", "Paris", "new york", "N/A", "red green", "red", "Green-blue", "x_1", "été", "zz top"]
STRANGE_WORDS = ["unheard of", "sesquipedalian", "red unheard"]


def random_lake(seed):
    """Return (lake, queries from outside): few names and words, much of it shared; some queries are torn copies."""
    rng = np.random.default_rng(seed)

    def cells(words, n):
        kind = rng.integers(0, 5)
        if kind == 0:
            return [str(x) for x in rng.integers(-20, 2000, n)]
        if kind == 1:
            return [f"{x:,.2f}" for x in rng.normal(0, 3000, n)]
        if kind == 2:
            return [[None, "", "-"][x] for x in rng.integers(0, 3, n)]
        return [words[x] if x < len(words) else None for x in rng.integers(0, len(words) + 3, n)]

    def tables(n, names, words):
        made = []
        for _ in range(n):
            width, n_rows = rng.integers(0, 8), rng.integers(0, 12)
            header = [names[(place + rng.integers(0, 4)) % len(names)] for place in range(width)]
            made.append({"header": header, "columns": [cells(words, n_rows) for _ in header]})
        return made

    def torn(table):
        kept = rng.permutation(len(table["header"]))[1:]
        kept = kept if rng.integers(0, 2) else np.sort(kept)
        header = [table["header"][place] if rng.integers(0, 4) else "qwerty" for place in kept]
        return {"header": header, "columns": [table["columns"][place] for place in kept]}

    lake = tables(10, NAMES, WORDS)
    lake.append(lake[int(rng.integers(0, len(lake)))])
    return lake, [*tables(3, STRANGE + NAMES, WORDS + STRANGE_WORDS), *map(torn, lake[:3])]
