"""What a stack's own kernels take beside plain ones, by hand: experts, fused networks, rings, messages of stages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from costs import make_rows, plain_fits, two_hosts

from cost_models.calibration import calibrate
from cost_models.compute import _Machine, layer_compute
from cost_models.model_graph import Attention, Layer, Operator
from cost_models.stack import Stack
from cost_models.workload import Training
from topologies.ready import read_cluster

CLUSTER = two_hosts()
FITS = plain_fits(CLUSTER)
BANDWIDTH = CLUSTER.memory_bandwidth_bytes_per_s
EXPERTS = Operator("experts_up", "expert_matmul", "experts", n=8192, k=8192, groups=8, active=1.0)
DISPATCH = Operator("dispatch", "elementwise", "routed", moved=2 * 3 * 500.0)


def forward_s(operator, fits=FITS, ep=1, **settings):
    workload = Training(seq_len=4096, global_batch=1, **settings)
    return _Machine(CLUSTER, workload, fits).operator(operator, make_rows(dp_shard=8, ep=ep))[0].seconds[0]


def test_one_local_expert_is_one_dense_product():
    """A group of one has nothing to group: grouping halves the rate of two experts a rank and leaves that of one."""
    halved = replace(FITS, grouped_fraction=0.5)
    assert forward_s(EXPERTS, halved, ep=4) == pytest.approx(2 * forward_s(EXPERTS, ep=4), rel=1e-9)
    assert forward_s(EXPERTS, halved, ep=8) == pytest.approx(forward_s(EXPERTS, ep=8), rel=1e-9)


def test_experts_that_are_not_grouped_are_products_one_after_the_other():
    """Four a rank have four launches of a second where one grouped kernel has one, and their dense rate."""
    slow = replace(FITS.gemm["bf16"], launch_s=1.0)
    halved = replace(FITS, grouped_fraction=0.5, gemm={**FITS.gemm, "bf16": slow})
    busy_s = forward_s(EXPERTS, ep=2)
    assert forward_s(EXPERTS, halved, ep=2) == pytest.approx(1 + 2 * busy_s, rel=1e-9)
    apart = Stack(grouped_experts=False)
    assert forward_s(EXPERTS, halved, ep=2, stack=apart) == pytest.approx(4 + busy_s, rel=1e-9)


@pytest.mark.parametrize(
    ("dispatcher", "ep", "sorts"),
    [("alltoall", 2, 2), ("alltoall", 4, 2), ("alltoall", 8, 0), ("alltoall", 1, 0), ("deepep", 4, 0)],
)
def test_tokens_are_sorted_by_expert_around_an_all_to_all(dispatcher, ep, sorts):
    """Three copies of 500 elements a token, read and written once after coming and once before leaving."""
    workload = Training(seq_len=4096, global_batch=1, stack=Stack(dispatcher=dispatcher))
    layer = Layer("one", (DISPATCH,), experts=8, top_k=3)
    found = layer_compute(layer, make_rows(dp_shard=8, ep=ep), CLUSTER, workload, FITS)
    once = 4096 * 3000 * 2 / BANDWIDTH
    assert found.forward.seconds[0] == pytest.approx((1 + sorts) * once, rel=1e-9)
    assert found.backward.seconds[0] == pytest.approx((1.5 + sorts) * once, rel=1e-9)


def casts_s(operator, shares, **settings):
    """Seconds of a product that its operand's cast takes, by the share of a stand-alone kernel paid for it."""
    fits = calibrate(CLUSTER)
    some, none = (
        replace(fits, **dict.fromkeys(("quantise_share", "expert_quantise_share"), 0.0) | given)
        for given in (shares, {})
    )
    return forward_s(operator, some, precision="fp8", **settings) - forward_s(operator, none, precision="fp8")


def test_experts_operands_are_cast_by_kernels_of_their_own():
    dense = Operator("up", "matmul", "columns", n=8192, k=8192)
    assert casts_s(EXPERTS, {"expert_quantise_share": 1.0}) > 0
    assert casts_s(EXPERTS, {"quantise_share": 1.0}) == 0
    assert casts_s(dense, {"quantise_share": 1.0}) > 0
    assert casts_s(dense, {"expert_quantise_share": 1.0}) == 0


@pytest.mark.parametrize(("name", "inside"), [("gate_up", True), ("down", True), ("qkv", False)])
def test_a_fused_network_casts_nothing_apart(name, inside):
    product = Operator(name, "matmul", "columns", n=8192, k=8192)
    fused = casts_s(product, {"quantise_share": 1.0}, stack=Stack(fused_network=True))
    assert fused == pytest.approx(0.0 if inside else casts_s(product, {"quantise_share": 1.0}), abs=1e-15)


def test_a_fused_networks_activation_passes_once():
    fits = replace(FITS, pointwise=1.7)
    activation, norm = (Operator(name, "elementwise", "columns", moved=3000.0) for name in ("activation", "norm"))
    apart, fused = ({"stack": Stack(fused_network=on)} for on in (False, True))
    assert forward_s(activation, fits, **apart) == pytest.approx(1.7 * forward_s(activation, fits, **fused), rel=1e-9)
    assert forward_s(norm, fits, **apart) == forward_s(norm, fits, **fused)


@pytest.mark.parametrize(
    ("cluster", "release", "newer"),
    [("dgx-b200:1", "v5.1", True), ("dgx-b200:1", "26.02", True), ("dgx-b200:1", "v5.0", False),
     ("dgx-b200:1", "25.07", False), ("dgx-h100:1", "v5.1", False)],
)  # fmt: skip
def test_fp8_attention_on_blackwell_has_another_rate_since_25_09(cluster, release, newer):
    path, stack = "stacks.megatron-core since 25.09.fp8_attention_blackwell", Stack(release=release)
    plain, doubled = (calibrate(read_cluster(cluster), stack, {path: rate}).fp8_attention for rate in (1.0, 2.0))
    assert doubled == pytest.approx((2.0 if newer else 1.0) * plain)


@pytest.mark.parametrize(
    ("cp", "exchange", "slower"), [(4, "ring", True), (1, "ring", False), (4, "all_to_all", False)]
)
def test_a_rings_further_blocks_take_longer_and_its_first_does_not(cp, exchange, slower):
    core = Operator("attention", "attention", "columns", attention=Attention(8, 8, 128, 128))
    stack = Stack(context_exchange=exchange)

    def seconds(ring_blocks):
        workload, fits = Training(seq_len=65536, global_batch=1, stack=stack), replace(FITS, ring_blocks=ring_blocks)
        return _Machine(CLUSTER, workload, fits).operator(core, make_rows(cp=cp))[0].seconds[0]

    further = 1.75 if slower else 1.0  # three of the ring's four blocks, all equally large
    assert seconds(2.0) == pytest.approx(further * seconds(1.0), rel=1e-3)


def test_messages_between_stages_take_their_stacks_time_beside_their_bytes():
    path = "stacks.nanotron.p2p_ms"
    none, ten, other = (
        calibrate(CLUSTER, Stack(name=name), {path: ms}).p2p_launch_s
        for name, ms in (("nanotron", 0.0), ("nanotron", 10.0), ("megatron-core", 10.0))
    )
    assert ten == pytest.approx(none + 10e-3)
    assert other == none
