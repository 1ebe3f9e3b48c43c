"""The best plans of other kinds than the chosen one: tp, cp, pp, dp and ep make a kind.

A search leaves a kind as soon as it cannot win, so each promising one is searched by itself, from the best outwards:
neighbours of a kind have a factor of 2 moved between two of its degrees, or twice or half the experts' degree. What is
told of a kind is the best plan that was found, first its best balanced cut, then CP-SAT's; it is not proved.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from planner.candidates import legal_space
from planner.search.budget import Budget
from planner.search.engine import Kept, Search, SearchResult
from planner.search.start import search_of

KIND = ("tp", "cp", "pp", "dp", "ep")
EXCHANGED = 4
"""The first so many degrees of a kind share the devices."""
ALL_UNITS, GLANCE_UNITS, ONE_KIND_UNITS = 0.8, 0.1, 0.2
"""So much work at most is spent once the plan is proved: on all kinds, on a first look at one, on one after that."""
BEGIN_UNITS = 0.03
"""What a search takes before its first row is priced."""
Key = tuple[int, ...]


def met_kinds(found: SearchResult) -> dict[Key, Kept]:
    """The best plan that the search met of each kind but the chosen one's."""
    best: dict[Key, Kept] = {}
    for kept in found.kept:
        _keep_better(best, kept.key, kept)
    best.pop(found.best.key, None)
    return best


def search_kinds(search: Search, chosen: Kept, best: dict[Key, Kept], most: int) -> None:
    """Search kinds by themselves until ``most`` are better than any neighbour of what was seen promises to be.

    With the work that is left the first ``most`` are searched on with CP-SAT. ``best`` is brought up to date kind by
    kind, so that it is right whenever this is cut short. Work is counted in units: it ends at the same kind everywhere.
    """
    work = _Work(search, best, ALL_UNITS)
    waiting = {key: kept.found.value for key, kept in best.items()}
    waiting |= dict.fromkeys(_neighbours(search, chosen.key), chosen.found.value)
    seen, values = {chosen.key, *waiting}, list[float]()
    while waiting and work.left > 0 and (len(values) < most or sorted(values)[most - 1] > min(waiting.values())):
        key = min(waiting, key=lambda key: (waiting[key], key))
        hint = waiting.pop(key)
        work.search_kind(key, proves=False)
        if key in best:
            hint = best[key].found.value
            values.append(hint)
        fresh = [near for near in _neighbours(search, key) if near not in seen]
        seen.update(fresh)
        waiting |= dict.fromkeys(fresh, hint)
    for key in sorted(best, key=lambda key: (best[key].found.value, key))[:most]:
        if work.left > 0:
            work.search_kind(key, proves=True)


@dataclass
class _Work:
    """Searches of kinds, the best plan of each, the units that are left."""

    search: Search
    best: dict[Key, Kept]
    left: float

    def search_kind(self, key: Key, *, proves: bool) -> None:
        """Search one kind from the plan that is known of it."""
        units = min(self.left, ONE_KIND_UNITS if proves else GLANCE_UNITS)
        budget = Budget(self.search.budget.deadline, units, proves=proves)
        pins = dict(zip(KIND, key, strict=True))
        found = with_pins(self.search, pins, budget, self.best.get(key), stepwise=False).best
        self.left -= budget.spent + BEGIN_UNITS
        if found is not None:
            _keep_better(self.best, key, found)


def with_pins(
    search: Search, pins: dict[str, int], budget: Budget, start: Kept | None = None, *, stepwise: bool = True
) -> SearchResult:
    """A search of the same problem with more pins, from a plan that holds them where one is known."""
    every = {**search.options.pins, **pins}
    options = search.options.model_copy(update={"pins": every})
    space = legal_space(search.model, search.cluster, search.workload, every)
    again = search_of(space, options, search.fits, search.ticks, budget=budget)
    again.best, again.stepwise = start, stepwise
    return again.run()


def _keep_better(best: dict[Key, Kept], key: Key, kept: Kept) -> None:
    if kept.found is not None and (key not in best or kept.found.value < best[key].found.value):
        best[key] = kept


def _neighbours(search: Search, key: Key) -> list[Key]:
    """Legal kinds one step away."""
    return [
        near
        for near in dict.fromkeys(_stepped(key))
        if all(degree in getattr(search.space, axis) for axis, degree in zip(KIND, near, strict=True))
    ]


def _stepped(key: Key) -> Iterator[Key]:
    """A factor of 2 moved from one of tp, cp, pp, dp to another; ep doubled or halved."""
    for source, target in itertools.permutations(range(EXCHANGED), 2):
        if key[source] % 2 == 0:
            yield tuple(d // 2 if k == source else d * 2 if k == target else d for k, d in enumerate(key))
    *dense, ep = key
    yield (*dense, 2 * ep)
    if ep % 2 == 0:
        yield (*dense, ep // 2)
