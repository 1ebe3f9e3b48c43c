"""When plans fit the memory but none is within the limits: the least any plan takes of each, and limits that would do.

The least of a quantity is searched for with its own limit left out and every other one kept, so that raising that one
limit to it gives a plan; where the others cannot be met without it either, with its own limit alone left to look at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from planner.clocks import weighs_joules
from planner.infeasible.changes import CAP_GROWS, Change, Problem, cap_change, limit_change
from planner.limits import LIMITS, amount, training_steps
from planner.options import Options
from planner.search.budget import Budget

RAISED = (1.0, 1.1, 1.5)
"""Of the least that any plan takes."""
MOST_GROWN = 16.0
"""Hosts are not multiplied by more than that."""
LEAST_SECONDS = 3.0
"""So long at most is spent on the least of one quantity."""


@dataclass(frozen=True)
class Least:
    """What a plan takes at least of a limited quantity: a plan with ``value`` was found, none is below ``bound``.

    ``others`` says whether that plan is within the other limits; ``None`` where there are none.
    """

    name: str
    limit: float
    value: float
    bound: float
    others: bool | None

    def text(self) -> str:
        """The arithmetic: least, limit, and what is missing."""
        kind = LIMITS[self.name]
        least = amount(self.value, kind)
        if self.bound < self.value * (1 - 1e-9):
            least += f" (proved: no less than {amount(self.bound, kind)})"
        whose = "any plan within the other limits" if self.others else "any plan"
        if self.value <= self.limit:
            return f"{self.name} by itself can be met: {whose} takes {least} at least of {amount(self.limit, kind)}"
        over = amount(self.value - self.limit, kind)
        return f"the least {self.name} of {whose} is {least}, {over} above the limit of {amount(self.limit, kind)}"


def limits_too_low(problem: Problem) -> tuple[str, list[Change], float]:
    """Why no plan is within the limits, changes of one limit each that may give one, and how many times too long."""
    limits = {
        name: value for name, value in problem.options.limits.items() if not name.endswith(("-power", "-replicas"))
    }
    found = [it for name in limits if (it := least(problem, name, keep_others=True)) is not None]
    several = len(problem.options.limits) + (problem.options.power_cap_w is not None) > 1
    if not found and several:
        found = [it for name in limits if (it := least(problem, name, keep_others=False)) is not None]
    why = "; ".join(it.text() for it in found) or "plans fit the memory, but in the time there was none met the limits"
    changes = [change for it in found for change in raised(it)]
    too_long = max((it.value / it.limit for it in found if LIMITS[it.name].quantity == "time"), default=1.0)
    too_long = min(too_long, MOST_GROWN)
    return f"no plan is within the limits: {why}", [*changes, *_more_power(problem.options)], too_long


def least(problem: Problem, name: str, *, keep_others: bool) -> Least | None:
    """The least of one limited quantity over the space; ``None`` when no plan was found in the time."""
    from planner.search.start import search_of

    options, kind = problem.options, LIMITS[name]
    others = {other: value for other, value in options.limits.items() if other != name} if keep_others else {}
    cap = options.power_cap_w if keep_others else None
    changed = {"limits": others, "power_cap_w": cap, "objective": kind.quantity}
    budget = Budget(min(problem.deadline, time.monotonic() + LEAST_SECONDS))
    asked = options.model_copy(update=changed)
    asked = asked.model_copy(update={"clocks": asked.clocks and weighs_joules(problem.space.cluster, asked)})
    search = search_of(problem.space, asked, problem.fits, problem.ticks, budget=budget)
    found = search.run()
    if found.best is None:
        return None
    times = training_steps(options, problem.space.workload) if kind.of_training else 1
    value, bound = search.value * (times or 1), (search.value if found.proved else found.bound) * (times or 1)
    several = len(options.limits) + (options.power_cap_w is not None) > 1
    return Least(name, options.limits[name], value, bound, keep_others if several else None)


def raised(it: Least) -> Iterator[Change]:
    """The limit raised to the least, rounded up to three digits, and further, since other limits may be raised too."""
    for factor in RAISED:
        digits = float(f"{it.value * factor:.3g}")
        to = digits if digits >= it.value else float(f"{it.value * factor * 1.005:.3g}")
        if to > it.limit:
            yield limit_change(it.name, it.limit, to)


def _more_power(options: Options) -> Iterator[Change]:
    """Limits on power raised step by step: they stretch the step, and may idle above a rack's."""
    for name, watts in options.limits.items():
        for factor in CAP_GROWS if name.endswith("-power") else ():
            yield limit_change(name, watts, float(f"{watts * factor:.3g}"))
    cap = options.power_cap_w
    for factor in CAP_GROWS if cap is not None and options.limits else ():
        yield cap_change(cap, float(f"{cap * factor:.3g}"))
