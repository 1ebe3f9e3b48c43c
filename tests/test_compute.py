"""Seconds of operators by hand, on an H100 that reaches its data sheet unless the test says otherwise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import (
    PRODUCTS,
    expert_layer,
    ideal_flash,
    ideal_gemm,
    ideal_moving,
    make_rows,
    matmul,
    plain_fits,
    small_layer,
    small_model,
    two_hosts,
)
from hypothesis import given
from hypothesis import strategies as st

from cost_models.calibration import calibrate
from cost_models.compute import _Machine, layer_compute, optimizer_work
from cost_models.model_graph import Attention, Layer, Operator
from cost_models.rows import Rows
from cost_models.stack import Stack
from cost_models.workload import Training
from planner.read_model import read_model
from topologies.ready import read_cluster

CLUSTER = two_hosts()
PEAK, BANDWIDTH = CLUSTER.peak_flop_per_s("bf16"), CLUSTER.memory_bandwidth_bytes_per_s
FITS = plain_fits(CLUSTER)
SPAN_W = CLUSTER.accelerator.figures.board_power.value - CLUSTER.accelerator.figures.idle_power.value


def work(
    *operators, fits=FITS, seq_len=1024, precision="bf16", experts=0, top_k=0, cluster=CLUSTER, stack=None, **degrees
):  # fmt: skip
    layer = Layer("one", tuple(operators), experts=experts, top_k=top_k)
    workload = Training(seq_len=seq_len, global_batch=1, precision=precision, stack=stack or Stack())
    return layer_compute(layer, make_rows(**degrees), cluster, workload, fits)


def kernel_fits(launch_s=0.0, compute_fraction=1.0, memory_fraction=1.0):
    return dataclasses.replace(
        FITS,
        gemm=dict.fromkeys(PRODUCTS, ideal_gemm(
            launch_s=launch_s, compute_fraction=compute_fraction, memory_fraction=memory_fraction
        )),
        flash=ideal_flash(launch_s=launch_s, compute_fraction=compute_fraction),
        moving=ideal_moving(launch_s=launch_s, memory_fraction=memory_fraction),
    )  # fmt: skip


def test_a_large_product_by_hand():
    """2 n k FLOP a token, 3 micro-batches of 1024 tokens, over tp 5 and cp 2; backward is two products."""
    found = work(matmul("up", 40_960, 30_720), fits=kernel_fits(launch_s=7e-6, compute_fraction=0.5),
                 tp=5, cp=2, micro_batch=3)  # fmt: skip
    once = 7e-6 + 2 * (3 * 1024 / 2) * 40_960 * 30_720 / 5 / (0.5 * PEAK)

    assert found.forward.seconds[0] == pytest.approx(once, rel=1e-12)
    assert found.backward.seconds[0] == pytest.approx(2 * once, rel=1e-12)
    assert found.forward.joules[0] == pytest.approx(once * SPAN_W * FITS.power_fraction["matmul"], rel=1e-12)


def test_a_thin_product_waits_for_memory():
    """2 tokens: reads them and the weights over tp, writes; the weight gradient is read and written in fp32."""
    found = work(matmul("up", 5000, 3000), fits=kernel_fits(memory_fraction=0.25), seq_len=2, tp=5)
    activations, weights = 2 * (3000 + 5000 / 5) * 2, 5000 * 3000 / 5
    rate = 0.25 * BANDWIDTH
    forward = (activations + 2 * weights) / rate
    gradient = (activations + 2 * 4 * weights) / rate

    assert found.forward.seconds[0] == pytest.approx(forward, rel=1e-12)
    assert found.backward.seconds[0] == pytest.approx(forward + gradient, rel=1e-12)
    assert found.forward.joules[0] == pytest.approx(forward * SPAN_W * FITS.power_fraction["memory"], rel=1e-12)


def test_what_splits_over_tp_and_what_does_not():
    """``columns`` and ``sequence`` both do a fifth of the work; ``whole`` all of it."""

    def seconds(split):
        return work(matmul("x", 40_960, 30_720, split), seq_len=5 * 2**14, tp=5).forward.seconds[0]

    assert seconds("whole") == pytest.approx(5 * seconds("columns"), rel=1e-12)
    assert seconds("sequence") == pytest.approx(seconds("columns"), rel=1e-12)


@pytest.mark.parametrize(
    ("window", "causal", "keys"), [(None, True, 512.5), (None, False, 1024), (32, True, 31.515625)]
)
def test_attention_by_hand(window, causal, keys):
    """2 heads (qk + v) keys FLOP; 2.5 times in backward, at 0.8 of the rate."""
    scores = Attention(12, 4, qk_dim=192, v_dim=64, window=window, causal=causal)
    operator = Operator("attention", "attention", "columns", attention=scores)
    fits = dataclasses.replace(FITS, flash=ideal_flash(compute_fraction=0.5, backward_fraction=0.8))
    found = work(operator, fits=fits, tp=3)
    flop = 1024 * 2 * 12 * (192 + 64) * keys / 3

    assert found.forward.seconds[0] == pytest.approx(flop / (0.5 * PEAK), rel=1e-12)
    assert found.backward.seconds[0] == pytest.approx(2.5 * flop / (0.4 * PEAK), rel=1e-12)
    assert found.attention[0] == found.forward.seconds and found.attention[1] == found.backward.seconds


def test_attention_is_one_kernel_for_all_sequences_and_one_for_every_part_of_a_ring():
    """The launch stands for the kernel: once for any number of sequences, twice where cp halves what a rank sees."""
    operator = Operator("attention", "attention", "columns", attention=Attention(1, 1, 128, 128))
    fits = dataclasses.replace(FITS, flash=ideal_flash(launch_s=1.0))

    for calls, degrees in ((1, {}), (1, {"micro_batch": 5}), (1, {"tp": 2}), (2, {"cp": 2}), (4, {"cp": 4})):
        found = work(operator, fits=fits, seq_len=8192, **degrees)
        assert found.forward.seconds[0] == pytest.approx(calls, rel=2e-3), degrees


def test_packed_examples_see_themselves_only():
    """1,048,576 tokens in examples of 1024: the FLOP of 1024 sequences of 1024."""
    operator = Operator("attention", "attention", "columns", attention=Attention(12, 4, 128, 128))
    packed = Training(seq_len=2**20, global_batch=1, packed_len=1024)
    found = layer_compute(Layer("one", (operator,)), make_rows(), CLUSTER, packed, FITS)
    apart = work(operator, micro_batch=1024)

    assert found.forward.seconds[0] == pytest.approx(apart.forward.seconds[0], rel=1e-12)


def test_elementwise_by_hand():
    """7 elements a token in bf16 over tp 5; half as many again in backward; all of it under selective recompute."""
    fits = kernel_fits(launch_s=7e-6, memory_fraction=0.5)
    found = work(Operator("norm", "elementwise", "sequence", moved=7000), fits=fits, tp=5, micro_batch=3)
    moving = 3 * 1024 * 7000 / 5 * 2 / (0.5 * BANDWIDTH)

    assert found.forward.seconds[0] == pytest.approx(7e-6 + moving, rel=1e-12)
    assert found.backward.seconds[0] == pytest.approx(7e-6 + 1.5 * moving, rel=1e-12)
    assert found.selective.seconds[0] == found.forward.seconds[0]


def test_only_elementwise_work_is_selectively_repeated():
    layer = small_layer()
    found = work(*layer.operators)
    cheap = work(*(op for op in layer.operators if op.kind == "elementwise"))

    assert 0 < found.selective.seconds[0] == cheap.forward.seconds[0] < found.forward.seconds[0]


def test_the_loss_is_in_fp32():
    loss, plain = (work(Operator("x", kind, "columns", moved=7000)) for kind in ("loss", "elementwise"))

    assert loss.forward.seconds[0] == pytest.approx(2 * plain.forward.seconds[0], rel=1e-12)


def test_expert_product_by_hand():
    """Each token in 2 of 8 experts, load 1.25, half the dense rate; ep 4 leaves the number of tokens alone."""
    up = Operator("up", "expert_matmul", "experts", n=40_960, k=30_720, groups=8, active=2)
    fits = dataclasses.replace(FITS, expert_imbalance=1.25, grouped_fraction=0.5)
    found = work(up, fits=fits, experts=8, top_k=2, dp_shard=4, ep=4)
    flop = 1024 * 2 * 1.25 * 2 * 40_960 * 30_720 / 0.5

    assert found.forward.seconds[0] == pytest.approx(flop / PEAK, rel=1e-12)


def test_experts_weights_are_divided_by_ep_and_etp():
    """One token: the time is that of reading the weights of 8 / 4 experts, a half of each."""
    up = Operator("up", "expert_matmul", "experts", n=4000, k=3000, groups=8, active=1)
    found = work(up, seq_len=1, experts=8, top_k=1, tp=2, dp_shard=4, ep=4, etp=2)
    weights = 8 / 4 * 4000 * 3000 / 2 * 2

    assert found.forward.seconds[0] == pytest.approx((weights + (3000 + 4000 / 2) * 2) / BANDWIDTH, rel=1e-12)


def test_etp_and_tp_share_the_routed_work():
    """Over tp 2 a device has half the tokens; with etp 2 all of them, and half of every expert."""
    up = Operator("up", "expert_matmul", "experts", n=40_960, k=30_720, groups=8, active=2)
    alone, tp, etp = (work(up, seq_len=2**16, **d).forward.seconds[0] for d in ({}, {"tp": 2}, {"tp": 2, "etp": 2}))

    assert tp == pytest.approx(alone / 2, rel=1e-12)
    assert etp == pytest.approx(alone / 2, rel=1e-12)


def test_fp8_speeds_up_products_but_not_logits_routers_or_attention():
    def seconds(name, precision, split="columns"):
        return work(matmul(name, 40_960, 30_720, split), precision=precision, seq_len=8192).forward.seconds[0]

    ratio = CLUSTER.peak_flop_per_s("fp8") / PEAK
    assert seconds("up", "bf16") == pytest.approx(ratio * seconds("up", "fp8"), rel=1e-12)
    assert seconds("logits", "bf16") == seconds("logits", "fp8")
    workload = Training(seq_len=8192, global_batch=1, precision="fp8", stack=Stack(quantised_head=True))
    head, _ = _Machine(CLUSTER, workload, FITS).operator(matmul("logits", 40_960, 30_720), make_rows())
    assert head.seconds[0] == pytest.approx(seconds("up", "fp8"), rel=1e-12)
    assert seconds("router", "bf16", "sequence") == seconds("router", "fp8", "sequence")
    scores = Operator("attention", "attention", "columns", attention=Attention(12, 4, 128, 128))
    assert work(scores, precision="fp8").forward.seconds[0] == work(scores).forward.seconds[0]


@pytest.mark.parametrize(("precision", "share"), [("bf16", 0.0), ("fp8", 0.5), ("fp8", 1.0)])
def test_quantising_reads_activations_before_each_product(precision, share):
    """2 us and 3 bytes an element (16 more a row) of the input, the gradient and, turned, the gradient again."""
    quantising = ideal_gemm(quantise_launch_s=2e-6, quantise_bytes=3.0, quantise_row=16.0)
    plain, fits = (dataclasses.replace(FITS, gemm=dict.fromkeys(PRODUCTS, k), quantise_share=share)
                   for k in (ideal_gemm(), quantising))  # fmt: skip
    bare, cast = (work(matmul("up", 8192, 4096), fits=f, precision=precision) for f in (plain, fits))
    inputs, gradients, turned = 1024 * (4096 + 16), 1024 * (8192 + 16), 8192 * (1024 + 16)

    forward = share * (2e-6 + 3 * inputs / BANDWIDTH)
    backward = share * (2 * 2e-6 + 3 * (gradients + turned) / BANDWIDTH)
    assert cast.forward.seconds[0] - bare.forward.seconds[0] == pytest.approx(forward, rel=1e-9)
    assert cast.backward.seconds[0] - bare.backward.seconds[0] == pytest.approx(backward, rel=1e-9)


def test_scales_a_row_are_made_along_both_axes_by_kernels_of_their_own():
    kernel = ideal_gemm(quantise_launch_s=2e-6, quantise_bytes=3.0, quantise_row=16.0)
    fits = dataclasses.replace(FITS, gemm=dict.fromkeys(PRODUCTS, kernel), quantise_share=0.5)
    tensor, rows = (
        work(matmul("up", 8192, 4096), fits=fits, precision="fp8", stack=Stack(row_scaled=on)).forward.seconds[0]
        for on in (False, True)
    )

    assert rows - tensor == pytest.approx((2.0 - 0.5) * (2e-6 + 3 * 1024 * (4096 + 16) / BANDWIDTH), rel=1e-9)


@pytest.mark.parametrize(("precision", "factor"), [("fp8", 0.8), ("bf16", 1.0), ("fp4", 1.0)])
def test_scales_a_block_slow_products_in_fp8_only(precision, factor):
    fits = dataclasses.replace(FITS, block_scaled=0.8)
    plain, blocks = (
        work(matmul("up", 40_960, 30_720), fits=fits, precision=precision, stack=Stack(block_scaled=on))
        for on in (False, True)
    )

    assert plain.forward.seconds[0] == pytest.approx(factor * blocks.forward.seconds[0], rel=1e-12)


def test_sustained_clocks_slow_what_computes_and_not_what_moves():
    fits = dataclasses.replace(FITS, sustained=0.8)
    norm = Operator("norm", "elementwise", "sequence", moved=7000)
    scores = Operator("attention", "attention", "columns", attention=Attention(12, 4, 128, 128))

    for operator, factor in ((matmul("up", 40_960, 30_720), 0.8), (scores, 0.8), (norm, 1.0)):
        slow, fast = (work(operator, fits=f).forward.seconds[0] for f in (fits, FITS))
        assert fast == pytest.approx(factor * slow, rel=1e-12), operator.name


@pytest.mark.parametrize(("precision", "bytes_each"), [("bf16", 4 + 2 * 12 + 2), ("fp32", 4 + 2 * 8 + 4 + 4)])
def test_the_update_reads_gradients_and_reads_and_writes_states(precision, bytes_each):
    workload = Training(seq_len=1, global_batch=1, precision=precision)
    found = optimizer_work(np.array([7e9]), CLUSTER, workload, kernel_fits(launch_s=1.0, memory_fraction=0.5))

    assert found.seconds[0] == pytest.approx(7e9 * bytes_each / (0.5 * BANDWIDTH), rel=1e-12)


@pytest.mark.parametrize("layer", [small_layer(), expert_layer(), small_model().head], ids=lambda layer: layer.kind)
def test_a_machine_twice_as_fast_halves_every_second_exactly(layer):
    workload, rows = Training(seq_len=512, global_batch=8), make_rows(tp=2, dp_shard=2, ep=2)
    slow, fast = (
        layer_compute(layer, rows, machine, workload, calibrate(machine)) for machine in (CLUSTER, CLUSTER.scaled(2))
    )

    assert slow.forward.seconds[0] == 2 * fast.forward.seconds[0]
    assert slow.backward.seconds[0] == 2 * fast.backward.seconds[0]
    assert slow.selective.seconds[0] == 2 * fast.selective.seconds[0]


@given(st.integers(1, 32), st.integers(1, 32), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.booleans())
def test_more_tokens_are_never_faster(few, more, tp, cp, longer):
    """Whole blocks of 128 queries a rank, no host: a block that is begun fills the device better than none."""
    layer, fits = read_model("llama-3.1-8b").kinds[0], dataclasses.replace(calibrate(CLUSTER), host_s=0.0)
    length, batch = ((few, few + more), (1, 1)) if longer else ((few, few), (1, 1 + more))
    a, b = (
        layer_compute(
            layer, make_rows(tp=tp, cp=cp, micro_batch=m), CLUSTER, Training(seq_len=128 * cp * n, global_batch=1), fits
        )
        for n, m in zip(length, batch, strict=True)
    )

    assert a.forward.seconds[0] < b.forward.seconds[0]
    assert a.backward.seconds[0] < b.backward.seconds[0]


def test_rows_priced_together_are_those_priced_alone():
    rows = Rows.concat([make_rows(tp=t, cp=c, micro_batch=b) for t in (1, 2) for c in (1, 2) for b in (1, 2)])
    workload, layer = Training(seq_len=512, global_batch=8), small_layer()
    together = layer_compute(layer, rows, CLUSTER, workload, FITS).backward.seconds

    for i in range(len(rows)):
        alone = layer_compute(layer, rows.take(np.array([i])), CLUSTER, workload, FITS)
        assert together[i] == alone.backward.seconds[0]


def stacked(*operators, fits=FITS, seq_len=1024, **settings):
    """Compute of a layer over tp 5 of a stack with these settings."""
    workload = Training(seq_len=seq_len, global_batch=1, stack=Stack(**settings))
    return layer_compute(Layer("one", tuple(operators)), make_rows(tp=5), CLUSTER, workload, fits)


def test_short_layers_wait_for_the_slowest_of_the_hosts_that_launch_them():
    """Two operators of 1 ms at the host and none to speak of on the device; times scatter with log2(tp)."""
    fits = dataclasses.replace(FITS, host_s=1e-3, host_scatter=0.1)
    small = Operator("norm", "elementwise", "columns", moved=2.0)
    found, graphed = stacked(small, small, fits=fits), stacked(small, small, fits=fits, cuda_graphs=True)
    host_s = 2e-3 * (1 + 0.1 * np.log2(5))

    assert found.forward.seconds[0] == found.backward.seconds[0] == pytest.approx(host_s, rel=1e-12)
    assert found.waiting[0][0] == pytest.approx(host_s - graphed.forward.seconds[0], rel=1e-12)
    assert graphed.waiting[0][0] == graphed.waiting[1][0] == 0


EXPERTS = Operator("experts_activation", "elementwise", "experts", moved=300.0, unfused=500.0)


@pytest.mark.parametrize(("ep", "local"), [(1, 8), (4, 2), (8, 1)])
def test_experts_outside_a_graph_wait_for_their_host(ep, local):
    """2 ms a layer and 0.1 ms a local expert, half of it a pass; none in a graph of the whole step."""
    fits = dataclasses.replace(FITS, moe_host_s=2e-3, expert_host_s=1e-4)

    def passes(*more, **settings):
        workload = Training(seq_len=1, global_batch=1, stack=Stack(**{"cuda_graphs": True} | settings))
        layer = Layer("one", (EXPERTS, *more), experts=8, top_k=1)
        found = layer_compute(layer, make_rows(dp_shard=8, ep=ep), CLUSTER, workload, fits)
        return found.forward.seconds[0], found.backward.seconds[0]

    core = Operator("attention", "attention", "columns", attention=Attention(1, 1, 8, 8))
    half = (2e-3 + local * 1e-4) / 2
    assert passes() == passes(core, expert_graphs=False) == pytest.approx((half, half), rel=1e-12)
    assert passes(core, cuda_graphs=False) == pytest.approx((half, half), rel=0.2), "no graphs, none of experts"
    assert max(passes(core)) < half / 2


@pytest.mark.parametrize(
    ("precision", "fused", "elements"),
    [("bf16", False, 800), ("bf16", True, 800), ("fp8", False, 800), ("fp8", True, 0)],
)
def test_fused_experts_do_their_activation_and_biases_in_low_precision(precision, fused, elements):
    workload = Training(seq_len=1000, global_batch=1, precision=precision, stack=Stack(fused_experts=fused))
    blackwell = read_cluster("dgx-b200:1")
    once, _ = _Machine(blackwell, workload, FITS, attends=True).operator(EXPERTS, make_rows())
    apart, _ = _Machine(blackwell, workload, FITS, attends=False).operator(EXPERTS, make_rows())
    each = 1000 * 2 / blackwell.memory_bandwidth_bytes_per_s
    assert once.seconds[0] == pytest.approx(elements * each, rel=1e-12)
    assert apart.seconds[0] == pytest.approx(800 * each, rel=1e-12)


def test_fused_experts_run_as_one_dense_product():
    """8 experts of 512 tokens at half of a dense product's rate unless fused."""
    fits = dataclasses.replace(FITS, grouped_fraction=0.5)
    up = Operator("up", "expert_matmul", "experts", n=8192, k=8192, groups=8, active=1.0)

    def forward(name, **settings):
        workload = Training(seq_len=4096, global_batch=1, precision="fp8", stack=Stack(**settings))
        return _Machine(read_cluster(name), workload, fits, attends=True).operator(up, make_rows())[0].seconds[0]

    assert forward("dgx-b200:1") > 1.7 * forward("dgx-b200:1", fused_experts=True)
    assert forward("dgx-h100:1") == forward("dgx-h100:1", fused_experts=True)


@pytest.mark.parametrize(("gradient_bytes", "moved"), [(2.0, 6.0), (4.0, 18.0)])
def test_gradients_added_by_kernels_of_their_own(gradient_bytes, moved):
    """Parameters over tp, 6 bytes each into a 16-bit sum and 18 into one of fp32, instead of in a product's output."""
    up = dataclasses.replace(matmul("up", 5000, 3000), parameters=5000 * 3000)
    fused, apart = (
        stacked(up, seq_len=2, gradient_bytes=gradient_bytes, fused_accumulation=fused) for fused in (True, False)
    )
    extra = (moved + 2 - 2 * gradient_bytes) * 5000 * 3000 / 5 / BANDWIDTH

    assert apart.forward.seconds[0] == fused.forward.seconds[0]
    assert apart.backward.seconds[0] - fused.backward.seconds[0] == pytest.approx(extra, rel=1e-9)


@pytest.mark.parametrize(("columns", "slower"), [(40_960, 1.0), (40_970, 1.5), (40_965, 3.0)])
def test_products_of_unaligned_widths_are_slower(columns, slower):
    """8192, 8194 and 8193 columns a tp rank: a multiple of 8, even, odd; a padded vocabulary is aligned."""
    fits = dataclasses.replace(FITS, odd_product=3.0, even_product=1.5)
    plain = dataclasses.replace(FITS, odd_product=1.0, even_product=1.0)
    product, logits = matmul("up", columns, 4096), matmul("logits", columns, 4096)

    def ratio(operator, **settings):
        found, aligned = (stacked(operator, fits=some, **settings) for some in (fits, plain))
        return found.forward.seconds[0] / aligned.forward.seconds[0]

    assert ratio(product) == pytest.approx(slower, rel=1e-12)
    assert ratio(logits) == 1
    assert ratio(logits, padded_vocab=False) == pytest.approx(slower, rel=1e-12)
