"""Why a mixed cluster has no plan: memory, or limits, with the least that any plan takes of each and what would do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from cost_models.power_levels import LEVELS
from cost_models.workload import Training
from planner.errors import InfeasiblePlan, SearchGaveUp
from planner.infeasible.changes import CAP_GROWS, Change, limit_change
from planner.infeasible.refused_limits import Least, raised
from planner.limits import LIMITS, amount, training_steps
from planner.mixed.asked import QUANTITIES
from planner.mixed.result import MixedPlan
from planner.options import Options
from planner.stopping import no_plan_in_time
from topologies.units import quantity_text

if TYPE_CHECKING:
    from planner.search.mixed.space import MixedSpace

Solved = Callable[[Options], MixedPlan]


def no_plan(space: MixedSpace, options: Options, stopped: str, proved: bool) -> InfeasiblePlan | SearchGaveUp:
    """The error for a space where no plan was found, or none is."""
    parts, model, limits = space.machine.cluster.parts, space.machine.model, limits_of(options)
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
    weighed = [name for name in options.limits if LIMITS[name].quantity in QUANTITIES]
    for others in (True, False)[len(limits_of(options)) == 1 :]:
        for k, name in enumerate(weighed if not found else ()):
            share = (end - time.monotonic()) / (len(limits_of(options)) - k)
            try:
                found += _least(solved, options, workload, name, others, share)
            except InfeasiblePlan as unlimited:
                if not others:
                    return unlimited
    watts = list(_above_watts(solved, options, end))
    if not found and not watts:
        return error
    repairs = [it for least, plan in found if least.others is not False for it in _repairs(raised(least), plan)]
    repairs += [it for _, change, plan in watts for it in _repairs([change], plan)]
    ways = "; ".join(f"{it['change']} (step {quantity_text(it['step_s'], 's')})" for it in repairs)
    why = "; ".join([*(least.text() for least, _ in found), *(text for text, _, _ in watts)])
    said = f"no plan is within the limits: {why}" + (f". Any one of these gives a plan: {ways}" if ways else "")
    return InfeasiblePlan(said, repairs, error.space)


def _least(
    solved: Solved, options: Options, workload: Training, name: str, keeps_others: bool, time_limit_s: float
) -> list[tuple[Least, MixedPlan]]:
    """The least of one limited quantity with the plan that takes it; nothing where none was found in the time.

    Raises ``InfeasiblePlan`` where there is none.
    """
    kind, several = LIMITS[name], len(limits_of(options)) > 1
    others = {other: most for other, most in limits_of(options).items() if other != name} if keeps_others else {}
    asked = {"objective": kind.quantity, "slack": None, "time_limit_s": max(0.1, time_limit_s), **_limited(others)}
    try:
        plan = solved(options.model_copy(update=asked))
    except SearchGaveUp:
        return []
    times = (training_steps(options, workload) or 1) if kind.of_training else 1
    value, bound = times * plan.objective, times * plan.bound
    return [(Least(name, options.limits[name], value, bound, keeps_others if several else None), plan)]


def limits_of(options: Options) -> dict[str, float]:
    """Every limit of some options by its name, the one on the watts of all sites too."""
    cap = options.power_cap_w
    return {**options.limits, **({} if cap is None else {"site-power": cap})}


def _limited(limits: dict[str, float]) -> dict[str, Any]:
    """The fields of options with such limits."""
    inside = {name: most for name, most in limits.items() if name != "site-power"}
    return {"limits": inside, "power_cap_w": limits.get("site-power")}


def _above_watts(solved: Solved, options: Options, end: float) -> Iterator[tuple[str, Change, MixedPlan]]:
    """Of every limit on watts without which there is a plan what the quickest one draws, and the limit raised until
    there is one, with it; as far as the time goes."""
    limits = limits_of(options)
    watts = [name for name in limits if LIMITS[name].quantity in LEVELS]
    for k, name in enumerate(watts):
        left, most = (end - time.monotonic()) / (len(watts) - k), limits[name]
        asked = {"objective": "time", "slack": None, "time_limit_s": max(0.1, left / (1 + len(CAP_GROWS)))}
        free = _found(solved, options, asked, {other: limits[other] for other in limits if other != name})
        if free is None:
            continue
        drawn, others = free.level_watts[LIMITS[name].quantity], " within the other limits" if len(limits) > 1 else ""
        shown = amount(drawn, LIMITS[name]), amount(drawn - most, LIMITS[name]), amount(most, LIMITS[name])
        text = f"without {name} the quickest plan{others} draws {shown[0]}, {shown[1]} above the limit of {shown[2]}"
        to, plan = float(f"{1.005 * drawn:.3g}"), free
        for more in (float(f"{grown * most:.3g}") for grown in CAP_GROWS):
            found = _found(solved, options, asked, {**limits, name: more}) if most < more < to else None
            if found is not None:
                to, plan = more, found
                break
        yield text, limit_change(name, most, to), plan


def _found(solved: Solved, options: Options, asked: dict[str, Any], limits: dict[str, float]) -> MixedPlan | None:
    """The plan under other limits; ``None`` where there is none, or none was found in the time."""
    try:
        return solved(options.model_copy(update={**asked, **_limited(limits)}))
    except (InfeasiblePlan, SearchGaveUp):
        return None


def _repairs(changes: Iterable[Change], plan: MixedPlan) -> list[dict[str, Any]]:
    """The limit raised so far that the plan is within it."""
    return [
        {
            "change": change.text, "changes": [{"change": change.text, "knob": change.knob, "to": change.to}],
            "size_doublings": change.size, "step_s": plan.step_s, "tokens_per_s": plan.tokens_per_s,
        }
        for change in list(changes)[:1]
    ]  # fmt: skip
