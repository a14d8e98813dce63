"""What each stage must at least cost on this machine: its bytes or operations over a ceiling measured right now.

Two ceilings are measured: copying memory (bytes a second) and a float32 matrix product of 1,024³ (operations a second),
both with all cores. A floor counts what cannot be avoided by any program that computes the same answer from scratch.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from gpumatch.config import Settings
from gpumatch.lake import open_lake
from gpumatch.profile import profile_tables
from gpumatch.recipes import recipe_for

DIM = 384
# Multiply-adds of the default encoder for one token: six layers of 12·384² weights, two operations each.
ENCODER_OPERATIONS = 2 * 6 * 12 * DIM**2
# Tokens of a column text on these lakes, after truncation (mean over both lakes).
TOKENS = 40


def floors_of(join: Path, union: Path, union_queries: int) -> dict[str, float]:
    """Return seconds by stage for both lakes together."""
    copy, product = _copy_rate(), _product_rate()
    floors = dict.fromkeys(("read", "profile", "encode", "search", "rescore"), 0.0)
    for lake_path, task, queries in ((join, "join", None), (union, "union", union_queries)):
        lake = open_lake(lake_path)
        size = sum(p.stat().st_size for p in lake_path.rglob("*") if p.is_file())
        profiles = profile_tables(lake.tables())
        recipe = recipe_for(task, Settings().layer)
        tables, columns = profiles.n_tables, profiles.n_columns
        # A lake table's density asks for its own pool, so a recipe with density scores every table.
        rows = tables if recipe.density else (queries or tables)
        pairs = rows * min(recipe.pool, tables)
        width = columns / tables
        floors["read"] += size / copy
        floors["profile"] += 2 * size / copy
        floors["encode"] += columns * TOKENS * ENCODER_OPERATIONS / product
        floors["search"] += 2 * rows * tables * (3 * 1024 + 2 * DIM) / product
        # Every column similarity of every pair once: a dot product of two vectors, where the recipe has vectors.
        floors["rescore"] += pairs * width**2 * (2 * DIM / product if recipe.dense else 12 / copy)
    return floors


def _copy_rate() -> float:
    source = torch.ones(64 * 2**20 // 4)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _best(lambda: target.copy_(source))


def _product_rate() -> float:
    a, b = torch.ones(1024, 1024), torch.ones(1024, 1024)
    return 2 * 1024**3 / _best(lambda: a @ b)


def _best(work, times: int = 20) -> float:  # noqa: ANN001
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best
