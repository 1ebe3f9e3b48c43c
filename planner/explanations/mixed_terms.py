"""Where the time of a mixed plan goes: every stage's seconds by cause, and what it waits for others.

    step = work of a stage by cause + recompute + optimizer + gradients and weights + waiting        of every stage

What all wait together for their watts is told apart, as ``power cap``.
The stage that works longest stands for the plan; what is left of the step is then the pipeline's bubble and hops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cost_models.mixed import Machine, MixedStage
from planner.explanations.differences import Pair
from planner.mixed.result import POWER_CAP, MixedPlan
from planner.result import Plan

WAITING = "pipeline bubble"


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of a step on the devices of one stage by cause, waiting included: they sum to the step."""

    stage: int
    part: int
    devices: int
    seconds: dict[str, float]

    @property
    def busy_s(self) -> float:
        """Seconds that it works."""
        return sum(value for name, value in self.seconds.items() if name not in (WAITING, POWER_CAP))


def stage_times(plan: MixedPlan, machine: Machine) -> tuple[StageTime, ...]:
    """The times of every stage; of a plan on one part alone the busiest rank's."""
    if plan.alone is not None:
        seconds = {term.name: term.seconds for term in plan.alone.time}
        used = [k for k, part in enumerate(plan.parts) if part.devices_used]
        return (StageTime(0, used[0], plan.alone.cluster.devices_used, seconds),)
    strategy, at, found = plan.strategy(), 0, []
    for s, stage in enumerate(strategy.stages):
        terms = _terms(machine, stage, at, plan.stages[s].tail_s, strategy.micro_batches)
        terms[POWER_CAP] = plan.waits_s
        terms[WAITING] = max(0.0, plan.step_s - sum(terms.values()))
        seconds = {name: value for name, value in terms.items() if value > 0}
        found.append(StageTime(s, stage.part, stage.devices, seconds))
        at += stage.layers
    return tuple(found)


def _terms(machine: Machine, stage: MixedStage, at: int, tail_s: float, m: int) -> dict[str, float]:
    """Seconds that a stage that begins with layer ``at`` works, by cause."""
    chain = machine.chain(stage)
    i, j, tick = np.array([at]), np.array([at + stage.layers]), machine.ticks.second
    terms = {name: m * float(chain.total(table, i, j)[0]) for name, table in chain.prices.parts.items()}
    again = 0
    for run in stage.runs:
        again += int(chain.recompute(run.choice.recompute, np.array([at]), np.array([at + run.count]))[0])
        at += run.count
    terms["recompute"] = m * again * tick
    terms["optimizer"] = float(chain.tail_parts(i, j)["update"][0]) * tick
    terms["gradients and weights"] = tail_s - terms["optimizer"]
    return terms


def busiest(times: tuple[StageTime, ...]) -> StageTime:
    """The stage that works longest; of equal ones the first."""
    return max(times, key=lambda it: it.busy_s)


def plan_seconds(plan: MixedPlan | Plan, machine: Machine) -> dict[str, float]:
    """Seconds by cause on the devices that work longest; they sum to the step."""
    if isinstance(plan, Plan):
        return {term.name: term.seconds for term in plan.time}
    return busiest(stage_times(plan, machine)).seconds


def fullest_classes(plan: MixedPlan | Plan) -> dict[str, float]:
    """Bytes by tensor class on the device with the least room left, as a part of what it may use."""
    alone = plan if isinstance(plan, Plan) else plan.alone
    stages = alone.memory if alone is not None else plan.stages
    return max(stages, key=lambda stage: stage.need_bytes / stage.limit_bytes).classes


def pairs_of(chosen: dict[str, float], other: dict[str, float]) -> tuple[Pair, ...]:
    """Both plans' quantities by name, 0 where one has none."""
    return tuple(Pair(n, chosen.get(n, 0.0), other.get(n, 0.0)) for n in dict.fromkeys([*chosen, *other]))
