"""A method in, a property out that is made once for each object, however many threads ask for it at once.

Pure. Python's own `cached_property` has no lock from 3.12 on: there every thread of a pool would make it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")


class once(Generic[T]):
    """A property that is made when it is first asked for, and kept with its object.

    Threads that ask meanwhile wait. A maker may read other `once` properties, of any object, but none of those may read
    this one: that would deadlock.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make, self._lock = make, RLock()
        self._name, self.__doc__ = make.__name__, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object, owner: type) -> T | Self:
        if instance is None:
            return self
        # Once it is there, Python finds it there and does not call this.
        kept = instance.__dict__
        with self._lock:
            if self._name not in kept:
                kept[self._name] = self._make(instance)
        found: T = kept[self._name]
        return found
