"""The trade-off of one row: joules of slower recompute, and targets that close in on the quickest plan."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracle
import pytest
from oracle import Instance
from searching import options_of, space_of
from strategies import coarse_ticks, small_cluster, tiny_config
from test_limits import met_by

from cost_models.calibration import calibrate
from cost_models.price import price
from cost_models.workload import Training
from planner.read_model import read_config
from planner.search import engine
from planner.search.front import FrontSearch


def tight(headroom: float) -> Instance:
    """One stage, so one cut, that cannot keep all it computes."""
    config = tiny_config(num_hidden_layers=5, hidden_size=512, intermediate_size=2048, num_attention_heads=8)
    model, cluster = read_config(config, "small"), dataclasses.replace(small_cluster(1), tiers=())
    work = Training(seq_len=8192, global_batch=8)
    return Instance(
        model, cluster, work, calibrate(cluster), coarse_ticks(model, cluster, work), headroom=headroom,
        pins=(("pp", 1), ("tp", 1), ("cp", 1), ("micro_batch", 4), ("virtual_stages", 1)),
    )  # fmt: skip


def hungry(*given, **options):
    """Prices under which the quickest recompute spends the most joules."""
    prices = price(*given, **options)
    extra = {**prices.joules_extra, "selective": prices.joules_extra["selective"] * 1e3}
    return dataclasses.replace(prices, joules_extra=extra)


def worth_waiting(met: np.ndarray) -> bool:
    """Whether memory lets the thriftiest plan be a good deal slower and thriftier than the quickest one."""
    if not len(met):
        return False
    quickest, thriftiest = met[np.argmin(met[:, 0])], met[np.argmin(met[:, 2])]
    return thriftiest[2] < 0.9 * quickest[2] and thriftiest[0] > 1.02 * quickest[0]


def swept(it: Instance, eps: float) -> np.ndarray:
    search = FrontSearch(space_of(it), options_of(it), it.fits, it.ticks, eps=eps)
    assert search.sweep()
    return np.array([point.vector for point in search.points])


@pytest.mark.parametrize("eps", [1e-12, 0.01])
def test_joules_that_a_slower_recompute_saves_are_found(monkeypatch, eps):
    """With the columns of the quickest recompute alone, the row's least joules would lie above its thriftiest plans."""
    monkeypatch.setattr(oracle, "price", hungry)
    monkeypatch.setattr(engine, "price", hungry)
    it = next(it for it in map(tight, np.arange(0.9, 0.98, 0.005)) if worth_waiting(met_by(it)))
    met = met_by(it)[:, [0, 2]]
    points = swept(it, eps)[:, :2]

    assert all((points <= vector * (1 + eps) * (1 + 1e-9)).all(axis=1).any() for vector in met)
    assert len(points) >= 2
