"""A lake's profiles in, one query's scores out, a candidate at a time: the inner loop of the predecessor's design.

The signals and weights of `gpumatch.recipes`, computed pair by pair with dictionaries and small NumPy products, as one
writes it for a single query. What does not depend on the pair (weights of tokens and names, statistics) is made once,
when the lake is opened; similarities of two names are remembered while a query is worked on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpumatch.canonical import comparable
from gpumatch.index import TableSet
from gpumatch.kernels.ragged import Csr
from gpumatch.profile import Profiles, header_texts, name_texts, value_texts
from gpumatch.recipes import LAYERS, Recipe, contributions, recipe_for
from gpumatch.terms import Terms, Vocabularies
from gpumatch.vocabulary import Bags

SCORE_DECIMALS = 6
ENCODER_BATCH = 64
# What key_containment counts.
LEAST_RARITY, LEAST_SHARE, FEW_ROWS = 0.5, 0.4, 100


VECTOR_FILES = ("rows", "value", "name", "header")


class TableVectors(NamedTuple):
    """Vectors of a table: of its columns' values and names, float32 [m, D] each, and of its header, float32 [D]."""

    values: np.ndarray
    names: np.ndarray
    header: np.ndarray


class VectorSource(Protocol):
    """Where the vectors of a table come from.

    seconds, texts: spent on encoding so far, and how many texts were encoded.
    """

    seconds: float
    texts: int

    def need(self, tables: list[int]) -> None:
        """Make ready the vectors of some tables."""
        ...

    def table(self, t: int) -> TableVectors:
        """Return a table's vectors."""
        ...


class SharedVectors:
    """Vectors that lie in memory-mapped files, made before the clock starts; no encoder here."""

    def __init__(self, folder: Path, table_cols: np.ndarray) -> None:
        self._rows, self._value, self._name, self._header = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in VECTOR_FILES
        )
        self._cols = table_cols
        self.seconds, self.texts = 0.0, 0

    def need(self, tables: list[int]) -> None:
        """Do nothing: all are there."""

    def table(self, t: int) -> TableVectors:
        """Look a table's vectors up."""
        own = slice(self._cols[t], self._cols[t + 1])
        return TableVectors(
            *(self._rows[at].astype(np.float32) for at in (self._value[own], self._name[own], self._header[t]))
        )


class OwnVectors:
    """Vectors that this worker's own encoder makes when a query first needs them, and then remembers."""

    def __init__(self, encoder: Any, profiles: Profiles) -> None:  # noqa: ANN401 - gpumatch.encoder.Encoder
        self._encoder = encoder
        self._cols = profiles.table_cols
        self._values, self._names, self._headers = value_texts(profiles), name_texts(profiles), header_texts(profiles)
        self._made: dict[str, np.ndarray] = {}
        self.seconds, self.texts = 0.0, 0

    def need(self, tables: list[int]) -> None:
        """Encode the texts of some tables that are not remembered, the longest first, in batches."""
        begun = time.perf_counter()
        wanted = dict.fromkeys(text for t in tables for text in self._texts(t) if text not in self._made)
        texts = sorted(wanted, key=len, reverse=True)
        for start in range(0, len(texts), ENCODER_BATCH):
            batch = texts[start : start + ENCODER_BATCH]
            self._made.update(zip(batch, self._encoder.encode(batch).astype(np.float16), strict=True))
        self.seconds += time.perf_counter() - begun
        self.texts += len(texts)

    def table(self, t: int) -> TableVectors:
        """Look a table's vectors up among those that `need` made."""
        rows = np.array([self._made[text] for text in self._texts(t)], np.float32)
        width = len(rows) // 2
        return TableVectors(rows[:width], rows[width:-1], rows[-1])

    def _texts(self, t: int) -> list[str]:
        own = slice(self._cols[t], self._cols[t + 1])
        return [*self._values[own], *self._names[own], self._headers[t]]


class LakeFeatures:
    """What is known of every lake table before a query comes; lists by table, by column, or by distinct name."""

    def __init__(self, profiles: Profiles) -> None:
        terms = Terms.of(profiles)
        vocabularies = Vocabularies.of(terms)
        bounds = profiles.table_cols.tolist()
        self.n = profiles.n_tables
        self.columns = [range(a, b) for a, b in pairwise(bounds)]
        self.name = terms.column_name.tolist()
        self.grams = _dictionaries(vocabularies.grams.tfidf(terms.grams))
        self.tokens = _dictionaries(vocabularies.tokens.tfidf(terms.tokens))
        self.positions = _dictionaries(vocabularies.positions.tfidf(terms.positions))
        self.named = [terms.named[a:b] for a, b in pairwise(bounds)]
        self.names = [frozenset(self.name[c] for c in columns if terms.named[c]) for columns in self.columns]
        self.idf = vocabularies.names.idf[vocabularies.names.find(terms.name)].tolist()
        self.names_length = [math.sqrt(sum(self.idf[name] ** 2 for name in names)) for names in self.names]
        self.stats_of = [profiles.stats[a:b] for a, b in pairwise(bounds)]
        self.name_of = [terms.column_name[a:b] for a, b in pairwise(bounds)]
        self.few_values = ((profiles.table_rows < 0) & (profiles.table_rows >= -FEW_ROWS)).tolist()
        self.letter, self.keyed = profiles.letter, profiles.keyed.tolist()
        self.fixed, self.dense, self.level = profiles.chance.tolist(), profiles.dense.tolist(), profiles.level.tolist()
        self.size = np.diff(profiles.value_start).tolist()
        tables = TableSet(profiles, None)
        self.rare = [_rare(tables, columns) for columns in (tables.value_bags, tables.marked_values)]


class Query:
    """One query table against the lake, pair by pair."""

    def __init__(self, lake: LakeFeatures, table: int, vectors: VectorSource | None) -> None:
        self.lake, self.table, self.vectors = lake, table, vectors
        self._alike: dict[tuple[int, int], float] = {}
        self._own: TableVectors | None = None
        self._candidate: tuple[int, TableVectors] | None = None
        self._for = -1
        self._made: dict[str, np.ndarray] = {}

    def answer(self, task: str, density: np.ndarray) -> list[tuple[int, float]]:
        """Return (table, score) of the survivors, best first: L1 over the whole lake, then what L1 leaves out."""
        recipe, first = recipe_for(task, LAYERS[1]), recipe_for(task, LAYERS[0])
        found = {c: self.signals(c, first.weights) for c in range(self.lake.n) if c != self.table}
        survivors = _best({c: weighted(signals, first) for c, signals in found.items()})[: first.pool]
        rest = {name: weight for name, weight in recipe.weights.items() if name not in first.weights}
        if rest and self.vectors is not None:
            self.vectors.need([self.table, *(c for c, _ in survivors)])
        scores = {
            c: weighted(found[c] | self.signals(c, rest), recipe) - recipe.density * float(density[c])
            for c, _ in survivors
        }
        return _best(scores)

    def signals(self, c: int, names: Mapping[str, float]) -> dict[str, float]:
        """Return some signals of this query and one candidate."""
        return {name: TABLE_SIGNALS[name](self, c) for name in names}

    # --- similarities of columns, [columns of the query, columns of the candidate]

    def names_alike(self, a: int, b: int) -> float:
        """Return the cosine of two distinct names' grams."""
        alike = self._alike.get((a, b))
        if alike is None:
            alike = self._alike[a, b] = dot(self.lake.grams[a], self.lake.grams[b])
        return alike

    def known(self, c: int) -> np.ndarray:
        """Return where both columns have a name that says something, bool."""
        return self.lake.named[self.table][:, None] & self.lake.named[c][None]

    def named(self, c: int) -> bool:
        """Tell whether there are names to go by; a table without columns has none to be wrong about."""
        return all(self.lake.named[t].any() or not len(self.lake.named[t]) for t in (self.table, c))

    def once(self, c: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
        """Return what several signals of one candidate need, made when the first of them asks."""
        if self._for != c:
            self._for, self._made = c, {}
        name = make.__name__
        if name not in self._made:
            self._made[name] = make(c)
        return self._made[name]

    def names(self, c: int) -> np.ndarray:
        """Return the cosine of the names' grams."""
        lake = self.lake
        rows = [
            [self.names_alike(lake.name[a], lake.name[b]) for b in lake.columns[c]] for a in lake.columns[self.table]
        ]
        return np.array(rows).reshape(len(lake.columns[self.table]), len(lake.columns[c]))

    def tokens(self, c: int) -> np.ndarray:
        """Return the cosine of the value tokens."""
        lake = self.lake
        rows = [[dot(lake.tokens[a], lake.tokens[b]) for b in lake.columns[c]] for a in lake.columns[self.table]]
        return np.array(rows).reshape(len(lake.columns[self.table]), len(lake.columns[c]))

    def lexical(self, c: int) -> np.ndarray:
        """Return half the names' cosine and half the value tokens', or the tokens' alone."""
        tokens = self.once(c, self.tokens)
        return np.where(self.known(c), (self.once(c, self.names) + tokens) / 2, tokens)

    def name_value(self, c: int) -> np.ndarray:
        """Return the product of the two, or the tokens' alone."""
        tokens = self.once(c, self.tokens)
        return np.where(self.known(c), self.once(c, self.names) * tokens, tokens)

    def alike_profiles(self, c: int) -> np.ndarray:
        """Return exp(-‖stats_q - stats_c‖²/2)."""
        gap = self.lake.stats_of[self.table][:, None] - self.lake.stats_of[c][None]
        alike: np.ndarray = np.exp(-0.5 * (gap**2).sum(-1))
        return alike

    def profiles(self, c: int) -> np.ndarray:
        """Return, for columns with a name that says something, the same where the names are the same, else 0."""
        lake = self.lake
        q_named, c_named = lake.named[self.table], lake.named[c]
        if not lake.names[self.table] & lake.names[c]:
            return np.zeros((int(q_named.sum()), int(c_named.sum())))
        same = lake.name_of[self.table][:, None] == lake.name_of[c][None]
        return np.where(same, self.once(c, self.alike_profiles), 0)[q_named][:, c_named]

    def values(self, c: int) -> np.ndarray:
        """Return the cosine of the values' vectors."""
        return np.clip(self.own().values @ self.candidate(c).values.T, 0, 1)

    def dense(self, c: int) -> np.ndarray:
        """Return half the names' and half the values' cosine, or the values' alone."""
        values = self.once(c, self.values)
        names = np.clip(self.own().names @ self.candidate(c).names.T, 0, 1)
        return np.where(self.known(c), (names + values) / 2, values)

    def own(self) -> TableVectors:
        """Return this query's vectors."""
        if self._own is None:
            self._own = self._vectors(self.table)
        return self._own

    def candidate(self, c: int) -> TableVectors:
        """Return a candidate's vectors, looked up once for all its signals."""
        if self._candidate is None or self._candidate[0] != c:
            self._candidate = c, self._vectors(c)
        return self._candidate[1]

    def _vectors(self, t: int) -> TableVectors:
        if self.vectors is None:
            raise ValueError("dense evidence needs vectors")
        return self.vectors.table(t)


def weighted(signals: Mapping[str, float], recipe: Recipe) -> float:
    """Return the score of a pair."""
    adds = contributions(recipe.weights, {name for name in recipe.weights if not math.isnan(signals[name])})
    return sum(add * signals[name] for name, add in adds.items())


def dot(a: dict[int, float], b: dict[int, float]) -> float:
    """Return the dot product of two sparse vectors of unit length, looping over the shorter."""
    if len(a) > len(b):
        a, b = b, a
    return sum([weight * b[term] for term, weight in a.items() if term in b])


def _best(scores: dict[int, float]) -> list[tuple[int, float]]:
    return sorted(scores.items(), key=lambda pair: (-round(pair[1], SCORE_DECIMALS), pair[0]))


def _rare(tables: TableSet, columns: Bags) -> tuple[dict[int, float], list[set[int]]]:
    """Return the rarity of each value that is rare enough to tell of a key, and which of them each column holds."""
    values, held = tables.counted(columns), columns.term.tolist()
    pairs = zip(values.term.tolist(), values.rarity[:-1].tolist(), strict=True)
    rarity = {value: one for value, one in pairs if one >= LEAST_RARITY}
    return rarity, [rarity.keys() & set(held[a:b]) for a, b in pairwise(columns.start.tolist())]


def _dictionaries(rows: Csr) -> list[dict[int, float]]:
    terms = np.arange(rows.width).astype(object)  # one int object for each term, which all dictionaries share
    start, term, weight = rows.start.tolist(), terms[rows.token].tolist(), rows.weight.tolist()
    return [dict(zip(term[a:b], weight[a:b], strict=True)) for a, b in pairwise(start)]


# --- signals of a query and one candidate


def _forward(alike: np.ndarray) -> float:
    return float(alike.max(1).mean()) if alike.size else 0.0


def _both(alike: np.ndarray) -> float:
    return float(alike.max(1).mean() + alike.max(0).mean()) / 2 if alike.size else 0.0


def _overlap(q: Query, c: int) -> float:
    lake, names = q.lake, q.lake.names[q.table]
    total = sum(lake.idf[name] for name in names)
    return sum(lake.idf[name] for name in names & lake.names[c]) / total if total else 0.0


def _cosine(q: Query, c: int) -> float:
    lake, lengths = q.lake, q.lake.names_length[q.table] * q.lake.names_length[c]
    return sum(lake.idf[name] ** 2 for name in lake.names[q.table] & lake.names[c]) / lengths if lengths else 0.0


def _count(q: Query, c: int) -> float:
    return math.exp(-abs(math.log1p(len(q.lake.columns[q.table])) - math.log1p(len(q.lake.columns[c]))))


def _key(q: Query, c: int) -> float:
    lake, best = q.lake, (0.0, 0.0)
    if lake.few_values[q.table] or lake.few_values[c]:
        return math.nan
    for a, b in product(lake.columns[q.table], lake.columns[c]):
        rarity, values = lake.rare[bool(lake.letter[a] and lake.letter[b])]
        size = min(lake.size[a], lake.size[b])
        if size > 1 and (shared := values[a] & values[b]) and comparable(lake.letter[a], lake.letter[b]):
            chance = _chance(lake, a, b)
            usual = chance + 2 * math.sqrt(chance * (1 - chance) / max(1, size))
            smaller = [c for c in (a, b) if lake.size[c] == size]
            by_chance = usual * max(sum(rarity[value] for value in values[c]) for c in smaller)
            beyond = (sum(rarity[value] for value in shared) - by_chance) / (1 + size)
            share = beyond / (1 - chance) if usual < 1 else 0.0
            best = max(best, (share, share * (1 + size)))
    share, n = best
    return share ** (1 + 4 * 2 ** (-n / 8)) if share > LEAST_SHARE else 0.0


def _chance(lake: LakeFeatures, a: int, b: int) -> float:
    """Return how likely one of two columns holds a value of the other only because it holds so many."""
    if lake.keyed[a] and lake.keyed[b]:
        return 0.0
    level = min(lake.level[a], lake.level[b])
    return max(lake.fixed[a], lake.fixed[b], *((lake.dense[a][level], lake.dense[b][level]) if level >= 0 else ()))


def _of_names(signal: Callable[[Query, int], float]) -> Callable[[Query, int], float]:
    return lambda q, c: signal(q, c) if q.named(c) else math.nan


TABLE_SIGNALS: dict[str, Callable[[Query, int], float]] = {
    "name_overlap": _of_names(_overlap),
    "name_cosine": _of_names(_cosine),
    "name_position": _of_names(lambda q, c: dot(q.lake.positions[q.table], q.lake.positions[c])),
    "lexical_maxsim": lambda q, c: _forward(q.lexical(c)),
    "lexical_maxsim_both": lambda q, c: _both(q.lexical(c)),
    "name_value_maxsim": lambda q, c: _both(q.name_value(c)),
    "profile": _of_names(lambda q, c: _forward(q.profiles(c))),
    "profile_both": _of_names(lambda q, c: _both(q.profiles(c))),
    "token_profile_maxsim": lambda q, c: _both(q.once(c, q.tokens) * q.once(c, q.alike_profiles)),
    "column_count": _count,
    "dense_maxsim": lambda q, c: _forward(q.dense(c)),
    "dense_maxsim_both": lambda q, c: _both(q.dense(c)),
    "dense_value_maxsim": lambda q, c: _forward(q.once(c, q.values)),
    "dense_profile_maxsim": lambda q, c: _both(q.once(c, q.values) * q.once(c, q.alike_profiles)),
    # Vectors are of unit length but for float16's rounding.
    "key_containment": _key,
    "header_text": _of_names(lambda q, c: min(1.0, max(0.0, float(q.own().header @ q.candidate(c).header)))),
}
