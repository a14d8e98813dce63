"""overlap against Python's sets: compiled loops, tensors, and the CUDA kernel run on the host, thread after thread."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gpumatch.kernels.overlap as module
from gpumatch.kernels import reference
from gpumatch.kernels.overlap import Sets, overlap
from gpumatch.kernels.ragged import offsets_of

TENSORS = "cpu:0"
KERNEL = Path(module.__file__).with_name("overlap.cu")
HUGE = [0, 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
# Every counter by itself; parts and tiles that do not divide anything evenly; what is shipped.
SCRATCHES = [0, 16 * 7, 32 * 30, 32 * 100, module._SCRATCH]


def sets_of(contents):
    """Sets that cannot be written to, like those of a file that is mapped."""
    start = offsets_of(np.array([len(one) for one in contents], np.int64))
    flat = np.array([value for one in contents for value in one], np.uint64)
    start.flags.writeable = flat.flags.writeable = False
    return Sets(start, flat)


def random_sets(n, universe, most, seed):
    """n sets of up to `most` of the values 0 to universe, the small ones far more often; in no order."""
    rng = np.random.default_rng([seed, n, universe])
    drawn = [(universe * rng.random(m) ** 3).astype(np.int64) for m in rng.integers(0, most + 1, n)]
    return [rng.permutation(np.unique(one)).tolist() for one in drawn]


def expected(q, c, least=None):
    return reference.overlap(q.start, q.value, c.start, c.value, least)


def check(q, c, least=None, **how):
    q, c = (one if isinstance(one, Sets) else sets_of(one) for one in (q, c))
    least = None if least is None else np.array(least, np.int64)
    found = overlap(q, c, least, **how)
    assert [part.dtype for part in (found.start, found.column, found.count)] == [np.int64, np.int64, np.int32]
    for got, wanted in zip((found.start, found.column, found.count), expected(q, c, least), strict=True):
        np.testing.assert_array_equal(got, wanted)
    return found


def least_of(q, seed):
    """At least 0, 1, a third of the set, all of it, and more than it has."""
    size = np.array([len(one) for one in q], np.int64)
    choice = np.stack([0 * size, 0 * size + 1, size // 3, size, size + 1])
    return choice[np.random.default_rng(seed).integers(0, len(choice), len(q)), np.arange(len(q))]


@pytest.fixture(params=["cpu", "cpu in threads", TENSORS, "kernel"])
def how(request):
    """Keywords of every way to count, the kernel on the host among them; for tests that change what the module has."""
    if request.param == "kernel":
        request.getfixturevalue("kernel_on_host")
        return {"device": "cuda:0"}
    return {"device": "cpu", "threads": 3} if request.param == "cpu in threads" else {"device": request.param}


# --- the result


@pytest.mark.parametrize("n_c", [0, 1, 31, 33, 123, 1023])
@pytest.mark.parametrize("n_q", [0, 1, 33])
def test_odd_numbers_of_sets(n_q, n_c, device):
    q, c = random_sets(n_q, 300, 20, 0), random_sets(n_c, 300, 20, 1)
    check(q, c, device=device)
    check(q, c, least_of(q, 2), device=device)


@pytest.mark.parametrize("size", [1, 31, 33, 123, 255, 256, 257, 1023, 1024, 1025])
def test_odd_sizes_of_sets(size, how):
    everything, rng = np.arange(2 * size), np.random.default_rng(size)
    q = [rng.permutation(2 * size)[:size].tolist() for _ in range(3)] + [everything.tolist()]
    c = [rng.permutation(2 * size)[: size + d].tolist() for d in (-1, 0, 1)] + [everything.tolist(), [2 * size]]
    assert check(q, c, **how).count.max() == 2 * size


@pytest.mark.parametrize(
    ("q", "c"),
    [
        ([], []),
        ([], [[1]]),
        ([[1]], []),
        ([[]], [[]]),
        ([[], []], [[1], [2]]),
        ([[1], [2]], [[], [], []]),
        ([[], [1, 2], []], [[], [2], [], [3, 1], []]),
        ([[1, 2]], [[3], [4]]),
    ],
)
def test_sets_and_sides_that_are_empty(q, c, how):
    check(q, c, **how)
    check(q, c, [1] * len(q), **how)


def test_least_is_reached_or_missed_by_one(how):
    q, c = [[1, 2, 3, 4]] * 6, [[1], [1, 2], [3, 4, 5], [2, 3, 4], [4, 3, 2, 1], [5, 6]]
    found = check(q, c, [-1, 0, 1, 3, 4, 5], **how)
    assert np.diff(found.start).tolist() == [5, 5, 5, 2, 1, 0]


def test_a_least_that_no_int32_holds(how):
    assert not len(check([[1], [2]], [[1, 2]], [2**31, 2**62], **how).column)


def test_values_of_all_64_bits(how):
    check([HUGE, HUGE[::2], HUGE[-1:], HUGE[:1]], [HUGE[::-1], HUGE[1::2], HUGE[:1], HUGE[-1:], [5, 2**64 - 3]], **how)


def test_values_that_meet_in_the_hash_table(how):
    inverse = pow(int(module.SPREAD), -1, 2**64)
    values = [n * inverse % 2**64 for n in range(40)]  # their products are 0, 1, 2, …: all begin at the first cell
    check([values[:20], values[10:30]], [values[::3], values[1::2], values[30:]], **how)


def test_the_same_sets_over_and_over(how):
    check([[3, 1, 2], [2, 3, 1], [3, 1, 2], [7]] * 5, [[1, 2], [2, 1], [7, 3], [1, 2]] * 9, [2, 1, 3, 1] * 5, **how)


def test_a_value_that_is_everywhere_and_one_of_each_ones_own(how):
    q = [[0, 10 + i] + ([1] if i % 10 == 0 else []) for i in range(200)]
    c = [[10 + i, 0] + ([1] if i % 7 == 0 else []) for i in range(300)]
    check(q, c, **how)
    check(q, c, [2] * 200, **how)


def test_few_of_many_sets_are_met(how):
    q, c = random_sets(20, 50_000, 40, 3), random_sets(600, 50_000, 40, 4)
    c[::5] = [[value + 60_000 for value in one] for one in c[::5]]
    q += [one[:3] for one in c[:50]]
    check(q, c, **how)
    check(q, c, [2] * len(q), **how)


@pytest.mark.parametrize("scratch", SCRATCHES)
def test_however_little_memory_there_is(scratch, how, monkeypatch):
    monkeypatch.setattr(module, "_SCRATCH", scratch)
    q, c = random_sets(7, 60, 12, 5), [*random_sets(33, 60, 12, 6), list(range(60)), []]
    check(q, c, **how)
    check(q, c, least_of(q, 7), **how)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_any_number_of_threads(threads, monkeypatch):
    q, c = random_sets(300, 200, 25, 8), random_sets(90, 200, 25, 9)
    least = least_of(q, 10)
    check(q, c, least, threads=threads)
    monkeypatch.setattr(module, "_SCRATCH", 16 * 40 * threads)
    check(q, c, least, threads=threads)


def test_all_sets_with_themselves(device):
    sets = sets_of(random_sets(150, 100, 20, 11))
    found = check(sets, sets, device=device)
    owner = np.repeat(np.arange(150), np.diff(found.start))
    same = owner == found.column
    np.testing.assert_array_equal(found.count[same], np.diff(sets.start)[owner[same]])


value = st.one_of(st.integers(0, 12), st.sampled_from(HUGE))
some_sets = st.lists(st.lists(value, unique=True, max_size=8), max_size=8)


@settings(deadline=None, max_examples=60)
@given(some_sets, some_sets, st.data())
def test_any_sets(q, c, data):
    least = data.draw(st.none() | st.lists(st.integers(-1, 9), min_size=len(q), max_size=len(q)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SCRATCH", data.draw(st.sampled_from(SCRATCHES)))
        check(q, c, least, threads=data.draw(st.integers(1, 3)))
        check(q, c, least, device=TENSORS)


# --- memory


@pytest.mark.parametrize("threads", [1, 3])
def test_counters_and_lists_in_full_stay_within_bounds(threads, monkeypatch):
    monkeypatch.setattr(module, "_SCRATCH", 4096)
    n, every = 1000, np.zeros(40_000, np.int64)
    every[:] = np.repeat(np.arange(40), n)  # forty values, each held by all sets
    lists, column = offsets_of(np.full(40, n)), np.tile(np.arange(n, dtype=np.int32), 40)
    parts = list(module._parts(np.array([0, 40]), np.arange(40), lists, column, n, threads))
    assert sum(part.width for part in parts) == n
    assert [part.first for part in parts] == offsets_of(np.array([part.width for part in parts]))[:-1].tolist()
    assert all(8 * part.width * threads <= 2048 and 0 < part.full.nbytes <= 2048 for part in parts)
    assert sum(int(part.work[0]) for part in parts) == 40 * n


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_tiles_stay_within_bounds_and_cover_everything_once(n, monkeypatch):
    monkeypatch.setattr(module, "_SCRATCH", 32 * 64)
    seen = np.zeros((70, n), np.int64)
    for tile in module._tiles(np.arange(0, 71 * 3, 3), n):
        assert tile.cells <= 64
        assert len(tile.row) == tile.entries.stop - tile.entries.start
        seen[tile.first : tile.last, tile.column : tile.column + tile.width] += 1
    assert (seen == 1).all()


# --- the kernel


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """overlap.cu as C++, with a function `run` that goes through all threads of a grid."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not on PATH")
    folder = tmp_path_factory.mktemp("overlap")
    shim = Path(__file__).with_name("cuda_shim.h")
    (folder / "run.cpp").write_text(f"""
        #include "{shim}"
        #include "{KERNEL}"
        extern "C" void run(unsigned int blocks, unsigned int threads, const long long* begin, const long long* end,
                            const int* row, long long values, const int* column, long long first, long long width,
                            int* cells)
        {{
            every_thread(count_common, blocks, threads, begin, end, row, values, column, first, width, cells);
        }}
    """)
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, folder / "run.cpp", "-o", folder / "run.so"], check=True)
    return ctypes.CDLL(str(folder / "run.so"))


TYPES = np.int64, np.int64, np.int32, np.int64, np.int32, np.int64, np.int64, np.int32


@pytest.fixture
def kernel_on_host(library, monkeypatch):
    """Let NumPy stand in for CuPy, and a loop for the grid; returns the grids that were asked for."""
    grids = []

    def kernel(grid, block, arguments):
        grids.append((*grid, *block))
        assert [argument.dtype for argument in arguments] == list(TYPES)
        assert all(argument.flags.c_contiguous for argument in arguments)
        library.run(
            *(ctypes.c_uint(n) for n in (*grid, *block)),
            *(ctypes.c_void_p(a.ctypes.data) if a.ndim else ctypes.c_longlong(int(a)) for a in arguments),
        )

    class Numpy:
        cuda = SimpleNamespace(Device=lambda number: nullcontext())

        def get_default_memory_pool(self):
            return SimpleNamespace(free_all_blocks=lambda: None)

        def __getattr__(self, name):
            return getattr(np, name)

    monkeypatch.setattr(module, "_cupy", Numpy)
    monkeypatch.setattr(module, "_kernel", lambda: kernel)
    return grids


@pytest.mark.parametrize("n_c", [1, 31, 33, 123, 1025])
@pytest.mark.parametrize("n_q", [1, 31])
def test_the_kernel_on_odd_shapes(n_q, n_c, kernel_on_host):
    q, c = random_sets(n_q, 300, 20, 0), random_sets(n_c, 300, 20, 1)
    check(q, c, least_of(q, 2), device="cuda")


@pytest.mark.parametrize(("block", "blocks"), [(1, 1), (7, 3), (32, 1), (33, 5), (256, 65535)])
def test_the_kernel_in_any_grid(block, blocks, kernel_on_host, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    monkeypatch.setattr(module, "_BLOCKS", blocks)
    q, c = random_sets(33, 100, 20, 13), random_sets(123, 100, 20, 14)
    check(q, c, device="cuda")
    assert all(grid[0] <= blocks and grid[1] == block for grid in kernel_on_host)
    assert kernel_on_host


@settings(deadline=None, max_examples=50)
@given(q=some_sets, c=some_sets, scratch=st.sampled_from(SCRATCHES))
def test_the_kernel_on_any_sets(library, q, c, scratch):
    def launch(threads, *arguments):
        library.run(
            *(ctypes.c_uint(n) for n in (2, 48)),
            *(ctypes.c_void_p(a.ctypes.data) if a.ndim else ctypes.c_longlong(int(a)) for a in arguments),
        )

    q, c = sets_of(q), sets_of(c)
    if not (len(q.value) and len(c.value)):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SCRATCH", scratch)
        found = module._joined(len(q), module._with_kernel(np, launch, q, c, np.ones(len(q), np.int32)))
    for got, wanted in zip((found.start, found.column, found.count), expected(q, c), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvcc_takes_the_kernel(architecture, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    out = tmp_path / "overlap.cubin"
    flags = ["-std=c++17", "-cubin", f"-arch={architecture}", "-Werror", "all-warnings"]
    subprocess.run([nvcc, *flags, KERNEL, "-o", out], check=True)
    assert b"count_common" in out.read_bytes()


def test_without_cupy_a_gpu_is_torchs(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_cupy", lambda: None)
    monkeypatch.setattr(module, "_with_torch", lambda q, c, least, device: asked.append(device) or [])
    overlap(sets_of([[1]]), sets_of([[1]]), device="cuda:1")
    assert asked == ["cuda:1"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cupy", [True, False])
def test_on_a_gpu(cupy, monkeypatch):
    if cupy:
        pytest.importorskip("cupy")
    else:
        monkeypatch.setattr(module, "_cupy", lambda: None)
    q, c = random_sets(123, 1000, 60, 15), random_sets(1025, 1000, 60, 16)
    check(q, c, least_of(q, 17), device="cuda")
