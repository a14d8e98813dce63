"""What the tests of the store share, and what they start as other processes: `child` runs a script after PRELUDE."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import gpumatch.cache
from gpumatch.cache.keys import text_keys
from gpumatch.cache.vectors import VectorStore

DIM = 8
PATHS = [str(Path(gpumatch.cache.__file__).parents[2]), str(Path(__file__).parent)]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OPENBLAS_NUM_THREADS": "1"}
PRELUDE = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from gpumatch.cache import shards
from stores import batch, open_store, text_keys, unit
shards.SEGMENT_ROWS = 16
"""


def child(script, *args) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, *map(str, args)], env=ENV, stdout=subprocess.PIPE, text=True
    )


def unit(seed, n):
    rows = np.random.default_rng(seed).standard_normal((n, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def some(n, name="t", seed=0):
    return text_keys([f"{name}{i}" for i in range(n)]), unit(seed, n)


def batch(b):
    """Give the same keys and vectors in every process; most batches span several segments."""
    return some(1 + b * 7 % 40, f"batch {b} text ", b)


def open_store(root, **other) -> VectorStore:
    return VectorStore.open(Path(root), **{"model": "m", "revision": "r", "serialiser": "s", "dim": DIM, **other})


def the(root, pattern) -> Path:
    (path,) = root.glob(f"*/{pattern}")
    return path


def assert_holds(store, keys, vectors):
    read, found = store.get(keys)
    assert found.all(), store.damaged
    assert read.dtype == np.float16
    assert read.tobytes() == vectors.tobytes()


def flip(path, place, mask):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def copy_of(filled_root, tmp_path, name="copy"):
    root = tmp_path / name
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(filled_root, root)
    return root


def assert_noticed_or_harmless(root, keys, vectors, told_before=False):
    """No wrong vector; what is missing is reported; what is put again stays. Gives what was found at first."""
    with open_store(root) as store:
        read, found = store.get(keys)
        assert read[found].tobytes() == vectors[found].tobytes()
        assert found.all() or store.damaged or told_before
        store.put(keys[~found], vectors[~found])
    with open_store(root) as store:
        assert_holds(store, keys, vectors)
    return found
