"""Objectives in order as a saved plan claims them: what each claim is about, and whether the claims fit together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.limits import training_steps
from planner.objectives import minimised
from planner.options import Options
from planner.result import Plan

if TYPE_CHECKING:
    from planner.mixed.result import MixedPlan

RELATIVE = 1e-9


@dataclass(frozen=True)
class Claim:
    """No plan that the options allow has less than ``bound`` of their one objective."""

    options: Options
    bound: float


def claims_of(plan: Plan | MixedPlan, options: Options) -> list[Claim]:
    """Every bound that the plan claims, each with the limits that the objectives before it put on a step.

    ``options`` are per step (:func:`planner.limits.per_step`).
    """
    if not plan.proof.stages:
        return [Claim(options, plan.bound)]
    claims, limits = [], dict(options.limits)
    for stage in plan.proof.stages:
        asked = options.model_copy(update={"objective": stage.objective, "slack": None, "limits": dict(limits)})
        claims.append(Claim(asked, stage.bound))
        if stage.at_most is not None:
            name = f"step-{stage.minimises}"
            limits[name] = min(stage.at_most, limits.get(name, math.inf))
    return claims


def wrong_stages(plan: Plan, options: Options) -> Iterator[str]:
    """What contradicts itself between the stages, the options and the plan; and the training run's sums."""
    yield from _training(plan, options)
    step = {"time": plan.step_s, "energy": plan.joules_per_step, "money": plan.usd_per_step or 0.0}
    step["goodput"] = plan.step_s if plan.goodput is None else plan.goodput.effective_step_s
    yield from wrong_in_order(plan, options, step)


def wrong_in_order(plan: Plan | MixedPlan, options: Options, step: dict[str, float]) -> Iterator[str]:
    """What contradicts itself between the stages, the options and a plan that takes ``step`` of every quantity."""
    stages, names = plan.proof.stages, options.objective.split(",")
    if len(names) == 1 and not stages:
        return
    if [stage.objective for stage in stages] != names:
        yield f"the proof has stages {[stage.objective for stage in stages]}, but the options ask for {names}"
        return
    for k, stage in enumerate(stages):
        right = None if k == len(stages) - 1 else (1 + (options.slack or 0.0)) * stage.value
        if stage.minimises != minimised(stage.objective):
            yield f"stage {k + 1} minimises {stage.minimises}, but its objective is {stage.objective}"
            continue
        if (right is None) != (stage.at_most is None) or not _same(stage.at_most or 0.0, right or 0.0):
            yield f"stage {k + 1} allows {stage.at_most}, but (1 + slack) its value comes to {right}"
        if right is not None and (mine := step[stage.minimises]) > right * (1 + RELATIVE):
            yield f"the plan takes {mine:.12g} of {stage.minimises}, above {right:.12g} of stage {k + 1}"
        if stage.bound > stage.value * (1 + RELATIVE) or (stage.proved and not _same(stage.bound, stage.value)):
            yield f"stage {k + 1} has bound {stage.bound:.12g} and value {stage.value:.12g}, proved: {stage.proved}"
    if not (_same(stages[-1].value, plan.objective) and _same(stages[-1].bound, plan.bound)):
        yield "the last stage's value and bound are not the plan's objective and bound"
    if plan.status == "optimal" and not all(stage.proved for stage in stages):
        yield "status is 'optimal', but not every stage is proved"


def _training(plan: Plan, options: Options) -> Iterator[str]:
    run, steps = plan.training_run, training_steps(options, plan.workload)
    if run is None or steps is None:
        return
    right = {
        "steps": float(steps), "seconds": steps * plan.step_s, "joules": steps * plan.joules_per_step,
        "usd": steps * (plan.usd_per_step or 0.0),
    }  # fmt: skip
    wrong = [name for name, value in right.items() if not _same(float(getattr(run, name) or 0.0), value)]
    if wrong:
        yield f"training_run differs in {', '.join(wrong)}; it comes to {right}"


def _same(stated: float, right: float) -> bool:
    return math.isclose(stated, right, rel_tol=RELATIVE, abs_tol=1e-12)
