"""Work that goes on in halves where memory runs out, and what a run is expected to need."""

import numpy as np
import pytest
import torch

from gpumatch.memory import Halving, is_out_of_memory


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
