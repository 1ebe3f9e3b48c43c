"""What no pipeline on a box of numbers of hosts goes below, in ticks, rent and energy: looked at in its corners.

With ``w`` the watts that ``h`` hosts draw idle, ``r`` their rent and ``j`` what joules of stages come to at least,

    ticks >= v - mu . devices          rent >= r ticks          energy >= w ticks + j

for prices ``mu`` of a device by an outline of steps. One of steps and joules at the watts ``W`` of a box's most hosts,
``step + spent >= v - mu . devices``, says of ``w <= W``, where ``energy = w (step + spent) + (1 - w / W) W spent``,

    energy >= w (v - mu . devices) + (1 - w / W) j

Each is a constant, linear or a product of a rising and a falling linear function along every axis of ``h``, so concave:
least at a corner. Layers spread over all devices like a fluid take the parts in some order, the thriftiest first; a
step as short as the first ``q`` of them allow is where the least energy may be,

    energy >= min over q of  (w work + sum over p <= q of e_p speed_p) / sum over p <= q of speed_p

with ``e_p`` what one unit of work takes on part ``p`` at least, for energy by the length of a step is convex and broken
there alone. Every one is a quotient of linear functions, which rises or falls along an axis: least at a corner.

Under a limit ``P`` on the watts of all sites the work ``y_p`` that a part does in a tick is a fractional knapsack,

    ticks >= work / max sum_p y_p        sum_p (e_p y_p + w_p h_p) <= P ,  y_p <= speed_p h_p ,  low <= h <= high

of watts: work on the fewest hosts takes ``e_p``, on others ``e_p + w_p / speed_p``, and the cheapest is taken first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.bounds import kind_counts
from planner.search.mixed.outline import Outline
from planner.search.mixed.space import MixedSpace
from planner.search.mixed.speeds import Speed

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SAFE = 1 - 1e-11


@dataclass(frozen=True)
class Corners:
    """Corners of a box: ``devices`` is ``[corners, parts]``, ``rates`` and ``watts`` of their hosts ``[corners]``.

    ``spent`` is what joules of stages come to at least, in ticks times watts.
    """

    devices: Ints
    rates: Floats
    watts: Floats
    spent: float

    @property
    def spread(self) -> float:
        """Watts, or rent where these do not count, of the most hosts over those of the fewest."""
        each = self.watts if self.watts.any() else self.rates
        return float(each.max() / each.min()) if each.min() > 0 else np.inf


@dataclass(frozen=True)
class Draws:
    """Devices of a host and its watts, idle, by part, and the most that all sites may draw."""

    host: Ints
    watts: Floats
    site_w: float

    def least_ticks(
        self, low: Ints, high: Ints, speed: Speed, space: MixedSpace, batch: int, joules: Floats
    ) -> float:  # fmt: skip
        """What a step lasts at least on ``low`` to ``high`` hosts, were layers spread over them like a fluid;
        ``joules`` as of :func:`fluid_of`."""
        unit, each = joules_a_work(speed, space, joules), speed.per_device * self.host / space.rounds(batch)
        able = np.isfinite(unit) & (each > 0)
        unit, each, low, high, watts = (it[able] for it in (unit, each, low, high, self.watts))
        cost, room = np.append(unit, unit + watts / each), np.append(each * low, each * (high - low))
        order = np.argsort(cost, kind="stable")
        cost, room = cost[order], room[order]
        left = self.site_w - float(watts @ low) - np.cumsum(cost * room) + cost * room
        done = float(np.clip(left / np.maximum(cost, 1e-300), 0.0, room).sum())
        return speed.work / done * SAFE if done > 0 else np.inf


@dataclass(frozen=True)
class DevicePrices:
    """Bounds at prices of a device: ``whole - mu . devices`` ticks, ``whole`` is ``[prices]``.

    ``joules`` says which count joules, at ``watts``.
    """

    whole: Floats
    mu: Floats
    joules: NDArray[np.bool_]
    watts: float

    @staticmethod
    def of(outlines: list[Outline], watts: float) -> DevicePrices:
        """Those that outlines of the same pipelines kept."""
        each = [(it.slots.weighing.counts, it.relaxed, ahead) for it in outlines for ahead in it.relaxed.ahead]
        whole = np.array([ahead[0, relaxed.layers] for _, relaxed, ahead in each])
        mu = np.concatenate([np.array(it.relaxed.mus) for it in outlines])
        return DevicePrices(whole * SAFE, mu, np.array([counts for counts, *_ in each]), watts)

    def least(self, corners: Corners) -> Floats:
        """Ticks, rent and energy by the best of the prices at its worst corner."""
        sums = self.whole[:, None] - self.mu @ corners.devices.T
        ticks, joint = sums[~self.joules], sums[self.joules]
        found = [ticks, ticks * corners.rates, ticks * corners.watts + corners.spent]
        least = np.array([it.min(axis=1).max(initial=0.0) for it in found])
        if len(joint):
            spent = (1 - corners.watts / self.watts) * corners.spent
            least[2] = max(least[2], (corners.watts * joint + spent).min(axis=1).max())
        return least * SAFE


def fluid_of(corners: Corners, speed: Speed, space: MixedSpace, batch: int, joules: Floats | None) -> Floats:
    """Ticks, rent and energy were layers spread over all devices; ``joules``, ``[parts, kinds]``, are those of a layer
    by :func:`planner.search.mixed.speeds.joules_by_part`, in ticks times watts, or ``None``."""
    each = corners.devices * speed.per_device
    total = each.sum(axis=1)
    ticks = np.full(len(total), np.inf)
    np.divide(space.rounds(batch) * speed.work, total, out=ticks, where=total > 0)
    rent = np.where(total > 0, np.where(total > 0, ticks, 0.0) * corners.rates, np.inf)
    energy = 0.0 if joules is None else _fluid_energy(corners, speed, space, batch, joules)
    return np.array([ticks.min(), rent.min(), energy]) * SAFE


def _fluid_energy(corners: Corners, speed: Speed, space: MixedSpace, batch: int, joules: Floats) -> float:
    """The last of the formulas above, and what embedding and head take at least."""
    unit = joules_a_work(speed, space, joules)
    order = np.argsort(unit, kind="stable")
    order = order[np.isfinite(unit[order])]
    each = corners.devices[:, order] * speed.per_device[order]
    total, spent = np.cumsum(each, axis=1), np.cumsum(each * unit[order], axis=1) * speed.work
    drawn = corners.watts[:, None] * space.rounds(batch) * speed.work
    least = np.full(total.shape, np.inf)
    np.divide(drawn + spent, total, out=least, where=total > 0)
    return float(least.min(initial=np.inf) + joules[:, -2:].min(axis=0).sum())


def joules_a_work(speed: Speed, space: MixedSpace, joules: Floats) -> Floats:
    """What one unit of work takes on each part at least, of ``joules`` as of :func:`fluid_of`, ``[parts]``."""
    present = np.flatnonzero(kind_counts(space.machine.model)[:-2])
    return (joules[:, present] / speed.weight).min(axis=1)
