"""Settings of a stack: each does to a layer's seconds what it says, by hand on kernels that reach the data sheet."""

from __future__ import annotations

import dataclasses

import pytest
from costs import PRODUCTS, ideal_gemm, ideal_moving, make_rows, make_strategy, matmul, plain_fits, two_hosts

from cost_models.calibration import calibrate
from cost_models.compute import layer_compute
from cost_models.estimate import estimate
from cost_models.model_graph import Attention, Layer, Operator
from cost_models.stack import Stack
from cost_models.work import LayerCompute
from cost_models.workload import Training
from planner.read_model import read_model
from topologies.ready import read_cluster

CLUSTER = two_hosts()
PEAK, BANDWIDTH = CLUSTER.peak_flop_per_s("bf16"), CLUSTER.memory_bandwidth_bytes_per_s
FITS = plain_fits(CLUSTER)
LLAMA = read_model("llama-3.1-8b")
NORM = Operator("norm", "elementwise", "sequence", moved=8192)
ACTIVATION = Operator("activation", "elementwise", "columns", moved=8192)
RESIDUAL = Operator("residual", "elementwise", "sequence", moved=3 * 4096)
ATTENTION = Operator("attention", "attention", "columns", attention=Attention(12, 4, 128, 128))
FIRST, SECOND, THIRD = (matmul(name, 8192, 8192) for name in ("first", "second", "third"))


def work(*operators, stack=None, fits=FITS, seq_len=1024, tuning="all", lora_rank=16, **degrees) -> LayerCompute:
    settings = stack or Stack()
    job = Training(seq_len=seq_len, global_batch=1, tuning=tuning, lora_rank=lora_rank, stack=settings)
    return layer_compute(Layer("one", tuple(operators)), make_rows(**degrees), CLUSTER, job, fits)


def seconds(*operators, **options) -> tuple[float, float]:
    found = work(*operators, **options)
    return float(found.forward.seconds[0]), float(found.backward.seconds[0])


@pytest.mark.parametrize(
    ("operator", "times"), [(NORM, 4), (ACTIVATION, 1), (matmul("router", 512, 512, "sequence"), 4)]
)
def test_without_sequence_parallelism_every_rank_does_what_is_not_columns(operator, times):
    options = {"tp": 4, "seq_len": 2**20}
    split, whole = (seconds(operator, stack=Stack(sequence_parallel=on), **options) for on in (True, False))

    assert whole == pytest.approx(tuple(times * part for part in split), rel=1e-2 if operator.n else 1e-12)
    alone = [seconds(operator, stack=Stack(sequence_parallel=on), seq_len=2**20) for on in (True, False)]
    assert alone[0] == alone[1]


@pytest.mark.parametrize(("dropout", "score_bytes"), [(False, 4), (True, 9)])
def test_attention_that_is_not_fused_moves_its_scores(dropout, score_bytes):
    """Two products a head read or write 1024^2 scores; softmax and dropout pass over them; backward has four."""
    forward, backward = seconds(ATTENTION, stack=Stack(fused_attention=False, dropout=dropout))
    products = 2 * 12 * (2 * 1024 * 128 + 1024**2) * 2 / BANDWIDTH
    passes = 12 * 1024**2 * score_bytes / BANDWIDTH

    assert forward == pytest.approx(products + passes, rel=1e-12)
    assert backward == pytest.approx(2 * products + 11 / 9 * passes, rel=1e-12)


def test_scores_that_are_not_fused_grow_with_the_square_of_the_length():
    def both(n):
        return seconds(ATTENTION, stack=Stack(fused_attention=False), seq_len=n)[0]

    assert both(2**15) == pytest.approx(4 * both(2**14), rel=0.01)


def test_dropout_slows_attention_and_the_residual_and_nothing_else():
    """Fused attention draws its numbers; two outputs a layer are read and written with masks half as large."""
    fits, on = dataclasses.replace(FITS, dropped_attention=1.5), Stack(dropout=True)

    for operator, factor in ((ATTENTION, 1.5), (RESIDUAL, 1 + 2 * 2.5 / 3), (NORM, 1), (FIRST, 1)):
        plain, dropped = seconds(operator, fits=fits), seconds(operator, fits=fits, stack=on)
        assert dropped == pytest.approx(tuple(factor * s for s in plain), rel=1e-12), operator.name


@pytest.mark.parametrize("graphs", [True, False])
def test_a_layer_takes_its_launches_unless_graphs_hold_them(graphs):
    """Three operators of 1 s of the host, each way; what is longer than that is not lengthened."""
    fits, stack = dataclasses.replace(FITS, host_s=1.0), Stack(cuda_graphs=graphs)
    plain = seconds(NORM, FIRST, ATTENTION)

    assert seconds(NORM, FIRST, ATTENTION, fits=fits, stack=stack) == (plain if graphs else (3.0, 3.0))
    slow = dataclasses.replace(fits, host_s=plain[0] / 3.01)
    assert seconds(NORM, FIRST, ATTENTION, fits=slow, stack=stack) == plain


@pytest.mark.parametrize(
    ("selective", "again"),
    [
        ("pointwise", (NORM, ACTIVATION, RESIDUAL)), ("attention", (ATTENTION,)),
        ("alternate", (NORM, ACTIVATION, RESIDUAL, FIRST, THIRD)),
    ],
)  # fmt: skip
def test_what_selective_recompute_repeats(selective, again):
    layer = (NORM, FIRST, ATTENTION, SECOND, ACTIVATION, THIRD, RESIDUAL)
    repeated = float(work(*layer, stack=Stack(selective=selective)).selective.seconds[0])

    assert repeated == pytest.approx(seconds(*again)[0], rel=1e-12)


def test_pointwise_slows_elementwise_operators_only():
    fits = dataclasses.replace(FITS, pointwise=1.5)
    loss = Operator("loss", "loss", "columns", moved=4096)

    for operator, factor in ((NORM, 1.5), (ACTIVATION, 1.5), (loss, 1), (FIRST, 1), (ATTENTION, 1)):
        assert seconds(operator, fits=fits)[0] == pytest.approx(factor * seconds(operator)[0], rel=1e-12)


def test_frozen_weights_have_no_gradient():
    """Backward is one product, not two; a matrix that no adapter stands beside costs the same forward."""
    (forward, both), (same, one) = (seconds(FIRST, tuning=tuning, seq_len=8192) for tuning in ("all", "lora"))

    assert same == forward
    assert (one, both) == (pytest.approx(forward, rel=1e-9), pytest.approx(2 * forward, rel=1e-9))


@pytest.mark.parametrize("name", ["qkv", "output"])
def test_adapters_move_thin_activations_in_launches_of_their_own(name):
    """Reads k, writes and reads 4 r, adds n (read twice, written once); four launches; backward twice all that."""
    fits = dataclasses.replace(FITS, moving=ideal_moving(launch_s=3e-6))
    operator = matmul(name, 6144, 4096)
    bare, adapted = seconds(dataclasses.replace(operator, name="up"), tuning="lora"), seconds(
        operator, fits=fits, tuning="lora", lora_rank=32
    )  # fmt: skip
    extra = 4 * 3e-6 + 1024 * (4096 + 3 * 6144 + 4 * 32) * 2 / BANDWIDTH

    assert adapted[0] - bare[0] == pytest.approx(extra, rel=1e-9)
    assert adapted[1] - bare[1] == pytest.approx(2 * extra, rel=1e-9)
    assert seconds(operator) == seconds(dataclasses.replace(operator, name="up"))


ERA, PATH = "megatron-core before 25.09", "stacks.megatron-core before 25.09.kernels_blackwell"


@pytest.mark.parametrize(
    ("release", "name", "cluster", "reached"),
    [
        ("25.04", "megatron-core", "dgx-b200:1", True), ("25.08.1", "megatron-core", "dgx-b200:1", True),
        ("v25.01", "megatron-core", "gb200-nvl72:1", True), ("25.09", "megatron-core", "dgx-b200:1", False),
        ("25.11", "megatron-core", "dgx-b200:1", False), ("", "megatron-core", "dgx-b200:1", False),
        ("25.04", "torchtitan", "dgx-b200:1", False), ("25.04", "megatron-core", "dgx-h100:1", False),
    ],
)  # fmt: skip
def test_a_releases_table_holds_for_its_releases_stack_and_family(release, name, cluster, reached):
    machine, stack = read_cluster(cluster), Stack(name=name, release=release)
    whole, half = (calibrate(machine, stack, {PATH: value}) for value in (1.0, 0.5))

    assert half == (dataclasses.replace(whole, sustained=whole.sustained / 2) if reached else whole)


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        ({"sequence_parallel": False}, {}), ({"fused_attention": False}, {}), ({"dropout": True}, {}),
        ({"dp_overlap": False}, {}), ({}, {"tp_overlap": True}), ({"reduce_bytes": 4.0}, {"reduce_bytes": 2.0}),
        ({"gather_bytes": 2.0}, {"gather_bytes": 1.0}), ({"optimizer_bytes": 12.0}, {"optimizer_bytes": 6.0}),
    ],
)  # fmt: skip
def test_a_setting_moves_the_whole_step(slower, faster):
    """An 8B on 16 devices with data parallelism across hosts and the calibration that prices plans."""
    strategy = make_strategy((32,), outer="dp_shard", tp=4, dp_shard=2, zero=1, micro_batches=2)
    longer, shorter = (
        estimate(LLAMA, CLUSTER, Training(seq_len=4096, global_batch=4, stack=Stack(**fields)), strategy).step_s
        for fields in (slower, faster)
    )

    assert shorter < longer < 3 * shorter


def test_fp4_products_are_faster_and_read_less():
    """On Blackwell: more FLOP a second where they compute, 0.5625 bytes an operand where they wait for memory."""
    machine = read_cluster("dgx-b200:1")
    fits = dataclasses.replace(plain_fits(machine), gemm=dict.fromkeys(PRODUCTS, ideal_gemm()))

    def forward(precision, tokens):
        job = Training(seq_len=tokens, global_batch=1, precision=precision)
        layer = Layer("one", (matmul("up", 65536, 65536),))
        return layer_compute(layer, make_rows(), machine, job, fits).forward.seconds[0]

    for precision, element in (("bf16", 2), ("fp8", 1), ("fp4", 0.5625)):
        computing = 2 * 65536 * 65536 * 65536 / machine.peak_flop_per_s(precision)
        moving = (element * (65536**2 + 65536) + 2 * 65536) / machine.memory_bandwidth_bytes_per_s
        assert forward(precision, 65536) == pytest.approx(computing, rel=1e-12)
        assert forward(precision, 1) == pytest.approx(moving, rel=1e-12)


def test_recompute_that_stops_early_leaves_out_what_follows_the_last_kept_tensor():
    """Backward reads the input of the last product, not its result; an adapter beside it keeps a part of that."""
    kept = dataclasses.replace(SECOND, saved=1)
    down = dataclasses.replace(THIRD, name="down")
    whole, early = (work(FIRST, kept, down, RESIDUAL, stack=Stack(early_stop=on)) for on in (False, True))
    last = work(down, RESIDUAL).forward

    assert whole.full.seconds == whole.forward.seconds == early.forward.seconds
    assert early.full.seconds == pytest.approx(whole.full.seconds - last.seconds, rel=1e-12)
    assert early.full.joules == pytest.approx(whole.full.joules - last.joules, rel=1e-12)
    adapted = Training(
        seq_len=1024, global_batch=1, tuning="lora", lora_targets=("down",), stack=Stack(early_stop=True)
    )
    beside = layer_compute(Layer("one", (FIRST, kept, down, RESIDUAL)), make_rows(), CLUSTER, adapted, FITS)
    assert beside.full.seconds == pytest.approx(beside.forward.seconds - work(RESIDUAL).forward.seconds, rel=1e-12)


def test_recompute_that_stops_early_shortens_steps_with_full_recompute_only():
    job = Training(seq_len=1024, global_batch=1)
    early = job.model_copy(update={"stack": Stack(early_stop=True)})
    model = read_model("tiny-llama")

    def step_s(workload, recompute):
        whole = make_strategy((model.layers,), recompute=recompute)
        return estimate(model, CLUSTER, workload, whole).step_s

    assert step_s(early, "full") < step_s(job, "full")
    assert step_s(early, "none") == step_s(job, "none")
    assert step_s(early, "selective") == step_s(job, "selective")
