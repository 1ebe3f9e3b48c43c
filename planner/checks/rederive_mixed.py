"""The bound of mixed pipelines derived again, by other means than the search: counting, path bounds, branching.

For every global micro-batch of ``B`` sequences, ``m`` micro-batches, stages are put down from the last. With
``t = f + b`` and ``A_d`` the sum of ``t`` and twice the hops of the last ``d`` stages, 1F1B lasts no less than
``A_pp``, the first stage's tail and, of any stage,

    A_d + (m - 1 - d) t_d          m > d
    (m - 1) max(f_d, b_d)          m <= d
    m t_d - A_d                    any

What the layers still free add to the sum and to the worst of the first of these terms, ``P`` and ``G``, are tables in
which devices are counted (:mod:`planner.checks.mixed_counting`); they also say which stages no pipeline below the
target has. A partial pipeline is dropped when ``A_d + P + max(W, A_d + G)`` reaches the target, ``W`` being its own
worst term. Complete ones run through the schedule. Nothing comes from the search.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.pipeline import step_ticks
from planner.checks.mixed_counting import NOTHING, Counted
from planner.checks.mixed_ways import Choices, Ints, MixedProblem, OutOfTime, Ways, look_at_clock
from planner.checks.rederive import Rederived

FEW_UNITS, MOST_UNITS = 100, 700
"""Numbers of devices left, of all parts together, that tables tell apart: of all stages, then of those still open."""
Leaves = Callable[[Ways, list[Choices], Ints], None]
Within = Callable[[Ways, Choices], NDArray[np.bool_]]
MOST_STAGES = 12_000_000
MOST_PARTIAL = 1_000_000
JOINED_AT_ONCE = 500_000
LEAVES_AT_ONCE = 4096


COUNTED = ("batches", "ways", "stages", "partial_pipelines", "pipelines")


def rederive_pipelines(
    it: MixedProblem, target: float, *, time_limit_s: float = 60.0, every: list[Ways] | None = None,
    leaves: Leaves | None = None, within: Within | None = None,
) -> Rederived:  # fmt: skip
    """Prove that no pipeline of two stages or more lasts less than ``target`` ticks, as far as the time goes.

    ``every`` are the ways of all global micro-batches, where they are known. ``leaves`` judges those that do, with
    their stages and steps; without it they are counter-examples. ``within`` says which stages one may have at all.

    ``bound`` is at most ``target``: less when a quicker pipeline was met, when partial ones became too many, and when
    time ran out; then it is the least that anything left open takes.
    """
    deadline, answer = time.monotonic() + time_limit_s, Rederived(target, counts=dict.fromkeys(COUNTED, 0))
    try:
        every = every_way(it, deadline) if every is None else every
    except OutOfTime:
        return answer
    answer.counts["batches"], answer.counts["ways"] = len(every), sum(len(ways.chains) for ways in every)
    answer.bound, whole = target, True
    for least, ways in sorted(((fluid_ticks(it, ways), ways) for ways in every), key=lambda pair: pair[0]):
        if least >= answer.bound:
            break
        found = _Branching(it, ways, least, target, deadline, answer.counts, leaves, within).run()
        whole &= found.complete
        answer.bound = min(answer.bound, found.bound)
        if found.counter_example_value < answer.counter_example_value:
            answer.counter_example, answer.counter_example_value = found.counter_example, found.counter_example_value
    answer.complete = whole
    return answer


def every_way(it: MixedProblem, deadline: float) -> list[Ways]:
    """Ways of every global micro-batch. Raises ``OutOfTime`` when a ``time.monotonic()`` moment passes."""
    batch, found = it.machine.workload.global_batch, []
    for size in (size for size in range(1, batch + 1) if batch % size == 0):
        look_at_clock(deadline)
        found.append(Ways(it, size))
    return found


def fluid_ticks(it: MixedProblem, ways: Ways) -> float:
    """Ticks of a step if layers could be spread over all devices like a fluid: no pipeline takes less; infinite without
    any way to run a stage.

        m sum_k c_k / sum_p max over ways and kinds (c_k / (t_k size)) devices_p
    """
    if not ways.chains:
        return np.inf
    weight, speed = _speeds(it, ways)
    if not speed @ _devices(it):
        return np.inf
    kinds = sorted(set(it.machine.model.order))
    work = sum(float(weight[kinds.index(kind)]) for kind in it.machine.model.order)
    return ways.m * work / float(speed @ _devices(it)) * (1 - 1e-12)


def _speeds(it: MixedProblem, ways: Ways) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight of a layer of every kind, and of each part the weight that a device gets done in a tick at most."""
    ticks = ways.layer_ticks
    each, speed = (ticks[0] / ticks).max(axis=1) / ways.size, np.zeros(len(it.limits))
    np.maximum.at(speed, ways.part, each)
    return ticks[0], speed


def _devices(it: MixedProblem) -> Ints:
    return np.array(it.devices or [part.devices for part in it.machine.cluster.parts], dtype=np.int64)


@dataclass(frozen=True)
class Partial:
    """Pipelines without their first stages: layers ``at`` and on are placed, ``[pipelines]``; ``used`` by part."""

    at: Ints
    used: Ints
    work: Ints
    worst: Ints
    same: Ints
    across: Ints
    part: Ints
    picked: Ints

    def take(self, index: NDArray) -> Partial:
        """Some of them."""
        return Partial(*(getattr(self, name)[index] for name in Partial.__dataclass_fields__))

    @staticmethod
    def concat(several: list[Partial]) -> Partial:
        """All of several."""
        return Partial(*(np.concatenate([getattr(it, n) for it in several]) for n in Partial.__dataclass_fields__))


class _Branching:
    """Every pipeline of one global micro-batch below a target."""

    def __init__(
        self, it: MixedProblem, ways: Ways, least: float, target: float, deadline: float, counts: dict[str, int],
        leaves: Leaves | None, within: Within | None,
    ) -> None:  # fmt: skip
        self.leaves, self.within = leaves, within
        self.it, self.ways, self.m, self.counts, self.deadline = it, ways, ways.m, counts, deadline
        self.fluid = least
        self.devices, self.layers, self.most = _devices(it), it.machine.model.layers, target
        self.answer = Rederived(target, bound=target, complete=True, counts=dict.fromkeys(COUNTED, 0))

    def run(self) -> Rederived:
        """Branch until nothing is open below the target."""
        deepest = self._deepest()
        if deepest < 2:
            return self.answer
        try:
            self._tables(deepest)
        except OutOfTime:
            self.answer.bound, self.answer.complete = min(self.answer.bound, self.fluid), False
            return self.answer
        self._branch(deepest)
        return self.answer

    def _tables(self, deepest: int) -> None:
        """Stages of every depth, and what they add up to. Raises ``OutOfTime``, also where they are too many."""
        self.ways.price(self.most, deepest, self.deadline)
        self.stages: list[Choices] = []
        for depth in range(1, deepest + 1):
            look_at_clock(self.deadline)
            stage = self.ways.choices(depth)
            self.stages.append(stage if self.within is None else stage.take(self.within(self.ways, stage)))
            if sum(len(stage) for stage in self.stages) > MOST_STAGES:
                raise OutOfTime
        self.counts["stages"] += sum(len(stage) for stage in self.stages)
        for most in FEW_UNITS, MOST_UNITS:
            size = self.devices, self.m, self.layers, most, self.deadline
            self.stages = Counted(self.stages, *size).below(self.most)
        self.counted = Counted(self.stages, *size)

    def _branch(self, deepest: int) -> None:
        front = self._root()
        for depth in range(1, deepest + 1):
            try:
                longer = self._level(front, depth)
            except OutOfTime:
                self._cut_short(front, depth - 1)
                return
            front = longer
            if not len(front.at):
                return
            if len(front.at) > MOST_PARTIAL:
                self._cut_short(front, depth)
                return

    def _level(self, front: Partial, depth: int) -> Partial:
        """Every partial pipeline with one more stage below the target; complete ones are run.

        Raises ``OutOfTime``, also where there are too many before all are built.
        """
        parts, count = [], 0
        for grown in self._longer(front, depth):
            self._run(grown.take(np.flatnonzero(grown.at == 0)))
            parts.append(grown.take(np.flatnonzero(grown.at > 0)))
            count += len(parts[-1].at)
        self.counts["partial_pipelines"] += count
        return Partial.concat(parts)

    def _cut_short(self, front: Partial, depth: int) -> None:
        """Lowers the bound to the least that pipelines of ``depth`` stages and more take."""
        least = float(self._bound(front, depth, np.zeros(1, dtype=np.int64)).min())
        self.answer.bound, self.answer.complete = min(self.answer.bound, max(self.fluid, least)), False

    def _deepest(self) -> int:
        """The most stages of a pipeline below the target: of a layer or more each, they last ``pp ** 2`` times the
        lightest layer over all speed (Cauchy's inequality), and the slowest is no quicker than the mean."""
        weight, speed = _speeds(self.it, self.ways)
        total = float(speed @ self.devices)
        pp = np.arange(2, min(self.layers, int(self.devices.sum())) + 1)
        mean = self.fluid / self.m
        ticks = pp**2 * float(weight.min()) / total + np.maximum(0, self.m - pp) * mean
        return int(pp[ticks * (1 - 1e-9) < self.most].max(initial=0))

    def _root(self) -> Partial:
        zero = np.zeros(1, dtype=np.int64)
        used, picked = np.zeros((1, len(self.devices)), dtype=np.int64), np.zeros((1, 0), dtype=np.int64)
        return Partial(zero + self.layers, used, zero, zero, zero, zero, zero, picked)

    def _longer(self, front: Partial, depth: int) -> Iterator[Partial]:
        """Every partial pipeline with one more stage, as far as its bound is below the target, some at a time.

        Raises ``OutOfTime``, also where there are too many before all are built.
        """
        stage = self.stages[depth - 1]
        low, high = (np.searchsorted(stage.j, front.at, side=side) for side in ("left", "right"))
        ends = np.cumsum(high - low)
        at = open_ones = 0
        while at < len(ends):
            look_at_clock(self.deadline)
            if open_ones > MOST_PARTIAL:
                raise OutOfTime
            upto = int(np.searchsorted(ends, (ends[at - 1] if at else 0) + JOINED_AT_ONCE, side="right"))
            upto = max(at + 1, upto)
            grown = self._joined(front, np.arange(at, upto), low, high, depth)
            yield grown
            open_ones, at = open_ones + np.count_nonzero(grown.at), upto

    def _joined(self, front: Partial, rows: Ints, low: Ints, high: Ints, depth: int) -> Partial:
        count = (high - low)[rows]
        old = np.repeat(rows, count)
        new = np.arange(len(old)) - np.repeat(np.cumsum(count) - count, count) + low[old]
        stage = self.stages[depth - 1]
        fits = front.used[old, stage.part[new]] + stage.size[new] <= self.devices[stage.part[new]]
        old, new = old[fits], new[fits]
        grown = self._grown(front, old, new, depth)
        tail = np.where(grown.at == 0, stage.tail[new], 0)
        return grown.take(np.flatnonzero(self._bound(grown, depth, tail) < self.most))

    def _grown(self, front: Partial, old: Ints, new: Ints, depth: int) -> Partial:
        stage = self.stages[depth - 1].take(new)
        used = front.used[old]
        used[np.arange(len(old)), stage.part] += stage.size
        alike = front.part[old] == stage.part
        hop = np.where(alike, np.maximum(front.same[old], stage.same), np.maximum(front.across[old], stage.across))
        work = front.work[old] + stage.ticks + (2 * hop if depth > 1 else 0)
        rounds = self.m - 1 - depth
        term = work + rounds * stage.ticks if rounds >= 0 else (self.m - 1) * np.maximum(stage.forward, stage.backward)
        worst = np.maximum(front.worst[old], np.maximum(term, self.m * stage.ticks - work))
        picked = np.concatenate([new[:, None], front.picked[old]], axis=1)
        return Partial(stage.i, used, work, worst, stage.same, stage.across, stage.part, picked)

    def _bound(self, it: Partial, depth: int, tail: Ints) -> Ints:
        """Ticks that no completion goes below."""
        rest, worst = self.counted.rest(depth, it.at, self.devices - it.used)
        further = np.where(worst == NOTHING, NOTHING, it.work + worst)
        return it.work + rest + np.maximum(it.worst, further) + tail

    def _run(self, whole: Partial) -> None:
        """Complete pipelines through the schedule; ``picked`` are their stages, the first first."""
        self.counts["pipelines"] += len(whole.at)
        pp = whole.picked.shape[1]
        if pp < 2:
            return
        for start in range(0, len(whole.at), LEAVES_AT_ONCE):
            picked = whole.picked[start : start + LEAVES_AT_ONCE]
            held = [self.stages[pp - s - 1].take(picked[:, s]) for s in range(pp)]
            forward, backward, tail = (
                np.stack([getattr(one, name) for one in held], axis=1) for name in ("forward", "backward", "tail")
            )
            hop = np.stack([_hop(one, other) for one, other in itertools.pairwise(held)], axis=1)
            steps = step_ticks(pp, 1, self.m, forward, backward, hop, tail)
            if self.leaves is not None:
                self.leaves(self.ways, held, steps)
                continue
            best = int(np.argmin(steps))
            if steps[best] < min(self.most, self.answer.counter_example_value):
                self._met(float(steps[best]), self._described(held, best))

    def _met(self, ticks: float, described: str) -> None:
        self.answer.counter_example, self.answer.counter_example_value = described, ticks
        self.answer.bound = min(self.answer.bound, ticks)

    def _described(self, held: list[Choices], k: int) -> str:
        return "; ".join(self.ways.described(int(one.way[k]), int(one.j[k] - one.i[k])) for one in held)


def _hop(one: Choices, other: Choices) -> Ints:
    same, across = np.maximum(one.same, other.same), np.maximum(one.across, other.across)
    return np.where(one.part == other.part, same, across)
