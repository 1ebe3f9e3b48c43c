"""Many rows on all cores: forked workers inherit the rows and the function, neither of which needs to pickle."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
FEW = 64
"""Items up to which starting processes is not worth their time."""
AT_ONCE = 16
_WORK: list[tuple[Callable[[Any], Any], Sequence[Any]]] = []


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``function`` of every item, in order; on all cores for many items, where the system can fork.

    Results must pickle.
    """
    if len(items) <= FEW or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(function, items)
        return
    _WORK[:] = [(function, items)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_at, range(len(items)), chunksize=AT_ONCE)


def _at(place: int) -> Any:
    function, items = _WORK[0]
    return function(items[place])
