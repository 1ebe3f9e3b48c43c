"""What the runtime cannot run, said before anything starts; no torch here, exporters ask as well."""

from __future__ import annotations

from cost_models.schedules import virtual_stages_of
from cost_models.strategy import MIRRORED
from planner.errors import BadInput, Unsupported
from planner.mixed.uneven import UnevenJob
from planner.result import ClusterRecord, Plan, StrategyRecord

MODEL_TYPES = ("llama",)
"""Architectures that the built-in trainer can build from a config."""

SAME_FORWARD = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` values whose forward is embedding, layers, norm and head, with nothing between."""

TIED = (
    "embedding and head share one weight (tie_word_embeddings), whose two gradients are added up among stages that are "
    "split alike, and this plan's differ in tp, dp or ZeRO; pin tp and zero, or untie them"
)
"""Why stages with meshes of their own take no tied embedding."""

PRECISIONS = ("bf16", "fp32")


def check_plan(plan: Plan) -> None:
    """Refuse what :func:`planner.runtime.apply` has no code for.

    Raises ``Unsupported`` naming the part of the plan, ``BadInput`` when its batch or stages do not add up.
    """
    strategy = plan.strategy
    if strategy.schedule == MIRRORED:
        raise Unsupported(
            f"the runtime holds a stage on one device, and schedule={MIRRORED} holds each on two; pin "
            "schedule=dualpipev, its half"
        )
    if why := not_launched(strategy):
        raise Unsupported(f"{why}; plan without vocab_tp")
    if strategy.offloads:
        moved = ", ".join(f"{it.tensors} to {it.tier}" for it in strategy.offloads)
        raise Unsupported(f"the runtime offloads nothing, and the plan moves {moved}; plan without tiers")
    if plan.workload.precision not in PRECISIONS:
        raise Unsupported(
            f"the runtime trains in {' or '.join(PRECISIONS)}, and the plan is for {plan.workload.precision}; "
            "plan with precision='bf16'"
        )
    _check_batch(plan)
    _check_stages(strategy)


def not_launched(strategy: StrategyRecord) -> str:
    """Why nothing here launches a strategy, neither a target nor the runtime; nothing where that depends on which."""
    if strategy.vocab_tp in (0, strategy.tp):
        return ""
    return (
        f"embedding and head are divided over vocab_tp={strategy.vocab_tp} ranks, the layers over tp={strategy.tp}, "
        "and no launch target divides them apart"
    )


def _check_batch(plan: Plan) -> None:
    strategy, batch = plan.strategy, plan.workload.global_batch
    dp = strategy.dp_replicate * strategy.dp_shard
    product = strategy.micro_batch * strategy.micro_batches * dp
    if product != batch:
        raise BadInput(
            f"micro_batch * micro_batches * dp = {strategy.micro_batch} * {strategy.micro_batches} * {dp} = {product}, "
            f"but global_batch = {batch}; plan again"
        )


def _check_stages(strategy: StrategyRecord) -> None:
    """Refuse stages whose numbers contradict each other, as after a file was edited. Raises ``BadInput``."""
    layers, count = strategy.layers_per_stage, strategy.pp * strategy.virtual_stages
    named = [sum(length for length, _ in runs) for runs in strategy.recompute]
    kind, each = strategy.schedule, virtual_stages_of(strategy.schedule)
    if kind != "interleaved" and strategy.virtual_stages != each:
        raise BadInput(f"schedule={kind} has virtual_stages = {each}, and not {strategy.virtual_stages}; plan again")
    if len(layers) != count:
        raise BadInput(
            f"pp * virtual_stages = {strategy.pp} * {strategy.virtual_stages} = {count} stages, but layers_per_stage "
            f"has {len(layers)}; plan again"
        )
    if named != layers:
        raise BadInput(f"layers_per_stage is {_sum(layers)}, but recompute names {_sum(named)} layers; plan again")


def _sum(layers: list[int]) -> str:
    return "+".join(map(str, layers))


def check_sequence(plan: Plan) -> None:
    """Refuse a sequence that cannot be split between a decoder's layers. Raises ``Unsupported``."""
    tp, seq_len = plan.strategy.tp, plan.workload.seq_len
    if seq_len % tp:
        raise Unsupported(
            f"tp = {tp} does not divide seq_len = {seq_len}; the runtime splits a decoder's sequence between layers; "
            "choose a seq_len that tp divides"
        )


def check_trainer(plan: Plan | UnevenJob) -> None:
    """Refuse plans that the built-in trainer cannot run. Raises as :func:`check_plan` and ``Unsupported``."""
    if isinstance(plan, UnevenJob):
        if (plan.model.config or {}).get("tie_word_embeddings"):
            raise Unsupported(TIED)
        for stage in range(len(plan.stages)):
            check_trainer(plan.as_stage(stage))
        return
    check_plan(plan)
    check_sequence(plan)
    if plan.strategy.cp > 1:
        raise Unsupported(
            f"the built-in trainer has no context parallelism, and the plan has cp = {plan.strategy.cp}; pin cp=1"
        )
    config = plan.model.config
    if config is None:
        raise Unsupported(f"the plan of {plan.model.name!r} carries no model config; give your own training program")
    if config.get("model_type") not in MODEL_TYPES:
        raise Unsupported(
            f"the built-in trainer builds {', '.join(MODEL_TYPES)} models, and {plan.model.name!r} has model_type "
            f"{config.get('model_type')!r}; give your own training program"
        )
    heads = config.get("num_attention_heads") or 1
    head_dim = config.get("head_dim") or config.get("hidden_size", heads) // heads
    check_kv_heads(plan.strategy.tp, config.get("num_key_value_heads") or heads, head_dim)


def check_kv_heads(tp: int, kv_heads: int, head_dim: int) -> None:
    """Refuse a ``tp`` under which no rank's queries read whole heads of keys, or no equal parts of heads are projected.

    Raises ``Unsupported``.
    """
    if kv_heads % tp and tp % kv_heads:
        raise Unsupported(f"tp = {tp} neither divides {kv_heads} key-value heads nor is a multiple; pin a tp that is")
    if kv_heads * head_dim % tp:
        raise Unsupported(
            f"tp = {tp} does not divide {kv_heads} key-value heads * {head_dim} elements, of which each rank projects "
            "an equal part; pin a tp that does"
        )


def runs_on_cpu(cluster: ClusterRecord) -> bool:
    """Whether the plan's devices are CPU workers rather than accelerators; several kinds are joined by ``+``."""
    return all(map(is_cpu, cluster.accelerator.split("+")))


def is_cpu(accelerator: str) -> bool:
    """Whether one kind of device is a CPU worker, by its name."""
    return accelerator.split("-")[0] == "cpu"
