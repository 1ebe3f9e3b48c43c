"""Ways to run rows, least bound first; a bound that takes longer to find is asked for only of ways that come first.

Every way has a cheap bound. One that comes first with that alone waits again with its dearer one, which is never less;
so ways come in the order that all the dearer ones together would put them in, and most are never asked about.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Way = tuple[float, int, int, float]
"""A bound, the row's position, virtual stages a device, the clock of all devices."""
AT_ONCE = 8
"""Ways whose dearer bounds are found together: as many rows of one schedule take hardly longer than one."""


class Sort:
    """Ways of one schedule and clock, least cheap bound first; what finds the dearer bounds of some rows, if any."""

    def __init__(
        self, virtual: int, clock: float, rows: Ints, bounds: Floats, dearer: Callable[[Ints], Floats] | None = None
    ) -> None:
        order = np.lexsort((rows, bounds))
        self.virtual, self.clock, self.dearer = virtual, clock, dearer
        self.rows, self.bounds, self._first = rows[order], bounds[order], 0

    @property
    def first(self) -> Way | None:
        """The first way whose dearer bound was not found; ``None`` where no way is left."""
        if self._first == len(self.rows):
            return None
        return float(self.bounds[self._first]), int(self.rows[self._first]), self.virtual, self.clock

    def few(self, *, refine: bool) -> list[Way]:
        """The first few ways with their dearer bounds, or without ``refine`` with those that are known."""
        at = slice(self._first, self._first + AT_ONCE)
        self._first = min(self._first + AT_ONCE, len(self.rows))
        rows, bounds = self.rows[at], self.bounds[at]
        if refine and self.dearer is not None:
            bounds = np.maximum(bounds, self.dearer(rows))
        return [(float(b), int(r), self.virtual, self.clock) for b, r in zip(bounds, rows, strict=True)]


def best_first(
    sorts: list[Sort], below: Callable[[], float], refines: Callable[[], bool] = lambda: True
) -> Iterator[Way]:
    """The ways of all ``sorts`` whose bound is ``below`` what it is when they come; of equal bounds the first row's.

    While it no longer ``refines`` they come by the bounds that are known.
    """
    heap: list[tuple[Way, int]] = [(it.first, k) for k, it in enumerate(sorts) if it.first is not None]
    heapq.heapify(heap)
    while heap:
        way, k = heapq.heappop(heap)
        if way[0] >= below():
            return
        if k < 0:
            yield way
            continue
        for known in sorts[k].few(refine=refines()):
            heapq.heappush(heap, (known, -1))
        if (after := sorts[k].first) is not None:
            heapq.heappush(heap, (after, k))
