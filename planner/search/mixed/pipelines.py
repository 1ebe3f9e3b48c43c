"""Whole pipelines over a table of stages: which way each stage runs, how long the step really takes, what it spends."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.mixed import MixedStage, MixedStrategy
from cost_models.pipeline import step_ticks
from cost_models.strategy import LayerChoice, LayerRun
from planner.search.mixed.paths import least_steps
from planner.search.mixed.stages import Slots, Way
from planner.search.mixed.table import QUICKEST, StageTable
from planner.search.mixed.waiting import waited
from planner.search.mixed.weighing import Weighing

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
TOGETHER = 64
"""Pipelines that run through the schedule at once: more would leave a core's cache."""
Chosen = list[tuple[int, int, int]]
"""Stages of a pipeline, first one first: slot, and layers ``i`` to ``j - 1``."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of one table: the way and the layers ``i`` to ``j - 1`` of every stage, first stage first.

    ``recompute`` is that of every stage by :meth:`StageTable.name`, or ``QUICKEST``, as it is of all
    where none is said.
    """

    way: Ints
    i: Ints
    j: Ints
    recompute: Ints | None = None

    @property
    def stages(self) -> int:
        """Stages."""
        return len(self.way)


@dataclass(frozen=True)
class Durations:
    """Ticks of a pipeline: ``[pp]``, ``hop`` ``[pp - 1]``, and of its step."""

    forward: Ints
    backward: Ints
    tail: Ints
    hop: Ints
    step: int


def quickest(
    table: StageTable, slots: Slots, several: list[Chosen], run: list[tuple[Way, ...]] | None = None,
    below: float = np.inf,
) -> list[tuple[float, Pipeline]]:  # fmt: skip
    """Of each list of stages the value and the pipeline with the quickest way of every slot.

    The first stage's tail counts beside its time, once or as often as there are micro-batches: the quicker of both.
    Where joules count, that is said of all stages and their joules, and ``run`` are ways that are tried too. A value of
    ``below`` or more may be less than what it is.
    """
    learn(table, slots, several)
    both = [{tuple(ways(table, slots, it, rounds)) for rounds in (1, table.micro_batches)} for it in several]
    for some, more in zip(both, run or (), strict=False):
        some.add(more)
    found = [_pipeline(way, it) for some, it in zip(both, several, strict=True) for way in sorted(some)]
    each = iter(zip(values(table, slots.weighing, found, below).tolist(), found, strict=True))
    return [min(itertools.islice(each, len(some)), key=lambda it: it[0]) for some in both]


def with_other_ends(
    table: StageTable, slots: Slots, stages: Chosen, it: Pipeline, value: float
) -> tuple[tuple[float, Pipeline], int]:  # fmt: skip
    """The value and the best of a pipeline with every way to run its first two stages, whose tails may count; how
    many there are. Its own has a ``value``."""
    below = value + 1.0
    flight = table.flight(it.stages - np.arange(it.stages)).tolist()
    segment = table.segments.index[it.i, it.j].tolist()
    each = [slots.ends(slot, f, g) for (slot, _, _), f, g in zip(stages[:2], flight, segment, strict=False)]
    recompute = [QUICKEST] * it.stages if it.recompute is None else it.recompute.tolist()
    rest = list(zip(it.way.tolist(), recompute, strict=True))[2:]
    found = [_pipeline((*ends, *rest), stages) for ends in itertools.product(*each)]
    each_value = values(table, slots.weighing, found, below).tolist()
    return min(zip(each_value, found, strict=True), key=lambda it: it[0]), len(found)


def _pipeline(way: tuple[Way, ...], stages: Chosen) -> Pipeline:
    (ways, recompute), (_, i, j) = np.array(way).T, np.array(stages).T
    return Pipeline(ways, i, j, recompute)


def learn(table: StageTable, slots: Slots, several: list[Chosen]) -> None:
    """Price all stages of several pipelines together."""
    if several:
        slot, i, j = np.concatenate([np.array(it).T for it in several], axis=1)
        depth = np.concatenate([np.arange(len(it), 0, -1) for it in several])
        slots.learn(slot, table.flight(depth), table.segments.index[i, j])


def ways(table: StageTable, slots: Slots, stages: Chosen, rounds: int) -> list[Way]:
    """The quickest way of every stage, of the first one with ``rounds`` times its time beside its tail.

    Where joules count they do beside ``rounds`` times the time of any stage.
    """
    flight = table.flight(len(stages) - np.arange(len(stages))).tolist()
    segment = [int(table.segments.index[i, j]) for _, i, j in stages]
    each = enumerate(zip(stages, flight, segment, strict=True))
    if slots.weighing.counts:
        return [slots.thriftiest(slot, f, g, rounds, first=s == 0) for s, ((slot, _, _), f, g) in each]
    return [slots.quickest(slot, f, g, rounds if s == 0 else 0) for s, ((slot, _, _), f, g) in each]


def durations(table: StageTable, it: Pipeline) -> Durations:
    """Ticks of every stage and hop, and of the step by the schedule's recurrence."""
    forward, backward, tail, _, _ = _costs(table, it)[0]
    hop = hops(table, it.way)
    step = step_ticks(it.stages, 1, table.micro_batches, forward[None], backward[None], hop[None], tail[None])
    return Durations(forward, backward, tail, hop, int(step[0]))


def joules(table: StageTable, it: Pipeline) -> float:
    """Joules above idle that a step takes of all stages, at the meter."""
    return float(_costs(table, it)[1].sum())


def values(table: StageTable, weighing: Weighing, several: list[Pipeline], below: float = np.inf) -> Floats:
    """What is minimised of several pipelines, in ticks; infinite where they are above a limit.

    Where joules do not count one of ``below`` or more may be less than what it is.
    """
    step = steps(table, several, np.inf if weighing.counts else below).astype(np.float64)
    if not weighing.counts:
        return step
    spent = np.array([weighing.spent(_costs(table, it)[1]).sum() for it in several])
    if weighing.waits:
        step = np.maximum(step, [lasting(table, it, weighing.site) for it in several])
    return weighing.value(step, spent)


def lasting(table: StageTable, it: Pipeline, site: float) -> float:
    """Ticks that the step of a pipeline waits at least for its watts, those of all sites ``site`` a joule."""
    return waited(table, it.way, _costs(table, it)[1], site)


def steps(table: StageTable, several: list[Pipeline], below: float = np.inf) -> Ints:
    """Ticks of the steps of several pipelines; those of equally many stages run ``TOGETHER``.

    Those that last ``below`` ticks or more by :func:`least_steps` are not run: what that says stands for them.
    """
    found, length = np.zeros(len(several), dtype=np.int64), np.array([it.stages for it in several])
    for some in (np.flatnonzero(length == pp) for pp in np.unique(length)):
        pp, m = int(length[some[0]]), table.micro_batches
        costs = np.stack([_costs(table, several[k])[0][:3] for k in some])
        hop = np.stack([hops(table, several[k].way) for k in some])
        if np.isfinite(below):
            time = (costs[:, 0] + costs[:, 1]).astype(np.float64)
            found[some] = np.floor(least_steps(m, time, hop.astype(np.float64), costs[:, 2, 0].astype(np.float64)))
        open_ones = np.flatnonzero(found[some] < below)
        for mine in (open_ones[k : k + TOGETHER] for k in range(0, len(open_ones), TOGETHER)):
            forward, backward, tail = (np.ascontiguousarray(costs[mine, k]) for k in range(3))
            found[some[mine]] = step_ticks(pp, 1, m, forward, backward, hop[mine], tail)
    return found


def hops(table: StageTable, way: Ints) -> Ints:
    """Ticks of the hop after every stage but the last: its slower side."""
    one, other = way[:-1], way[1:]
    alike = table.part[one] == table.part[other]
    same = np.maximum(table.same[one], table.same[other])
    return np.where(alike, same, np.maximum(table.across[one], table.across[other]))


def strategy_of(table: StageTable, it: Pipeline) -> MixedStrategy:
    """The strategy that a pipeline is."""
    *_, full, selective = _costs(table, it)[0]
    stages = []
    for s in range(it.stages):
        tp, cp, dp, ep, zero, micro = table.setup[it.way[s]].tolist()
        counts = int(full[s]), int(selective[s]), int(it.j[s] - it.i[s] - full[s] - selective[s])
        runs = [LayerRun(n, LayerChoice(k)) for n, k in zip(counts, ("full", "selective", "none"), strict=True) if n]
        part = int(table.part[it.way[s]])
        offloads = table.space.offloads(part, int(table.offload[it.way[s]]))
        clock = float(table.clock[it.way[s]])
        stages.append(MixedStage(part, tp, cp, dp, ep, zero, micro, tuple(runs), offloads, clock))
    return MixedStrategy(tuple(stages), table.micro_batches)


def _costs(table: StageTable, it: Pipeline) -> tuple[Ints, Floats]:
    recompute = np.full(it.stages, QUICKEST) if it.recompute is None else it.recompute
    return table.some(it.way, it.stages - np.arange(it.stages), it.i, it.j, recompute)
