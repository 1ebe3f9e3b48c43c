"""Ties on hosts that differ: other orders of expansion, other finders, the same plan on the same hosts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance
from searching import options_of, space_of
from strategies import examples
from test_order import Shuffled
from test_placed_search import placed_instances

import planner.search.engine as engine
import planner.search.placed as placed
from cost_models.strategy import Strategy
from cost_models.ticks import Ticks
from planner.search.start import search_of


@st.composite
def tied(draw: st.DrawFn) -> Instance:
    """Hosts that differ, timed in grains so coarse that many plans are equal."""
    it = draw(placed_instances(most_layers=5, most_hosts=4))
    grain = it.ticks.second * 2.0 ** draw(st.sampled_from([0, 16, 20, 24, 26, 28]))
    return dataclasses.replace(it, ticks=Ticks(grain), objective="time", power_cap_w=None)


def found_by(it: Instance, **options: object) -> tuple[float, Strategy] | None:
    space = space_of(it)
    if space is None:
        return None
    search = search_of(space, options_of(it).model_copy(update=options), it.fits, it.ticks)
    result = search.run()
    assert result.proved
    assert result.counts["ties_unsettled"] == 0
    return None if result.best is None else (search.value, search.strategy(result.best))


@examples(12)
@given(tied(), st.integers(0, 10**6))
def test_the_order_of_expansion_does_not_matter(it: Instance, seed: int):
    expected = found_by(it)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Frontier", Shuffled)
        patch.setattr(Shuffled, "random", np.random.default_rng(seed))
        assert found_by(it) == expected


@examples(12)
@given(tied(), st.sampled_from([1, 1, 1, 8]))
def test_neither_workers_nor_the_finder_matter(it: Instance, workers: int):
    """Without quick plans every split and dealing is CP-SAT's choice, of which it has many that are equal."""
    expected = found_by(it)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placed, "uneven_quick", lambda *_: None)
        assert found_by(it, workers=workers) == expected
