"""What a score is: signals, their formulas and their weights, as data. No code that touches tables.

The weights are fixed, the same for every lake. Changing a number here changes what gpumatch answers, and nothing else
has to change with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np

# Scores equal after rounding to this many decimals are ties.
SCORE_DECIMALS = 6


@dataclass(frozen=True)
class Signal:
    """One piece of evidence for a pair of tables (or, under "column", a pair of columns; "text", a text and a table).

    range: what values it takes; layer: the first layer that has it; formula: how it is computed, with its source.
    symmetric: whether it is the same from either side.
    """

    name: str
    range: tuple[float, float]
    layer: str
    formula: str
    symmetric: bool = True

    @property
    def compares(self) -> str:
        """What is compared with a lake's: "table", "column" or "text"."""
        kind = self.formula.partition(": ")[0]
        return kind if kind in ("column", "text") else "table"


# idf(n) = 1 + ln((1+C)/(1+df(n))) over the C columns of the lake; n is a name's normal form.
# MaxSim is the mean over one table's columns of the best column of the other (Khattab and Zaharia, SIGIR 2020). A name
# that says nothing (`text.placeholders`) is not known: a mean or a product with it is what the other part says, and a
# signal of names alone is not known where one table has none that says anything.
SIGNALS = {
    signal.name: signal
    for signal in (
        Signal("name_overlap", (0, 1), "L1", "Σ idf of the shared names / Σ idf of the query's names", symmetric=False),
        Signal("name_cosine", (0, 1), "L1", "cosine of idf-weighted binary name vectors"),
        Signal("name_position", (0, 1), "L1", "cosine of (name, position) TF-IDF"),
        Signal(
            "lexical_maxsim",
            (0, 1),
            "L1",
            "MaxSim, from the query's side, of ½·cos(name 3-5-gram TF-IDF) + ½·cos(value-token TF-IDF)",
            symmetric=False,
        ),
        Signal("lexical_maxsim_both", (0, 1), "L1", "lexical_maxsim, both ways averaged"),
        Signal(
            "name_value_maxsim",
            (0, 1),
            "L1",
            "MaxSim, both ways averaged, of cos(name 3-5-gram TF-IDF)·cos(value-token TF-IDF)",
        ),
        Signal(
            "profile",
            (0, 1),
            "L1",
            "mean over named query columns of the best same-named candidate column's exp(-‖stats_q - stats_c‖²/2)",
            symmetric=False,
        ),
        Signal("profile_both", (0, 1), "L1", "profile, both ways averaged"),
        Signal(
            "token_profile_maxsim",
            (0, 1),
            "L1",
            "MaxSim, both ways averaged, of cos(value-token TF-IDF)·exp(-‖stats_q - stats_c‖²/2)",
        ),
        Signal("column_count", (0, 1), "L1", "exp(-|ln(1+columns_q) - ln(1+columns_c)|)"),
        Signal("text_names", (0, 1), "L1", "text: Σ idf of its words in the table's names / Σ idf of its words"),
        Signal("text_values", (0, 1), "L1", "text: Σ idf of its words in the table's values / Σ idf of its words"),
        Signal("text_header", (0, 1), "L2", "text: cosine of its vector and the header text's"),
        Signal(
            "dense_maxsim",
            (0, 1),
            "L2",
            "MaxSim, from the query's side, of ½·cos(name vectors) + ½·cos(value vectors)",
            symmetric=False,
        ),
        Signal("dense_maxsim_both", (0, 1), "L2", "dense_maxsim, both ways averaged"),
        Signal(
            "dense_value_maxsim", (0, 1), "L2", "MaxSim, from the query's side, of cos(value vectors)", symmetric=False
        ),
        Signal(
            "dense_profile_maxsim",
            (0, 1),
            "L2",
            "MaxSim, both ways averaged, of cos(value vectors)·exp(-‖stats_q - stats_c‖²/2)",
        ),
        Signal("header_text", (0, 1), "L2", "cosine of the header text vectors"),
        Signal(
            "key_containment",
            (0, 1),
            "L1",
            "of the two columns that share most: s^(1 + 4·2^(-n/8)), n = Σ rarity of the shared values beyond chance, "
            "s = n / (1 + min(|Q|, |C|)), 0 unless s > .4 and of several values; rarity as in rare_containment, 0 "
            "below ½; not known where a few values of a table are all there is",
        ),
        # No recipe weighs these (bench/LOG.md says why); they are there for weights of one's own.
        Signal("value_gram_maxsim", (0, 1), "L1", "MaxSim, both ways averaged, of value_grams"),
        Signal(
            "value_overlap_maxsim",
            (0, 1),
            "L1",
            "MaxSim, from the query's side, of containment; not known where one table is known by a sample",
            symmetric=False,
        ),
        Signal("pooled_columns", (0, 1), "L2", "cosine of the tables' sums of name and value vectors"),
        # Of two columns. A value is canonical (`canonical.py`): 1,234.50 and 1234.5 are one. A column is coded where
        # nearly all of its values are numbers, dates or numbered keys, which are the same or not, never alike. Beyond
        # chance: as `kernels.chance.beyond_chance` has it of s, by how many of all values either column holds.
        Signal("name_grams", (0, 1), "L1", "column: cosine of the names' 3-5-gram TF-IDF"),
        Signal("name_vectors", (0, 1), "L2", "column: cosine of the names' vectors"),
        Signal("value_grams", (0, 1), "L1", "column: cosine of the 3-gram TF-IDF of the first 200 values"),
        Signal(
            "value_maxsim",
            (0, 1),
            "L1",
            "column: mean over the query's first 30 values of the best cos(3-gram TF-IDF) among the candidate's first "
            "100; not known where one column is coded",
            symmetric=False,
        ),
        Signal("value_cosine", (0, 1), "L1", "column: cosine of idf-weighted sets of values, known where one is coded"),
        Signal(
            "number_range", (0, 1), "L1", "column: |ranges ∩| / |ranges ∪| of the numbers; not known where one has none"
        ),
        Signal(
            "number_distribution",
            (0, 1),
            "L1",
            "column: Bhattacharyya coefficient (1943) of two normal distributions with the numbers' means and "
            "deviations, on signed log1p; not known where one has none",
        ),
        Signal(
            "named_containment",
            (0, 1),
            "L1",
            "column: ½·(1 + containment beyond chance) if same name, else 0",
            symmetric=False,
        ),
        Signal(
            "rare_containment",
            (0, 1),
            "L1",
            "column: s^(1 + 4·2^(-n/8)), n = Σ rarity of the shared values beyond chance, s = n / (1 + |Q|), "
            "rarity(v) = ln((1+C)/(1+df(v))) / ln((1+C)/3), at most 1. The chance that five of the query's values are "
            "all found where little is shared, that one is where much is. Not known where a few values are all there "
            "is",
            symmetric=False,
        ),
        Signal("containment", (0, 1), "L1", "column: |Q∩C|/|Q| over distinct values", symmetric=False),
        Signal("value_jaccard", (0, 1), "L1", "column: |Q∩C|/|Q∪C| over distinct values"),
    )
}


# The one signal of a table pair that is no likeness.
KEY = "key_containment"
# Signals that weigh more than all others together: where they are not known, their weight is left out of the sum.
LEFT_OUT = frozenset({KEY, "rare_containment"})
# How much of the weight of another one that is not known counts. With none of it, tables whose columns have no names
# would come before those whose names are known to differ; with all of it, after those that are like the query by name
# only (bench/LOG.md).
UNKNOWN = 0.4


def contributions(weights: Mapping[str, float], known: AbstractSet[str]) -> dict[str, float]:
    """Return what 1 of each signal that is known adds to a score: what `weighted` does, of one pair."""
    shares = {name: 1.0 if name in known else 0.0 if name in LEFT_OUT else UNKNOWN for name in weights}
    total = sum(share * weights[name] for name, share in shares.items()) or 1.0
    return {name: weight / total for name, weight in weights.items() if name in known}


@dataclass(frozen=True)
class Recipe:
    """A weighted sum of signals, and how wide search has to cast its net for it.

    task: "join", "union", "column" (a join query that names its column) or "text" (a query that is a text alone).
    weights: signal → weight; the score is Σ weight·signal / Σ weight; UNKNOWN and LEFT_OUT say how far the weight of a
        signal that is not known counts.
    density: what share of a candidate's density (mean of its 10 best scores against lake tables) is taken off;
        cross-domain similarity local scaling, Conneau et al., ICLR 2018, one side of it.
    blocks: search block → weight on the query row; search only proposes.
    pool: survivors a query has at most, more only where more matches are asked for.
    cut: how steeply search scores have to fall for a query to have fewer, 0 for never: see `search.survivors`.
    """

    task: str
    weights: dict[str, float]
    density: float
    blocks: dict[str, float]
    pool: int
    cut: float = 0.0

    @property
    def symmetric(self) -> bool:
        """Whether a pair's score is the same from either side."""
        return all(SIGNALS[name].symmetric for name in self.weights)

    @property
    def dense(self) -> bool:
        """Whether any evidence needs vectors."""
        return any(SIGNALS[name].layer == "L2" for name in self.weights)

    @property
    def least(self) -> int:
        """Survivors that every query has where the lake has so many."""
        return min(self.pool, _LEAST) if self.cut else self.pool

    def key(self) -> str:
        """Return a short hash of everything in the recipe: scores under another key are other scores."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def weighted(signals: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return the scores of pairs with signals float32 [P, S], float32 [P]; the density is not taken off yet.

    Σ weight·signal / Σ weight, where what is not known (NaN) counts as `recipes.contributions` says.
    """
    weights = np.array(list(recipe.weights.values()), np.float64)
    shares = np.array([0 if name in LEFT_OUT else UNKNOWN for name in recipe.weights])
    total = weights.sum() - np.isnan(signals) @ (weights * (1 - shares))
    answer: np.ndarray = (np.nan_to_num(signals) @ weights / np.where(total > 0, total, 1)).astype(np.float32)
    return answer


_JOIN_BLOCKS = {"header": 1, "values": 0.5, "columns": 0.5}
_UNION_BLOCKS = {"header": 1, "position": 0.5, "values": 1, "width": 0.5, "columns": 1, "header_text": 0.5}
_COLUMN_BLOCKS = {"header": 0.5, "column_name": 1, "column_values": 1, "column": 1}
_TEXT_BLOCKS = {"header": 1, "values": 0.5, "header_text": 1}
# Survivors of a query whose search scores fall off as steeply as can be.
_LEAST = 150
DENSE_BLOCKS = ("columns", "header_text", "column")

# The weights were chosen by hand among neighbours that are all within .005 MAP: see bench/LOG.md.
_WEIGHTS = {
    # Where a query has a text beside its table, these stand with the table's, at the same weights.
    ("text", "L1"): {"text_names": 1.0, "text_values": 0.5},
    ("text", "L1+L2"): {"text_names": 1.0, "text_values": 0.5, "text_header": 1},
    ("join", "L1"): {"name_overlap": 1.0, "name_cosine": 1, "lexical_maxsim": 1, "profile": 1, "key_containment": 10},
    ("join", "L1+L2"): {
        "name_overlap": 1.0,
        "name_cosine": 1,
        "lexical_maxsim": 1,
        "profile": 1,
        "dense_maxsim": 1,
        "dense_value_maxsim": 1,
        "dense_profile_maxsim": 0.5,
        "key_containment": 16,  # tables that share a key come before tables that are alike
    },
    ("union", "L1"): {
        "lexical_maxsim_both": 2.0,
        "token_profile_maxsim": 1,
        "name_value_maxsim": 0.5,
        "profile_both": 0.5,
        "name_position": 0.5,
        "column_count": 0.5,
    },
    ("union", "L1+L2"): {
        "dense_maxsim_both": 2.0,
        "dense_profile_maxsim": 1.5,
        "name_value_maxsim": 0.5,
        "profile_both": 0.5,
        "name_position": 0.5,
        "column_count": 0.5,
        "header_text": 0.5,
    },
    ("column", "L1"): {
        "name_cosine": 2.0,
        "name_grams": 1,
        "value_grams": 1,
        "value_maxsim": 1,
        "value_cosine": 1,
        "named_containment": 0.5,
        "rare_containment": 12,  # more than all the rest
        "containment": 0,  # these two for people to see
        "value_jaccard": 0,
    },
    ("column", "L1+L2"): {
        "name_cosine": 2.0,
        "name_grams": 1,
        "name_vectors": 1,
        "value_grams": 1,
        "value_maxsim": 1,
        "value_cosine": 1,
        "named_containment": 0.5,
        "rare_containment": 12,
        "containment": 0,
        "value_jaccard": 0,
    },
}

LAYERS = ("L1", "L1+L2")
TASKS = ("join", "union", "column")


def signals_of(task: str, layer: str) -> tuple[str, ...]:
    """Return the signals that a recipe of a task may weigh at a layer, in the order of SIGNALS."""
    kind = task if task in ("column", "text") else "table"
    both = {"name_cosine"} if kind == "column" else set()  # of two columns, that of their tables
    return tuple(
        name
        for name, signal in SIGNALS.items()
        if (layer != "L1" or signal.layer == "L1") and (signal.compares == kind or name in both)
    )


@cache
def recipe_for(task: str, layer: str) -> Recipe:
    """Return the recipe of a task at a layer; the recipes of L1 need no vectors, in evidence or in search.

    Args:
        task: one of TASKS, or "text".
        layer: one of LAYERS.
    """
    density, blocks = {
        "join": (0.0, _JOIN_BLOCKS),
        "union": (0.25, _UNION_BLOCKS),
        "column": (0.0, _COLUMN_BLOCKS),
        "text": (0.0, _TEXT_BLOCKS),
    }[task]
    wanted = {name: weight for name, weight in blocks.items() if layer != "L1" or name not in DENSE_BLOCKS}
    # Words alone fall off steeply where a true table says the same in other words: at L1 nothing is cut.
    # How fast a text's scores fall was not measured.
    pool, cut = (200, 0.0) if task == "column" else (300, 0.0) if layer == "L1" or task == "text" else (600, 0.3)
    return Recipe(task, _WEIGHTS[task, layer], density, wanted, pool, cut)
