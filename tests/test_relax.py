"""Bounds of partly decided rows, where small messages make wide domains slower than a few narrow ones."""

import numpy as np
import pytest

from cost_models.calibration import calibrate
from cost_models.communication import all_to_all_s, collective_s, token_exchange_s
from cost_models.stack import Stack
from planner import plan
from planner.candidates import legal_space, splits
from planner.defaults import read_workload
from planner.read_model import read_model
from planner.search.relax import VOLUMES, Relaxation
from topologies.ready import read_cluster

CLUSTERS = ["gb200-nvl72:4", "gb300-nvl72:4", "hls-gaudi3:16", "dgx-h100:16", "p5:16", "cpu-local:4"]


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("axis", ["tp", "ep"])
def test_some_kept_factoring_is_as_quick_as_any(name, axis):
    """For every degree and message size the least of the kept factorings is the least of all."""
    cluster, model = read_cluster(name), read_model("mixtral-8x7b")
    space = legal_space(model, cluster, read_workload(model, seq_len=512, global_batch=8), {})
    fits, volumes = calibrate(cluster), np.geomspace(1e3, 1e10, 57)
    relaxation = Relaxation(space, fits)

    def seconds(factors):
        table = np.broadcast_to(np.array(factors), (len(volumes), len(factors)))
        if axis == "ep":
            return all_to_all_s(volumes, table, cluster.levels, fits)
        return collective_s("all_gather", volumes, table, cluster.levels, fits)

    for degree in (2, 8, 12, 16, 32, 48):
        room = cluster.group_capacity
        legal = [f for f in splits(degree, len(room)) if all(a <= c for a, c in zip(f, room, strict=True))]
        if legal:
            kept = np.min([seconds(f) for f in relaxation._factorings(axis, degree)], axis=0)
            every = np.min([seconds(f) for f in legal], axis=0)
            assert (kept <= every * (1 + 1e-9)).all()


@pytest.mark.parametrize("in_order", [True, False])
def test_factorings_are_kept_by_the_exchange_that_the_stack_does(in_order):
    """Two of eight experts in a row are on fewer ranks than two drawn evenly, and other factorings the quickest."""
    cluster, model = read_cluster("dgx-h100:2"), read_model("mixtral-8x7b")
    stack = Stack(dispatcher="deepep", consecutive_experts=in_order)
    space = legal_space(model, cluster, read_workload(model, seq_len=512, global_batch=8, stack=stack), {})
    fits, table = calibrate(cluster, stack), np.broadcast_to(np.array([4, 2]), (len(VOLUMES), 2))
    (found,) = Relaxation(space, fits)._exchanges(table)

    assert (found == token_exchange_s(VOLUMES, 2, table, cluster.levels, fits, 8 * in_order)).all()


def test_factorings_are_kept_by_the_groups_that_experts_are_in():
    """DeepSeek-V3's eight experts of a token are in four of eight groups: over 16 ranks it needs eight at most."""
    cluster, model = read_cluster("dgx-h100:2"), read_model("deepseek-v3")
    stack = Stack(dispatcher="deepep")
    space = legal_space(model, cluster, read_workload(model, seq_len=512, global_batch=16, stack=stack), {})
    fits, table = calibrate(cluster, stack), np.broadcast_to(np.array([8, 2]), (len(VOLUMES), 2))
    (found,) = Relaxation(space, fits)._exchanges(table)

    assert (found == token_exchange_s(VOLUMES, 8, table, cluster.levels, fits, 0, (8, 4))).all()
    assert (found < token_exchange_s(VOLUMES, 8, table, cluster.levels, fits)).all()


def test_small_messages_in_wide_domains_keep_the_root_bound_below_the_plan():
    pins = {"tp": 32, "pp": 1, "dp": 1, "cp": 1}
    found = plan("llama-3.2-1b", "gb200-nvl72:4", seq_len=128, global_batch=1, pins=pins)

    assert found.status == "optimal"
    assert found.proof.bound_root <= found.objective
