"""Ties never fall to who came first: other orders of expansion, other workers, the same plan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance
from searching import options_of, space_of
from strategies import coarse_ticks, examples, models, small_cluster

import planner.search.engine as engine
from cost_models.calibration import calibrate
from cost_models.strategy import Strategy
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.search.engine import Search
from planner.search.frontier import Frontier
from planner.search.order import split_key


@st.composite
def tied_instances(draw: st.DrawFn, most_layers: int = 6, stages: bool = False) -> Instance:
    """Pipelines above all, timed in grains so coarse that many plans are equal; ``stages`` asks for two or more."""
    model, devices = draw(models(most_layers=most_layers)), draw(st.sampled_from([2, 3, 4]))
    cluster = small_cluster(devices, draw(st.sampled_from([1, 2])), base=draw(st.sampled_from(["dgx-h100", "p3dn"])))
    workload = Training(seq_len=draw(st.sampled_from([64, 1024])), global_batch=draw(st.sampled_from([2, 4, 8, 12])))
    fine = coarse_ticks(model, cluster, workload).second
    ticks = Ticks(fine * 2.0 ** draw(st.sampled_from([0, 34, 38, 40, 42])))
    pins = draw(st.lists(st.sampled_from([("pp", 2), ("pp", min(3, devices)), ("tp", 1), ("zero", 1)]), max_size=2))
    pins = dict([*([("pp", 2)] if stages else []), *pins])
    return Instance(model, cluster, workload, calibrate(cluster), ticks, pins=tuple(pins.items()))


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


@examples(10)
@given(tied_instances(), st.integers(0, 10**6))
def test_the_order_of_expansion_does_not_matter(it: Instance, seed: int):
    expected = found_by(it)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Frontier", Shuffled)
        patch.setattr(Shuffled, "random", np.random.default_rng(seed))
        assert found_by(it) == expected


@examples(10)
@given(tied_instances(most_layers=8, stages=True), st.sampled_from([1, 1, 1, 8]))
def test_neither_workers_nor_the_finder_matter(it: Instance, workers: int):
    """Without balanced cuts every split is CP-SAT's choice, of which it has many that are equal."""
    expected = found_by(it)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "best_of_cuts", lambda *_: None)
        assert found_by(it, workers=workers) == expected


def test_a_split_is_read_stage_by_stage():
    runs = [[("full", 0, 2), ("selective", 2, 3), ("none", 3, 7)], [("none", 7, 9)]]

    assert split_key(runs) == (7, 2, 1, 7, 7, 2, 0, 0, 2, 2)
    assert split_key(runs, leaving=((3, 5), (0, 1))) == (7, 2, 1, 3, 5, 2, 0, 0, 0, 1)
