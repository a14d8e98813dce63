"""What a score is: signals, their formulas and their weights, as data. No code that touches tables.

The weights are fixed, the same for every lake. Changing a number here changes what gpumatch answers, and nothing else
has to change with it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Signal:
    """One piece of evidence for a pair of tables (or, under "column", a pair of columns).

    range: what values it takes; layer: the first layer that has it; formula: how it is computed, with its source.
    symmetric: whether it is the same from either side.
    """

    name: str
    range: tuple[float, float]
    layer: str
    formula: str
    symmetric: bool = True


# idf(n) = 1 + ln((1+C)/(1+df(n))) over the C columns of the lake; n is a name's normal form.
SIGNALS = {
    signal.name: signal
    for signal in (
        Signal("name_overlap", (0, 1), "L1", "Σ idf of the shared names / Σ idf of the query's names", symmetric=False),
        Signal("name_cosine", (0, 1), "L1", "cosine of idf-weighted binary name vectors"),
        Signal("name_jaccard", (0, 1), "L1", "shared names / all names of both tables (Jaccard 1901)"),
        Signal("name_position", (0, 1), "L1", "cosine of (name, position) TF-IDF"),
        Signal(
            "lexical_maxsim",
            (0, 1),
            "L1",
            "mean over query columns of the best candidate column's ½·cos(name 3-5-gram TF-IDF) + ½·cos(value-token "
            "TF-IDF) (MaxSim: Khattab and Zaharia 2020)",
            symmetric=False,
        ),
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
            "mean over query columns of the best same-named candidate column's exp(-‖stats_q - stats_c‖²/2)",
            symmetric=False,
        ),
        Signal("profile_both", (0, 1), "L1", "profile, both ways averaged"),
        Signal("column_count", (0, 1), "L1", "exp(-|ln(1+columns_q) - ln(1+columns_c)|)"),
        Signal("dense_maxsim", (0, 1), "L2", "MaxSim, both ways averaged, of the column vectors' cosine"),
        Signal("pooled_columns", (0, 1), "L2", "cosine of the mean column vectors"),
        Signal("header_text", (0, 1), "L2", "cosine of the header text vectors"),
        Signal("same_name", (0, 1), "L1", "column: 1 where the names' normal forms are equal"),
        Signal("containment", (0, 1), "L1", "column: |Q∩C|/|Q| over hashed distinct values", symmetric=False),
        Signal("named_containment", (0, 2), "L1", "column: same_name·(1 + containment)", symmetric=False),
        Signal("name_grams", (0, 1), "L1", "column: cosine of the names' 3-5-gram TF-IDF"),
        Signal("value_tokens", (0, 1), "L1", "column: cosine of the value-token TF-IDF"),
        Signal("dense_column", (0, 1), "L2", "column: cosine of the column vectors"),
    )
}


@dataclass(frozen=True)
class Recipe:
    """A weighted sum of signals, and how wide search has to cast its net for it.

    task: "join", "union" or "column" (a join query that names its column).
    weights: signal → weight; the score is Σ weight·signal / Σ weight.
    density: what share of a candidate's density (mean of its 10 best scores against lake tables) is taken off;
        cross-domain similarity local scaling, Conneau et al., ICLR 2018, one side of it.
    blocks: search block → weight on the query row; search only proposes.
    pool: survivors a query has, fewer only in a smaller lake and more only where more matches are asked for.
    """

    task: str
    weights: dict[str, float]
    density: float
    blocks: dict[str, float]
    pool: int

    @property
    def symmetric(self) -> bool:
        """Whether a pair's score is the same from either side."""
        return all(SIGNALS[name].symmetric for name in self.weights)

    @property
    def dense(self) -> bool:
        """Whether any evidence needs vectors."""
        return any(SIGNALS[name].layer == "L2" for name in self.weights)

    def key(self) -> str:
        """Return a short hash of everything in the recipe: scores under another key are other scores."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


_RECIPES = (
    Recipe(
        task="join",
        weights={"name_overlap": 1, "name_cosine": 1, "lexical_maxsim": 1, "profile": 1},
        density=0,
        blocks={"header": 1, "values": 0.5, "columns": 0.5},
        pool=300,
    ),
    Recipe(
        task="union",
        weights={
            "name_jaccard": 1,
            "name_value_maxsim": 1,
            "dense_maxsim": 1,
            "pooled_columns": 0.5,
            "name_position": 0.5,
            "profile_both": 0.5,
            "column_count": 0.5,
            "header_text": 0.5,
        },
        density=0.25,
        blocks={"header": 1, "position": 0.5, "values": 1, "columns": 1, "header_text": 0.5},
        pool=300,
    ),
    # The first two terms are the column formula; it fails wherever names differ, so it never stands alone.
    Recipe(
        task="column",
        weights={
            "named_containment": 1,
            "name_cosine": 1,
            "name_grams": 1 / 3,
            "value_tokens": 1 / 3,
            "dense_column": 1 / 3,
            "containment": 0,  # for people to see; named_containment has it already
        },
        density=0,
        blocks={"header": 0.5, "column_name": 1, "column_values": 1, "column": 1},
        pool=200,
    ),
)

LAYERS = ("L1", "L1+L2")


def recipe_for(task: str, layer: str) -> Recipe:
    """Return the recipe of a task at a layer; L1 is the full recipe without its dense terms.

    Args:
        task: "join", "union" or "column".
        layer: one of LAYERS.
    """
    recipe = next(recipe for recipe in _RECIPES if recipe.task == task)
    if layer != "L1":
        return recipe
    return Recipe(
        task=task,
        weights={name: weight for name, weight in recipe.weights.items() if SIGNALS[name].layer == "L1"},
        density=recipe.density,
        blocks={name: weight for name, weight in recipe.blocks.items() if name not in DENSE_BLOCKS},
        pool=recipe.pool,
    )


DENSE_BLOCKS = ("columns", "header_text", "column")
