"""The search that a space asks for, and what only the hosts can rule out."""

from __future__ import annotations

from typing import Any

from planner.candidates import Space
from planner.errors import InfeasiblePlan
from planner.search.engine import Search
from planner.search.placed import PlacedSearch


def search_of(space: Space, *rest: Any) -> Search:
    """A search that has not run: one that also chooses hosts where they differ."""
    kind = Search if space.cluster.irregular is None else PlacedSearch
    return kind(space, *rest)


def check_hosts_hold(search: Search) -> None:
    """Raises ``InfeasiblePlan`` where a search found nothing because no hosts hold any placement."""
    if not isinstance(search, PlacedSearch) or search.counts["rows"] or not search.counts["rows_no_hosts_hold"]:
        return
    it = search.cluster.irregular
    full = sum(n == search.cluster.devices_per_host for n in it.devices)
    raise InfeasiblePlan(
        f"no plan fits: none of {search.counts['rows_no_hosts_hold']} placements finds its hosts; of "
        f"{len(it.numbers)} usable hosts {full} have all {search.cluster.devices_per_host} devices and "
        f"{it.spare_hosts} stay spare; pin fewer devices, or degrees that use fewer devices of a host"
    )
