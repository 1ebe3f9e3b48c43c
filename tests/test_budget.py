"""Ended at any look at its budget, a search claims no more than it proved, however poor its incumbents were."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import best_of_all
from searching import options_of, space_of
from strategies import examples, instances

import planner.search.engine as engine
from cost_models.chain import Chain
from planner.search.budget import Budget
from planner.search.engine import Search
from planner.search.incumbent import Found, best_of_cut


class Looks(Budget):
    """A budget of so many looks at it."""

    left = 0

    @property
    def over(self) -> bool:
        self.left -= 1
        return self.left < 0


def worst(chain: Chain, _: Any, *limits: Any) -> Found | None:
    """The most misleading finder: the worst of all cuts of a row that fit."""
    *limits, _ = limits
    cuts = [(0, *inner, chain.layers) for inner in itertools.combinations(range(1, chain.layers), chain.pp - 1)]
    every = [best_of_cut(chain, np.array(cut), *limits, beat=np.inf) for cut in cuts]
    return max((found for found in every if found is not None), key=lambda found: found.value, default=None)


@examples(60)
@given(instances(most_layers=7, most_devices=4), st.integers(0, 60), st.sampled_from([(), (("pp", 2),)]))
def test_ended_at_any_look_the_bound_holds(it, looks, pins):
    it = dataclasses.replace(it, pins=(*(p for p in it.pins if p[0] != "pp"), *pins))
    space = space_of(it)
    if space is None:
        return
    everything, budget = best_of_all(it).value, Looks()
    budget.left = looks
    heard: list[tuple[float, float]] = []
    search = Search(space, options_of(it), it.fits, it.ticks, lambda _, *said: heard.append(said), budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "best_of_cuts", worst)
        result = search.run()

    assert result.bound <= everything * (1 + 1e-9)
    assert all(bound <= everything * (1 + 1e-9) for _, bound in heard)
    assert search.value >= everything * (1 - 1e-9)
    assert not result.proved or search.value == pytest.approx(everything, rel=1e-9)


def test_units_are_counted():
    budget = Budget(units=1.0)
    budget.priced(20_000)
    budget.evaluated(75)
    assert (budget.spent, budget.over, budget.ended_by) == (0.75, False, "")
    budget.solved(0.25)
    assert (budget.left_units, budget.over, budget.ended_by) == (0.0, True, "deterministic limit")
    assert Budget(deadline=time.monotonic() - 1).ended_by == "time limit"
