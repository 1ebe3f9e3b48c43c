"""Segments of many rows at once: a chain whose arguments say of every segment which row it is of.

What :class:`cost_models.chain.Chain` says of one row, ``Chains`` says of several, one segment of layers beside the
other: ``row`` goes with ``i`` and ``j``, and broadcasts with them. All rows have the same kind of schedule and as many
virtual stages a device.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.model_graph import ModelGraph
from cost_models.price import Prices
from cost_models.schedules import Schedule, schedule_of

Ints = NDArray[np.int64]


class Chains(Chain):
    """The layers of segments of many rows of a price table, all at full clock; layers of a row offload alike."""

    nearer = kept = None

    def __init__(self, model: ModelGraph, prices: Prices, row: Ints) -> None:
        rows = prices.rows
        super().__init__(model, prices, 0)
        shapes = np.stack([rows.pp, rows.virtual, rows.micro_batches])
        shapes, self._shape = np.unique(shapes, axis=1, return_inverse=True)
        self.schedules = [schedule_of(rows.schedule, *shape, rows.in_flight) for shape in shapes.T.tolist()]
        """The distinct schedules of all rows of the table."""
        self._flights = np.zeros((len(self.schedules), int(rows.pp.max(initial=1))), dtype=np.int64)
        for flights, it in zip(self._flights, self.schedules, strict=True):
            flights[: it.pp] = it.flight(np.arange(it.pp))
        self._at(row)

    def _at(self, row: Ints) -> None:
        """Be about these rows of the table."""
        rows = self.prices.rows
        self.row, self.hop = row, self.prices.hop[row]
        self.pp, self.micro_batches = rows.pp[row], rows.micro_batches[row]

    @property
    def which(self) -> Ints:
        """The schedule of each segment, a position in ``schedules``."""
        return self._shape.ravel()[self.row]

    @property
    def schedule(self) -> Schedule:
        """One of the schedules: what does not depend on its stages and micro-batches is the same in all."""
        return self.schedules[0]

    @property
    def fixed_bytes(self) -> Ints:
        """Bytes a device holds whatever its layers are, of each segment's row."""
        return self.prices.fixed_bytes[self.row]

    def of(self, index: Any) -> Chains:
        """The same of some of the segments."""
        return self.of_rows(self.row[index])

    def of_rows(self, row: Ints) -> Chains:
        """The same of segments of other rows of the table."""
        other = copy.copy(self)
        other._at(row)
        return other

    def flight(self, stage: Ints) -> Ints:
        """Micro-batches in flight at most on devices of one virtual stage each."""
        return self._flights[self.which, stage]

    def reach(self, more: str, less: str, a: Ints, saving_bytes: Ints) -> Ints:
        """The first boundary up to which layers from ``a`` on save that under ``less`` instead of ``more``.

        ``L + 1`` where all of them do not. The rows are looked through as one, each beginning above the one before.
        """
        saving = self._prefix(self.prices.saved[more]) - self._prefix(self.prices.saved[less])
        apart = int(saving.max(initial=0)) + 2
        begins = np.arange(len(saving))[:, None] * apart
        asked = np.minimum(saving[self.row, a] + saving_bytes, apart - 1)
        found = np.searchsorted((saving + begins).ravel(), asked + self.row * apart)
        return found - self.row * saving.shape[1]

    def _prefix(self, table: NDArray) -> NDArray:
        key = id(table)
        if key not in self._sums:
            values = table[:, self.order]
            sums = np.concatenate([np.zeros((len(values), 1), values.dtype), np.cumsum(values, axis=1)], axis=1)
            self._sums[key] = table, sums
        return self._sums[key][1]

    def _until(self, table: NDArray, j: NDArray | int) -> NDArray:
        return self._prefix(table)[self.row, j]
