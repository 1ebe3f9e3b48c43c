"""Labels as arrays, and what a search over them saw (:mod:`planner.search.mixed.labels`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.search.mixed.pipelines import Chosen
from planner.search.mixed.stages import Way

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Labels:
    """``[labels]`` arrays; ``used`` is ``[labels, parts]``, ``along`` ``[labels, detours]``, ``load`` ``[labels,
    lines]``; ``parent`` is the position one depth before, ``row`` that of the front stage among all."""

    i: Ints
    used: Ints
    slot: Ints
    work: Floats
    most: Floats
    time: Floats
    ring: Floats
    length: Ints
    bound: Floats
    parent: Ints
    n: Ints
    along: Floats
    spent: Floats
    wait: Floats
    load: Floats
    row: Ints

    def __len__(self) -> int:
        return len(self.i)

    def take(self, index: NDArray) -> Labels:
        """Some labels."""
        return Labels(*(getattr(self, name)[index] for name in Labels.__dataclass_fields__))

    @property
    def trace(self) -> NDArray[np.int32]:
        """What their stages are found by: the front one's row and the parent, ``[2, labels]``."""
        return np.stack([self.row, self.parent]).astype(np.int32)

    @staticmethod
    def concat(parts: list[Labels]) -> Labels:
        """One table of several."""
        return Labels(*(np.concatenate([getattr(p, n) for p in parts]) for n in Labels.__dataclass_fields__))


@dataclass
class Found:
    """What one search over labels saw: closed pipelines by depth, the least bound of what it left out, its size.

    ``merged`` says that labels stand for others whose rings are longer: with more of them bounds may rise.
    """

    closed: list[tuple[float, Chosen, tuple[Way, ...]]] = field(default_factory=list)
    bound: float = np.inf
    dropped: bool = False
    merged: bool = False
    labels: int = 0
