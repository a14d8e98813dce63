"""Runs of `gpumatch match` that a test can kill: a script, one line in, one child process each.

Imports once, and loads the compiled kernels by a run on a lake of two tables, so a child costs a fork instead of three
seconds. The children's encoder is a cheap one that writes down every text that it encodes.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import httpx2  # noqa: F401 - imported before the fork
import numpy as np

from gpumatch import embed, pipeline, rank, rescore  # noqa: F401 - imported before the fork
from gpumatch.config import Settings
from gpumatch.journal import Journal
from gpumatch.results import to_line
from gpumatch.run import Run

BATCH_TEXTS = 8


class WritingEncoder:
    """Gives every text a unit vector of its own, slowly, and appends one line a batch to a file."""

    model, revision, dim = "writing", "1", 16

    def __init__(self, log):
        self.log = log

    def lengths(self, texts):
        return np.array([len(text) for text in texts])

    def encode(self, texts):
        with self.log.open("a") as file:
            file.write(json.dumps(list(texts)) + "\n")
        time.sleep(0.004)
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
        rows = np.stack([np.random.default_rng(seed).normal(size=self.dim) for seed in seeds])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def run(order):
    """Do what the command does."""
    embed.BATCH_TEXTS["cpu"] = BATCH_TEXTS
    more = order.get("settings", {})
    settings = Settings(task=order["task"], k=5, cache_dir=order["cache"], device="cpu", threads=1, batch=4, **more)
    with Journal(Path(order["out"])) as journal:
        watched = Run(settings, encoder=WritingEncoder(Path(order["log"])))
        for row in pipeline.match(order["lake"], watched, resume=journal.begin, anew=False):
            journal.write(to_line(row))
            if journal.rows % 4 == 0:
                journal.commit()


def load_kernels():
    """Run once on next to nothing."""
    with tempfile.TemporaryDirectory() as folder:
        lake = Path(folder, "lake")
        lake.mkdir()
        for name in "ab":
            (lake / f"{name}.csv").write_text("city,id\nOslo,1\nRome,2\n")
        for task in ("join", "union"):
            run(
                {
                    "task": task,
                    "cache": f"{folder}/cache",
                    "out": f"{folder}/{task}",
                    "log": f"{folder}/log",
                    "lake": str(lake),
                }
            )


def main():
    """Take orders, lines of JSON; answer with the child's process number and, a line later, with how it ended."""
    load_kernels()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(json.loads(line))
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)  # noqa: T201
        sys.stdin.readline()  # until then it is not waited for, and its number stays its own
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


main()
