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
    """One search: its own pins, and what it found or why it found nothing."""

    pins: Pins
    plan: Plan | None
    error: PlannerError | None

    def __str__(self) -> str:
        if self.plan is not None:
            return f"{_text(self.pins)} {self.plan.objective:.6g}{'' if self.plan.status == 'optimal' else ' so far'}"
        return f"{_text(self.pins)} {_why_none(self.error)}"


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
            f"no plan with the pins {_text(pins)} can be expressed by {' and '.join(targets)} (together); "
            "take a pin away, or a target"
        )
    deadline = time.monotonic() + seconds
    tried = [_tried(way, pins, targets, search, (deadline - time.monotonic()) / (len(ways) - i))
             for i, way in enumerate(ways)]  # fmt: skip
    found = [one for one in tried if one.plan is not None]
    if not found:
        raise _nothing(targets, tried)
    best = min(found, key=lambda one: one.plan.objective)
    return best.plan.model_copy(update={"notes": [*best.plan.notes, _note(targets, tried)]})


def _note(targets: tuple[str, ...], tried: list[Tried]) -> str:
    """What was searched: the pins that all searches share, and for each its own with what it found."""
    shared = dict(set.intersection(*(set(one.pins.items()) for one in tried)))
    own = [dataclasses.replace(one, pins={k: v for k, v in one.pins.items() if k not in shared}) for one in tried]
    with_pins = f" with {_text(dict(sorted(shared.items())))}" if shared else ""
    said = "; ".join(map(str, own))
    return f"the best that {' and '.join(targets)} can express{with_pins}, of {len(tried)} searches: {said}"


def _why_none(error: PlannerError | None) -> str:
    if isinstance(error, InfeasiblePlan):
        return "does not fit"
    return "has a best that is refused" if isinstance(error, Unsupported) else "is not legal"


def _tried(way: Pins, pins: Pins, targets: tuple[str, ...], search: Search, seconds: float) -> Tried:
    own = {name: value for name, value in way.items() if name not in pins}
    try:
        plan = search(way, max(seconds, 0.01))
        export(plan, targets)
    except (InfeasiblePlan, BadInput, SearchGaveUp, Unsupported) as error:
        return Tried(own, None, error)
    return Tried(own, plan, None)


def _nothing(targets: tuple[str, ...], tried: list[Tried]) -> PlannerError:
    """The error of searches that all failed: that nothing fits, else the first one's."""
    for kind in (InfeasiblePlan, Unsupported, SearchGaveUp):
        errors = [one.error for one in tried if isinstance(one.error, kind)]
        if errors and kind is InfeasiblePlan:
            first = errors[0]
            text = f"of what {' and '.join(targets)} can express ({len(tried)} searches): {first}"
            return InfeasiblePlan(text, first.repairs, first.space, first.leanest)
        if errors:
            return errors[0]
    return tried[0].error or BadInput("nothing was searched")


def _text(pins: Pins) -> str:
    return ",".join(f"{name}={value}" for name, value in pins.items()) or "no more pins"
