"""The best plan that launch targets can express: a search under each set of pins that makes them able to.

Every search is proved by itself; the plan's proof is that of its own, whose space names its pins, and a note says
what the others found.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from cost_models.model_graph import ModelGraph
from cost_models.workload import Training
from planner.errors import BadInput, InfeasiblePlan, PlannerError, SearchGaveUp, Unsupported
from planner.export import export
from planner.export.within import Pins, pins_within_all
from planner.result import Plan

Search = Callable[[Pins, float], Plan]
"""The best plan under these pins, within so many seconds."""


@dataclass(frozen=True)
class Tried:
    """One search: its own pins, and what it found; ``error`` says why that is nothing, or nothing that is of use."""

    pins: Pins
    plan: Plan | None
    error: PlannerError | None

    @property
    def usable(self) -> bool:
        """Whether every target can express the plan."""
        return self.error is None

    def __str__(self) -> str:
        if self.plan is not None:
            so_far = "" if self.plan.status == "optimal" else " so far"
            return f"{_text(self.pins)} {self.plan.objective:.6g}{so_far}{'' if self.usable else ' (refused)'}"
        return f"{_text(self.pins)} {'does not fit' if isinstance(self.error, InfeasiblePlan) else 'is not legal'}"


def best_expressible(
    targets: tuple[str, ...], model: ModelGraph, workload: Training, pins: Pins, search: Search, seconds: float
) -> Plan:
    """The best plan that every target can express, with a note on the searches it is the best of.

    Raises ``BadInput`` where the pins rule out all of them, ``InfeasiblePlan`` where nothing fits, ``Unsupported``
    where what was found can after all not be expressed.
    """
    ways = pins_within_all(targets, model, workload, pins)
    if not ways:
        raise BadInput(
            f"no plan with the pins {_text(pins)} can be expressed by {', '.join(targets)}; "
            "take a pin away, or a target"
        )
    deadline = time.monotonic() + seconds
    tried = [_tried(way, pins, targets, search, (deadline - time.monotonic()) / (len(ways) - i))
             for i, way in enumerate(ways)]  # fmt: skip
    found = [one for one in tried if one.usable]
    if not found:
        raise _nothing(targets, tried)
    best = min(found, key=lambda one: one.plan.objective)
    return best.plan.model_copy(update={"notes": [*best.plan.notes, _note(targets, tried, best.plan)]})


def _note(targets: tuple[str, ...], tried: list[Tried], best: Plan) -> str:
    """What was searched: the pins that all searches share, and for each its own with what it found."""
    shared = dict(set.intersection(*(set(one.pins.items()) for one in tried)))
    own = [dataclasses.replace(one, pins={k: v for k, v in one.pins.items() if k not in shared}) for one in tried]
    with_pins = f" with {_text(dict(sorted(shared.items())))}" if shared else ""
    doubt = "; a better one may be among those that were refused or cut short" if _any_open(tried, best) else ""
    said = "; ".join(map(str, own))
    return f"the best that {', '.join(targets)} can express{with_pins}, of {len(tried)} searches: {said}{doubt}"


def _any_open(tried: list[Tried], best: Plan) -> bool:
    """Whether some search could still hide a better plan: its bound is lower, or it gave up without one."""
    lower = [one for one in tried if one.plan is not None and one.plan is not best and one.plan.bound < best.objective]
    return bool(lower) or any(isinstance(one.error, SearchGaveUp) for one in tried)


def _tried(way: Pins, pins: Pins, targets: tuple[str, ...], search: Search, seconds: float) -> Tried:
    own = {name: value for name, value in way.items() if name not in pins}
    plan = None
    try:
        plan = search(way, max(seconds, 0.01))
        export(plan, targets)
    except (InfeasiblePlan, BadInput, SearchGaveUp, Unsupported) as error:
        return Tried(own, plan, error)
    return Tried(own, plan, None)


def _nothing(targets: tuple[str, ...], tried: list[Tried]) -> PlannerError:
    """The error of searches that all failed: the first refusal or limit, and where there is none, that nothing fits."""
    for kind in (Unsupported, SearchGaveUp):
        errors = [one.error for one in tried if isinstance(one.error, kind)]
        if errors:
            return errors[0]
    misfits = [one.error for one in tried if isinstance(one.error, InfeasiblePlan)]
    if not misfits:
        return tried[0].error or BadInput("nothing was searched")
    text = f"of what {', '.join(targets)} can express ({len(tried)} searches): {misfits[0]}"
    return InfeasiblePlan(text, misfits[0].repairs, misfits[0].space, misfits[0].leanest)


def _text(pins: Pins) -> str:
    return ",".join(f"{name}={value}" for name, value in pins.items()) or "no more pins"
