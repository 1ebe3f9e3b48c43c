"""Time, rent and energy in order on a mixed cluster: the best of the first, then that of the second within the slack.

Each is a search of its own with one more limit, as on one kind of device (:mod:`planner.stages`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cost_models.workload import Training
from planner.errors import SearchGaveUp
from planner.limits import per_step
from planner.mixed.result import MixedPlan
from planner.objectives import minimised
from planner.options import Options
from planner.result import ProvedStage
from planner.stages import limited
from planner.stopping import INTERRUPT, interrupted

PIPELINE = (
    "advisory", "step_s", "step_interval_s", "tokens_per_s", "usd_per_step", "watts", "level_watts",
    "joules_per_step", "micro_batches", "stages", "alone",
)  # fmt: skip
"""What a record says of the pipeline itself, whatever it was asked for."""


def planned_in_order(solved: Callable[[Options], MixedPlan], options: Options, workload: Training) -> MixedPlan:
    """The plan of the last objective, with every one's proof; ``solved`` plans for one.

    What is left of the limits on time and work is shared alike. The plan for the objectives before it, with a note,
    where no plan for one was found in its share, or by Ctrl-C. Raises what ``solved`` raises for the first.
    """
    names, plan, stages = options.objective.split(","), None, list[ProvedStage]()
    end, asked = time.monotonic() + options.time_limit_s, per_step(options, workload)
    for k, name in enumerate(names):
        mine = _share(asked, name, end - time.monotonic(), len(names) - k)
        try:
            plan = _no_worse(solved(mine), plan)
        except (SearchGaveUp, KeyboardInterrupt) as error:
            if plan is None:
                raise
            return _without(plan, name, str(error) or INTERRUPT)
        if interrupted(plan.notes) and name != names[-1]:
            return _without(plan, names[k + 1], INTERRUPT)
        most = None if name == names[-1] else (1 + (options.slack or 0.0)) * plan.objective
        stages.append(_record(plan, name, most))
        asked = asked if most is None else limited(asked, minimised(name), most)
    return _all_of(plan, stages, options)


def _no_worse(found: MixedPlan, before: MixedPlan | None) -> MixedPlan:
    """What was found for an objective, or with its bound the pipeline found for the one before, if that is better.

    It may be where the search was cut short: it began with nothing.
    """
    if before is None or before.alone is not None:
        return found
    taken = {"time": before.step_s, "money": before.usd_per_step, "energy": before.joules_per_step}
    value = taken[found.objective_name]
    if value is None or value >= found.objective:
        return found
    bounds = [part.alone_bound for part in found.parts]
    parts = [part.model_copy(update={"alone_bound": it}) for part, it in zip(before.parts, bounds, strict=True)]
    kept = {name: getattr(before, name) for name in PIPELINE}
    gap = max(0.0, (value - found.bound) / value)
    return found.model_copy(update={**kept, "objective": value, "gap": gap, "parts": parts})


def _share(options: Options, name: str, left_s: float, among: int) -> Options:
    """The options of one objective, with its share of what is left."""
    units = options.deterministic_limit
    return options.model_copy(
        update={
            "objective": name, "slack": None, "time_limit_s": max(0.1, left_s / among),
            "deterministic_limit": units and units / len(options.objective.split(",")),
        }
    )  # fmt: skip


def _record(plan: MixedPlan, name: str, most: float | None) -> ProvedStage:
    return ProvedStage(
        objective=name, minimises=minimised(name), value=plan.objective, bound=plan.bound,
        proved=plan.status == "optimal", at_most=most, rows=plan.proof.rows, search_s=plan.search_s,
    )  # fmt: skip


def _without(plan: MixedPlan, name: str, why: str) -> MixedPlan:
    """A plan for the objectives before ``name`` alone."""
    note = f"not planned for {name} ({why}): this is the best plan found for {plan.objective_name} alone"
    return plan.model_copy(update={"notes": [*plan.notes, note]})


def _all_of(plan: MixedPlan, stages: list[ProvedStage], options: Options) -> MixedPlan:
    proved = all(stage.proved for stage in stages)
    return plan.model_copy(
        update={
            "options": options.model_dump(mode="json"), "status": "optimal" if proved else "feasible",
            "search_s": sum(stage.search_s for stage in stages),
            "proof": plan.proof.model_copy(update={"stages": stages}),
        }
    )  # fmt: skip
