"""Hypothesis strategies: tiny models, clusters and workloads, and whole planning problems for the oracle."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from oracle import Instance

from cost_models.calibration import calibrate
from cost_models.model_graph import ModelGraph
from cost_models.stack import Stack
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.read_model import read_config
from topologies.catalogue import Torus
from topologies.cluster import Cluster, Level
from topologies.ready import read_cluster

EXAMPLES = os.environ.get("MESHWRIGHT_EXAMPLES")


def examples(number: int) -> Callable:
    """A sixteenth as many examples, the same ones every time; with MESHWRIGHT_EXAMPLES set, that many new ones."""
    return settings(
        max_examples=int(EXAMPLES or max(2, number // 16)), derandomize=EXAMPLES is None, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )  # fmt: skip


def tiny_config(**fields: object) -> dict:
    """A Llama, or a Mixtral when ``num_local_experts`` is given."""
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    return config | fields


@st.composite
def models(draw: st.DrawFn, *, most_layers: int = 5, experts: bool | None = None) -> ModelGraph:
    """Dense and mixture-of-experts models of 2 layers or more, some with leading dense layers, some tied.

    Some have their experts in two groups, to one of which a token goes; some with experts are as if read from modules,
    whose experts have fewer places.
    """
    heads, kv = draw(st.sampled_from([(2, 1), (3, 3), (4, 2), (4, 4), (6, 2), (6, 3)]))
    width = draw(st.sampled_from([16, 64, 256]))
    layers = draw(st.integers(2, most_layers))
    common = {
        "hidden_size": heads * width, "num_attention_heads": heads, "num_key_value_heads": kv,
        "num_hidden_layers": layers, "intermediate_size": 12 * draw(st.sampled_from([4, 16, 128])),
        "vocab_size": draw(st.sampled_from([128, 4096, 32000])), "tie_word_embeddings": draw(st.booleans()),
    }  # fmt: skip
    if experts is False or (experts is None and draw(st.booleans())):
        return read_config(tiny_config(**common), "tiny")
    count = draw(st.sampled_from([2, 3, 4]))
    common |= {"num_experts": count, "num_experts_per_tok": draw(st.integers(1, 2))}
    common |= {"moe_intermediate_size": 12 * draw(st.sampled_from([2, 64])), "head_dim": width}
    common |= {
        "model_type": "qwen3_moe", "norm_topk_prob": True, "mlp_only_layers": list(range(draw(st.integers(0, 1)))),
        "decoder_sparse_step": draw(st.sampled_from([1, 1, 2])),
    }  # fmt: skip
    if count == 4 and draw(st.booleans()):
        common |= {"n_group": 2, "topk_group": 1}
    found = read_config(tiny_config(**common), "tiny-moe")
    return dataclasses.replace(found, modules=(("embed",), ("head",))) if draw(st.booleans()) else found


def small_cluster(inside: int, hosts: int = 1, *, base: str = "dgx-h100", hosts_inside: int = 1) -> Cluster:
    """``hosts`` scale-up domains of ``inside`` devices, ``hosts_inside`` hosts each, of a ready cluster's parts."""
    whole = read_cluster(f"{base}:2")
    host = whole.host.model_copy(update={"devices": inside // hosts_inside, "scale_up_devices": inside})
    levels = [dataclasses.replace(whole.levels[0], fanout=inside)]
    if hosts > 1:
        outer = whole.levels[1] if len(whole.levels) > 1 else Level("scale-out", 1, 12e9, 5e-6, "ethernet")
        levels.append(dataclasses.replace(outer, fanout=hosts))
    return dataclasses.replace(whole, name="small", host=host, hosts=hosts * hosts_inside, levels=tuple(levels))


def layered_cluster(fanouts: tuple[int, ...], host: int, domains: int, *, torus: bool) -> Cluster:
    """Domains of several levels: a torus, or the partitions of packages and the packages; hosts of ``host`` devices."""
    inside = math.prod(fanouts)
    flat = small_cluster(inside, domains, hosts_inside=inside // host)
    first, outer = flat.levels[0], flat.levels[1:]
    rates = [2.0 / (k + 1) for k in range(len(fanouts))]
    levels = tuple(
        dataclasses.replace(first, name=f"axis {k}", fanout=fanout, ring=torus,
                            bandwidth_bytes_per_s=first.bandwidth_bytes_per_s * (1.0 if torus else rates[k]))
        for k, fanout in enumerate(fanouts)
    )  # fmt: skip
    axes = Torus(axes=fanouts) if torus else None
    return dataclasses.replace(
        flat, levels=(*levels, *outer), host=flat.host.model_copy(update={"torus": axes}),
        accelerator=flat.accelerator.model_copy(update={"partitions": 1 if torus else fanouts[0]}),
    )  # fmt: skip


LAYERED = (
    ((2, 2), 4, 1, False), ((2, 2), 2, 1, True), ((2, 3), 6, 1, False), ((3, 2), 3, 1, True), ((2, 1), 2, 2, False),
    ((2, 2), 4, 1, True),
)  # fmt: skip
"""Fanouts of a domain's levels, devices of a host, domains, whether the levels are axes of a torus."""

SHAPES = (
    (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (2, 2, 1), (1, 4, 1), (3, 2, 1), (4, 2, 1), (2, 3, 1), (4, 1, 2),
    (4, 2, 2), (6, 1, 2),
)  # fmt: skip
"""Devices of a scale-up domain, domains, hosts of a domain."""


@st.composite
def clusters(draw: st.DrawFn, *, most_devices: int = 8) -> Cluster:
    """1 to ``most_devices`` devices, fast and slow parts, now and then several hosts or several levels a domain."""
    several = [shape for shape in LAYERED if math.prod(shape[0]) * shape[2] <= min(4, most_devices)]
    if several and draw(st.integers(0, 11)) == 11:
        fanouts, host, domains, torus = draw(st.sampled_from(several))
        return layered_cluster(fanouts, host, domains, torus=torus)
    inside, hosts, within = draw(st.sampled_from([s for s in SHAPES if s[0] * s[1] <= most_devices]))
    base = draw(st.sampled_from(["dgx-h100", "dgx-a100", "cpu-local", "p3dn"]))
    return small_cluster(inside, hosts, base=base, hosts_inside=within)


STACKS = (
    Stack(), Stack(sequence_parallel=False), Stack(selective="attention"), Stack(selective="behind_qkv"),
    Stack(selective="network", dispatcher="hybridep"), Stack(fused_pointwise=False, fused_attention=False),
    Stack(dp_overlap=False, cuda_graphs=True), Stack(context_exchange="all_to_all", tp_overlap=True),
    Stack(master_weights_sharded=True, fused_accumulation=False), Stack(broadcast_weights=True, expert_graphs=False),
    Stack(selective="alternate", early_stop=True),
)  # fmt: skip
"""Software whose settings change what is sent, kept or repeated."""


@st.composite
def workloads(draw: st.DrawFn) -> Training:
    """Short to long sequences, batches up to 8 with and without a factor of 3, now and then another stack or fp8."""
    return Training(
        seq_len=draw(st.sampled_from([6, 64, 96, 1024, 8192])),
        global_batch=draw(st.sampled_from([1, 2, 3, 4, 6, 8])),
        precision=draw(st.sampled_from(["bf16", "bf16", "fp32", "fp8"])),
        optimizer=draw(st.sampled_from(["adam", "sgd"])),
        stack=draw(st.one_of(st.just(STACKS[0]), st.sampled_from(STACKS))),
    )


PINS = (
    ("tp", 1), ("tp", 2), ("cp", 2), ("pp", 2), ("dp", 2), ("zero", 0), ("zero", 3), ("dp_shard", 2), ("ep", 1),
    ("ep", 2), ("dp_replicate", 2), ("micro_batch", 1), ("virtual_stages", 1), ("virtual_stages", 2),
    ("recompute", "full"), ("recompute", "none"), ("recompute", "selective"), ("devices", 2), ("devices", 4),
)  # fmt: skip


@st.composite
def instances(draw: st.DrawFn, *, most_layers: int = 5, most_devices: int = 6) -> Instance:
    """A whole problem: any objective, sometimes a cap, sometimes pins, memory from ample to none."""
    model, cluster = draw(models(most_layers=most_layers)), draw(clusters(most_devices=most_devices))
    workload = draw(workloads())
    fits = calibrate(cluster, workload.stack)
    if draw(st.booleans()):
        fits = dataclasses.replace(fits, context_bytes=0.0, communicator_bytes=1e4)
    memory = draw(st.one_of(st.none(), st.floats(0.05, 1.5)))
    if memory is not None:
        cluster = with_memory(cluster, fits.context_bytes + memory * _rough_bytes(model, workload))
    cap = draw(st.one_of(st.none(), st.none(), st.floats(0.3, 1.2)))
    figures = cluster.accelerator.figures
    full = cluster.devices * figures.board_power.value + cluster.hosts * cluster.host.figures.power.value
    return Instance(
        model, cluster, workload, fits, coarse_ticks(model, cluster, workload),
        objective=draw(st.sampled_from(["time", "energy", "money"])),
        headroom=draw(st.sampled_from([0.0, 0.05, 0.3])),
        power_cap_w=None if cap is None else cap * full * cluster.facility.figures.pue.value,
        pins=tuple(dict(draw(st.one_of(st.just([]), st.lists(st.sampled_from(PINS), max_size=2)))).items()),
    )  # fmt: skip


def coarse_ticks(model: ModelGraph, cluster: Cluster, workload: Training) -> Ticks:
    """The usual grain, but never so fine that the launches of a tiny model overflow 63 bits."""
    launches_s = workload.global_batch * model.layers * 1e-4 / cluster.rate_scale
    return Ticks(max(Ticks.of(model, cluster, workload).second, 2.0 ** (math.floor(math.log2(launches_s)) - 44)))


def with_memory(cluster: Cluster, memory_bytes: float) -> Cluster:
    """The cluster with that much memory on every device."""
    figures = cluster.accelerator.figures
    figure = figures.memory_capacity.model_copy(update={"value": float(memory_bytes)})
    figures = figures.model_copy(update={"memory_usable": figure})
    return dataclasses.replace(cluster, accelerator=cluster.accelerator.model_copy(update={"figures": figures}))


def _rough_bytes(model: ModelGraph, workload: Training) -> float:
    """States of all parameters and activations of one sequence, on one device, more or less."""
    tokens = workload.seq_len
    return 18.0 * model.parameters + tokens * (40 * model.hidden * model.layers + 8 * model.vocab)
