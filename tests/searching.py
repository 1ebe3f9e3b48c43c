"""Runs the search on an oracle's instance."""

from __future__ import annotations

from oracle import Instance

from planner.candidates import Space, legal_space
from planner.errors import BadInput
from planner.options import Options
from planner.search.engine import Search, SearchResult


def options_of(it: Instance, time_limit_s: float = 60.0) -> Options:
    """The user's options of an instance."""
    return Options(
        objective=it.objective, headroom=it.headroom, power_cap_w=it.power_cap_w, pins=dict(it.pins),
        time_limit_s=time_limit_s, limits=dict(it.limits),
    )  # fmt: skip


def space_of(it: Instance) -> Space | None:
    """The space of an instance; ``None`` where a pin is refused at once."""
    try:
        return legal_space(it.model, it.cluster, it.workload, dict(it.pins))
    except BadInput:
        return None


def search_of(it: Instance, time_limit_s: float = 60.0) -> Search | None:
    """A search that has not run; ``None`` where a pin is refused at once."""
    space = space_of(it)
    return None if space is None else Search(space, options_of(it, time_limit_s), it.fits, it.ticks)


def value_of(it: Instance) -> tuple[float, SearchResult | None]:
    """The best objective that the search finds, infinite when it finds none."""
    search = search_of(it)
    if search is None:
        return float("inf"), None
    result = search.run()
    return search.value, result
