"""When plans fit the memory but none is within the limits: the least any plan takes of each, and limits that would do.

The least of a quantity is searched for with its own limit left out and every other one kept, so that raising that one
limit to it gives a plan; where the others cannot be met without it either, with its own limit alone left to look at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.infeasible import Change, Problem
from planner.limits import LIMITS, amount, training_steps

LEAST_SECONDS = 3.0
"""So long at most is spent on the least of one quantity."""
RAISED = (1.06, 1.5, 2.0, 4.0)


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
    limits = {name: value for name, value in problem.options.limits.items() if not name.endswith("-power")}
    found = [it for name in limits if (it := least(problem, name, keep_others=True)) is not None]
    several = len(problem.options.limits) + (problem.options.power_cap_w is not None) > 1
    if not found and several:
        found = [it for name in limits if (it := least(problem, name, keep_others=False)) is not None]
    why = "; ".join(it.text() for it in found) or "plans fit the memory, but in the time there was none met the limits"
    changes = [_raised(problem, it) for it in found if it.others is not False]
    too_long = max((it.value / it.limit for it in found if LIMITS[it.name].quantity == "time"), default=1.0)
    return f"no plan is within the limits: {why}", [*changes, *_more_power(problem)], too_long


def least(problem: Problem, name: str, *, keep_others: bool) -> Least | None:
    """The least of one limited quantity over the space; ``None`` when no plan was found in the time."""
    from planner.search.engine import Search

    options, kind = problem.options, LIMITS[name]
    others = {other: value for other, value in options.limits.items() if other != name} if keep_others else {}
    cap = options.power_cap_w if keep_others else None
    changed = {"limits": others, "power_cap_w": cap, "objective": kind.quantity, "time_limit_s": LEAST_SECONDS}
    search = Search(problem.space, options.model_copy(update=changed), problem.fits, problem.ticks)
    found = search.run()
    if found.best is None:
        return None
    times = training_steps(options, problem.space.workload) if kind.of_training else 1
    value, bound = search.value * (times or 1), (search.value if found.proved else found.bound) * (times or 1)
    several = len(options.limits) + (options.power_cap_w is not None) > 1
    return Least(name, options.limits[name], value, bound, keep_others if several else None)


def _raised(problem: Problem, it: Least) -> Change:
    """The limit raised to the least, rounded up to three digits."""
    digits = float(f"{it.value:.3g}")
    to = digits if digits >= it.value else float(f"{it.value * 1.005:.3g}")
    limits = {**problem.options.limits, it.name: to}
    text = f"{it.name} {amount(to, LIMITS[it.name])} instead of {amount(it.limit, LIMITS[it.name])}"
    return Change(text, it.name, to, problem.on(problem.space, limits=limits))


def _more_power(problem: Problem) -> Iterator[Change]:
    """Limits on power raised step by step: they stretch the step, and may idle above a rack's."""
    options = problem.options
    for name, watts in options.limits.items():
        for factor in RAISED if name.endswith("-power") else ():
            to = float(f"{watts * factor:.3g}")
            limits = {**options.limits, name: to}
            text = f"{name} {amount(to, LIMITS[name])} instead of {amount(watts, LIMITS[name])}"
            yield Change(text, name, to, problem.on(problem.space, limits=limits))
    for factor in RAISED if options.power_cap_w is not None and options.limits else ():
        to = float(f"{float(options.power_cap_w or 0.0) * factor:.3g}")
        text = f"power cap {amount(to, LIMITS['site-power'])}"
        yield Change(text, "power_cap", to, problem.on(problem.space, power_cap_w=to))
