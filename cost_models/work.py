"""What a device does for one layer: seconds and joules, and the parts of them that others can hide behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """Seconds and dynamic joules (above idle) on one device; arrays ``[rows]``."""

    seconds: Floats
    joules: Floats

    def __add__(self, other: Work) -> Work:
        return Work(self.seconds + other.seconds, self.joules + other.joules)

    def __mul__(self, factor: float | Floats) -> Work:
        return Work(self.seconds * factor, self.joules * factor)

    def __getitem__(self, index: NDArray) -> Work:
        return Work(self.seconds[index], self.joules[index])

    @staticmethod
    def zero(rows: int) -> Work:
        """No work."""
        return Work(np.zeros(rows), np.zeros(rows))


@dataclass(frozen=True)
class LayerCompute:
    """Compute of one layer and micro-batch: forward, backward, the forward part that selective recompute repeats.

    ``attention`` is the seconds of attention itself, forward and backward: what context parallelism hides behind.
    ``waiting`` is the seconds of both in which the device waits for its host, which hide tensor parallelism first.
    ``repeating`` is the seconds of host that full and selective recompute take beside what they repeat; ``left`` the
    end of the forward part that full recompute leaves out.
    """

    forward: Work
    backward: Work
    selective: Work
    attention: tuple[Floats, Floats]
    waiting: tuple[Floats, Floats]
    repeating: tuple[Floats, Floats]
    left: Work

    @property
    def full(self) -> Work:
        """What full recompute adds."""
        return Work(
            self.forward.seconds + self.repeating[0] - self.left.seconds, self.forward.joules - self.left.joules
        )

    @property
    def selective_s(self) -> Floats:
        """Seconds that selective recompute adds."""
        return self.selective.seconds + self.repeating[1]

    def slowed(self, factor: Floats) -> LayerCompute:
        """The same work, its seconds ``factor`` times as many."""
        parts = (self.forward, self.backward, self.selective, self.left)
        *works, left = (Work(it.seconds * factor, it.joules) for it in parts)
        pairs = (tuple(seconds * factor for seconds in pair) for pair in (self.attention, self.waiting, self.repeating))
        return LayerCompute(*works, *pairs, left)
