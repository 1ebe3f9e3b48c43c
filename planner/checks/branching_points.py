"""The objective of cuts that leave no choice: virtual stages, each device recomputing as little as fits.

For the proof that is derived again (:mod:`planner.checks.branching`); nothing here is shared with the search.
"""

from __future__ import annotations

import itertools

import numpy as np

from cost_models.chain import Chain, joules
from cost_models.estimate import evaluate
from cost_models.price import Prices
from planner.checks.branching import NEVER, Ints, recompute_pairs
from planner.checks.rederive import Problem


def least_interleaved(it: Problem, prices: Prices, counts: dict[str, int]) -> float:
    """The least objective of the row's even cuts, each device recomputing as little as fits."""
    return min(_least_at_one_clock(it, prices.only(clock), counts) for clock in prices.clocks)


def _least_at_one_clock(it: Problem, prices: Prices, counts: dict[str, int]) -> float:
    chain = Chain(it.model, prices, 0)
    return min((value_of_cut(it, chain, cut, counts) for cut in even_cuts(chain)), default=np.inf)


def value_of_cut(it: Problem, chain: Chain, cut: list[int], counts: dict[str, int]) -> float:
    """The objective of one cut, each device recomputing as little as fits; infinite where none does."""
    choices = [_device_counts(it, chain, cut, device) for device in range(chain.pp)]
    if any(choice is None for choice in choices):
        return np.inf
    counts["interleaved"] += 1
    runs = [_runs(cut[c], cut[c + 1], *choices[device]) for c, device in enumerate(chain.schedule.devices)]
    found = evaluate(chain, runs)
    if not chain.pools_hold(found.tiers):
        return np.inf
    step = np.array([float(found.step)])
    each = joules(chain, runs)[None]
    dynamic = each.sum(axis=1) * chain.prices.rows.stage_size[0]
    return float(it.values(chain.prices.rows, step, dynamic, each)[0])


def even_cuts(chain: Chain) -> list[list[int]]:
    """Where virtual stages of equally many layers begin, ``[cuts][stages + 1]``.

    The embedding in the first, the head in the last, both or neither counts as a layer; a cut that leaves a stage
    empty is left out.
    """
    parts, found = chain.pp * chain.virtual, []
    for first, last in itertools.product((0, 1), (0, 1)):
        size, rest = divmod(chain.layers + first + last, parts)
        sizes = [size - first * (c == 0) - last * (c == parts - 1) for c in range(parts)]
        if rest == 0 and min(sizes) >= 1:
            found.append([0, *itertools.accumulate(sizes)])
    return found


def _device_counts(it: Problem, chain: Chain, cut: list[int], device: int) -> tuple[int, int] | None:
    """The quickest (full, selective) of a device that fit; of equally quick ones the least full."""
    spans = [(cut[c], cut[c + 1]) for c in chain.schedule.stages_of(device).tolist()]
    full, selective = (counts[0] for counts in recompute_pairs(it, max(j - i for i, j in spans)))
    moments = np.array(chain.schedule.moments(device))
    kept, again, states = [], 0, chain.fixed_bytes
    if not _tiers_hold(chain, spans, moments):
        return None
    for i, j in spans:
        a = np.minimum(i + full, j)
        b = np.minimum(a + selective, j)
        saved = chain.saved("full", i, a) + chain.saved("selective", a, b) + chain.saved("none", b, j)
        kept.append(saved + chain.saved_ends(i, j))
        again = again + chain.recompute("full", i, a) + chain.recompute("selective", a, b)
        states += int(chain.state_bytes(i, j)) + int(chain.logit_bytes(i, j))
    fits = states + (moments @ np.array(kept)).max(axis=0) <= it.limit_bytes
    if not fits.any():
        return None
    best = int(np.argmin(np.where(fits, again, NEVER)))
    return int(full[best]), int(selective[best])


def _tiers_hold(chain: Chain, spans: list[tuple[int, int]], moments: Ints) -> bool:
    """Whether a device's share of every memory tier holds all its virtual stages at its fullest moment."""
    for name, room in chain.prices.tier_room.items():
        states = sum(int(chain.tier_states(name, i, j)) for i, j in spans)
        saved = [int(chain.tier_saved(name, i, j)) for i, j in spans]
        if states + int((moments @ np.array(saved)).max()) > room[chain.row]:
            return False
    return True


def _runs(i: int, j: int, full: int, selective: int) -> list[tuple[str, int, int]]:
    a = min(i + full, j)
    b = min(a + selective, j)
    return [(kind, x, y) for kind, x, y in (("full", i, a), ("selective", a, b), ("none", b, j)) if y > x]
