"""When nothing fits: the arithmetic of the leanest plan, and the smallest changes that make something fit.

Every repair is tried before it is offered: a search with that change found a plan (:mod:`planner.infeasible.repairs`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cost_models.calibration import Calibration
from cost_models.power import static_power
from cost_models.ticks import Ticks
from planner.apart import asked, too_close_text
from planner.candidates import Space
from planner.errors import InfeasiblePlan
from planner.infeasible.changes import (
    Change,
    Problem,
    headroom_changes,
    higher_caps,
    limit_change,
    memory_changes,
    more_hosts,
    near_devices,
    states_bytes,
    unpinned,
)
from planner.infeasible.leanest import Lean, complete_rows, fewest_devices, leanest
from planner.infeasible.refused_hosts import hosts_rule_out, hosts_text
from planner.infeasible.repairs import Repair, minimal_repairs
from planner.limits import LIMITS, amount
from planner.options import Options
from planner.pins import contradicting, has_strategy
from planner.search.deadline import in_time
from topologies.units import quantity_text

REPORT_SECONDS = 0.1
"""Kept back before the time limit, so that the repairs that were found can be told."""


@dataclass(frozen=True)
class Reason:
    """Why there is no plan, with the arithmetic; the changes that may help; the leanest plan where memory is why."""

    text: str
    changes: list[Change]
    lean: Lean | None = None


def infeasible(
    space: Space, options: Options, fits: Calibration, ticks: Ticks, deadline: float = math.inf, repairs: bool = True
) -> InfeasiblePlan:
    """The error for a space without a plan, with its repairs, the smallest first; without them past ``deadline``.

    ``repairs`` is false where the reason alone is wanted, which takes no searches.
    """
    options = options.model_copy(update={"objective": options.objective.split(",")[0], "slack": None})
    problem, found = Problem(space, options, fits, ticks, deadline - REPORT_SECONDS), []
    if not in_time(deadline, lambda: found.append(_explained(problem, repairs))):
        message = f"no plan fits; the time limit of {options.time_limit_s:g} s left no time to say what would: raise it"
        return InfeasiblePlan(message, [], space.described())
    return found[0]


def _explained(problem: Problem, wanted: bool) -> InfeasiblePlan:
    reason = reason_of(problem)
    changes = reason.changes if wanted else []
    repairs, every = minimal_repairs(problem, changes)
    lean = None if reason.lean is None else {**reason.lean.as_json(), "limit_bytes": problem.limit}
    message = reason.text + _said(repairs, changes, every)
    return InfeasiblePlan(message, [repair.as_json() for repair in repairs], problem.space.described(), lean)


def _said(repairs: list[Repair], changes: list[Change], every: bool) -> str:
    """The repairs in words, each with what the plan found with it needs and takes; or what was to be tried.

    ``every`` says whether all was.
    """
    if repairs:
        return f". Any one of these gives a plan: {'; '.join(map(_repair_text, repairs))}"
    tried = "; ".join(change.text for change in changes)
    ended = "" if every else "the time for them ended before all were tried: "
    none = f". In short searches neither one change nor two together gave a plan, of: {ended}{tried}"
    return none if changes else ""


def _repair_text(it: Repair) -> str:
    return f"{it.text} ({_gb(it.need_bytes)} of {_gb(it.limit_bytes)} GB, step {quantity_text(it.step_s, 's')})"


def reason_of(problem: Problem) -> Reason:
    """Why a space without a plan has none."""
    space, options = problem.space, problem.options
    if not has_strategy(space):
        return _contradiction(problem)
    if "schedule" in space.pins:
        return Reason(
            _schedule_text(problem), [*memory_changes(problem, problem.limit), *_raised(problem, options.limits)]
        )
    if space.cluster.tiers:
        return Reason(_tiers_text(problem), memory_changes(problem, problem.limit))
    if states_bytes(space) > problem.limit:
        return Reason(_states_text(problem), memory_changes(problem, states_bytes(space)))
    lean = leanest(problem)
    if lean is not None and lean.need_bytes <= problem.limit and asked(options):
        return _too_close(problem)
    if lean is not None and hosts_rule_out(problem, lean):
        return Reason(hosts_text(problem, lean), memory_changes(problem, lean.need_bytes), lean)
    fits = lean is not None and lean.need_bytes <= problem.limit
    if fits and (options.limits or options.power_cap_w is not None):
        return _beyond_limits(problem)
    need = problem.limit if lean is None else lean.need_bytes
    return Reason(_memory_text(problem, lean), memory_changes(problem, need), lean)


def _too_close(problem: Problem) -> Reason:
    """Plans fit the memory, but none also keeps its replicas as far apart as was asked."""
    space, options = problem.space, problem.options
    text = too_close_text(space.cluster, options, space.pins)
    doubled = [change for change in more_hosts(problem, problem.limit) if change.size >= 1]
    return Reason(text, [*unpinned(problem), *_raised(problem, asked(options)), *doubled])


def _raised(problem: Problem, limits: Iterable[str]) -> list[Change]:
    """Each of some limits twice, four and eight times as high."""
    now = problem.options.limits
    return [limit_change(name, now[name], now[name] * factor) for name in limits for factor in (2, 4, 8)]


def _states_text(problem: Problem) -> str:
    space = problem.space
    each = states_bytes(space) * space.cluster.devices / space.model.parameters
    return (
        f"no plan fits: weights, gradients and optimiser of {space.model.parameters:,} parameters at {each:g} bytes, "
        f"spread evenly over {space.cluster.devices} devices, are {_gb(states_bytes(space))} GB each, but "
        f"{_left_text(problem)}"
    )


def _schedule_text(problem: Problem) -> str:
    """Under a schedule of its own memory the leanest plan of 1F1B says nothing."""
    space, limits = problem.space, problem.options.limits
    within = f" within {', '.join(f'{name} {amount(limits[name], LIMITS[name])}' for name in limits)}" if limits else ""
    return (
        f"no plan fits under schedule={space.pins['schedule']}{within}: weights, gradients and optimiser are "
        f"{_gb(states_bytes(space))} GB for each of {space.cluster.devices} devices, activations come on top; "
        f"{_left_text(problem)}"
    )


def _tiers_text(problem: Problem) -> str:
    """What must find room, device memory and tiers together, and how much there is."""
    space, cluster = problem.space, problem.space.cluster
    tiers = ", ".join(
        f"{tier.name} {_gb(tier.capacity_bytes * (tier.pools or cluster.hosts) / cluster.devices)} GB"
        for tier in cluster.tiers
    )
    return (
        f"no plan fits, offloading included: weights, gradients and optimiser are {_gb(states_bytes(space))} GB for "
        f"each of {cluster.devices} devices, activations come on top; {_left_text(problem)}, and memory tiers hold for "
        f"each device: {tiers}"
    )


def _contradiction(problem: Problem) -> Reason:
    """No strategy obeys the pins, whatever it costs."""
    space = problem.space
    wrong = contradicting(space)
    pins = ", ".join(f"{name}={value}" for name, value in wrong.items())
    message = (
        f"no plan: no legal strategy has {pins} on the {space.cluster.devices} devices of {space.cluster.name!r} "
        f"({' x '.join(map(str, space.cluster.group_capacity))} by level, {space.cluster.devices_per_host} a host) "
        f"with {space.model.layers} layers and a global batch of {space.workload.global_batch}"
    )
    nearest = near_devices(problem) if "devices" in wrong else []
    return Reason(message, [*nearest, *unpinned(problem, wrong)])


def _memory_text(problem: Problem, lean: Lean | None) -> str:
    left = _left_text(problem)
    if lean is None:
        states = _gb(states_bytes(problem.space))
        return f"no plan fits: states alone are {states} GB a device, activations come on top; {left}"
    parts = sorted(
        ((size, name) for name, size in lean.classes.items() if size > 0.005 * lean.need_bytes), reverse=True
    )
    sums = " + ".join(f"{name} {_gb(size)}" for size, name in parts)
    return f"no plan fits: the leanest ({lean.degrees}) needs {_gb(lean.need_bytes)} GB a device ({sums}), but {left}"


def _left_text(problem: Problem) -> str:
    cluster = problem.space.cluster
    return (
        f"{cluster.accelerator.name} leaves {_gb(problem.limit)} GB "
        f"({_gb(cluster.memory_bytes)} GB less {problem.options.headroom:.0%} headroom)"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.3g}"


def _beyond_limits(problem: Problem) -> Reason:
    """Plans fit the memory, but none the other limits."""
    from planner.infeasible.refused_limits import limits_too_low

    options, idle = problem.options, _least_idle_w(problem)
    if options.power_cap_w is not None and (options.power_cap_w <= idle or not options.limits):
        return _cap_too_low(problem, idle)
    message, changes, too_long = limits_too_low(problem)
    changes += more_hosts(problem, problem.limit * too_long) if too_long > 1 else []
    return Reason(message, [*changes, *headroom_changes(problem), *unpinned(problem)])


def _least_idle_w(problem: Problem) -> float:
    """Watts that the smallest plan which may fit draws idling, at the facility's meter."""
    rows = complete_rows(problem, fewest_devices(problem))
    return float(static_power(rows, problem.space.cluster).facility_w.min())


def _cap_too_low(problem: Problem, idle: float) -> Reason:
    """Plans fit the memory, but idle above the power cap."""
    space, cap = problem.space, float(problem.options.power_cap_w or 0.0)
    asked, least = quantity_text(cap, "W"), quantity_text(idle, "W")
    message = (
        f"no plan: the power cap is {asked}, but the smallest plan that fits draws {least} at {space.cluster.name!r} "
        "when idle, cooling included"
    )
    return Reason(message, [*higher_caps(problem, idle), *headroom_changes(problem)])
