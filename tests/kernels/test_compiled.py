"""Machine code of an earlier process runs without what compiling needs, and compiling works all the same."""

import os
import subprocess
import sys

import numba
import pytest

from gpumatch.kernels import compiled as module

PROGRAM = """
import sys
import numpy as np
from gpumatch.kernels import compiled as module
from gpumatch.kernels.hashing import distinct, find

compiling = lambda: "numba.np.linalg" in sys.modules
assert [part.tolist() for part in distinct(np.array([3, 1, 3, 2]))] == [[3, 1, 2], [0, 1, 0, 2]]
print(compiling())

@module.compiled
def new(x):
    cells = np.full(16, -1)
    cells[find(cells, np.uint64(60), 7)] = 7
    return np.sort(x)[::-1].copy(), find(cells, np.uint64(60), 7), np.sqrt(x).sum()

found, cell, total = new(np.array([1.0, 9.0, 4.0]))
assert (found.tolist(), total) == ([9.0, 4.0, 1.0], 6.0) and 0 <= cell < 16
print(compiling())
"""


def run(folder, program):
    path = folder / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, path], env=os.environ | {"NUMBA_CACHE_DIR": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(numba.version_info.short not in module._TRIED, reason="this numba loads in its own way")
def test_what_compiling_needs_is_loaded_by_who_compiles(tmp_path):
    assert run(tmp_path, PROGRAM) == ["True", "True"]  # the first process compiles
    assert run(tmp_path, PROGRAM.replace("6.0", "6.0 ")) == ["False", "True"]  # the second loads, and then compiles


def test_another_numba_loads_in_its_own_way(tmp_path):
    program = PROGRAM.replace("from gpumatch.kernels.hashing", "module._TRIED.clear()\nfrom gpumatch.kernels.hashing")
    assert run(tmp_path, program) == ["True", "True"]
    assert run(tmp_path, program) == ["True", "True"]
