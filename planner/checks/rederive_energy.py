"""The bound of mixed pipelines whose joules count, derived again: host counts in boxes, then pipelines of each.

    energy = watts . hosts * step + joules of its stages

A step that is good enough lasts less than what is left of the claim, or of a limit, when every layer takes its least
joules, over the watts of its hosts. Counts of hosts that are quick enough to be a fluid are looked at one by one
(:mod:`planner.checks.rederive_mixed` has the pipelines); each that is complete is weighed twice: with the least joules
of any way to run its stages that fits, which none like it goes below, and with at least its own, which one can be run
with. What lies between is said to be left out.

Under limits on watts every step lasts at least what its joules wait for (:mod:`planner.checks.mixed_watts`).
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.mixed_power import idle_host_w
from planner.checks.mixed_watts import Standing, site_spare_w, waits_again
from planner.checks.mixed_ways import (
    Choices,
    Ints,
    MixedProblem,
    OutOfTime,
    Ways,
    inside_limited,
    least_recompute,
    look_at_clock,
)
from planner.checks.rederive import Rederived
from planner.checks.rederive_mixed import COUNTED, every_way, fluid_ticks, rederive_pipelines
from planner.checks.rederive_rent import halves
from planner.mixed.asked import Asked

Floats = NDArray[np.float64]
ROUNDING = 1e-12


@dataclass
class _Energy:
    """A claim in joules, seconds or dollars a step, against pipelines on ``hosts``; what the best of them take."""

    it: MixedProblem
    asked: Asked
    target: float
    hosts: Ints
    known: dict[tuple[Ways, int], tuple[Floats, Floats, Floats]]
    least: float = np.inf
    best: float = np.inf
    described: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def watts(self) -> float:
        """What the hosts draw idle, at the meter."""
        parts = self.it.machine.cluster.parts
        return float(np.dot([idle_host_w(part) for part in parts], self.hosts))

    @property
    def spare_w(self) -> float:
        """What stages may draw at the meters beside the hosts."""
        return site_spare_w(self.it.machine.cluster, self.hosts.tolist(), self.asked.power)

    def most(self, name: str) -> float:
        """What a better pipeline takes at most of a quantity."""
        limit = self.asked.limits[f"step-{name}"] * (1 + ROUNDING)
        return min(limit, self.target) if self.asked.minimised == name else limit

    def ticks(self, spent: float) -> float:
        """Ticks that a better step is below, of which stages spend so many joules at least."""
        usd = self.asked.usd(tuple(self.hosts.tolist()), 1.0) or 0.0
        seconds = min(self.most("time"), self.most("money") / usd if usd > 0 else np.inf)
        spare = self.spare_w
        if spare <= 0 or spent / spare * (1 - ROUNDING) >= seconds:
            return 0.0
        if self.watts > 0:
            seconds = min(seconds, max(0.0, self.most("energy") - spent) / self.watts)
        return seconds / self.it.machine.ticks.second * (1 + ROUNDING)

    def leaves(self, ways: Ways, held: list[Choices], steps: Ints) -> None:
        """Weighs pipelines with ``steps``, ``[pipelines]``, whose stages are ``held``, the first first."""
        seconds = steps * self.it.machine.ticks.second
        least, own = (self._value(self._lasting(ways, held, seconds, it), it) for it in self._joules(ways, held))
        best = int(np.argmin(own))
        if least.min() < self.target:
            self.least = min(self.least, float(least.min()))
        if own[best] < min(self.target, self.best):
            told = (ways.described(int(one.way[best]), int(one.j[best] - one.i[best])) for one in held)
            self.best, self.described = float(own[best]), "; ".join(told)

    def _lasting(self, ways: Ways, held: list[Choices], seconds: Floats, joules: Floats) -> Floats:
        """Seconds of steps that wait for their watts."""
        if not self.asked.waits:
            return seconds
        way, cluster, waits = np.stack([one.way for one in held]), self.it.machine.cluster, joules.sum(axis=0)
        waits = waits / self.spare_w if self.spare_w > 0 else np.full(len(seconds), np.inf)
        if inside_limited(self.it):
            each, (kinds, of_kind) = joules / joules_at_meter(self.it, ways)[way], self._standing(ways, way)
            for k, stages in enumerate(kinds):
                mine = of_kind == k
                found = waits_again(cluster, stages, self.asked.power, each[:, mine])
                waits[mine] = np.maximum(waits[mine], found)
        tick = self.it.machine.ticks.second
        return np.maximum(seconds, np.ceil(waits / tick * (1 - ROUNDING)) * tick)

    def _standing(self, ways: Ways, way: Ints) -> tuple[list[list[Standing]], Ints]:
        """Distinct ways of pipelines to stand on hosts, and which one each is of, ``way`` being ``[stages, ...]``."""
        cluster = self.it.machine.cluster
        every = [Standing.of(cluster, k, tuple(degrees)) for k, *degrees, _, _, _ in ways.setups]
        known = {it: n for n, it in enumerate(dict.fromkeys(every))}
        rows, of_kind = np.unique(np.array([known[it] for it in every])[way], axis=1, return_inverse=True)
        named = list(known)
        return [[named[n] for n in row] for row in rows.T.tolist()], of_kind.ravel()

    def _value(self, seconds: Floats, joules: Floats) -> Floats:
        """What is minimised of steps whose stages take ``joules``, ``[stages, pipelines]``; infinite where one is above
        a limit."""
        joules = joules.sum(axis=0)
        usd = np.array([self.asked.usd(tuple(self.hosts.tolist()), s) or 0.0 for s in seconds.tolist()])
        taken = {"time": seconds, "money": usd, "energy": seconds * self.watts + joules}
        fits = np.logical_and.reduce([taken[name] < self.most(name) for name in taken])
        return np.where(fits, taken[self.asked.minimised], np.inf)

    def _joules(self, ways: Ways, held: list[Choices]) -> tuple[Floats, Floats]:
        """The least joules of every stage by any way, and no fewer than its own, ``[stages, pipelines]``."""
        plain, again, _ = self._tables(ways)
        low, high = np.zeros((2, len(held), len(held[0])))
        for s, one in enumerate(held):
            segment = self.it.segments.of_pair[one.i, one.j]
            low[s] = self._least(ways, one, len(held) - s)
            repeats = [
                int(b) > int(ways.chains[w].backward(i, j))
                for w, i, j, b in zip(*(it.tolist() for it in (one.way, one.i, one.j, one.backward)), strict=True)
            ]
            high[s] = plain[one.way, segment] + np.where(repeats, again[one.way, segment], 0.0)
        return low * (1 - ROUNDING), high

    def _least(self, ways: Ways, one: Choices, depth: int) -> Floats:
        """The least joules of stages of a depth by any way to run one like it."""
        least = self._tables(ways)[2]
        return least[one.way, min(depth, least.shape[1]) - 1, self.it.segments.of_pair[one.i, one.j]]

    def within(self, ways: Ways, one: Choices) -> NDArray[np.bool_]:
        """Stages that would not wait too long on devices and hosts of their own: others there make it no shorter."""
        waits, power = np.zeros(len(one)), dataclasses.replace(self.asked.power, rack_w=None)
        if power.given and len(one):
            kinds, of_kind = self._standing(ways, one.way[None])
            each = self._least(ways, one, 1) * (1 - ROUNDING) / joules_at_meter(self.it, ways)[one.way]
            for k, stages in enumerate(kinds):
                waits[of_kind == k] = waits_again(self.it.machine.cluster, stages, power, each[None, of_kind == k])
        return waits < self.ticks(0.0) * self.it.machine.ticks.second

    def _tables(self, ways: Ways) -> tuple[Floats, Floats, Floats]:
        """Joules of every segment by every way with nothing recomputed, the most that recompute adds, and by flights
        the least, with what has to be recomputed to fit, by any way that reserves as many devices, and uses as many
        where these have limits.
        """
        key = ways, ways.stands.shape[1]
        if key not in self.known:
            i, j = self.it.segments.i, self.it.segments.j
            meter, flights = joules_at_meter(self.it, ways)[:, None], np.arange(1, key[1] + 1)
            plain = [ways.m * chain.joules_pass(i, j) + chain.joules_step(i, j) for chain in ways.chains]
            again = [ways.m * (_extra(chain, "full", i, j) + _extra(chain, "selective", i, j)) for chain in ways.chains]
            plain, again = np.array(plain) * meter, np.array(again) * meter
            fitting = [
                ways.m * least_recompute(self.it, chain, int(k), i, j, flights, chain.prices.joules_extra)
                for k, chain in zip(ways.part, ways.chains, strict=True)
            ]
            fitting = np.array(fitting) * meter[:, None] + plain[:, None]
            alike = np.stack([ways.part, ways.size, ways.told_apart])
            _, of_way = np.unique(alike, axis=1, return_inverse=True)
            least = np.full((int(of_way.max()) + 1, *fitting.shape[1:]), np.inf)
            np.minimum.at(least, of_way.ravel(), fitting)
            self.known[key] = plain, again, least[of_way.ravel()]
        return self.known[key]


def _extra(chain: Chain, kind: str, i: Ints, j: Ints) -> Floats:
    return chain.total(chain.prices.joules_extra[kind], i, j, ends=False)


def joules_at_meter(it: MixedProblem, ways: Ways) -> Floats:
    """Joules at the meter for one of every device of a stage, ``[ways]``."""
    pue = [part.facility.figures.pue.value for part in it.machine.cluster.parts]
    return np.array([tp * cp * dp * pue[k] for k, tp, cp, dp, *_ in ways.setups])


def least_spent(it: MixedProblem, ways: Ways) -> float:
    """Joules that no pipeline of one global micro-batch takes fewer than: every layer's least by any way."""
    order = it.machine.model.order
    kinds = np.append(np.bincount(order, minlength=ways.chains[0].prices.joules_pass.shape[1] - 2), [1, 1])
    each = [ways.m * c.prices.joules_pass[c.row] + c.prices.joules_step[c.row] for c in ways.chains]
    return float((np.array(each) * joules_at_meter(it, ways)[:, None]).min(axis=0) @ kinds) * (1 - ROUNDING)


def rederive_energy(it: MixedProblem, asked: Asked, target: float, *, time_limit_s: float = 60.0) -> Rederived:
    """Prove that no pipeline within the limits has an objective below ``target``, as far as the time goes.

    ``target``, ``bound`` and the counter-example's value are in seconds, dollars or joules a step. Where time runs out
    the bound is 0.
    """
    deadline, answer = time.monotonic() + time_limit_s, Rederived(target, counts=dict.fromkeys(COUNTED, 0))
    parts, known = it.machine.cluster.parts, {}
    host = np.array([part.devices_per_host for part in parts], dtype=np.int64)
    every_host = np.array([part.hosts for part in parts], dtype=np.int64)
    open_ones = [(np.zeros_like(every_host) if asked.weighs_hosts else every_host, every_host)]
    answer.counts["host_counts"] = 0
    try:
        every = [ways for ways in every_way(it, deadline) if ways.chains]
        spent = min((least_spent(it, ways) for ways in every), default=np.inf)
        while open_ones:
            look_at_clock(deadline)
            low, high = open_ones.pop()
            some = dataclasses.replace(it, devices=tuple((high * host).tolist()))
            quickest = min((fluid_ticks(some, ways) for ways in every), default=np.inf)
            if quickest >= _Energy(it, asked, target, low, known).ticks(spent):
                continue
            if (low < high).any():
                open_ones += halves(low, high)
            elif not _of_count(some, every, _Energy(it, asked, target, high, known), spent, answer, deadline):
                return answer
    except OutOfTime:
        return answer
    answer.bound = min(target, answer.bound if answer.bound > 0 else target)
    answer.complete = answer.bound >= target or answer.counter_example_value < target
    return answer


def _of_count(
    it: MixedProblem, every: list[Ways], energy: _Energy, spent: float, answer: Rederived, deadline: float
) -> bool:
    """Whether the pipelines of one count of hosts were all looked at; what they take at least is kept, and one below
    the target."""
    left = max(0.0, deadline - time.monotonic())
    judged = {"leaves": energy.leaves, "within": energy.within}
    found = rederive_pipelines(it, energy.ticks(spent), time_limit_s=left, every=every, **judged)
    for name, count in found.counts.items():
        answer.counts[name] += count
    answer.counts["host_counts"] += 1
    if energy.best < answer.counter_example_value:
        answer.counter_example, answer.counter_example_value = energy.described, energy.best
    if found.complete and energy.least < np.inf:
        answer.bound = min(energy.least, answer.bound or np.inf)
    return found.complete
