"""Machine code of an earlier process runs without what compiling needs, and compiling works all the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from gpumatch.kernels import compiled as module
from gpumatch.kernels.compiled import _TRIED

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


compiles = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="loops run as Python")


def run(folder, program, **more):
    path = folder / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, path], env=os.environ | {"NUMBA_CACHE_DIR": str(folder)} | more, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@compiles
@pytest.mark.skipif(numba.version_info.short not in module._TRIED, reason="this numba loads in its own way")
def test_what_compiling_needs_is_loaded_by_who_compiles(tmp_path):
    assert run(tmp_path, PROGRAM) == ["True", "True"]  # the first process compiles
    assert run(tmp_path, PROGRAM.replace("6.0", "6.0 ")) == ["False", "True"]  # the second loads, and then compiles


@compiles
def test_who_waits_for_the_compiler_is_told(tmp_path):
    program = (
        "from gpumatch.kernels import compiled as module\nmodule.on_compiling = lambda: print(1)\n"
        "@module.compiled\ndef one(x):\n    return x + 1\none(1)\none(2)\none(1.0)\n"
    )
    assert run(tmp_path, program) == ["1", "1"]  # once for each of the types
    assert run(tmp_path, program) == []


@compiles
@pytest.mark.parametrize("tried", [_TRIED, set()], ids=["tried", "another numba"])
def test_machine_code_is_made_anew_where_any_kernel_has_changed(tried, tmp_path, monkeypatch):
    """A loop holds what it calls of other files: its own may be the same."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module, "_TRIED", tried)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def outcome():
        loop = module.compiled(doubled)
        assert loop(2) == 4
        return loop.stats.cache_hits.total()

    assert [outcome(), outcome()] == [0, 1]
    monkeypatch.setattr(module, "_sources", lambda: "others")
    assert [outcome(), outcome()] == [0, 1]


def doubled(x):
    return 2 * x


@pytest.mark.parametrize("changed", ["lanes.py", "heaps.py"])
def test_the_hash_is_of_every_kernel(changed, tmp_path, monkeypatch):
    folder = Path(module.__file__).parent
    for path in folder.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "compiled.py"))
    same = module._sources.__wrapped__()
    assert same == module._sources()
    with (tmp_path / changed).open("a") as file:
        file.write("\n")
    assert module._sources.__wrapped__() != same


def test_loops_run_as_python_where_nothing_is_to_be_compiled(tmp_path):
    program = "import numpy as np\nfrom gpumatch.kernels.halves import widened\nprint(*widened(np.ones(2, np.float16)))"
    assert run(tmp_path, program, NUMBA_DISABLE_JIT="1") == ["1.0", "1.0"]


@compiles
def test_another_numba_loads_in_its_own_way(tmp_path):
    program = PROGRAM.replace("from gpumatch.kernels.hashing", "module._TRIED.clear()\nfrom gpumatch.kernels.hashing")
    assert run(tmp_path, program) == ["True", "True"]
    assert run(tmp_path, program) == ["True", "True"]
