"""Many rows as one that is as good as the best of them in everything: what it cannot do, none of them can.

Rows of the same degrees differ little: in how the states are sharded, or where an axis lies. Asked one by one each
costs CP-SAT as much as all of them together, as the row whose every price is the least of theirs. Times, bytes and
joules of every plan grow with each price (:mod:`planner.search.dominance`), so a bound of this row is a bound of all.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.pools import Pool
from cost_models.price import Prices
from planner.search.bounds import Objective


def envelope(parts: list[Prices]) -> Prices:
    """One row with the least of every price, and the most room; ``parts`` are single rows of one mesh and schedule."""
    names = [f.name for f in dataclasses.fields(Prices) if f.name != "rows"]
    least = {name: _least([getattr(part, name) for part in parts]) for name in names}
    room = {name: np.maximum.reduce([part.tier_room[name] for part in parts]) for name in parts[0].tier_room}
    pools = _same_for_all(least["tier_pools"])
    return Prices(rows=parts[0].rows, **{**least, "tier_room": room, "tier_pools": pools})


def _same_for_all(pools: dict[str, Pool]) -> dict[str, Pool]:
    """Pools in which all ranks meet wherever they lie; of others the rows may have different ones."""
    return {name: pool for name, pool in pools.items() if pool.tier.pools == 1}


def best_objective(many: Objective) -> Objective:
    """The objective, of a single row, under which no plan is worth more than under that of one of ``many`` rows."""
    static = dataclasses.replace(many.static, **{name: _fewest(getattr(many.static, name)) for name in _WATTS})
    ceilings = tuple(dataclasses.replace(it, weight=_fewest(it.weight)) for it in many.ceilings)
    return dataclasses.replace(
        many, weight=_fewest(many.weight), static=static, ceilings=ceilings, by_stage=False,
        wait_s_per_j=_fewest(many.wait_s_per_j),
    )  # fmt: skip


def _fewest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.min(keepdims=True)


_WATTS = ("devices", "hosts", "network")


def _least(values: list[Any]) -> Any:
    if isinstance(values[0], Prices):
        return envelope(values)
    if isinstance(values[0], dict):
        return {name: _least([value[name] for value in values]) for name in values[0]}
    return np.minimum.reduce(values) if isinstance(values[0], np.ndarray) else values[0]
