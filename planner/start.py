"""A plan found earlier as the start of the next search: its strategy priced on the new question, as the incumbent.

Only its row and its cut are taken over; how much recomputes, clocks and hosts are chosen again by what fits now. The
search then expands every row whose bound is below it, as if it had found that plan itself, so result and proof are
those of a cold search. Where the micro-batches no longer make up the batch, their number follows from the rest.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from cost_models.strategy import Strategy
from planner.checks.check import broken_pins, broken_rules, unasked
from planner.checks.check_hosts import broken_host_rules
from planner.errors import BadInput
from planner.result import Plan, StrategyRecord

if TYPE_CHECKING:
    from planner.search.engine import Search
    from planner.search.incumbent import Found

Start = Plan | StrategyRecord | Strategy
MOST_COMPLAINTS = 3


def start_from(search: Search, start: Start) -> list[str]:
    """Make ``start`` the incumbent of a search that has not run; a note of how far that went, or why it did not."""
    strategy, notes = _fitted(search, _strategy(start)), _changed(search, start)
    complaints = _complaints(search, strategy)
    if complaints:
        more = f"; and {len(complaints) - MOST_COMPLAINTS} more" if len(complaints) > MOST_COMPLAINTS else ""
        said = "; ".join(complaints[:MOST_COMPLAINTS])
        return [f"the plan to start from does not apply here: {said}{more}{notes}; the search began without it"]
    found = _evaluated(search, strategy)
    if found is None:
        limit = "the memory" if _evaluated(search, strategy, limited=False) is None else "the limits beside memory"
        return [
            f"the plan to start from does not fit {limit}, however it recomputes{notes}; the search began without it"
        ]
    return [f"started from a plan of {search.options.objective} {found.value:.6g}{notes}"]


def _strategy(start: Start) -> Strategy:
    if isinstance(start, Plan):
        return start.strategy.strategy()
    if isinstance(start, StrategyRecord):
        return start.strategy()
    if isinstance(start, Strategy):
        return start
    raise BadInput(f"start={str(start)[:80]!r} is a {type(start).__name__}; give a Plan, its strategy, or a Strategy")


def _changed(search: Search, start: Start) -> str:
    """What is another model or cluster than the plan was made for, by digest."""
    if not isinstance(start, Plan):
        return ""
    pairs = {
        "model": (start.model.name, start.model.digest, search.model.name, search.model.digest),
        "cluster": (start.cluster.source, start.cluster.digest, search.cluster.name, search.cluster.digest),
    }
    parts = [
        f"the {what} was {name} ({old}), now {now} ({new})"
        for what, (name, old, now, new) in pairs.items()
        if old != new
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def _fitted(search: Search, it: Strategy) -> Strategy:
    """The strategy with as many micro-batches as the batch now makes, and with its hosts where it can keep them."""
    if any(broken_host_rules(search.cluster, it)):
        it = dataclasses.replace(it, hosts=())
    count, rest = divmod(search.workload.global_batch, it.degrees.dp * it.schedule.micro_batch)
    if rest or not count:
        return it
    return dataclasses.replace(it, schedule=dataclasses.replace(it.schedule, micro_batches=count))


def _complaints(search: Search, it: Strategy) -> list[str]:
    """Rules and pins that the strategy breaks here; whether it fits is for its evaluation to say."""
    rules = broken_rules(search.model, search.cluster, search.workload, it)
    pins = {name: pin for name, pin in search.options.pins.items() if name != "recompute"}
    return rules or [*broken_pins(pins, it), *unasked(pins, it)]


def _evaluated(search: Search, it: Strategy, *, limited: bool = True) -> Found | None:
    """The best plan with the strategy's row and cut, which the search now has to beat; ``None`` when none fits.

    Not ``limited``, what only memory says, which is no start.
    """
    options = search.options if limited else search.options.model_copy(update={"limits": {}, "power_cap_w": None})
    kept = search.of_cut(it, options)
    if kept is not None and limited:
        search.best = kept
    return None if kept is None else kept.found
