"""Ticks that layers take at the least on devices whose bytes have a price, for the proof that is derived again.

A device runs layers on its own memory and on its part of every tier. Way ``w`` to keep a layer takes ``t_w`` ticks a
micro-batch, what it recomputes included, and ``a_rw`` bytes of memory ``r``, of which there are ``R_r``. Any prices
``p_r >= 0`` of a byte give

    t >= sum over layers of min_w (t_w + sum_r p_r a_rw)  -  sum_r p_r R_r

since what fits costs no more than all the room. The prices that tell are those at which two ways come to the same:
``(t_w - t_v) / (a_v - a_w)``, of the device's bytes alone and of all memories' together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.price import Prices

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_PRICES = 12
"""Prices above none that are kept for a device: those that say most of one with its share of all layers."""
DEAREST = 100.0
"""Times the ticks of a layer that its bytes cost at the highest price, which shows what does not fit at all."""


@dataclass(frozen=True)
class Kept:
    """Every way to keep a layer on a device that holds so many micro-batches of it.

    ``ticks`` are ``[ways, rows, kinds]``, ``held`` bytes ``[memories, ways, rows, kinds]`` with the device first;
    ``end_ticks`` and ``end_held`` of embedding and head, ``[2, rows]`` and ``[memories, 2, rows]``; ``room`` is
    ``[memories, rows]``.
    """

    ticks: Floats
    held: Floats
    end_ticks: Floats
    end_held: Floats
    room: Floats

    def charged(self, prices: Floats) -> Charged:
        """What layers, ends and room come to at ``prices``, ``[prices, memories, rows]``."""
        layers = np.stack([(self.ticks + np.einsum("rn,rwnk->wnk", p, self.held)).min(axis=0) for p in prices])
        ends = self.end_ticks + np.einsum("prn,ren->pen", prices, self.end_held)
        return Charged(layers, ends, (prices * self.room).sum(axis=1))


@dataclass(frozen=True)
class Charged:
    """Ticks and bytes at prices: ``layers`` ``[prices, rows, kinds]``, ``ends`` ``[prices, 2, rows]``, ``room``
    ``[prices, rows]``."""

    layers: Floats
    ends: Floats
    room: Floats

    def of(self, counts: Floats, ends: tuple[bool, bool]) -> Floats:
        """Ticks at every price, ``[prices, rows]``, of so many layers of every kind and the ends that are there."""
        there = np.array(ends, dtype=float)
        return self.layers @ counts + np.einsum("pen,e->pn", self.ends, there) - self.room


def ways_to_keep(prices: Prices, limit_bytes: int, flight: Ints, pinned: str | None) -> Iterator[Kept]:
    """Ways to keep layers of which a device holds ``flight`` micro-batches, ``[rows]``.

    Once for each pair of what a forward and a backward cannot be shorter than: a layer's work and its traffic.
    """
    sorts = [prices, *(() if prices.nearer is None else (prices.nearer, prices.kept, prices.kept.nearer))]
    ways = [(it, kind) for it in sorts for kind in (prices.saved if pinned is None else (pinned,))]
    each = flight[:, None]
    held = [np.stack([it.state_bytes + each * it.saved[kind] for it, kind in ways])]
    held += [np.stack([it.tier_states[t] + each * it.tier_saved[t] for it, _ in ways]) for t in prices.tier_room]
    end_held = [prices.state_bytes + each * prices.saved["none"], *(one[0] for one in held[1:])]
    end_held = np.stack([one[:, -2:].T for one in end_held]).astype(float)
    end_held[:, 1] += [prices.tied_bytes + prices.logits, *prices.tier_tied.values()]
    room = np.stack([limit_bytes - prices.fixed_bytes, *prices.tier_room.values()]).astype(float)
    for passes in itertools.product(*(_least_pass(prices, name) for name in ("forward", "backward"))):
        ticks = np.stack([sum(of(it) for of in passes) + it.extra[kind] for it, kind in ways])
        ends = sum(of(prices) for of in passes)[:, -2:].T
        yield Kept(
            ticks[:, :, :-2].astype(float), np.stack(held)[..., :-2].astype(float), ends.astype(float), end_held, room
        )


def _least_pass(prices: Prices, name: str):
    """What a pass of a layer takes at the least: its work, and its traffic where it has any."""
    yield lambda it: getattr(it, name)
    if prices.sent:
        yield lambda it: it.sent[name]


def telling_prices(it: Kept, counts: Floats, ends: tuple[bool, bool]) -> Floats:
    """Prices, ``[prices, memories, rows]``: none, and those that say most of a device with ``counts`` layers of every
    kind.
    """
    memories, rows = it.room.shape
    none = np.zeros((1, memories, rows))
    found = [_of_memories(_equal_at(it.ticks, it.held[0]), memories, only_the_device=True)]
    if memories > 1:
        together = it.held.sum(axis=0)
        joint = _of_memories(_equal_at(it.ticks, together), memories, only_the_device=False)
        joint = _most_telling(it, joint, counts, ends)
        found.append(joint)
        for price in joint:
            more = _equal_at(it.ticks + price[0][None, :, None] * together, it.held[0])
            found.append(price + _of_memories(more, memories, only_the_device=True))
    return np.concatenate([none, _most_telling(it, np.concatenate(found), counts, ends)])


def _equal_at(ticks: Floats, held: Floats) -> Floats:
    """Prices of a byte at which two ways to keep a kind of layer come to the same, and the highest, ``[prices, rows]``.

    None is above that one: sums at such prices would be rounded by as much as they tell.
    """
    w, v = np.nonzero(~np.eye(len(ticks), dtype=bool))
    slower, fewer = ticks[w] - ticks[v], held[v] - held[w]
    price = np.where((slower > 0) & (fewer > 0), slower / np.maximum(fewer, 1), 0.0)
    price = np.moveaxis(price, 1, -1).reshape(-1, ticks.shape[1])
    highest = DEAREST * ticks.max(axis=(0, 2)) / np.maximum(held.max(axis=(0, 2)), 1)
    return np.concatenate([np.minimum(price[price.any(axis=1)], highest), highest[None]])


def _of_memories(price: Floats, memories: int, *, only_the_device: bool) -> Floats:
    """``[prices, memories, rows]`` of prices ``[prices, rows]`` of the device's bytes, or of all memories' alike."""
    counted = np.arange(memories) < (1 if only_the_device else memories)
    return price[:, None, :] * counted[None, :, None]


def _most_telling(it: Kept, prices: Floats, counts: Floats, ends: tuple[bool, bool]) -> Floats:
    """Of each row the prices at which a device with these layers takes most."""
    if len(prices) <= MOST_PRICES:
        return prices
    ticks = np.concatenate([it.charged(prices[a : a + 64]).of(counts, ends) for a in range(0, len(prices), 64)])
    best = np.argpartition(-ticks, MOST_PRICES, axis=0)[:MOST_PRICES]
    return np.take_along_axis(prices, best[:, None, :], axis=0)
