"""A TOML file of weights in, the recipes that it changes out; every invalid entry is an error that names its place.

    [union]                    # join, union, or column for a join query that names its column
    dense_maxsim_both = 2.0    # signals: those named here replace all weights of the task
    name_position = 0          # shown as evidence, but does not count
    density = 0.25             # optional: what share of a candidate's density is taken off

Search proposes the same tables whatever the weights. Reads that one file and nothing else.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpumatch.errors import UsageError, printable
from gpumatch.recipes import LAYERS, SIGNALS, TASKS, Recipe, recipe_for, signals_of

DENSITY = "density"
_MOST = 1_000_000
_ALLOWED = "allowed are " + ", ".join(f"[{task}]" for task in TASKS[:-1]) + f" and [{TASKS[-1]}]"


def load_recipes(path: Path, layer: str) -> dict[str, Recipe]:
    """Return the recipe of every task that a file of weights names; the shipped one if the file says the same.

    Args:
        layer: the layer of the run, one of LAYERS; signals beyond it are refused.

    Raises:
        UsageError: the file cannot be read or is no TOML, or it holds things that no recipe takes: the error names all
            of them, with what was found and what is allowed.
    """
    tables = _parsed(path)
    wrong = [line for task, table in tables.items() for line in _refusals(task, table, layer)]
    if wrong:
        raise UsageError(printable(f"{path}: {'; '.join(wrong)}"))
    return {task: _recipe(task, table, layer) for task, table in tables.items()}


def weights_of(recipe: Recipe) -> dict[str, float]:
    """Return a recipe's weights and density as a table of such a file has them."""
    return recipe.weights | {DENSITY: recipe.density}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is no TOML: {error}; it takes lines such as profile = 2.0 below [join]") from error
    except OSError as error:
        raise UsageError(f"{path}: no weights to read ({error.strerror}); give --weights a TOML file") from error


def _recipe(task: str, table: dict[str, float], layer: str) -> Recipe:
    shipped = recipe_for(task, layer)
    # In a fixed order, whatever the file's, so that sums of the same weights round alike.
    weights = {name: float(table[name]) for name in signals_of(task, layer) if name in table}
    density = float(table.get(DENSITY, shipped.density))
    own = replace(shipped, weights=weights or shipped.weights, density=density)
    return shipped if own == shipped else own


def _refusals(task: str, table: object, layer: str) -> Iterator[str]:
    if not isinstance(table, dict):
        yield f"{task} = {_shown(table)} stands outside of a table; {_ALLOWED}"
        return
    if task not in TASKS:
        yield f"[{task}] is no task{_nearest(task, TASKS)}; {_ALLOWED}"
        return
    known = signals_of(task, layer)
    weights = {key: value for key, value in table.items() if key != DENSITY}
    for key, value in weights.items():
        if key not in known:
            yield f"[{task}] {key} = {_shown(value)}: {_why_not(key, task, layer)}"
        elif not _is_number(value, _MOST):
            yield f"[{task}] {key} = {_shown(value)}, but it takes a number from 0 to {_MOST}"
    if not table or not weights.keys() <= set(known):
        yield f"[{task}] takes {', '.join(known)}{'' if table else '; name one at least'}"
    elif weights and not any(weights.values()):
        yield f"[{task}]: all its weights are 0; give one at least that is above"
    density = table.get(DENSITY, 0)
    if task == "column" and DENSITY in table:
        yield f"[column] {DENSITY} = {_shown(density)}: columns have none; it belongs to [join] or [union]"
    elif not _is_number(density, 1):
        yield f"[{task}] {DENSITY} = {_shown(density)}, but it takes a number from 0 to 1"


def _why_not(key: str, task: str, layer: str) -> str:
    if key in signals_of(task, LAYERS[-1]):
        return f"a signal of {LAYERS[-1]}, and this run has --layer {layer}"
    if key in SIGNALS:
        return (
            f"a signal of {SIGNALS[key].compares}s, and [{task}] compares {'column' if task == 'column' else 'table'}s"
        )
    return f"no signal{_nearest(key, signals_of(task, layer))}"


def _is_number(value: object, most: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _nearest(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    return f"; the nearest is {near[0]}" if near else ""


def _shown(value: object) -> str:
    return f"{value!r:.80}"
