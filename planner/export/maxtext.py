"""``maxtext.yml``: a config of MaxText's with a plan's mesh, batch and recompute, on top of its ``base.yml``.

A plan's factors inside a scale-up domain are MaxText's ``ici_*`` axes, those across domains its ``dcn_*`` axes; JAX
lays the mesh out by them, so the order of hosts is of no matter. Source of every key: ``targets/maxtext.toml``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from planner.export.clocks import vendor_of
from planner.export.documents import as_yaml
from planner.export.facts import checked, target
from planner.export.refusals import (
    Refusal,
    check_degrees,
    clocks_of_ranks,
    dp,
    has_experts,
    mixed_recompute,
    model_of,
    no_axis,
    no_decoder,
    other_work,
    own_bytes,
    refuse,
    shared_heads,
    split_experts,
    uniform_recompute,
)
from planner.export.render import DOCUMENT, Files, comment
from planner.ranks import world_size
from planner.result import Plan, StrategyRecord
from planner.runtime.limits import runs_on_cpu

PRECISIONS = ("bf16", "fp32")
RECOMPUTE_PINS = ("recompute=selective", "recompute=full")
KEPT = ("query_proj", "key_proj", "value_proj", "qkv_proj", "context", "out_proj", "mlpwi", "mlpwi_0", "mlpwi_1")
"""Products and attention that selective recompute keeps; the last product's output is not read by backward."""


def maxtext(plan: Plan) -> Files:
    """``maxtext.yml``.

    Raises ``Unsupported`` for what MaxText has no key for, ``BadInput`` for a plan that does not add up.
    """
    check_degrees(plan)
    refuse("maxtext", _cannot(plan))
    found = checked("maxtext", config(plan))
    head = f"# {comment(plan.model.name)} on {comment(plan.cluster.name)}, for {target('maxtext').name}.\n"
    return {"maxtext.yml": (head + as_yaml(found), DOCUMENT)}


def config(plan: Plan) -> dict[str, Any]:
    """MaxText's settings of a plan."""
    strategy, work = plan.strategy, plan.workload
    return {
        "base_config": "base.yml",
        "hardware": hardware(plan),
        **{f"ici_{axis}_parallelism": inner for axis, (inner, _) in _mesh(plan).items()},
        **{f"dcn_{axis}_parallelism": outer for axis, (_, outer) in _mesh(plan).items()},
        "shard_optimizer_over_data": strategy.zero == 1,
        "per_device_batch_size": per_device_batch(strategy),
        "gradient_accumulation_steps": strategy.micro_batches,
        "max_target_length": work.seq_len,
        "dtype": "bfloat16" if work.precision == "bf16" else "float32",
        "weight_dtype": "float32",
        "grad_dtype": "float32",
        "opt_type": "adamw" if work.optimizer == "adam" else "sgd",
        **_recompute(plan),
        **_context(plan),
    }


def hardware(plan: Plan) -> str:
    """MaxText's word for the plan's devices."""
    if runs_on_cpu(plan.cluster):
        return "cpu"
    if vendor_of(plan) == "Google":
        return "tpu"
    return "gpu_multiprocess" if plan.cluster.hosts_used > 1 else "gpu"


def _mesh(plan: Plan) -> dict[str, tuple[int, int]]:
    """``(inside a domain, across)`` of every axis; experts are a part of ``dp_shard``, whole weights mean ``data``."""
    strategy = plan.strategy
    inside = plan.cluster.domain_levels
    inner = {axis: math.prod(factors[:inside]) for axis, factors in strategy.placement.items()}
    outer = {axis: math.prod(factors[inside:]) for axis, factors in strategy.placement.items()}
    ep = (inner.get("ep", 1), outer.get("ep", 1)) if strategy.ep > 1 else (1, 1)
    shard = (inner["dp_shard"] // ep[0], outer["dp_shard"] // ep[1])
    replicate = (inner["dp_replicate"], outer["dp_replicate"])
    whole = strategy.zero < 3
    split = plan.workload.stack.sequence_parallel
    tp = (inner["tp"], outer["tp"])
    return {
        "data": (shard[0] * replicate[0], shard[1] * replicate[1]) if whole else replicate,
        "fsdp": (1, 1) if whole else shard,
        "context": (inner["cp"], outer["cp"]),
        "tensor": (1, 1) if split else tp,
        "tensor_sequence": tp if split else (1, 1),
        "expert": ep,
        "pipeline": (1, 1),
    }


def per_device_batch(strategy: StrategyRecord) -> float:
    """Sequences of a micro-batch by device, a fraction where devices share one."""
    return strategy.micro_batch / (strategy.tp * strategy.cp)


def _recompute(plan: Plan) -> dict[str, str]:
    if uniform_recompute(plan.strategy) == "full":
        return {"remat_policy": "full"}
    return {"remat_policy": "custom", "decoder_layer_input": "device"} | dict.fromkeys(KEPT, "device") | {
        "mlpwo": "remat"
    }  # fmt: skip


def _context(plan: Plan) -> dict[str, Any]:
    if plan.strategy.cp == 1:
        return {}
    ring = plan.workload.stack.context_exchange == "ring"
    kernel = {"attention": "flash", "use_tokamax_splash": True} if ring and hardware(plan) == "tpu" else {}
    return {
        "context_parallel_strategy": "ring" if ring else "ulysses", "context_parallel_load_balance": True, **kernel,
    }  # fmt: skip


def _cannot(plan: Plan) -> Iterator[Refusal]:
    strategy, work = plan.strategy, plan.workload
    yield from no_decoder(plan)
    yield from other_work(plan, PRECISIONS)
    yield from own_bytes(plan)
    yield from clocks_of_ranks(plan, "JAX chooses which device runs which part")
    yield from no_axis(strategy, {"pp": "its pipeline passes micro-batches round a circle, without 1F1B"})
    yield from _states(plan)
    yield from split_experts(plan)
    # Source: AI-Hypercomputer/maxtext src/maxtext/layers/attentions.py, which raises where they do not divide.
    yield from shared_heads(plan, "its tensor axes have to divide the model's")
    yield from _expert_mesh(plan)
    yield from _recompute_refusals(plan)
    ring = strategy.cp > 1 and hardware(plan) == "tpu" and work.stack.context_exchange == "ring"
    if ring and (strategy.cp % 2 or work.seq_len % strategy.cp**2):
        why = f"its ring takes an even cp whose square divides the sequence of {work.seq_len}"
        yield Refusal(f"cp = {strategy.cp}", why, ("cp=1",))
    if int(per_device_batch(strategy) * world_size(strategy)) != strategy.micro_batch * dp(strategy):
        why = f"{strategy.micro_batch} / (tp * cp) sequences a device is a fraction that it rounds down"
        yield Refusal("micro-batch", why, ("tp=1", "cp=1"))


def _states(plan: Plan) -> Iterator[Refusal]:
    strategy = plan.strategy
    if strategy.zero == 2:
        yield Refusal("ZeRO-2", "it shards weights with the gradients, or the optimiser alone", ("zero=3",))
    if strategy.zero == 1 and plan.workload.precision != "fp32":
        why = "every rank holds its weights in 32 bits, and the plan counts 16"
        yield Refusal("ZeRO-1", why, ("zero=3", "zero=0"))
    if strategy.zero == 1 and strategy.dp_replicate > 1:
        why = "it shards the optimiser over all data-parallel ranks"
        yield Refusal(f"dp_replicate = {strategy.dp_replicate}", why, ("dp_replicate=1",))
    if strategy.zero < 3 and strategy.cp > 1:
        yield Refusal(f"ZeRO-{strategy.zero} with cp = {strategy.cp}", "it shards weights over cp", ("zero=3", "cp=1"))


def _expert_mesh(plan: Plan) -> Iterator[Refusal]:
    """Experts are divided by tp as all else is, and their axis is a part of the batch's."""
    strategy, placement = plan.strategy, plan.strategy.placement
    if not has_experts(plan):
        return
    if strategy.etp != strategy.tp:
        why = f"its tensor axis divides experts as well, so etp is tp = {strategy.tp}"
        yield Refusal(f"etp = {strategy.etp}", why, (f"etp={strategy.tp}",))
    if strategy.ep > 1 and strategy.zero < 3:
        why = "its expert axis shards dense weights"
        yield Refusal(f"ep = {strategy.ep} with ZeRO-{strategy.zero}", why, ("zero=3",))
    inside = [shard % ep for shard, ep in zip(placement["dp_shard"], placement.get("ep", [1]), strict=False)]
    if strategy.ep > 1 and any(inside):
        shown = f"ep {placement.get('ep')} in dp_shard {placement['dp_shard']}"
        yield Refusal("placement of experts", f"{shown}, and its expert axis is a part of dp_shard", ("ep=1",))


def _recompute_refusals(plan: Plan) -> Iterator[Refusal]:
    strategy, model = plan.strategy, model_of(plan)
    yield from mixed_recompute(strategy, "recomputes alike in all layers", RECOMPUTE_PINS)
    kind = uniform_recompute(strategy)
    if kind == "none":
        yield Refusal("no recompute", "it always recomputes what is cheap", RECOMPUTE_PINS)
    latent = model is not None and any("kv_a" in [op.name for op in layer.operators] for layer in model.kinds)
    if kind == "selective" and (plan.workload.stack.selective != "pointwise" or has_experts(plan) or latent):
        what = "experts" if has_experts(plan) else "latent attention" if latent else plan.workload.stack.selective
        yield Refusal("selective recompute", f"its policy names no tensors for {what}", ("recompute=full",))
