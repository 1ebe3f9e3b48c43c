"""Every part of a mixed cluster by itself: the whole search of regular clusters, asked only for what is quicker."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from cost_models.calibration import calibrate
from cost_models.model_graph import ModelGraph
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.assemble import assemble
from planner.candidates import legal_space
from planner.errors import BadInput
from planner.infeasible.changes import states_too_large
from planner.options import Options
from planner.result import Plan
from planner.search.budget import Budget
from planner.search.deadline import left_s
from planner.search.engine import Report, Search
from planner.stopping import INTERRUPT, searched
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster

LEAST_S = 0.05


@dataclass(frozen=True)
class Alone:
    """The best plan on one part, where one beats what was asked for; every part's bound, in the objective's unit.

    ``interrupted`` says that Ctrl-C ended the search.
    """

    best: Plan | None
    bounds: tuple[float, ...]
    proved: bool
    interrupted: bool = False


class _Beating(Search):
    """A search for plans below ``ceiling``, in the objective's unit."""

    ceiling = np.inf

    @property
    def value(self) -> float:
        """The incumbent's objective, or what it must beat."""
        return min(self.ceiling, super().value)


def search_alone(
    model: ModelGraph, cluster: MixedCluster, workload: Training, options: Options, ceiling: float, budget: Budget,
    report: Report,
) -> Alone:  # fmt: skip
    """Search every part for a plan below ``ceiling``, in the objective's unit, within a budget.

    After Ctrl-C what is known so far; of parts that were not looked at the bound is 0.
    """
    best, bounds, proved, interrupted = None, [0.0] * len(cluster.parts), True, False
    for k, part in enumerate(cluster.parts):
        share, now = len(cluster.parts) - k, time.monotonic()
        source = cluster.source(part)
        own = options.model_copy(update={"tiers": cluster.tiers_of(part, options.tiers)})
        mine = Budget(now + max(LEAST_S, (budget.deadline - now) / share), budget.left_units / share)
        try:
            found, bounds[k], sure, interrupted = _one(model, part, source, workload, own, ceiling, mine, report)
        except KeyboardInterrupt:
            found, sure, interrupted = None, False, True
        budget.spend(mine.spent)
        proved = proved and sure
        if found is not None and found.objective < ceiling:
            best, ceiling = found, found.objective
        if interrupted:
            break
    return Alone(best, tuple(bounds), proved and not interrupted, interrupted)


def _one(
    model: ModelGraph, part: Cluster, source: str, workload: Training, options: Options, ceiling: float,
    budget: Budget, report: Report,
) -> tuple[Plan | None, float, bool, bool]:  # fmt: skip
    """The plan of one part below the ceiling, its bound, whether that is proved, whether Ctrl-C ended its search.

    ``source`` is what the plan says that reads the part again.

    Raises ``KeyboardInterrupt`` for Ctrl-C before there is a plan.
    """
    options = options.model_copy(update={"time_limit_s": max(LEAST_S, left_s(budget.deadline)), "alternatives": 0})
    try:
        space = legal_space(model, part, workload, options.pins)
    except BadInput:
        return None, ceiling, True, False
    if states_too_large(space, part.memory_bytes * (1 - options.headroom)):
        return None, ceiling, True, False
    search = _Beating(space, options, calibrate(part, workload.stack), Ticks.of(model, part, workload), report, budget)
    search.ceiling = ceiling
    found = searched(search)
    if found.best is None:
        return None, min(ceiling, found.bound), found.proved, False
    found = dataclasses.replace(found, bound=min(found.bound, found.best.found.value))
    return assemble(search, found, [], source=source), found.bound, found.proved, found.stopped == INTERRUPT
