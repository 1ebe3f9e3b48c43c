"""Why a mixed cluster has no plan: memory, or limits, with the least that any plan takes of each and what would do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cost_models.workload import Training
from planner.errors import InfeasiblePlan, SearchGaveUp
from planner.infeasible.refused_limits import Least, raised
from planner.limits import LIMITS, amount, training_steps
from planner.mixed.result import MixedPlan
from planner.options import Options
from planner.stopping import no_plan_in_time
from topologies.units import quantity_text

if TYPE_CHECKING:
    from planner.search.mixed.space import MixedSpace

Solved = Callable[[Options], MixedPlan]


def no_plan(space: MixedSpace, options: Options, stopped: str, proved: bool) -> InfeasiblePlan | SearchGaveUp:
    """The error for a space where no plan was found, or none is."""
    parts, model, limits = space.machine.cluster.parts, space.machine.model, options.limits
    held = sum(limit * part.devices for limit, part in zip(space.limits, parts, strict=True))
    workload = space.machine.workload
    each = workload.recipe.weight_bytes + workload.recipe.gradient_bytes + workload.optimizer_bytes
    if not proved:
        return no_plan_in_time(options, stopped, f"on {space.machine.cluster.name!r}")
    if limits:
        named = ", ".join(f"{name}={amount(most, LIMITS[name])}" for name, most in limits.items())
        return InfeasiblePlan(
            f"no plan on {space.machine.cluster.name!r} keeps the limits {named} and fits; raise them, or leave them "
            "out to see what the best plan takes",
            space=space.described(),
        )
    beside = f", with what goes to {', '.join(options.tiers)}" if options.tiers else ""
    more = "more of these tiers," if options.tiers else "memory tiers (--tiers dram),"
    return InfeasiblePlan(
        f"no plan fits {space.machine.cluster.name!r}: states of {model.name!r} are "
        f"{each * model.parameters / 1e9:,.0f} GB, all devices leave {held / 1e9:,.0f} GB, and with activations and "
        f"whole layers a stage no pipeline and no part alone fits{beside}; take more hosts, a shorter sequence, "
        f"{more} or loosen pins and headroom",
        space=space.described(),
    )


def above_limits(error: InfeasiblePlan, solved: Solved, options: Options, workload: Training) -> InfeasiblePlan:
    """The error with the least that plans take of every limited quantity, and each limit raised to it as a repair.

    ``solved`` plans under other options. A limit's least is asked for within the others, and where these cannot be
    kept without it either, by itself. ``error`` as it is where nothing was found in a time limit more.
    """
    end, found = time.monotonic() + options.time_limit_s, list[tuple[Least, MixedPlan]]()
    for others in (True, False)[len(options.limits) == 1 :]:
        for k, name in enumerate(options.limits if not found else ()):
            share = (end - time.monotonic()) / (len(options.limits) - k)
            try:
                found += _least(solved, options, workload, name, others, share)
            except InfeasiblePlan as unlimited:
                if not others:
                    return unlimited
    if not found:
        return error
    repairs = [it for least, plan in found if least.others is not False for it in _repairs(least, plan)]
    ways = "; ".join(f"{it['change']} (step {quantity_text(it['step_s'], 's')})" for it in repairs)
    why = "; ".join(least.text() for least, _ in found)
    said = f"no plan is within the limits: {why}" + (f". Any one of these gives a plan: {ways}" if ways else "")
    return InfeasiblePlan(said, repairs, error.space)


def _least(
    solved: Solved, options: Options, workload: Training, name: str, keeps_others: bool, time_limit_s: float
) -> list[tuple[Least, MixedPlan]]:
    """The least of one limited quantity with the plan that takes it; nothing where none was found in the time.

    Raises ``InfeasiblePlan`` where there is none.
    """
    kind, several = LIMITS[name], len(options.limits) > 1
    others = {other: most for other, most in options.limits.items() if other != name} if keeps_others else {}
    asked = {"objective": kind.quantity, "slack": None, "limits": others, "time_limit_s": max(0.1, time_limit_s)}
    try:
        plan = solved(options.model_copy(update=asked))
    except SearchGaveUp:
        return []
    times = (training_steps(options, workload) or 1) if kind.of_training else 1
    value, bound = times * plan.objective, times * plan.bound
    return [(Least(name, options.limits[name], value, bound, keeps_others if several else None), plan)]


def _repairs(least: Least, plan: MixedPlan) -> list[dict[str, Any]]:
    """The limit raised so far that the plan is within it."""
    return [
        {
            "change": change.text, "changes": [{"change": change.text, "knob": change.knob, "to": change.to}],
            "size_doublings": change.size, "step_s": plan.step_s, "tokens_per_s": plan.tokens_per_s,
        }
        for change in list(raised(least))[:1]
    ]  # fmt: skip
