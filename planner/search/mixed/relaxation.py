"""What a partial plan still costs at least: devices at a price, layers exact, the slowest stage by a weighted mean.

Stages are taken from the end. With ``A_d`` the work ``t = f + b`` and twice the hops of the last ``d`` stages, 1F1B has

    step >= A_pp + max_d [ A_d + (m - 1 - d) t_d ] + tail_1       where pp < m: the return path of the stage at depth d
    step >= A_pp + max_d [ m t_d - A_d ] + tail_1                 any pp: the first stages once, this one m times

(:mod:`cost_models.pipeline`). A maximum is no less than a mean, whatever the weights; ``n_d / L``, the share of layers
that a stage holds, makes the mean of equally quick stages of unequal size their own time, and costs nothing to add up:

    returning    step >= sum_d [ t_d (1 + j_d / L + (m - 1 - d) n_d / L) + 2 hop_d (1 + j_d / L) ] + tail_1
    staying      step >= sum_d [ t_d (1 - j_d / L + m n_d / L) + 2 hop_d (1 - j_d / L) ] + tail_1

with ``j_d`` the layers before the end of the stage. Devices get a price ``mu`` (Lagrange): adding ``mu (used - there
are)`` never raises the cost of a plan that fits. What is left is a shortest path over (depth, boundary) for every
``mu``; any ``mu >= 0`` gives a bound, good ones come from a few supergradient steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.mixed.table import NEVER, StageTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
STEPS = 24
KEPT_PRICES = 6


@dataclass(frozen=True)
class Slots:
    """Ways of one part and size, the best number of any: ``[slots]`` and ``[slots, flights, segments]``."""

    part: Ints
    size: Ints
    members: list[Ints]
    time: Ints
    tail: Ints
    hop: Ints

    @staticmethod
    def of(table: StageTable) -> Slots:
        """The slots of a table."""
        keys, inverse = np.unique(np.stack([table.part, table.size]), axis=1, return_inverse=True)
        members = [np.flatnonzero(inverse.ravel() == k) for k in range(keys.shape[1])]
        hop = np.minimum(table.same, table.across)
        return Slots(
            keys[0], keys[1], members,
            time=np.stack([table.time[m].min(axis=0) for m in members]),
            tail=np.stack([table.tail[m].min(axis=0) for m in members]),
            hop=np.array([hop[m].min() for m in members]),
        )  # fmt: skip


class Relaxation:
    """Bounds of one table and one of the two means, for pipelines of ``least`` to ``deepest`` stages.

    The ``returning`` mean asks for ``deepest < m``.
    """

    def __init__(
        self, table: StageTable, slots: Slots, devices: Ints, least: int, deepest: int, *, returning: bool
    ) -> None:
        self.table, self.slots, self.devices = table, slots, devices
        self.least, self.deepest, self.returning = least, deepest, returning
        self.layers = table.layers
        self.longest = int((table.segments.j - table.segments.i).max())
        self.terms = np.stack([self._terms(depth) for depth in range(1, deepest + 1)])
        self.mus: list[Floats] = []
        self.ahead: list[Floats] = []

    def _terms(self, depth: int) -> Floats:
        """Cost without devices of a stage at a depth, ``[slots, n - 1, j]``; infinite where there is none."""
        table, layers, slots = self.table, self.layers, self.slots
        n, j = np.arange(1, self.longest + 1)[:, None], np.arange(layers + 1)[None, :]
        i = j - n
        segment = np.where(i >= 0, table.segments.index[np.maximum(i, 0), j], -1)
        legal = (segment >= 0) & ((j == layers) == (depth == 1)) & ((i > 0) | (depth >= self.least))
        flight = table.flight(depth)
        time = slots.time[:, flight, :][:, segment].astype(np.float64)
        tail = np.where(i == 0, slots.tail[:, flight, :][:, segment], 0)
        dwell, through = self.weights(depth, n, j)
        hop = 2.0 * slots.hop[:, None, None] * through if depth > 1 else 0.0
        cost = time * (through + dwell) + hop + tail
        return np.where(legal & (time < NEVER), cost, np.inf)

    def weights(self, depth: int, n: Ints, j: Ints) -> tuple[Floats, Floats]:
        """Weight of a stage's own time as the slowest, and of its time and hops as part of every path."""
        m = self.table.micro_batches
        if self.returning:
            return n / self.layers * (m - 1 - depth), 1 + j / self.layers
        return n / self.layers * m, 1 - j / self.layers

    def cost(self, mu: Floats) -> Floats:
        """Cost of every stage with its devices, the cheapest slot, ``[depth, n - 1, j]``."""
        price = (mu[self.slots.part] * self.slots.size)[None, :, None, None]
        return (self.terms + price).min(axis=1)

    def to_go(self, cost: Floats) -> Floats:
        """Least cost of layers ``0..i`` with ``d`` stages behind them, ``[deepest + 1, L + 1]``."""
        ahead = np.full((self.deepest + 1, self.layers + 1), np.inf)
        ahead[:, 0] = 0.0
        for depth in range(self.deepest, 0, -1):
            ahead[depth - 1, 1:] = self._through(cost[depth - 1], ahead[depth])[:, 1:].min(axis=0)
        return ahead

    def _through(self, cost: Floats, after: Floats) -> Floats:
        """Cost of a stage and of everything before it, ``[n - 1, j]``."""
        i = np.arange(self.layers + 1)[None, :] - np.arange(1, self.longest + 1)[:, None]
        return cost + np.where(i >= 0, after[np.maximum(i, 0)], np.inf)

    def behind(self, cost: Floats) -> Floats:
        """Least cost of layers ``i..L`` in exactly ``d`` stages, ``[deepest + 1, L + 1]``."""
        behind = np.full((self.deepest + 1, self.layers + 1), np.inf)
        behind[0, self.layers] = 0.0
        i = np.arange(self.layers + 1)[None, :] - np.arange(1, self.longest + 1)[:, None]
        for depth in range(1, self.deepest + 1):
            total = cost[depth - 1] + behind[depth - 1][None, :]
            good = (i >= 0) & np.isfinite(total)
            np.minimum.at(behind[depth], i[good], total[good])
        return behind

    def used(self, mu: Floats, cost: Floats, ahead: Floats) -> Ints:
        """Devices of each part on the cheapest path."""
        found, j, depth = np.zeros(len(self.devices), dtype=np.int64), self.layers, 0
        while j > 0:
            depth += 1
            n = int(np.argmin(self._through(cost[depth - 1], ahead[depth])[:, j]))
            priced = self.terms[depth - 1, :, n, j] + mu[self.slots.part] * self.slots.size
            slot = int(np.argmin(priced))
            found[self.slots.part[slot]] += self.slots.size[slot]
            j -= n + 1
        return found

    def bound(self, start: Floats, target: float) -> float:
        """The best root bound of a few prices from ``start`` on; keeps the best prices. ``target`` is worth reaching.

        Steps are Polyak's towards ``target``, each part's scaled by its price, shorter after every failure.
        """
        mu, best, reach, seen = start.astype(np.float64), -np.inf, 1.0, []
        for _ in range(STEPS):
            cost = self.cost(mu)
            ahead = self.to_go(cost)
            value = float(ahead[0, self.layers]) - float(mu @ self.devices)
            seen.append((value, mu, ahead))
            best, reach = (value, reach) if value > best else (best, 0.6 * reach)
            slope = self.used(mu, cost, ahead) - self.devices if np.isfinite(value) else np.zeros(len(mu))
            scale = np.maximum(start, 1e-3 * start.max()) / self.devices
            norm = float((slope**2 * scale).sum())
            if best >= target or norm == 0:
                break
            mu = np.maximum(0.0, mu + reach * (min(target, 1.1 * best) - value) / norm * scale * slope)
        seen.sort(key=lambda it: -it[0])
        self.mus, self.ahead = [it[1] for it in seen[:KEPT_PRICES]], [it[2] for it in seen[:KEPT_PRICES]]
        return best
