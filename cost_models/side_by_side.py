"""One row of a price table whose layers are priced by several tables: the layers of each are kinds of their own.

So chains, schedules and estimates need not know: stages on hosts that differ (:mod:`cost_models.placed`), layers that
offload more than others (:mod:`cost_models.offload`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.model_graph import ModelGraph
from cost_models.offload import sorts
from cost_models.price import Prices

Ints = NDArray[np.int64]


Leaving = Sequence[tuple[int | None, int | None]]
"""Of each virtual stage how many first layers let the last class of states go, and how many activations; ``None`` are
all of them."""


def partly_offloaded(chain: Chain, sizes: Sequence[int], leaving: Leaving) -> Chain:
    """The chain with so many first layers of each virtual stage ``leaving``, the others keeping more on the device.

    ``sizes`` counts the layers of each stage. The chain itself where no layer keeps more.
    """
    sort = sort_of_layers(sizes, leaving)
    if chain.prices.nearer is None or not sort.any():
        return chain
    prices = chain.prices.take(np.array([chain.row]))
    table = side_by_side(sorts(prices), prices, prices, prices.hop)
    return chain_of_tables(chain.model, table, sort)


def sort_of_layers(sizes: Sequence[int], leaving: Leaving) -> Ints:
    """The sort of every layer, ``[L]``, as a position in :func:`cost_models.offload.sorts`."""
    every = np.concatenate([np.arange(size) for size in sizes])
    states, activations = (
        every >= np.repeat([size if first is None else first for size, first in zip(sizes, firsts, strict=True)], sizes)
        for firsts in zip(*leaving, strict=True)
    )
    return states + 2 * activations.astype(np.int64)


def chain_of_tables(model: ModelGraph, table: Prices, at: Ints) -> Chain:
    """The chain of one row of tables side by side, the price of layer ``l`` being in table ``at[l]``."""
    chain = Chain(model, table, 0)
    chain.order = chain.order + len(model.kinds) * at
    chain.copied_kind = -3
    return chain


def side_by_side(tables: list[Prices], first: Prices, last: Prices, hop: Ints) -> Prices:
    """The kinds of every table, then a copy of the embedding as the last stage has it, the embedding, the head."""

    def joined(name: str, value):
        every = [getattr(t, name) for t in (*tables, first, last)]
        return {key: columns([it[key] for it in every]) for key in value} if isinstance(value, dict) else columns(every)

    def columns(arrays: list) -> object:
        *each, begin, end = arrays
        if not isinstance(begin, np.ndarray) or begin.ndim == 1:
            return begin
        return np.concatenate([*(a[:, :-2] for a in each), end[:, -2:-1], begin[:, -2:-1], end[:, -1:]], axis=1)

    apart = ("rows", "hop", "slower", "nearer", "kept", "alike")
    fields = {f.name: getattr(first, f.name) for f in dataclasses.fields(Prices) if f.name not in apart}
    slower = {
        clock: side_by_side([t.at(clock) for t in tables], it, last.at(clock), hop)
        for clock, it in first.slower.items()
    }
    return Prices(rows=first.rows, hop=hop, slower=slower, **{name: joined(name, it) for name, it in fields.items()})
