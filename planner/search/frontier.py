"""Rows waiting to be looked at, best bound first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.rows import Rows

Floats = NDArray[np.float64]


class Frontier:
    """A table of rows ordered by bound; what reaches the incumbent is dropped when it is next touched."""

    def __init__(self) -> None:
        self._rows: Rows | None = None
        self._bounds: Floats = np.zeros(0)
        self.dropped: list[Floats] = []

    def __len__(self) -> int:
        return len(self._bounds)

    @property
    def bounds(self) -> Floats:
        """Bounds of the rows that wait, least first."""
        return self._bounds

    @property
    def best(self) -> float:
        """The least bound of all waiting rows; infinite when none waits."""
        return float(self._bounds[0]) if len(self) else np.inf

    def push(self, rows: Rows, bounds: Floats) -> None:
        """Add rows with their bounds."""
        if not len(rows):
            return
        rows = rows if self._rows is None else Rows.concat([self._rows, rows])
        bounds = np.concatenate([self._bounds, bounds])
        order = np.argsort(bounds, kind="stable")
        self._rows, self._bounds = rows.take(order), bounds[order]

    def pop(self, most: int, below: float) -> tuple[Rows, Floats] | None:
        """The best ``most`` rows whose bound is less than ``below``; ``None`` when there is none."""
        upto = min(most, int(np.searchsorted(self._bounds, below)))
        if upto == 0 or self._rows is None:
            return None
        taken, bounds = self._rows.take(np.arange(upto)), self._bounds[:upto]
        end = int(np.searchsorted(self._bounds, below))
        self.dropped.append(self._bounds[end:])
        self._rows, self._bounds = self._rows.take(np.arange(upto, end)), self._bounds[upto:end]
        return taken, bounds
