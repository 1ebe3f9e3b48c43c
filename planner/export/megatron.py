"""``megatron.sh``: starts a Megatron-LM program on every host with the arguments of a plan.

The pipeline is always said as a layout string, so uneven and virtual stages cost nothing extra. Ranks are numbered
tp, cp, dp, pp from the inside, or tp, cp, pp, dp; a plan that nests its axes otherwise gets its hosts renumbered.
Source of every flag: ``targets/megatron.toml``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cost_models.model_graph import ModelGraph
from planner.export.facts import checked
from planner.export.framework import framework_files
from planner.export.refusals import (
    Refusal,
    check_degrees,
    dp,
    first_full,
    has_experts,
    model_of,
    no_decoder,
    offloaded,
    other_training,
    own_bytes,
    recompute_text,
    refuse,
    split_experts,
    uniform_recompute,
)
from planner.export.render import Files
from planner.export.renumbering import host_numbers, placement_refused
from planner.result import Plan, StrategyRecord

Arguments = dict[str, Any]
PP_INSIDE_DP = ("tp", "cp", "pp", "dp_shard", "dp_replicate")
PRECISIONS = ("bf16", "fp16", "fp32", "fp8", "fp4")
RECOMPUTE_PINS = ("recompute=none", "recompute=full")
HYBRIDS = ("nemotron_h",)
"""Families whose layers Megatron cuts into stages by its pattern of layers, not by a layout."""
MODULES = {
    "attention": ("core_attn",), "network": ("mlp", "moe"), "activation": ("moe_act",),
    "up_projection": ("mla_up_proj",),
}  # fmt: skip
"""Modules of Megatron that repeat what a stack's selective recompute repeats."""


def megatron(plan: Plan) -> Files:
    """``megatron.sh`` and the ``launch.sh`` it calls.

    Raises ``Unsupported`` for what Megatron-LM has no argument for, ``BadInput`` for a plan that does not add up.
    """
    arguments, hosts = planned_arguments(plan, "megatron")
    one_connection = plan.strategy.tp * plan.strategy.cp > 1 and plan.strategy.zero < 2
    return framework_files(
        plan, "megatron", list(words(arguments)), hosts=hosts,
        about=("MESHWRIGHT_PROGRAM   Megatron's program: .../Megatron-LM/pretrain_gpt.py",
               "The shape of the model, data and learning rate are yours to add: bash megatron.sh 0 --hidden-size ..."),
        environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if one_connection else {},
    )  # fmt: skip


def planned_arguments(plan: Plan, name: str) -> tuple[Arguments, list[int]]:
    """Arguments by Megatron's name of the flag, and the number of every host. Raises as :func:`megatron`."""
    check_degrees(plan)
    refuse(name, _cannot(plan))
    inside, hosts = _order(plan, name)
    arguments: Arguments = {
        **_parallel(plan.strategy), **({"use-tp-pp-dp-mapping": True} if inside else {}), **_attention(plan),
        "num-layers": plan.model.layers, **_batch(plan), **_precision(plan), **_states(plan), **_recompute(plan),
        **_experts(plan), **_offloads(plan.strategy),
    }  # fmt: skip
    return checked("megatron", arguments), hosts


def words(arguments: Arguments) -> Iterator[str]:
    """A command line: flags without a value for ``True``, all the words of a list behind their flag."""
    for key, value in arguments.items():
        yield f"--{key}"
        if isinstance(value, list):
            yield from value
        elif value is not True:
            yield str(value)


def layout(sizes: list[int]) -> str:
    """The pipeline as Megatron writes it: ``Et*2|t*3|t*2L``, virtual stages in the order of the model."""
    stages = ["t" if n == 1 else f"t*{n}" for n in sizes]
    stages[0] = "E" + stages[0]
    stages[-1] += "L"
    return "|".join(stages)


def _parallel(strategy: StrategyRecord) -> Arguments:
    degrees: Arguments = {
        "tensor-model-parallel-size": strategy.tp,
        "pipeline-model-parallel-size": strategy.pp,
        "context-parallel-size": strategy.cp,
        "expert-model-parallel-size": strategy.ep,
        "expert-tensor-parallel-size": strategy.etp,
    }
    stages = {"pipeline-model-parallel-layout": layout(strategy.layers_per_stage)} if strategy.pp > 1 else {}
    return degrees | stages


def _attention(plan: Plan) -> Arguments:
    stack, strategy = plan.workload.stack, plan.strategy
    found: Arguments = {}
    if strategy.tp > 1 and stack.sequence_parallel:
        found["sequence-parallel"] = True
    if strategy.tp > 1 and stack.tp_overlap:
        found["tp-comm-overlap"] = True
    if strategy.cp > 1:
        found["cp-comm-type"] = ["p2p" if stack.context_exchange == "ring" else "a2a"]
    return found


def _batch(plan: Plan) -> Arguments:
    return {
        "seq-length": plan.workload.seq_len,
        "micro-batch-size": plan.strategy.micro_batch,
        "global-batch-size": plan.workload.global_batch,
    }


def _precision(plan: Plan) -> Arguments:
    kind, block = plan.workload.precision, plan.workload.stack.block_scaled
    sixteen: Arguments = {"fp16": True} if kind == "fp16" else {"bf16": True}
    if kind == "fp32":
        return {}
    if kind == "fp8":
        scaled = "mxfp8" if is_blackwell(plan) else "blockwise"
        return sixteen | {"fp8-format": "hybrid", "fp8-recipe": scaled if block else "tensorwise"}
    return sixteen | ({"fp4-format": "e2m1", "fp4-recipe": "nvfp4"} if kind == "fp4" else {})


def is_blackwell(plan: Plan) -> bool:
    """Whether the plan's devices scale fp8 in blocks of 32 in hardware, which others do in software, by 128 x 128."""
    return any(name in plan.cluster.accelerator for name in ("b200", "b300"))


def _states(plan: Plan) -> Arguments:
    """Optimiser and ZeRO: 1 is the distributed optimiser, 2 and 3 are Megatron-FSDP."""
    strategy, overlap = plan.strategy, plan.workload.stack.dp_overlap
    found: Arguments = {"optimizer": plan.workload.optimizer}
    if plan.workload.optimizer == "sgd":
        found["sgd-momentum"] = 0.0
    if overlap:
        found["overlap-grad-reduce"] = True
    if strategy.zero == 0:
        return found
    found["use-distributed-optimizer"] = True
    found["num-distributed-optimizer-instances"] = strategy.dp_replicate
    if overlap:
        found["overlap-param-gather"] = True
    if strategy.zero == 1:
        return found
    shards = "optim_grads" if strategy.zero == 2 else "optim_grads_params"
    return found | {
        "use-megatron-fsdp": True, "data-parallel-sharding-strategy": shards, "outer-dp-sharding-strategy": "no_shard",
        "ckpt-format": "fsdp_dtensor",
    }  # fmt: skip


def _recompute(plan: Plan) -> Arguments:
    kind, strategy = uniform_recompute(plan.strategy), plan.strategy
    if kind == "none":
        return {}
    if kind == "selective":
        modules = list(MODULES[plan.workload.stack.selective])
        return {"recompute-granularity": "selective", "recompute-modules": modules}
    if kind == "full":
        return {"recompute-granularity": "full", "recompute-method": "uniform", "recompute-num-layers": 1}
    return {
        "recompute-granularity": "full", "recompute-method": "block", "recompute-num-layers": first_full(strategy),
    }  # fmt: skip


def _experts(plan: Plan) -> Arguments:
    if not has_experts(plan):
        return {}
    dispatcher = plan.workload.stack.dispatcher
    if dispatcher == "alltoall":
        return {"moe-grouped-gemm": True, "moe-token-dispatcher-type": "alltoall"}
    return {
        "moe-grouped-gemm": True, "moe-token-dispatcher-type": "flex", "moe-flex-dispatcher-backend": dispatcher,
    }  # fmt: skip


def _offloads(strategy: StrategyRecord) -> Arguments:
    """Layers whose activations leave, the first ones, which TransformerEngine copies to the host's memory."""
    leaving = _leaving(strategy)
    return {"cpu-offloading-num-layers": leaving} if leaving else {}


def _leaving(strategy: StrategyRecord) -> int:
    """First layers that let all activations go, of all layers where the plan tells none apart."""
    every = (strategy.activations_offloaded or strategy.layers_per_stage) if strategy.offloads else [0]
    return sum(every)


def _order(plan: Plan, name: str) -> tuple[bool, list[int]]:
    """Whether pp lies inside dp, and the number of every host. Raises ``Unsupported`` where neither order does."""
    numbers = host_numbers(plan)
    if numbers is not None:
        return False, numbers
    inside = plan.strategy.pp > 1 and plan.strategy.edp == dp(plan.strategy) and plan.strategy.zero < 2
    numbers = host_numbers(plan, PP_INSIDE_DP) if inside else None
    return (True, numbers) if numbers is not None else placement_refused(plan, name)


def _cannot(plan: Plan) -> Iterator[Refusal]:
    strategy = plan.strategy
    yield from no_decoder(plan)
    yield from other_training(plan, PRECISIONS)
    yield from own_bytes(plan)
    yield from _recompute_refusals(plan)
    yield from _offload_refusals(plan)
    if strategy.tp > 1 and not plan.workload.stack.sequence_parallel and has_experts(plan):
        yield Refusal("tensor parallelism without sequence parallelism", "experts need both", ("tp=1",))
    yield from split_experts(plan)
    family = (plan.model.config or {}).get("model_type")
    if strategy.pp > 1 and family in HYBRIDS:
        why = f"{family} is cut by --hybrid-layer-pattern, which holds the model's layers too, and takes no layout"
        yield Refusal(f"pp = {strategy.pp}", why, ("pp=1",))


def _offload_refusals(plan: Plan) -> Iterator[Refusal]:
    """Tensors in tiers that are not activations of whole layers in the host's memory, and what rules out these."""
    strategy = plan.strategy
    if any((it.tensors, it.tier, it.share) != ("activations", "dram", 1.0) for it in strategy.offloads):
        yield from offloaded(plan)
    elif strategy.offloads:
        if strategy.pp > 1:
            yield Refusal(f"offloading with pp = {strategy.pp}", "it offloads activations of no pipeline", ("pp=1",))
        if uniform_recompute(strategy) != "none":
            why = f"{recompute_text(strategy)}, and beside offloaded activations it recomputes nothing"
            yield Refusal("offloading with recompute", why, ("recompute=none",))
        if _leaving(strategy) >= plan.model.layers:
            why = f"activations of all {plan.model.layers} layers leave, and it keeps those of the last"
            yield Refusal("offloading of every layer", why, otherwise="plan with less --headroom, or without --tiers")
        if strategy.zero > 1:
            why = "whether Megatron-FSDP's weights stay out of what it copies is not known"
            yield Refusal(f"offloading with ZeRO-{strategy.zero}", why, ("zero=1", "zero=0"))


def _recompute_refusals(plan: Plan) -> Iterator[Refusal]:
    strategy = plan.strategy
    kind = uniform_recompute(strategy)
    if kind is None and first_full(strategy) is None:
        yield Refusal(
            "recompute of part of the layers",
            f"{recompute_text(strategy)}, and it recomputes alike in all layers, or the first n of every stage in full",
            RECOMPUTE_PINS,
        )
    elif kind == "selective" and (why := _no_modules(plan.workload.stack.selective, model_of(plan))):
        yield Refusal("selective recompute", why, RECOMPUTE_PINS)


def _no_modules(selective: str, model: ModelGraph | None) -> str | None:
    """Why no list of modules repeats what the plan's selective recompute does; ``None`` when one does."""
    if selective not in MODULES:
        pointwise = "norms and activation functions"
        named = {"pointwise": pointwise, "small_modules": f"{pointwise} and up-projections"}
        what = named.get(selective, selective)
        return f"the plan repeats {what} of every layer, and no list of its modules is that"
    if selective == "activation" and not _only_experts(model):
        return "the plan repeats the activation functions of dense layers too, and moe_act those of routed experts only"
    return None


def _only_experts(model: ModelGraph | None) -> bool:
    """Whether every layer has experts; functions of shared ones are not repeated by either."""
    return model is not None and all(model.kinds[k].experts for k in set(model.order))
