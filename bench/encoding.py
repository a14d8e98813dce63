"""The default encoder's speed on a lake's texts: tokens, the device alone, and all of it into a vector cache.

    python bench/encoding.py                                on the union lake that ships with gpumatch
    python bench/encoding.py --lake LAKE --device cuda      all texts of another lake, on a GPU

Tokens alone and the device alone say what bounds the whole, in which both go on at once. The floor counts the layers'
products at the rate of a large product on the same device: float32 on a CPU, float16 on a GPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from floors import ENCODER_OPERATIONS, product_rate  # beside this file: Python puts a script's folder on its path
from jobs import append, say
from rich.console import Console
from rich.table import Table

from gpumatch.config import resolve_device
from gpumatch.demo import lake_path
from gpumatch.embed import Embedder, open_store
from gpumatch.encoder.minilm import MiniLM
from gpumatch.lake import open_lake
from gpumatch.profile import encoder_texts, profile_tables

FIELDS = (
    "date", "commit", "device", "name", "cores", "texts", "tokens", "what", "run", "seconds", "texts_per_second",
    "tokens_per_second",
)  # fmt: skip


def main() -> None:
    """Measure, print one table and append it to bench/results/encoding.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, default=lake_path("union"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--texts", type=int, help="so many of them, drawn by seed; all without it")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    device = resolve_device(options.device)
    texts = sorted(set(encoder_texts(profile_tables(open_lake(options.lake).tables()))))
    if options.texts:
        texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[: options.texts]]
    encoder = MiniLM.installed(device)
    encoder.encode(texts[:64])  # weights, context and kernels are loaded, and not counted
    tokens = int(encoder.lengths(texts).sum())
    rows: list[dict[str, Any]] = []
    for run in range(options.runs):
        for what, seconds in _measured(encoder, device, texts).items():
            rows.append({"what": what, "run": run, "seconds": seconds})
            say(f"{what}: {seconds:.2f} s")
    floor = tokens * ENCODER_OPERATIONS / product_rate(device)
    rows.append({"what": "floor", "run": 0, "seconds": floor})
    name = _name(device)
    for row in rows:
        row |= {"device": device, "name": name, "texts": len(texts), "tokens": tokens}
        row |= {"texts_per_second": len(texts) / row["seconds"], "tokens_per_second": tokens / row["seconds"]}
    _report(rows)
    append("encoding.csv", FIELDS, rows)


def _measured(encoder: MiniLM, device: str, texts: list[str]) -> dict[str, float]:
    begun = time.perf_counter()
    held = list(encoder._tokenised(texts))
    seconds = {"tokens": time.perf_counter() - begun}
    begun = time.perf_counter()
    for _ in encoder.encoded((some for some in held), encoder.forward(device)):
        pass
    seconds["device"] = time.perf_counter() - begun
    with tempfile.TemporaryDirectory(prefix="gpumatch-bench-") as folder, open_store(Path(folder), encoder) as store:
        begun = time.perf_counter()
        with Embedder(encoder, store, device=device) as embedder:
            embedder.give(texts)
            embedder.finish()
        seconds["whole"] = time.perf_counter() - begun
    return seconds


def _name(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name())


def _report(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    table = Table(title=f"{first['texts']:,} texts, {first['tokens']:,} tokens, {first['name']}; best of the runs")
    for heading in ("", "seconds", "texts a second", "tokens a second"):
        table.add_column(heading, justify="right" if heading else "left")
    for what in dict.fromkeys(row["what"] for row in rows):
        best = min((row for row in rows if row["what"] == what), key=lambda row: row["seconds"])
        table.add_row(
            what, f"{best['seconds']:.3f}", f"{best['texts_per_second']:,.0f}", f"{best['tokens_per_second']:,.0f}"
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
