"""What each stage must at least cost on this machine: its bytes or operations over ceilings measured right now.

Ceilings, with all cores: reading the lake's files, coding a million cells (Arrow's dictionary encoding), and a float32
matrix product of 2,048³, or on a GPU a float16 one of 8,192³. A floor counts what a program that computes the same
answer from scratch cannot avoid, as if it ran at the ceiling all the time; it says how far there is to go, not that one
can get there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from gpumatch.blocks import table_layout
from gpumatch.config import Settings
from gpumatch.encoder import open_encoder
from gpumatch.lake import open_lake
from gpumatch.profile import encoder_texts, profile_tables
from gpumatch.recipes import recipe_for

# Operations of the default encoder for one token: six layers of 12·384² weights, a multiplication and an addition each.
ENCODER_OPERATIONS = 2 * 6 * 12 * 384**2
STAGES = ("read", "profile", "encode", "search", "rescore", "explain")


def floors_of(jobs: list[tuple[Path, str, int | None]], device: str = "cpu") -> dict[str, float]:
    """Return seconds by stage, summed over jobs of (lake, task, number of queries or None for all)."""
    product, code = product_rate(device), _coding_rate()
    encoder = open_encoder(None, "cpu")
    floors = dict.fromkeys(STAGES, 0.0)
    for path, task, queries in jobs:
        floors["read"] += _best(lambda path=path: _read_all(path), 3)
        tables = list(open_lake(path).tables())
        floors["profile"] += sum(len(table.columns) * table.n_rows for table in tables) / code
        profiles = profile_tables(tables)
        texts = sorted(set(encoder_texts(profiles)))
        floors["encode"] += int(encoder.lengths(texts).sum()) * ENCODER_OPERATIONS / product

        settings, recipe = Settings(), recipe_for(task, Settings().layer)
        n, asked = profiles.n_tables, queries or profiles.n_tables
        # A candidate's density asks for its own pool, so a recipe with density scores every lake table.
        rows = n if recipe.density else asked
        floors["search"] += 2 * rows * n * table_layout(encoder.dim).width / product
        # One dot product of 384 numbers for every two columns of a pair, half as many pairs where order is no matter.
        width = np.diff(profiles.table_cols).mean()
        pairs = rows * min(recipe.least, n) / (2 if recipe.symmetric else 1)
        floors["rescore"] += pairs * width**2 * 2 * encoder.dim / product
        floors["explain"] += asked * settings.k * width**2 * 2 * encoder.dim / product
    return floors


def _read_all(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            file.read_bytes()


def _coding_rate() -> float:
    cells = pa.array([str(number) for number in np.random.default_rng(0).integers(0, 100_000, 1_000_000)])
    return len(cells) / _best(lambda: cells.dictionary_encode())


def product_rate(device: str = "cpu") -> float:
    """Return the operations a second of a large product: of float32 on a CPU, of float16 on a GPU."""
    if device == "cpu":
        a, b = np.random.default_rng(0).random((2, 2048, 2048), np.float32)
        return 2 * 2048**3 / _best(lambda: a @ b)
    import torch

    x, y = (torch.randn(8192, 8192, device=device, dtype=torch.float16) for _ in range(2))

    def work() -> None:
        _ = x @ y
        torch.cuda.synchronize()

    return 2 * 8192**3 / _best(work)


def _best(work: Callable[[], object], times: int = 10) -> float:
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best
