"""What a partial plan still costs at least: devices at a price, layers exact, the slowest stage by a mean or in a band.

Stages are taken from the end. With ``A_d`` the work ``t = f + b`` and twice the hops of the last ``d`` stages, 1F1B has

    step >= A_pp + max_d [ A_d + (m - 1 - d) t_d ] + tail_1       where pp < m: the return path of the stage at depth d
    step >= A_pp + max_d [ m t_d - A_d ] + tail_1                 any pp: the first stages once, this one m times

(:mod:`cost_models.pipeline`). A maximum is no less than a mean, whatever the weights; ``n_d / L``, the share of layers
that a stage holds, makes the mean of equally quick stages of unequal size their own time, and costs nothing to add up:

    returning    step >= sum_d [ t_d (1 + j_d / L + (m - 1 - d) n_d / L) + 2 hop_d (1 + j_d / L) ] + tail_1
    staying      step >= sum_d [ t_d (1 - j_d / L + m n_d / L) + 2 hop_d (1 - j_d / L) ] + tail_1

with ``j_d`` the layers before the end of the stage. Where the first maximum lies in a band, ``floor`` to ``cap``,
stages that reach the cap are left out and the others need no mean (:mod:`planner.search.mixed.bands`):

    band         step >= floor + sum_d [ t_d + 2 hop_d ] + tail_1

It leans on the mean too, ``lean`` times, once at most: what stages that are slower than the band allows take longer
than ``M`` is added, what quicker ones take less is taken off, for ``sum_d n_d / L [ A_d + (m - 1 - d) t_d - M ]`` is 0
at most:

    step >= (1 - lean) M + sum_d [ t_d (1 + lean j_d / L + lean (m - 1 - d) n_d / L) + 2 hop_d (1 + lean j_d / L) ]
            + tail_1        with M = floor

A detour of some pipeline is no mean either, in pipelines that are as deep as it goes (:mod:`.detours`):

    detour       step >= sum_d [ t_d (1 + r_d) + 2 hop_d (1 + h_d) ] + tail_1

Devices get a price ``mu`` (Lagrange): adding ``mu (used - there are)`` never raises the cost of a plan that fits. What
is left is a shortest path over (depth, boundary) for every ``mu``; any ``mu >= 0`` gives a bound, and its devices the
slope by which the best are found (:mod:`planner.search.mixed.ascent`). So has what stages wait for together, of which
a pipeline that is asked for has less than the step to beat (``load`` of :class:`planner.search.mixed.stages.Stages`):
it is told as a part of that step, and there is one.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.search.deadline import look
from planner.search.mixed.ascent import climbed
from planner.search.mixed.detours import Detour
from planner.search.mixed.stages import Stages

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Kind = Literal["returning", "staying", "waiting", "band", "detour"]
STEPS = 24
KEPT_PRICES = 6
LOAD_PRICE = 0.3
"""What the whole of a line costs at first, as a part of what all devices do."""
LEAST = 1 - 1e-12
"""What rounding may take off a stage's cost. Prices may be far above what a step takes: then a bound is the difference
of two numbers much larger than itself, and a part of it would not be enough."""


class Relaxation:
    """Bounds of one set of stages under one of the sums above; ``returning`` and ``band`` ask for ``pp < m``.

    ``waiting`` is the mean of the first maximum alone, without ``A_pp`` and tail. ``floor`` is added to the sum. A
    ``detour`` is there where it is asked for, and then no pipeline of the stages may be less deep. Where joules count
    (:mod:`planner.search.mixed.weighing`) the ticks that they count for are added to the sum, or, with ``other``, to
    that of what has a limit, whichever they are part of: they come on top of every bound of the step.
    """

    def __init__(
        self, stages: Stages, devices: Ints, kind: Kind, floor: float = 0.0, detour: Detour | None = None,
        lean: float = 0.0, *, other: bool = False,
    ) -> None:  # fmt: skip
        self.stages, self.devices, self.kind, self.floor, self.detour = stages, devices, kind, floor, detour
        self.lean = lean
        load = np.zeros((len(stages), 0)) if stages.load is None else stages.load
        self.load = load / stages.upto
        self.there = np.append(devices, np.ones(load.shape[1]))
        self.layers, self.m = stages.table.layers, stages.table.micro_batches
        through, dwell = self.weights()
        self.weight = through + dwell
        crossed = through if detour is None else through + detour.hops_at(stages.depth)
        self.terms = stages.time * self.weight + stages.hop * crossed
        if kind != "waiting":
            self.terms += stages.tail
            if stages.spent is not None and other != stages.slots.weighing.minimised:
                self.terms += stages.spent
        self.best = -np.inf
        self.mus: list[Floats] = []
        self.ahead: list[Floats] = []

    def weights(self) -> tuple[Floats, Floats]:
        """Weight of every stage's time and hops as part of every path, and of its time as the slowest."""
        stages, n, j = self.stages, self.stages.n / self.layers, self.stages.j / self.layers
        if self.kind == "staying":
            return 1 - j, self.m * n
        if self.detour is not None:
            return np.ones(len(n)), self.detour.again_at(stages.depth).astype(np.float64)
        if self.kind == "band":
            return 1 + self.lean * j, self.lean * (self.m - 1 - stages.depth) * n
        return j + (self.kind == "returning"), (self.m - 1 - stages.depth) * n

    def cost(self, mu: Floats) -> Floats:
        """Cost of every stage with its devices, lowered by more than sums of costs are rounded."""
        slots = self.stages.slots
        cost = self.terms + (mu[slots.part] * slots.size)[self.stages.slot]
        return (cost + self.load @ mu[len(self.devices) :] if self.load.shape[1] else cost) * LEAST

    def starting(self, start: Floats) -> Floats:
        """Prices of everything to begin with, from those of devices."""
        more = len(self.there) - len(start)
        return np.append(start, np.full(more, LOAD_PRICE * float(start @ self.devices))) if more else start

    def prices(self, mu: Floats) -> Floats:
        """Prices of devices, and of each tick that stages wait for together."""
        return np.append(mu[: len(self.devices)], mu[len(self.devices) :] / self.stages.upto)

    def of(self, stages: Stages, target: float) -> Relaxation:
        """The bound of other stages by the same sum, its prices looked for from this one's on."""
        found = Relaxation(stages, self.devices, self.kind, self.floor, self.detour, self.lean)
        found.bound(self.mus[0], target)
        return found

    @cached_property
    def waits_to_go(self) -> Floats:
        """Least ticks that stages of layers ``0..i`` with ``d`` behind them wait together by each line, ``[lines,
        deepest + 1, L + 1]``."""
        each = [self.to_go(line * self.stages.upto * LEAST) for line in self.load.T]
        return np.array(each).reshape(-1, self.stages.deepest + 1, self.layers + 1)

    @property
    def least_wait(self) -> float:
        """Ticks that any pipeline waits at least; 0 where none wait."""
        return float(self.waits_to_go[:, 0, self.layers].max(initial=0.0))

    def to_go(self, cost: Floats) -> Floats:
        """Least cost of layers ``0..i`` with ``d`` stages behind them, ``[deepest + 1, L + 1]``."""
        stages, i = self.stages, self.stages.i
        ahead = np.full((stages.deepest + 1, self.layers + 1), np.inf)
        ahead[:, 0] = 0.0
        for depth in range(stages.deepest, 0, -1):
            a, b = stages.first[depth - 1 : depth + 1]
            ends, start = stages.ends[depth - 1]
            if b > a:
                ahead[depth - 1, ends] = np.minimum.reduceat(cost[a:b] + ahead[depth][i[a:b]], start)
        return ahead

    def behind(self, cost: Floats) -> Floats:
        """Least cost of layers ``i..L`` in exactly ``d`` stages, ``[deepest + 1, L + 1]``."""
        stages, order, j = self.stages, self.stages.from_front, self.stages.j
        behind = np.full((stages.deepest + 1, self.layers + 1), np.inf)
        behind[0, self.layers] = 0.0
        for depth in range(1, stages.deepest + 1):
            mine = order[slice(*stages.first[depth - 1 : depth + 1])]
            begins, start = stages.begins[depth - 1]
            if len(mine):
                behind[depth, begins] = np.minimum.reduceat(cost[mine] + behind[depth - 1][j[mine]], start)
        return behind

    def used(self, cost: Floats, ahead: Floats) -> Floats:
        """Devices of each part on the cheapest path, and what stages wait for together."""
        path, slots = self.path(cost, ahead), self.stages.slots
        slot = self.stages.slot[path]
        devices = np.bincount(slots.part[slot], weights=slots.size[slot], minlength=len(self.devices))
        return np.append(devices, self.load[path].sum(axis=0))

    def path(self, cost: Floats, ahead: Floats) -> Ints:
        """The stages of the cheapest path, the last one first."""
        stages, found, j = self.stages, [], self.layers
        while j > 0:
            a, b = stages.first[len(found) : len(found) + 2]
            a, b = a + np.searchsorted(stages.j[a:b], [j, j + 1])
            depth = len(found) + 1
            found.append(a + int(np.argmin(cost[a:b] + ahead[depth][stages.j[a:b] - stages.n[a:b]])))
            j = int(stages.j[found[-1]] - stages.n[found[-1]])
        return np.array(found, dtype=np.int64)

    def bound(self, start: Floats, target: float, steps: int = STEPS) -> float:
        """The best root bound of a few prices from ``start`` on, which need not pass ``target``; keeps the best."""
        seen: list[tuple[float, Floats, Floats]] = []

        def ask(mu: Floats) -> tuple[float, Floats]:
            look()
            cost = self.cost(mu)
            ahead = self.to_go(cost)
            value = float(ahead[0, self.layers]) - float(mu @ self.there) + self.floor
            seen.append((value, mu, ahead))
            return value, self.used(cost, ahead) - self.there if np.isfinite(value) else np.zeros(len(mu))

        climbed(ask, self.starting(start.astype(np.float64)), target, steps)
        seen.sort(key=lambda it: -it[0])
        self.best = seen[0][0]
        self.mus, self.ahead = [it[1] for it in seen[:KEPT_PRICES]], [it[2] for it in seen[:KEPT_PRICES]]
        return self.best

    def lengths(self) -> Floats:
        """The least bound of a pipeline of each number of stages, over the prices kept, ``[deepest + 1]``."""
        found = np.full(self.stages.deepest + 1, -np.inf)
        for mu in self.mus:
            least = self.behind(self.cost(mu))[:, 0] - float(mu @ self.there) + self.floor
            found = np.maximum(found, least)
        return found * (1 - 1e-12)

    def through(self, prices: int = KEPT_PRICES) -> Floats:
        """The least bound of a pipeline with each stage in it, over so many of the prices kept, the best ones."""
        stages, best = self.stages, np.full(len(self.stages), -np.inf)
        for mu, ahead in zip(self.mus[:prices], self.ahead[:prices], strict=True):
            cost = self.cost(mu)
            behind = self.behind(cost)
            total = cost + behind[stages.depth - 1, stages.j] + ahead[stages.depth, stages.i]
            best = np.maximum(best, total - float(mu @ self.there) + self.floor)
        return best
