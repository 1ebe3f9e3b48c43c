"""The bound of mixed pipelines whose hosts cost rent, derived again: host counts in boxes, then pipelines of each.

    objective of h hosts >= target          where every pipeline on h hosts takes ticks(h) or more,

``ticks(h)`` the most that a better plan may take: of money what ``target`` buys at the rent of ``h``, of time
``target``, and of either what the limits leave. A box of host counts needs the ticks of its fewest hosts and has the
devices of its most; where these are quick enough to be a fluid it is halved, down to one count of every part, whose
pipelines are enumerated (:mod:`planner.checks.rederive_mixed`).
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from planner.checks.mixed_ways import Ints, MixedProblem, OutOfTime, Ways, look_at_clock
from planner.checks.rederive import Rederived
from planner.checks.rederive_mixed import COUNTED, every_way, fluid_ticks, rederive_pipelines
from planner.mixed.asked import Asked

ROUNDING = 1e-12


@dataclass(frozen=True)
class _Rent:
    """A claim in seconds or dollars a step, and what it leaves of a step's ticks on so many hosts."""

    asked: Asked
    target: float
    tick_s: float

    def ticks(self, hosts: Ints) -> float:
        """Ticks that a step on so many hosts must be below to be better than the claim."""
        rate = float(np.dot(self.asked.usd_per_s, hosts))
        most_s, most_usd = (most * (1 + ROUNDING) for most in (self.asked.most_s, self.asked.most_usd))
        most_s, most_usd = (min(most_s, self.target), most_usd) if self._timed else (most_s, min(most_usd, self.target))
        return min(most_s, most_usd / rate if rate > 0 else np.inf) / self.tick_s

    def value(self, hosts: Ints, ticks: float) -> float:
        """What a step of so many ticks comes to."""
        return ticks * self.tick_s * (1.0 if self._timed else float(np.dot(self.asked.usd_per_s, hosts)))

    @property
    def _timed(self) -> bool:
        return self.asked.minimised == "time"


def rederive_rent(it: MixedProblem, asked: Asked, target: float, *, time_limit_s: float = 60.0) -> Rederived:
    """Prove that no pipeline within the limits has an objective below ``target``, as far as the time goes.

    ``target``, ``bound`` and the counter-example's value are in seconds or dollars a step. Where time runs out the
    bound is the least that a fluid takes on any of the counts of hosts that are left, or 0.
    """
    deadline, answer = time.monotonic() + time_limit_s, Rederived(target, counts=dict.fromkeys(COUNTED, 0))
    rent, parts = _Rent(asked, target, it.machine.ticks.second), it.machine.cluster.parts
    host = np.array([part.devices_per_host for part in parts], dtype=np.int64)
    open_ones = [(np.zeros(len(parts), dtype=np.int64), np.array([part.hosts for part in parts], dtype=np.int64))]
    answer.counts["host_counts"] = 0
    try:
        every = every_way(it, deadline)
        while open_ones:
            look_at_clock(deadline)
            low, high = open_ones.pop()
            some = dataclasses.replace(it, devices=tuple((high * host).tolist()))
            if min(fluid_ticks(some, ways) for ways in every) >= rent.ticks(low):
                continue
            if (low < high).any():
                open_ones += halves(low, high)
            elif not _of_count(some, every, rent, high, answer, deadline):
                open_ones.append((low, high))
                break
    except OutOfTime:
        return answer
    answer.complete = not open_ones
    answer.bound = min(target, answer.counter_example_value) if answer.complete else 0.0
    return answer


def halves(low: Ints, high: Ints) -> list[tuple[Ints, Ints]]:
    """A box cut in two along its widest side."""
    k = int(np.argmax(high - low))
    middle, upto, begin = int(low[k] + high[k]) // 2, high.copy(), low.copy()
    upto[k], begin[k] = middle, middle + 1
    return [(low, upto), (begin, high)]


def _of_count(
    it: MixedProblem, every: list[Ways], rent: _Rent, hosts: Ints, answer: Rederived, deadline: float
) -> bool:
    """Whether the pipelines of one count of hosts were all looked at; one below the target is kept."""
    left = max(0.0, deadline - time.monotonic())
    found = rederive_pipelines(it, rent.ticks(hosts), time_limit_s=left, every=every)
    for name, count in found.counts.items():
        answer.counts[name] += count
    answer.counts["host_counts"] += 1
    value = rent.value(hosts, found.counter_example_value)
    if found.counter_example and value < answer.counter_example_value:
        answer.counter_example, answer.counter_example_value = found.counter_example, value
    return found.complete
