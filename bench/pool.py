"""The predecessor's design: a pool of processes, one task a query, each a loop over the lake's tables (`per_pair.py`).

    python bench/pool.py SPEC      what baseline_cpu.py starts and watches; SPEC is JSON, see `serve`

Two forms:

    own      every worker (spawned) reads the lake and loads the encoder by itself; it encodes what its queries need and
             remembers it
    shared   the lake is read once and the workers are forked from it; vectors lie in one memory-mapped file, made
             before the clock starts; no encoder, and no torch

Imports nothing of gpumatch that loads torch, unless the form does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from per_pair import LakeFeatures, OwnVectors, Query, SharedVectors, VectorSource

from gpumatch.lake import open_lake
from gpumatch.profile import profile_tables

STARTS = {"own": "spawn", "shared": "fork"}
# Longer than any worker takes to start; a worker that died must not hold the run for ever.
_START_TIMEOUT = 1800


class Worker:
    """What one worker process has: the lake, and where vectors come from."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.parts = spec, {"imports": _age()}
        begun = time.perf_counter()
        self.profiles = profile_tables(open_lake(spec["lake"]).tables())
        self.lake = LakeFeatures(self.profiles)
        self.density = np.load(Path(spec["folder"]) / "density.npy")
        self.vectors: VectorSource = SharedVectors(Path(spec["folder"]), self.profiles.table_cols)
        self.parts["lake"] = time.perf_counter() - begun

    def open_encoder(self) -> None:
        """Load the encoder where the form has one; a first text makes sure that it is loaded."""
        if self.spec["form"] != "own":
            return
        begun = time.perf_counter()
        from gpumatch.encoder import open_encoder

        encoder = open_encoder(None, "cpu", threads_of(self.spec["workers"]))
        encoder.encode(["a first text"])
        self.vectors = OwnVectors(encoder, self.profiles)
        self.parts["encoder"] = time.perf_counter() - begun

    def answer(self, table: int) -> dict[str, Any]:
        """Answer the query that is a table of the lake."""
        begun, encoding, texts = time.perf_counter(), self.vectors.seconds, self.vectors.texts
        scores = Query(self.lake, table, self.vectors).answer(self.spec["task"], self.density)
        return {
            "table": table,
            "seconds": time.perf_counter() - begun,
            "encode_seconds": self.vectors.seconds - encoding,
            "texts": self.vectors.texts - texts,
            "matches": [(self.profiles.tables[c], score) for c, score in scores],
        }


_worker: Worker | None = None


def serve(spec: dict[str, Any]) -> None:
    """Start the pool, answer the queries, and write to spec["out"] what it took.

    spec: lake, task, form, workers, start ("spawn" or "fork"), tables (numbers of the lake tables that are asked),
    folder (vectors and density as baseline_cpu.py prepares them), out.
    """
    global _worker
    context = multiprocessing.get_context(spec["start"])
    if spec["start"] == "fork":
        _worker = Worker(spec)
    ready, told = context.Barrier(spec["workers"] + 1), context.SimpleQueue()
    with context.Pool(spec["workers"], _begin, (spec, ready, told)) as pool:
        ready.wait(_START_TIMEOUT)
        start = _age()
        parts = [told.get() for _ in range(spec["workers"])]
        answers = list(pool.imap_unordered(_answer, spec["tables"], chunksize=1))
        pool.close()
        pool.join()
    busy, encode = (sum(answer[key] for answer in answers) for key in ("seconds", "encode_seconds"))
    # Workers that wait for the last ones of a sample would have more to do in the whole job: waiting does not count.
    side_by_side = min(spec["workers"], len(answers))
    found = {
        "start_seconds": start,
        "start_parts": {name: max(part[name] for part in parts) for name in parts[0]},
        "sample_seconds_per_query": busy / side_by_side / len(answers),
        "encode_share": encode / busy,
        "seconds_per_text": encode / max(1, sum(answer["texts"] for answer in answers)),
        "answers": {str(answer["table"]): answer["matches"] for answer in answers},
    }
    Path(spec["out"]).write_text(json.dumps(found))


def threads_of(workers: int) -> int:
    """Return the threads that a worker's products get."""
    return max(1, (os.cpu_count() or 1) // workers)


def _begin(spec: dict[str, Any], ready: Any, told: Any) -> None:  # noqa: ANN401 - multiprocessing's proxies
    global _worker
    _worker = _worker or Worker(spec)
    _worker.open_encoder()
    told.put(_worker.parts)
    ready.wait(_START_TIMEOUT)


def _answer(table: int) -> dict[str, Any]:
    if _worker is None:
        raise RuntimeError("the worker was not started")
    return _worker.answer(table)


def _age() -> float:
    """Return the seconds since this process was started."""
    return time.time() - psutil.Process().create_time()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
