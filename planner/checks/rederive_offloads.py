"""What rows may keep in memory tiers, enumerated for the proof that is derived again; nothing here is the search's."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.price import Prices
from cost_models.rows import Rows
from topologies.cluster import Cluster

Ints = NDArray[np.int64]


def offloading(cluster: Cluster, rows: Rows) -> Iterator[Rows]:
    """The rows once for every way to keep tensors in the cluster's memory tiers."""
    tiers = tuple(tier.name for tier in cluster.tiers)
    if not tiers:
        yield rows
        return
    for every in every_share(len(tiers)):
        yield rows.offloading(every[None], tiers)


def every_share(tiers: int) -> Iterator[NDArray[np.float64]]:
    """What may live in each of so many memory tiers, ``[classes, tiers]`` a way."""
    in_one = itertools.product((None, *range(tiers)), (0.25, 0.5, 0.75, 1.0), (False, True), (False, True))
    # Gradients follow states that have all left, weights follow gradients.
    states = {(t, s, g, w) for t, s, g, w in in_one if (s == 1.0 or not g) and (g or not w)}
    states = {(0, 0.0, False, False) if t is None else (t, s, g, w) for t, s, g, w in states}
    kept = [(0, 0.0, 0.0), *((at, *it) for at in range(tiers) for it in ((0.5, 0.0), (1.0, 0.0), (0.0, 1.0)))]
    for (t, s, g, w), (at, activations, checkpoints) in itertools.product(sorted(states), kept):
        every = np.zeros((5, tiers))
        every[:3, t] = s, float(g), float(w)
        every[3:, at] = activations, checkpoints
        yield every


def offloads_no_more(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether the first of two ways moves no more than the other in any pass, and updates no later.

    Where gradients or weights live in a tier already, a processor there has less to wait for: so these have to be the
    same, unless the first one's optimiser states stay on the device.
    """
    return bool((one <= other).all()) and ((one[1:3] == other[1:3]).all() or not one[0].any())


def cheapest_layers(prices: Prices) -> Prices:
    """Prices of 1F1B rows of whose layers each takes the lesser ticks and joules of one class of states, and of
    activations, outside or inside; memory, the update and the traffic of activations are asked elsewhere.
    """
    if prices.nearer is None:
        return prices
    least, every = {}, (prices, prices.nearer, prices.kept, prices.kept.nearer)
    for name in ("forward", "backward", "joules_pass", "joules_step"):
        least[name] = getattr(prices, name).copy()
        for other in every:
            least[name][:, :-2] = np.minimum(least[name], getattr(other, name))[:, :-2]
    slower = {clock: cheapest_layers(it) for clock, it in prices.slower.items()}
    return dataclasses.replace(prices, slower=slower, nearer=None, kept=None, **least)


def most_in_tiers(prices: Prices, stage: int, flight: Ints, room: Ints) -> Ints:
    """Layers at most, ``[rows]``, for which a stage's tiers have room, and they and ``room`` on the device together.

    Each layer is as the one with the fewest bytes in a tier, and as the one with the fewest anywhere, whatever it lets
    go and recomputes; embedding and head have their part already.
    """
    found, pp = np.full(len(prices.rows), np.iinfo(np.int64).max), prices.rows.pp
    sorts = [prices, *(() if prices.nearer is None else (prices.nearer, prices.kept, prices.kept.nearer))]
    every = [it.state_bytes + flight[:, None] * np.minimum.reduce(list(it.saved.values())) for it in sorts]
    for name, most in prices.tier_room.items():
        states, saved = prices.tier_states[name], prices.tier_saved[name]
        ends = np.where(stage == 0, states[:, -2] + flight * saved[:, -2], 0)
        ends += np.where(stage == pp - 1, states[:, -1] + flight * saved[:, -1] + prices.tier_tied[name], 0)
        here = [it.tier_states[name] + flight[:, None] * it.tier_saved[name] for it in sorts]
        each = np.minimum.reduce(here)[:, :-2].min(axis=1)
        found = np.minimum(found, layers_within(most - ends, each))
        every, room = [all_ + some for all_, some in zip(every, here, strict=True)], room + (most - ends)
    if prices.tier_room:
        found = np.minimum(found, layers_within(room, np.minimum.reduce(every)[:, :-2].min(axis=1)))
    return found


def layers_within(room: Ints, each: Ints) -> Ints:
    """Layers at most, of so many bytes each, that ``room`` bytes hold; of those that take none any number."""
    any_number = np.where(room < 0, -1, np.iinfo(np.int64).max)
    return np.where(each > 0, room // np.maximum(each, 1), any_number)


def offloading_layers(chain: Chain, i: Ints, j: Ints, room: int, flight: int, pinned: str | None) -> tuple[Ints, ...]:
    """Segments ``i``, ``j`` with every first layer ``x`` of those that keep one class more on the device, and ``y`` of
    those that keep activations.

    Those with too little ``room`` for all they keep are left out. Where the first layers are slower in nothing less
    than the others, a segment that needs nothing recomputed with some of them out has no use for more. Nor has one of
    which some activations leave for more of these: what leaves costs traffic.
    """
    found, wanted = [np.zeros((4, 0), dtype=np.int64)], np.ones(len(i), dtype=bool)
    enough = chain.nearer is not None and _gains_nothing_but_room(chain)
    for x in (j,) if chain.nearer is None else _every_first(i, j):
        here = np.flatnonzero(wanted & (x <= j))
        for out, y in enumerate((j,) if chain.kept is None else _every_first(i, j)):
            here = here[y[here] <= j[here]]
            segment = np.stack([i, j, x, y])[:, here]
            fits, free = _room_for(chain, segment, room, flight, pinned)
            found.append(segment[:, fits])
            if enough and out == 0:
                wanted[here[free]] = False
            here = here[~free]
    return tuple(np.concatenate(found, axis=1))


def _every_first(i: Ints, j: Ints) -> Iterator[Ints]:
    """The layer ``0, 1, ...`` after the first of segments, beyond the end of short ones."""
    yield from (i + out for out in range(int((j - i).max(initial=0)) + 1))


def _room_for(
    chain: Chain, segment: Ints, room: int, flight: int, pinned: str | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which segments fit with all recomputed, and which with nothing."""
    i, j, x, y = segment
    keeping, first = (chain, i) if chain.kept is None else (chain.kept, y)
    left = room - chain.state_bytes(i, j, x) - chain.logit_bytes(i, j) - flight * chain.saved_ends(i, j)
    free, full = (flight * keeping.saved(pinned or kind, first, j) <= left for kind in ("none", "full"))
    return free | full, free


def _gains_nothing_but_room(chain: Chain) -> bool:
    """Whether a layer with one class more outside takes at least as long, as many joules and as much of every tier."""
    row = chain.row
    outer, inner = chain.prices, chain.prices.nearer
    worse = [getattr(outer, name)[row] - getattr(inner, name)[row] for name in ("forward", "backward", "update")]
    worse += [outer.joules_pass[row] - inner.joules_pass[row], outer.joules_step[row] - inner.joules_step[row]]
    worse += [outer.tier_states[name][row] - inner.tier_states[name][row] for name in outer.tier_states]
    return all(float(more.min()) >= 0 for more in worse)
