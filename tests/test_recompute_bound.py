"""How much interleaved schedules keep and recompute at least, against the schedule itself and enumeration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, best_of_all
from searching import options_of, space_of
from strategies import coarse_ticks, examples, small_cluster, tiny_config, with_memory

from cost_models.calibration import calibrate
from cost_models.pipeline import in_flight
from cost_models.workload import Training
from planner.candidates import degree_table, relaxed_rows
from planner.read_model import read_config
from planner.search.bounds import objective_of
from planner.search.interleaved import legal_virtual
from planner.search.recompute_bound import forced_interleaved, least_in_flight
from planner.search.screen import Screen


@pytest.mark.parametrize(("pp", "turns"), [(3, 1), (4, 2), (5, 4)])
def test_micro_batches_in_flight_are_the_schedules(pp, turns):
    """Parts held at the fullest moment over parts of a device, and of a range of ``v`` the least."""
    cluster = small_cluster(pp)
    pins = (("pp", pp), ("tp", 1), ("cp", 1), ("micro_batch", 1))
    model, workload = (
        read_config(tiny_config(num_hidden_layers=2 * pp), "deep"),
        Training(seq_len=64, global_batch=pp * turns),
    )
    space = space_of(Instance(model, cluster, workload, calibrate(cluster), None, pins=pins))
    rows = relaxed_rows(space, degree_table(space))
    for device in range(pp):
        held = {v: max(map(sum, in_flight(pp, v, pp * turns, device))) / v for v in (2, 3, 4)}
        for fewest, most in ((2, 2), (3, 3), (4, 4), (2, 4)):
            found = least_in_flight(np.array([[device]]), rows, (np.array([fewest]), np.array([most])))
            assert found.item() == pytest.approx(min(held[v] for v in held if fewest <= v <= most))


@examples(200)
@given(
    st.integers(2, 8), st.integers(-2, 0), st.integers(3, 5), st.integers(1, 3), st.floats(0.02, 1.0), st.booleans()
)  # fmt: skip
def test_recompute_that_virtual_stages_force_is_no_more_than_they_need(parts, ends, pp, turns, room, dense_first):
    """Devices with room for so little that most instances recompute something and some fit no way."""
    layers = pp * parts + ends
    experts = {"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24,
               "head_dim": 16, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [0, 1]}  # fmt: skip
    config = tiny_config(num_hidden_layers=layers, vocab_size=64, **(experts if dense_first else {}))
    model, workload = read_config(config, "deep"), Training(seq_len=4096, global_batch=pp * turns)
    bare = small_cluster(pp)
    fits = dataclasses.replace(calibrate(bare), context_bytes=0.0, communicator_bytes=1e4)
    cluster = with_memory(bare, room * workload.seq_len * layers * 64 * 40)
    it = Instance(model, cluster, workload, fits, coarse_ticks(model, cluster, workload))
    pins = (("pp", pp), ("micro_batch", 1))
    for virtual in legal_virtual(layers, pp):
        answer = best_of_all(dataclasses.replace(it, pins=(*pins, ("virtual_stages", virtual))))
        exactly = np.full(len(answer.rows), virtual)
        ticks = forced_interleaved(answer.prices, model, it.limit_bytes, (exactly, exactly), buffers=True)
        assert (ticks * it.ticks.second * (1 - 1e-9) <= np.array(answer.by_row)).all()
        space = space_of(dataclasses.replace(it, pins=pins))
        objective = objective_of(answer.rows, it.cluster, options_of(it))
        screen = Screen(space, it.limit_bytes, it.ticks)
        bounds, fits = screen.promising(answer.prices, objective, np.inf, buffers=True)
        assert (bounds <= np.array(answer.by_row)).all()
        assert fits[np.isfinite(answer.by_row)].all()
