"""Rows waiting to be looked at, best bound first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Table(Protocol):
    """Rows of any kind: a length, some of them, one table of several."""

    def __len__(self) -> int: ...

    def take(self, index: NDArray) -> Self:
        """The rows at ``index``."""
        ...

    @staticmethod
    def concat(parts: list) -> Table:
        """One table of several."""
        ...


T = TypeVar("T", bound=Table)


class Frontier(Generic[T]):
    """A table ordered by bound; once none is below the incumbent, what is left is dropped."""

    def __init__(self) -> None:
        self._rows: T | None = None
        self._bounds: Floats = np.zeros(0)
        self._first = 0
        self.dropped: list[Floats] = []
        """Bounds of rows that went because they reached the incumbent."""

    def __len__(self) -> int:
        return len(self._bounds) - self._first

    @property
    def bounds(self) -> Floats:
        """Bounds of the rows that wait, least first."""
        return self._bounds[self._first :]

    @property
    def best(self) -> float:
        """The least bound of all waiting rows; infinite when none waits."""
        return float(self._bounds[self._first]) if len(self) else np.inf

    def push(self, rows: T, bounds: Floats) -> None:
        """Add rows with their bounds."""
        if not len(rows):
            return
        if self._rows is not None and len(self):
            left = np.arange(self._first, len(self._bounds))
            rows = rows.concat([self._rows.take(left), rows])
            bounds = np.concatenate([self._bounds[left], bounds])
        order = np.argsort(bounds, kind="stable")
        self._rows, self._bounds, self._first = rows.take(order), bounds[order], 0

    def pop(self, most: int, below: float) -> tuple[T, Floats] | None:
        """The best ``most`` rows whose bound is less than ``below``; ``None`` when there is none."""
        end = int(np.searchsorted(self._bounds, below))
        if end <= self._first or self._rows is None:
            self.dropped += [self.bounds] if len(self) else []
            self._rows, self._bounds, self._first = None, self._bounds[:0], 0
            return None
        taken = np.arange(self._first, min(self._first + most, end))
        self._first = int(taken[-1]) + 1
        return self._rows.take(taken), self._bounds[taken]

    @contextmanager
    def taken(self, most: int, below: float) -> Iterator[tuple[T, Floats] | None]:
        """As :meth:`pop`; where what is done with the rows is cut short, they wait again."""
        popped = self.pop(most, below)
        try:
            yield popped
        except BaseException:
            if popped is not None:
                self.push(*popped)
            raise
