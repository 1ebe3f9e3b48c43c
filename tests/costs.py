"""Machines, models and rows for tests of the cost models, with numbers that are easy to follow by hand."""

from __future__ import annotations

import dataclasses

import numpy as np

from cost_models.calibration import OVERLAPS, Calibration, Collective, calibrate
from cost_models.kernels import AttentionKernel, GemmKernel, MovingKernel
from cost_models.model_graph import Attention, Layer, ModelGraph, Operator
from cost_models.rows import Rows
from cost_models.strategy import (
    DENSE_ORDER,
    LayerChoice,
    LayerRun,
    ParallelDegrees,
    Stage,
    Strategy,
    TrainingSchedule,
)
from topologies.cluster import Cluster, Level
from topologies.ready import read_cluster

DEGREES = ("tp", "cp", "dp_shard", "dp_replicate", "pp", "ep", "etp")
PRODUCTS = ("bf16", "fp16", "fp32", "fp8", "fp4")
OPERATIONS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all")


def make_placement(degrees: dict[str, int], outer: str = "") -> dict[str, tuple[int, int]]:
    """Two levels: every axis inside, those named in ``outer`` (letters split by spaces) outside."""
    size = degrees["tp"] * degrees["cp"] * degrees["dp_shard"] * degrees["dp_replicate"]
    full = degrees | {"edp": size // (degrees["ep"] * degrees["etp"])}
    return {axis: (1, n) if axis in outer.split() else (n, 1) for axis, n in full.items()}


def make_rows(outer: str = "", **fields: int) -> Rows:
    """One row whose every unnamed degree is 1, on two levels (see :func:`make_placement`)."""
    degrees = {axis: fields.pop(axis, 1) for axis in DEGREES}
    schedule = {"zero": 0, "micro_batch": 1, "micro_batches": 1, "virtual": 1} | fields
    factors = {axis: np.array([split]) for axis, split in make_placement(degrees, outer).items()}
    return Rows(**{k: np.array([n]) for k, n in (degrees | schedule).items()}, factors=factors)


def make_stages(layers: tuple[int, ...], recompute: str = "none") -> tuple[Stage, ...]:
    """Virtual stages with that many layers each."""
    return tuple(Stage((LayerRun(n, LayerChoice(recompute)),)) for n in layers)


def make_strategy(layers: tuple[int, ...], *, outer: str = "", recompute: str = "none", **fields: int) -> Strategy:
    """A strategy with those layers a virtual stage, whose every unnamed degree is 1."""
    degrees = {axis: fields.pop(axis, 1) for axis in DEGREES}
    zero, virtual = fields.pop("zero", 0), len(layers) // degrees["pp"]
    schedule = TrainingSchedule("interleaved" if virtual > 1 else "1f1b", virtual, **fields)
    placement = make_placement(degrees, outer)
    return Strategy(ParallelDegrees(**degrees), zero, schedule, make_stages(layers, recompute), placement)


def packed_placement(cluster: Cluster, degrees: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Each axis as far inside as it goes, innermost axis first, for a cluster of two levels."""
    room, placement = cluster.levels[0].fanout, {}
    for axis in DENSE_ORDER:
        inside = int(np.gcd(degrees[axis], room))
        placement[axis] = (inside, degrees[axis] // inside)
        room //= inside
    stage = [placement["tp"][k] * placement["cp"][k] for k in (0, 1)]
    data = [placement["dp_shard"][k] * placement["dp_replicate"][k] for k in (0, 1)]
    return placement | {"ep": (1, 1), "etp": (1, 1), "edp": (stage[0] * data[0], stage[1] * data[1])}


def byte_levels() -> tuple[Level, Level]:
    """Links of one byte a second: with :func:`plain_fits`, seconds are the bytes a device moves."""
    return (Level("inner", 1024, 1.0, 0.0, "wire"), Level("outer", 1024, 1.0, 0.0, "wire"))


def two_hosts() -> Cluster:
    """Two H100 hosts, whose data sheet the formulas are checked against."""
    return read_cluster("dgx-h100:2")


def byte_cluster() -> Cluster:
    """Those hosts on links of one byte a second."""
    return dataclasses.replace(two_hosts(), levels=byte_levels())


def ideal_gemm(**changes: float) -> GemmKernel:
    """Products as fast as the data sheet: exact for sizes that are multiples of 128, max(compute, move) where apart."""
    plain = {"compute_fraction": 1.0, "memory_fraction": 1.0, "sharpness": 64.0, "softness": 1.0, "units": 1e-6,
             "grain": 1.0}  # fmt: skip
    return GemmKernel(**_nothing_but(GemmKernel, plain | changes))


def ideal_flash(**changes: float) -> AttentionKernel:
    """Attention at the data sheet's rate, whatever its length; exact for head sizes that are multiples of 64."""
    ones = ("compute_fraction", "units", "backward_fraction", "backward_length", "full_length", "head_64", "head_256")
    return AttentionKernel(**_nothing_but(AttentionKernel, dict.fromkeys(ones, 1.0) | changes))


def ideal_moving(**changes: float) -> MovingKernel:
    """Memory-bound kernels at the data sheet's rate."""
    return MovingKernel(**_nothing_but(MovingKernel, {"memory_fraction": 1.0} | changes))


def _nothing_but(kernel: type, given: dict[str, float]) -> dict[str, float]:
    return {field.name: 0.0 for field in dataclasses.fields(kernel)} | given


def plain_fits(cluster: Cluster, **changes: object) -> Calibration:
    """A calibration in which everything reaches its data sheet at once and nothing overlaps."""
    wire = dict.fromkeys(OPERATIONS, Collective(0.0, 0.0, 0.0, 1.0, 0.0))
    plain = dataclasses.replace(
        calibrate(cluster), gemm=dict.fromkeys(PRODUCTS, ideal_gemm()), flash=ideal_flash(), moving=ideal_moving(),
        grouped_fraction=1.0, expert_imbalance=1.0, quantise_share=1.0, dropped_attention=1.0,
        scale_up=wire, scale_out=wire,
        overlap=dict.fromkeys(OVERLAPS, 0.0), interference=0.0, host_s=0.0, pointwise=1.0,
        moe_host_s=0.0, expert_host_s=0.0,
        slowest=0.0, step_s=0.0, sustained=1.0, p2p_fraction=1.0, p2p_launch_s=0.0,
        context_bytes=0.0, communicator_bytes=0.0, fragmentation_fraction=0.0,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def matmul(name: str, n: int, k: int, split: str = "columns", saved: int = 0) -> Operator:
    """A matrix product with its parameters."""
    return Operator(name, "matmul", split, parameters=n * k, n=n, k=k, saved=saved, saved_selective=saved)


def small_layer(hidden: int = 16, heads: int = 4, kv_heads: int = 2, width: int = 48) -> Layer:
    """A dense gated layer."""
    d = hidden // heads
    qkv = (heads + 2 * kv_heads) * d
    norm = Operator(
        "norm", "elementwise", "sequence", hidden, moved=2 * hidden, saved=2 * hidden, saved_selective=hidden
    )
    attention = Operator(
        "attention", "attention", "columns", saved=hidden, saved_selective=hidden,
        attention=Attention(heads, kv_heads, d, d),
    )  # fmt: skip
    activation = Operator("activation", "elementwise", "columns", moved=3 * width, saved=width)
    operators = (
        norm, matmul("qkv", qkv, hidden, saved=qkv), attention, matmul("output", hidden, hidden), norm,
        matmul("gate_up", 2 * width, hidden, saved=2 * width), activation, matmul("down", hidden, width),
    )  # fmt: skip
    return Layer("dense", operators, boundaries=2)


def expert_layer(hidden: int = 16, experts: int = 8, top_k: int = 2, width: int = 24) -> Layer:
    """Attention as in :func:`small_layer`, then experts."""
    up = Operator(
        "up", "expert_matmul", "experts", experts * width * hidden, width, hidden, experts, top_k,
        saved=width * top_k, saved_selective=width * top_k,
    )  # fmt: skip
    dispatch = Operator("dispatch", "elementwise", "routed", moved=2 * hidden * top_k, saved=hidden * top_k)
    operators = (*small_layer(hidden).operators[:5], matmul("router", experts, hidden, "sequence"), dispatch, up)
    return Layer("experts", operators, boundaries=2, experts=experts, top_k=top_k)


def small_model(
    order: tuple[int, ...] = (0,) * 4, *, tied: bool = False, vocab: int = 128, kinds: tuple[Layer, ...] | None = None
) -> ModelGraph:
    """A decoder of hidden width 16 with one dense kind of layer and one of experts."""
    embedding = Layer("embedding", (Operator("tokens", "lookup", "columns", vocab * 16, moved=32),))
    norm = Operator("norm", "elementwise", "sequence", 16, moved=32, saved=32, saved_selective=16)
    logits = Operator("logits", "matmul", "columns", 0 if tied else vocab * 16, vocab, 16)
    head = Layer("head", (norm, logits, Operator("loss", "loss", "columns", moved=4 * vocab)))
    kinds = kinds or (small_layer(), expert_layer())
    return ModelGraph("small", 16, vocab, 4, 2, 64, kinds, order, embedding, head, tied, (("attention heads", 4),))
