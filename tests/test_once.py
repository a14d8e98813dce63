"""A property that threads ask for at once is made once, and all that a pool's threads share are such properties."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Barrier, BrokenBarrierError

import pytest

from gpumatch.features import Side
from gpumatch.index import Index, TableSet
from gpumatch.once import once
from gpumatch.terms import Terms
from gpumatch.vocabulary import Vocabulary


class Slow:
    """Takes as long as it takes a second thread to come in, or .05 s where none can."""

    def __init__(self):
        self.made, self.both = 0, Barrier(2)

    @once
    def whole(self):
        """What it is."""
        self.made += 1
        with contextlib.suppress(BrokenBarrierError):
            self.both.wait(0.05)
        return object()

    @once
    def half(self):
        return self.whole, self.other

    @once
    def other(self):
        return Slow().quick

    @once
    def quick(self):
        return 7

    @once
    def failing(self):
        self.made += 1
        raise MemoryError


def test_threads_that_ask_at_once_get_what_one_has_made():
    slow = Slow()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: slow.whole, range(2))
    assert first is second is slow.whole
    assert slow.made == 1
    assert Slow().whole is not first


def test_one_is_made_of_others():
    slow = Slow()
    assert slow.half == (slow.whole, 7)
    assert Slow.whole.__doc__ == "What it is."


def test_what_could_not_be_made_is_tried_again():
    slow = Slow()
    for _ in range(2):
        with pytest.raises(MemoryError):
            slow.failing  # noqa: B018
    assert slow.made == 2


@pytest.mark.parametrize("kind", [Side, Index, TableSet, Terms, Vocabulary])
def test_what_threads_share_is_made_once(kind):
    assert any(isinstance(one, once) for one in vars(kind).values())
    assert not any(isinstance(one, cached_property) for one in vars(kind).values())
