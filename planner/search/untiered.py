"""A first plan where there are memory tiers: the best that offloads nothing, by bounds and balanced cuts alone.

Rows offload in so many ways that those of the least bounds come many rounds before a good plan does. Without tiers the
same bounds end soon; the plan is one of the space with tiers too, and what it rules out there is not looked at. Found
so or not, what the search proves is what it would prove without it.
"""

from __future__ import annotations

import dataclasses
import time

from planner.search.budget import Budget
from planner.search.engine import Search
from planner.search.start import search_of

MOST_OF_BUDGET = 0.2
"""Part of what is left of a budget that this may take."""


def begin_without_tiers(search: Search) -> None:
    """Make the best plan that offloads nothing the incumbent of a search that has not run, where there is one."""
    space = dataclasses.replace(search.space, cluster=dataclasses.replace(search.cluster, tiers=()))
    now, whole = time.monotonic(), search.budget
    left_s = min(whole.deadline - now, search.options.time_limit_s)
    budget = Budget(now + MOST_OF_BUDGET * left_s, MOST_OF_BUDGET * whole.left_units, proves=False)
    first = search_of(space, search.options, search.fits, search.ticks, budget=budget)
    best = first.run().best
    whole.spend(budget.spent)
    if best is not None and best.found is not None:
        search.best = search.of_cut(first.strategy(best), search.options)
