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
from cost_models.price import Prices

Ints = NDArray[np.int64]


def partly_offloaded(chain: Chain, sizes: Sequence[int], offloaded: Sequence[int | None]) -> Chain:
    """The chain with so many ``offloaded`` first layers of each virtual stage, the others keeping one class more.

    ``sizes`` counts the layers of each stage; ``None`` are all of them. The chain itself where no layer keeps more.
    """
    nearer = kept_nearer(sizes, offloaded)
    if chain.nearer is None or not nearer.any():
        return chain
    prices = chain.prices.take(np.array([chain.row]))
    table = side_by_side([prices, prices.nearer], prices, prices, prices.hop)
    return chain_of_tables(chain.model, table, nearer.astype(np.int64))


def kept_nearer(sizes: Sequence[int], offloaded: Sequence[int | None]) -> NDArray[np.bool_]:
    """Which layers keep one class more, ``[L]``: of each virtual stage all but so many ``offloaded`` first ones."""
    out = [size if first is None else first for size, first in zip(sizes, offloaded, strict=True)]
    return np.concatenate([np.arange(size) for size in sizes]) >= np.repeat(out, sizes)


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

    apart = ("rows", "hop", "slower", "nearer")
    fields = {f.name: getattr(first, f.name) for f in dataclasses.fields(Prices) if f.name not in apart}
    slower = {
        clock: side_by_side([t.at(clock) for t in tables], it, last.at(clock), hop)
        for clock, it in first.slower.items()
    }
    return Prices(rows=first.rows, hop=hop, slower=slower, **{name: joined(name, it) for name, it in fields.items()})
