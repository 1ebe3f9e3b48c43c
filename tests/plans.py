"""Plans for tests of what comes after planning: any strategy, neutral figures."""

from __future__ import annotations

import math
from typing import Any

from cost_models.strategy import DENSE_ORDER
from cost_models.workload import Training
from planner.mixed.result import MixedPlan, PartRecord, StageRecord
from planner.result import ClusterRecord, ModelRecord, Plan, Proof, StrategyRecord

TINY_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def llama_parameters(config: dict[str, Any]) -> int:
    """Parameters of a Llama, by its shapes."""
    h, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = h // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = 2 * h * h + 2 * h * kv + 3 * h * f + 2 * h
    layer += 2 * (h + kv) if config.get("attention_bias") else 0
    layer += 2 * f + h if config.get("mlp_bias") else 0
    return config["num_hidden_layers"] * layer + h + v * h * (1 if config["tie_word_embeddings"] else 2)


DEGREES = ("dp_replicate", "dp_shard", "tp", "pp", "cp", "ep", "etp", "virtual_stages", "micro_batch", "micro_batches")


def make_strategy(
    *, layers: int = 4, zero: int = 0, recompute: str | list[list[tuple[int, str]]] = "none", **fields: Any
) -> StrategyRecord:
    """A strategy whose every unnamed degree is 1, placed on level 0 unless ``placement`` says otherwise.

    ``recompute`` is one kind for all layers, or the runs of every virtual stage.
    """
    degrees = dict.fromkeys(DEGREES, 1) | fields
    stages = degrees["pp"] * degrees["virtual_stages"]
    per_stage = degrees.setdefault(
        "layers_per_stage", [max(1, layers // stages + (i < layers % stages)) for i in range(stages)]
    )
    runs = [[(count, recompute)] for count in per_stage] if isinstance(recompute, str) else recompute
    degrees.setdefault("schedule", "interleaved" if degrees["virtual_stages"] > 1 else "1f1b")
    degrees.setdefault("placement", {axis: [degrees[axis], 1] for axis in DENSE_ORDER})
    ranks = math.prod(degrees[axis] for axis in DENSE_ORDER) // degrees["pp"]
    degrees.setdefault("edp", ranks // (degrees["ep"] * degrees["etp"]))
    return StrategyRecord(zero=zero, recompute=runs, **degrees)


def make_cluster(
    strategy: StrategyRecord, devices_per_host: int | None = None, accelerator: str = "cpu"
) -> ClusterRecord:
    """A cluster that the strategy just fills."""
    inside = math.prod(strategy.placement[axis][0] for axis in DENSE_ORDER)
    world = math.prod(getattr(strategy, axis) for axis in DENSE_ORDER)
    per_host = devices_per_host or inside
    hosts = world // inside * -(-inside // per_host)
    return ClusterRecord(
        name="test-cluster", source="test-cluster", digest="0" * 16, accelerator=accelerator, hosts=hosts,
        devices_per_host=per_host, scale_up_devices=inside, devices=hosts * per_host, hosts_used=hosts,
        devices_used=world,
    )  # fmt: skip


def make_plan(
    *,
    config: dict[str, Any] | None = TINY_LLAMA,
    name: str = "tiny-llama",
    seq_len: int = 16,
    precision: str = "fp32",
    devices_per_host: int | None = None,
    accelerator: str = "cpu",
    layers: int = 4,
    **strategy_fields: Any,
) -> Plan:
    """A plan with this strategy (fields of :func:`make_strategy`) and neutral values for everything else."""
    layers = config["num_hidden_layers"] if config else layers
    parameters = llama_parameters(config) if config and config["model_type"] == "llama" else 1000
    strategy = make_strategy(layers=layers, **strategy_fields)
    batch = strategy.micro_batch * strategy.micro_batches * strategy.dp_replicate * strategy.dp_shard
    proof = Proof(
        space={}, rows={}, model_digest="0" * 16, cost_model_digest="0" * 16, solver="none", tick_s=1e-7, bound_root=1.0
    )
    return Plan(
        meshwright_version="0", status="optimal", objective_name="time", objective=1.0, bound=1.0, gap=0.0,
        search_s=0.0,
        step_s=0.05, step_interval_s=(0.04, 0.06), tokens_per_s_per_device=1.0, model_flop_utilisation=0.5,
        strategy=strategy, memory=[], memory_headroom_fraction=0.5, time=[], watts={}, joules_per_step=1.0,
        joules_per_token=1.0, usd_per_step=None, usd_per_billion_tokens=None, binding=[], notes=[], alternatives=[],
        model=ModelRecord(name=name, parameters=parameters, active_parameters=parameters, layers=layers,
                          digest="0" * 16, config=config),
        cluster=make_cluster(strategy, devices_per_host, accelerator),
        workload=Training(seq_len=seq_len, global_batch=batch, precision=precision),
        options={}, proof=proof,
    )  # fmt: skip


def make_stage(part: int, layers: int, **fields: Any) -> StageRecord:
    """A stage of a mixed plan; every unnamed degree is 1."""
    degrees = dict.fromkeys(("tp", "cp", "dp", "ep", "micro_batch"), 1) | {"zero": 0, "recompute": [(layers, "none")]}
    degrees |= fields
    return StageRecord(
        part=part, accelerator="cpu", devices=degrees["tp"] * degrees["cp"] * degrees["dp"], layers=layers,
        forward_s=0.01, backward_s=0.02, tail_s=0.0, hop_s=0.0, need_bytes=1.0, limit_bytes=1.0, classes={}, **degrees,
    )  # fmt: skip


def make_part(name: str, hosts: int = 1, devices: int = 1, accelerator: str = "cpu") -> PartRecord:
    """A part of a mixed cluster with so many hosts, each of so many devices."""
    return PartRecord(
        name=name, accelerator=accelerator, host=f"{name}-host", hosts=hosts, devices=hosts * devices,
        devices_used=hosts * devices, hosts_used=hosts, alone_bound=1.0,
    )  # fmt: skip


def make_mixed_plan(stages: list[StageRecord], parts: list[PartRecord], micro_batches: int = 2) -> MixedPlan:
    """A plan of the tiny Llama over several parts, with neutral figures."""
    plain = make_plan()
    stages = [stage.model_copy(update={"accelerator": parts[stage.part].accelerator}) for stage in stages]
    batch = stages[0].dp * stages[0].micro_batch * micro_batches
    used = [sum(stage.devices for stage in stages if stage.part == k) for k in range(len(parts))]
    parts = [part.model_copy(update={"devices_used": n}) for part, n in zip(parts, used, strict=True)]
    return MixedPlan(
        meshwright_version="0", status="optimal", advisory=False, objective=1.0, bound=1.0, gap=0.0, search_s=0.0,
        step_s=0.05, step_interval_s=(0.04, 0.06), tokens_per_s=1.0, micro_batches=micro_batches, stages=stages,
        alone=None, parts=parts, model=plain.model, cluster_name="+".join(part.name for part in parts),
        cluster_digest="0" * 16, workload=plain.workload.model_copy(update={"global_batch": batch}), options={},
        notes=[], proof=plain.proof,
    )  # fmt: skip
