"""Good plans early where groups of hosts have several rates: the slower ones last, first or about the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from planner.search.balanced import LEAST, spread
from planner.search.bounds import Objective
from planner.search.columns import Columns, stage_columns
from planner.search.incumbent import judge, quick
from planner.search.packing import Option
from planner.search.placed_kept import PlacedFound, PlacedKept

if TYPE_CHECKING:
    from planner.search.placed import PlacedSearch

Ints = NDArray[np.int64]
Groups = tuple[int, ...]


def in_order(option: Option) -> Groups:
    """The level of every group, fastest first."""
    return tuple(level for level in option.levels for _ in range(option.counts[level]))


def rotations(option: Option) -> list[Groups]:
    """The groups in the order of their rates, begun anywhere; each distinct order once."""
    groups = in_order(option)
    return list(dict.fromkeys(groups[k:] + groups[:k] for k in range(len(groups))))


def orders(option: Option) -> list[Groups]:
    """A few orders: slower groups last, first, about the middle; each distinct one once."""
    groups = in_order(option)
    half = len(groups) // 2
    return list(dict.fromkeys((groups, groups[::-1], groups[half:] + groups[:half])))


def uneven_quick(search: PlacedSearch, kept: PlacedKept, objective: Objective) -> PlacedFound | None:
    """The best of a few cuts of one 1F1B row with one packing; ``None`` when none is better."""
    best, beat = None, search.value
    stage, limit = int(kept.prices.rows.stage_size[0]), search.limit
    if len(kept.option.levels) == 1:
        chain = Chain(search.model, kept.prices, 0)
        found = quick(chain, objective, stage, limit, search.recompute, beat)
        return PlacedFound.of(found, in_order(kept.option))
    chains = {level: kept.chain(search, level) for level in kept.option.levels}
    for order in orders(kept.option):
        cut = _by_speed(chains, [level for level in order for _ in range(kept.shape.stages)])
        found = cut_at_rates(search, kept, cut, order, objective, beat)
        if found is not None and found.value < beat:
            best, beat = found, found.value
    return best


def cut_at_rates(
    search: PlacedSearch, kept: PlacedKept, cut: Ints, order: Groups, objective: Objective, beat: float = np.inf
) -> PlacedFound | None:
    """The plan of one cut of a 1F1B row with its groups in one order, at full clock.

    ``None`` where it does not fit, or is worse than ``beat`` by the paths that need no schedule.
    """
    columns = _columns(search, kept, cut, order)
    if columns is None or _least(kept.chain(search, order[0]), columns, objective) > beat:
        return None
    runs = [columns.runs(s) for s in range(len(columns))]
    out = columns.leaving(np.arange(len(columns)))
    chain = kept.placed(search, order, (columns.j - columns.i).tolist(), out)
    found = judge(chain, runs, objective, int(kept.prices.rows.stage_size[0]), search.limit, leaving=out)
    return PlacedFound.of(found, order)


def _columns(search: PlacedSearch, kept: PlacedKept, cut: Ints, order: Groups) -> Columns | None:
    """One column a stage; ``None`` where a stage does not fit."""
    chains = {level: kept.chain(search, level) for level in kept.option.levels}
    stages = np.repeat(order, kept.shape.stages)
    of_level = ((level, np.flatnonzero(stages == level)) for level in dict.fromkeys(order))
    columns = Columns.concat(
        [stage_columns(chains[level], s, cut[s], cut[s + 1], search.limit, search.recompute) for level, s in of_level]
    ).quickest(kept.chain(search, order[0]).micro_batches)
    return columns if len(columns) == len(stages) else None


def _least(chain: Chain, columns: Columns, objective: Objective) -> float:
    durations = (columns.forward, columns.backward, chain.hop, columns.tail, columns.weights)
    step_s = np.array([chain.schedule.seed_table().longest(*durations) * chain.prices.ticks.second])
    return float(objective.value(step_s * LEAST, np.zeros(1))[0]) * LEAST


def _by_speed(chains: dict[int, Chain], stages: list[int]) -> Ints:
    """Boundaries where each stage's work, at the speed of its hosts, lasts about as long as any other's."""
    whole = {level: _work(chain)[-1] for level, chain in chains.items()}
    speed = np.array([1 / whole[level] for level in stages])
    work = _work(chains[stages[0]])
    shares = work[-1] * np.cumsum(speed)[:-1] / speed.sum()
    inner = np.searchsorted(work, shares)
    nearer = np.abs(work[np.maximum(inner - 1, 0)] - shares) < np.abs(work[inner] - shares)
    layers = chains[stages[0]].layers
    return spread(np.concatenate([[0], inner - nearer, [layers]]), len(stages), layers)


def _work(chain: Chain) -> Ints:
    layers = np.arange(chain.layers + 1)
    work = chain.forward(0, layers) + chain.backward(0, layers)
    work[0] = 0
    return work
