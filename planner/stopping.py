"""When a search ends before its proof does: by a limit or by Ctrl-C, with the best plan so far or with none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.errors import SearchGaveUp
from planner.options import Options

if TYPE_CHECKING:
    from planner.search.engine import Search, SearchResult
    from planner.search.mixed.engine import MixedResult

INTERRUPT = "interrupt"
MINE = 0.5
"""Part of a time limit that a search has left at least, or it is said how little it had."""
GRACE_S = 0.4
"""Past its limit a plan may take so long to be put together: its estimate, its checks, its alternatives."""


def searched(search: Search) -> SearchResult:
    """What the search found, after Ctrl-C what it has so far.

    Raises ``KeyboardInterrupt`` where it has no plan yet.
    """
    try:
        return search.run()
    except KeyboardInterrupt:
        found = search.so_far()
        if found.best is None:
            raise
        found.stopped = "" if found.proved else INTERRUPT
        return found


def gave_up(search: Search, found: SearchResult) -> SearchGaveUp:
    """The error of a search that ended with no plan and no proof that there is none."""
    where, most_s = f"of {search.counts['degrees']} degree tuples", search.options.time_limit_s
    if found.stopped == "time limit" and found.seconds < MINE * most_s:
        where += f", which had {found.seconds:.2g} s of it after what was read and searched before"
    return no_plan_in_time(search.options, found.stopped, where)


def no_plan_in_time(options: Options, stopped: str, where: str) -> SearchGaveUp:
    """The error of a search of ``where`` that was ``stopped`` by a limit before it had a plan."""
    by_units = stopped == "deterministic limit"
    limit = f"{options.deterministic_limit:g} units of work" if by_units else f"{options.time_limit_s:.3g} s"
    return SearchGaveUp(
        f"no plan found in {limit} {where}; that does not say there is none: raise the {stopped or 'time limit'}, or "
        "pin some axes"
    )


def stopped_note(found: SearchResult | MixedResult, *, starts: bool = True) -> list[str]:
    """What ended a search that did not prove its plan; nothing for one that did.

    ``starts`` says that another search can start from the plan.
    """
    if not found.stopped:
        return []
    more = f": a larger {found.stopped} goes on"
    if found.stopped == INTERRUPT:
        more = ": what is left can start from this plan" if starts else ""
    return [f"ended by the {found.stopped} after {found.seconds:.2f} s, the plan is the best so far{more}"]


def interrupted(notes: list[str]) -> bool:
    """Whether a plan's notes say that Ctrl-C ended its search."""
    return any(note.startswith(f"ended by the {INTERRUPT} ") for note in notes)
