"""Bytes by network level by hand, and what they cost on the wire."""

from __future__ import annotations

import dataclasses

import pytest
from costs import make_strategy, small_model, two_hosts

from cost_models.calibration import calibrate
from cost_models.movement import moved
from cost_models.stack import Stack
from cost_models.workload import Training
from planner import plan
from planner.checks.verify import verify
from planner.read_model import read_model
from topologies.ready import read_cluster

MODEL, CLUSTER = small_model(), two_hosts()
WORK = Training(seq_len=64, global_batch=8)
HIDDEN = 64 * 16 * 2
"""Bytes of one sequence's hidden state: 64 tokens, 16 wide, bf16."""


def bytes_of(strategy, work=WORK, cluster=CLUSTER):
    found = moved(MODEL, cluster, work, strategy, calibrate(cluster, work.stack))
    return {it.level: it.size_bytes for it in found}


def test_one_device_moves_nothing():
    assert bytes_of(make_strategy((4,), micro_batch=1, micro_batches=8)) == {}


def test_a_pipeline_by_hand():
    """Four stages over two hosts: three boundaries, one between the hosts, there and back, 8 sequences."""
    strategy = make_strategy((1, 1, 1, 1), pp=4, micro_batch=1, micro_batches=8)
    across = dataclasses.replace(strategy, placement={**strategy.placement, "pp": (2, 2)})

    assert bytes_of(strategy) == {"scale-up": 3 * 2 * 8 * HIDDEN}
    assert bytes_of(across) == pytest.approx({"scale-up": 2 * 2 * 8 * HIDDEN, "scale-out": 2 * 8 * HIDDEN})


def test_where_a_v_turns_nothing_is_sent():
    """Two devices with four virtual stages: 0, 1, 1, 0; two boundaries of three are between them."""
    strategy = make_strategy((1, 1, 1, 1), pp=2, micro_batch=1, micro_batches=8)
    folded = dataclasses.replace(strategy, schedule=dataclasses.replace(strategy.schedule, kind="zbv"))

    assert bytes_of(strategy) == {"scale-up": 3 * 2 * 8 * HIDDEN}
    assert bytes_of(folded) == {"scale-up": 2 * 2 * 8 * HIDDEN}


def test_tensor_parallelism_by_hand():
    """A gather and a scatter of V (t - 1) / t a device twice a layer, forward and backward; the ends half a pair."""
    strategy = make_strategy((4,), tp=2, micro_batch=1, micro_batches=8)

    pairs = 2 * (4 * 2 + 0.5 + 0.5)
    assert bytes_of(strategy) == pytest.approx({"scale-up": 2 * 8 * pairs * 2 * HIDDEN / 2})


@pytest.mark.parametrize(("zero", "each"), [(1, 4 + 2)])
def test_data_parallelism_by_hand(zero, each):
    """ZeRO-1 over two hosts: fp32 gradients scattered, bf16 weights gathered, half of each from the other host."""
    strategy = make_strategy((4,), outer="dp_shard edp", dp_shard=2, zero=zero, micro_batch=1, micro_batches=4)
    small = {"scale-out": 2 * MODEL.parameters * each / 2}

    assert bytes_of(strategy) == pytest.approx(small)


def test_replicas_by_hand():
    """An all-reduce of fp32 gradients between two hosts: each sends 2 V (2 - 1) / 2, or a pair's tree V."""
    strategy = make_strategy((4,), outer="dp_replicate edp", dp_replicate=2, micro_batch=1, micro_batches=4)

    assert bytes_of(strategy) == pytest.approx({"scale-out": 2 * MODEL.parameters * 4})


@pytest.mark.parametrize(
    ("recompute", "stack", "sent"),
    [
        ("full", Stack(), 4), ("full", Stack(early_stop=True), 3), ("selective", Stack(), 0),
        ("selective", Stack(selective="alternate"), 2),
    ],
)  # fmt: skip
def test_recompute_sends_again(recompute, stack, sent):
    """Full recompute repeats a layer's two gathers and two scatters, less the last scatter where it stops early.

    Selective recompute repeats none, or the gathers where these are not kept. The ends repeat nothing.
    """
    work = WORK.model_copy(update={"stack": stack})
    plain, again = (
        make_strategy((4,), recompute=kind, tp=2, micro_batch=1, micro_batches=8) for kind in ("none", recompute)
    )

    more = bytes_of(again, work)["scale-up"] - bytes_of(plain, work)["scale-up"]
    assert more == pytest.approx(2 * 8 * 4 * sent * HIDDEN / 2)


@pytest.mark.parametrize("tp_overlap", [False, True])
def test_what_hides_behind_compute_is_sent_all_the_same(tp_overlap):
    """An all-to-all and a pair of tensor parallelism, however much of either the stack overlaps."""
    model, stack = small_model((1,) * 4), Stack(tp_overlap=tp_overlap)
    work, fits = WORK.model_copy(update={"stack": stack}), calibrate(CLUSTER, stack)
    strategy = make_strategy((4,), tp=2, dp_shard=2, ep=2, zero=1, micro_batch=1, micro_batches=4)
    found = [
        moved(model, CLUSTER, work, strategy, dataclasses.replace(fits, overlap=dict.fromkeys(fits.overlap, part)))
        for part in (0.0, 0.9)
    ]

    assert found[0] == found[1]


def test_joules_on_the_wire():
    """5.5 pJ/bit twice over NVLink; four modules of 18.75 between hosts."""
    assert CLUSTER.energy_j_per_bit(0) == pytest.approx(11e-12)
    assert CLUSTER.energy_j_per_bit(1) == pytest.approx(75e-12)
    strategy = make_strategy((4,), outer="dp_replicate edp", dp_replicate=2, micro_batch=1, micro_batches=4)
    (across,) = moved(MODEL, CLUSTER, WORK, strategy, calibrate(CLUSTER, WORK.stack))

    assert across.joules == pytest.approx(8 * across.size_bytes * 75e-12)
    unknown = read_cluster("mi300x:2")
    (inside,) = moved(
        MODEL, unknown, WORK, make_strategy((4,), tp=2, micro_batch=1, micro_batches=8), calibrate(unknown)
    )
    assert inside.joules is None


def test_a_plan_says_what_it_moves_and_is_held_to_it():
    model, cluster = read_model("llama-3.2-1b"), read_cluster("dgx-h100:2")
    found = plan(model, cluster, seq_len=2048, global_batch=32, alternatives=0)

    assert sum(it.joules for it in found.moved) < 0.05 * found.joules_per_step
    assert f"moved       {found.moved[0].level} " in found.summary()
    wrong = found.moved[0].model_copy(update={"size_bytes": 1.0})
    report = verify(found.model_copy(update={"moved": [wrong, *found.moved[1:]]}), model, cluster, time_limit_s=5)
    assert any("moved is" in reason for reason in report.reasons)
