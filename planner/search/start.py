"""The search that a space asks for."""

from __future__ import annotations

from typing import Any

from cost_models.schedules import FURTHER
from planner.candidates import Space
from planner.search.engine import Search
from planner.search.placed import PlacedSearch
from planner.search.scheduled import ScheduledSearch


def search_of(space: Space, *rest: Any, **named: Any) -> Search:
    """A search that has not run: one that also chooses hosts where they differ, or one under a pinned schedule."""
    if space.pins.get("schedule") in FURTHER:
        return ScheduledSearch(space, *rest, **named)
    kind = Search if space.cluster.irregular is None else PlacedSearch
    return kind(space, *rest, **named)
