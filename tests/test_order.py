"""Ties never fall to who came first: other orders of expansion, other workers, the same plan."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance
from searching import options_of, space_of
from strategies import examples, instances

import planner.search.engine as engine
from cost_models.price import Ticks
from cost_models.strategy import Strategy
from planner.search.engine import Search
from planner.search.frontier import Frontier
from planner.search.order import split_key

COARSE = (1.0, 1e2, 1e4)
"""Times the usual grain: the coarser time is, the more plans are equal."""


@st.composite
def tied_instances(draw: st.DrawFn, most_layers: int = 6) -> Instance:
    """Problems in whole milliseconds and the like, which many plans share."""
    it = draw(instances(most_layers=most_layers, most_devices=4))
    step = 2.0 ** draw(st.sampled_from([-44, -9, -7, -5]))
    ticks = Ticks(max(it.ticks.second, 2.0 ** np.ceil(np.log2(step * it.ticks.second * 2.0**44))))
    return dataclasses.replace(it, ticks=ticks, objective="time", power_cap_w=None)


def found_by(it: Instance, **options: object) -> tuple[float, Strategy] | None:
    space = space_of(it)
    if space is None:
        return None
    search = Search(space, options_of(it).model_copy(update=options), it.fits, it.ticks)
    result = search.run()
    assert result.proved
    assert result.counts["ties_unsettled"] == 0
    return None if result.best is None else (search.value, search.strategy(result.best))


class Shuffled(Frontier):
    """Gives the best rows in any order, and worse ones before better ones."""

    random = np.random.default_rng(0)

    def pop(self, most: int, below: float):
        popped = super().pop(int(self.random.integers(1, most + 1)), below)
        if popped is None:
            return None
        order = self.random.permutation(len(popped[1]))
        return popped[0].take(order), popped[1][order]


@examples(60)
@given(tied_instances(), st.integers(0, 10**6))
def test_the_order_of_expansion_does_not_matter(it: Instance, seed: int):
    expected = found_by(it)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Frontier", Shuffled)
        patch.setattr(Shuffled, "random", np.random.default_rng(seed))
        assert found_by(it) == expected


@examples(15)
@given(tied_instances(), st.sampled_from([2, 8]))
def test_the_number_of_workers_does_not_matter(it: Instance, workers: int):
    assert found_by(it, workers=workers) == found_by(it)


def test_a_split_is_read_stage_by_stage():
    runs = [[("full", 0, 2), ("selective", 2, 3), ("none", 3, 7)], [("none", 7, 9)]]

    assert split_key(runs) == (7, 2, 1, 2, 0, 0)
