"""CP-SAT on one row with one packing against every cut, recompute and dealing of its groups."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from host_oracle import _plain
from hypothesis import given
from oracle import Answer, Instance
from strategies import examples
from test_placed_search import found_by, placed_instances

from planner.search.bounds import objective_of
from planner.search.budget import Budget
from planner.search.certificate import Certificate, ceiling, certify
from planner.search.placed_kept import PlacedKept
from planner.search.uneven import in_order


def best_dealt(it: Instance, kept: PlacedKept) -> float:
    """The least objective over all cuts, recomputes and orders of the packing's groups."""
    answer = Answer(by_row=[np.inf])
    for groups in set(itertools.permutations(in_order(kept.option))):
        stages = [float(level) for level in groups for _ in range(kept.shape.stages)]
        prices = {float(level): table for level, table in kept.by_level.items()}
        _plain(it, prices, stages, int(kept.prices.hop[0]), answer)
    return answer.value


def rows_with_groups(search, most: int) -> list[PlacedKept]:
    """Rows that were evaluated as 1F1B, those with several rates first."""
    plain = [kept for kept in search.kept if kept.virtual == 1]
    return sorted(plain, key=lambda kept: -len(kept.option.levels))[:most]


@examples(40)
@given(placed_instances())
def test_a_row_equals_enumeration(it):
    agrees(it)


def agrees(it: Instance) -> None:
    """What CP-SAT proves is the best of the row, nothing where nothing fits; no bound of the row is above it."""
    _, _, search = found_by(it)
    for kept in rows_with_groups(search, 3) if search is not None else ():
        objective = objective_of(kept.prices.rows, it.cluster, search.options)
        best, row = best_dealt(it, kept), search.open_row(kept, objective, np.inf, [])
        if row is None:
            assert best == np.inf
            continue
        answer = Certificate(None, row.bound, False)
        certify(row, ceiling(row), search.limit, answer, budget=Budget(time.monotonic() + 20))
        assert answer.proved
        assert (np.inf if answer.best is None else answer.best.value) == pytest.approx(best, rel=1e-9)
        assert row.bound <= best * (1 + 1e-9)
