"""Work that goes on in halves where memory runs out, and what a run is expected to need."""

import itertools
import sys
import types

import numpy as np
import pytest
import torch

from gpumatch.errors import DeviceError, MemoryLimitError, UsageError
from gpumatch.memory import BASE_BYTES, Halving, device_plan, host_plan, is_out_of_memory, keeps, told


def limited(most, calls, error=torch.OutOfMemoryError):
    """Work over the numbers of a slice that fits `most` of them in memory."""

    def work(some):
        calls.append(some.stop - some.start)
        if calls[-1] > most:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return list(range(some.start, some.stop))

    return work


def covered(pieces):
    return [number for _, numbers in pieces for number in numbers]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 63, 64, 100])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_every_item_is_done_once_and_in_order(most, error):
    calls = []
    pieces = list(Halving()(limited(most, calls, error), 5, 105))
    assert covered(pieces) == list(range(5, 105))
    assert all(numbers == list(range(piece.start, piece.stop)) for piece, numbers in pieces)
    assert sum(size > most for size in calls) <= np.ceil(np.log2(100 / most))


def test_what_has_fitted_once_is_not_tried_larger_again():
    halving, calls = Halving(), []
    work = limited(10, calls)
    assert covered(halving(work, 0, 64)) == list(range(64))
    before = len(calls)
    assert covered(halving(work, 0, 64)) == list(range(64))
    assert max(calls[before:]) <= 10


def test_what_another_thread_has_halved_further_stays():
    halving = Halving()

    def work(some):
        if some.stop - some.start > 3:
            halving._most = 3
            raise MemoryError
        return some.stop - some.start

    assert [n for _, n in halving(work, 0, 64)][:2] == [3, 3]


def test_what_cupy_has_had_is_given_back(monkeypatch):
    given = []
    pool = types.SimpleNamespace(free_all_blocks=lambda: given.append(1))
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(get_default_memory_pool=lambda: pool))
    list(Halving()(limited(4, []), 0, 8))
    assert given == [1]


def test_one_item_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        list(Halving()(limited(0, []), 0, 8))


def test_other_errors_are_not_caught():
    calls = []
    with pytest.raises(ZeroDivisionError):
        list(Halving()(limited(3, calls, ZeroDivisionError), 0, 8))
    assert calls == [8]


def test_nothing_to_do_is_nothing_done():
    assert list(Halving()(limited(0, []), 3, 3)) == []


def test_torch_on_the_cpu_says_it_in_its_own_words():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))


# --- what people are told

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Error in virtual void* faiss::gpu::StandardGpuResourcesImpl::allocMemory: alloc fail type Other"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]
FAILED = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    type("CUDARuntimeError", (RuntimeError,), {"__module__": "cupy_backends.cuda.api.runtime"})("no device"),
]
OURS = [
    ValueError("CUDA error"),
    RuntimeError("Expected all tensors on one device, found cuda:0 and cpu"),
    OSError(28, ""),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_a_device_without_memory_is_told_with_what_it_says_and_what_to_do(error):
    assert is_out_of_memory(error)
    with pytest.raises(DeviceError, match=r"out of memory.*--device cpu") as raised, told():
        raise error
    assert str(error).splitlines()[0] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", FAILED, ids=str)
def test_a_device_that_fails_is_told(error):
    assert not is_out_of_memory(error)
    with pytest.raises(DeviceError, match=r"GPU failed: .*gpumatch doctor.*--device cpu"), told():
        raise error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate")])
def test_a_host_without_memory_is_told(error):
    with (
        pytest.raises(
            MemoryLimitError, match=r"out of memory; need less with --threads 1, [^;]* smaller --sample-rows$"
        ),
        told(),
    ):
        raise error


@pytest.mark.parametrize("error", OURS, ids=str)
def test_what_is_no_devices_fault_stays_what_it_is(error):
    with pytest.raises(type(error)) as raised, told():
        raise error
    assert raised.value is error


def test_torch_may_be_half_imported_by_another_thread(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    for error in (ValueError("x"), UsageError("x")):
        with pytest.raises(type(error)) as raised, told():
            raise error
        assert raised.value is error


# --- what is planned before anything is taken


def plan(free, tables=1_000_000, queries=2_000, width=4_000, k=100, total=None, vectors=None, **more):
    vectors = 7 * tables if vectors is None else vectors
    shape = {"tables": tables, "width": width, "vectors": vectors, "dim": 384, "queries": queries, "k": k} | more
    return device_plan(free, total or free, **shape)


def test_a_lake_that_fits_stays_on_the_device_and_a_larger_one_passes_through_it():
    small, large = plan(80 * 10**9), plan(16 * 10**9)
    assert small.rows == 2 * 4_000 * 1_000_000
    assert large.rows == 0
    for one in (small, large):
        assert 1 <= one.tile_rows <= 1_000_000
        assert one.needed == one.rows + one.vectors + one.tile + one.best + one.chunk
        assert one.needed <= one.free
    assert large.tile_rows < small.tile_rows
    assert small.vectors == 2 * 384 * 7 * 10**6
    assert small.best == 16 * 2_000 * 100


def test_what_is_held_at_once_does_not_go_by_what_others_leave():
    alone, beside = plan(80 * 10**9), plan(9 * 10**9, total=80 * 10**9)
    assert (alone.tile_rows, alone.chunk_cells) == (beside.tile_rows, beside.chunk_cells)
    assert alone.rows > beside.rows == 0


def test_rows_of_columns_are_planned_with_those_of_tables():
    assert plan(80 * 10**9, more=5 * 10**8).rows == plan(80 * 10**9).rows + 5 * 10**8
    free = next(free for free in range(10**9, 10**11, 10**8) if plan(free, total=20 * 10**9).rows)
    assert not plan(free, total=20 * 10**9, more=5 * 10**8).rows


def test_vectors_come_before_rows():
    assert plan(20 * 10**9, vectors=0).rows
    assert not plan(20 * 10**9, vectors=10**7).rows


def test_what_is_kept_leaves_room_for_chunks_and_for_what_is_not_planned():
    for free, vectors in itertools.product(range(10**9, 30 * 10**9, 10**9), (0, 10**6, 7 * 10**6, 2 * 10**7)):
        found = plan(free, total=20 * 10**9, vectors=vectors)
        assert found.vectors in (0, 768 * vectors)
        kept = found.rows + found.vectors
        assert not kept or keeps(kept, free, 20 * 10**9)
        assert not found.rows or found.rows <= free - kept
    assert not plan(6 * 10**9, vectors=7 * 10**6).vectors


@pytest.mark.parametrize("free", [0, 1, 10**6, 10**12])
@pytest.mark.parametrize(("tables", "queries"), [(1, 1), (7, 10**6), (10**8, 1), (3, 0)])
def test_a_plan_always_has_a_tile_of_one_row_at_least(free, tables, queries):
    found = plan(free, tables, queries)
    assert 1 <= found.tile_rows <= tables
    assert found.chunk_cells >= 1


def test_the_hosts_plan_is_added_up():
    found = host_plan(1_000, 5 * 10**6, 4, dense=True)
    assert found.values == 5 * 10**6
    assert found.needed == found.base + found.threads + found.tables + found.values
    assert found.base == BASE_BYTES[True]
    assert host_plan(1_000, 5 * 10**6, 4, dense=True, device="cuda").needed > found.needed + 10**9
    assert host_plan(1_000, 5 * 10**6, 4, dense=False).needed < found.needed
