"""``torchtitan_plan.py``, a config function of torchtitan's, and ``torchtitan.sh``, which trains by it.

Settings go through a config function because torchtitan's command line cannot say which modules a stage holds.
Source of every setting: ``targets/torchtitan.toml``.
"""

from __future__ import annotations

import itertools
import pprint
from collections.abc import Iterator
from typing import Any

from planner.export.facts import checked, flat, target
from planner.export.framework import framework_files
from planner.export.refusals import (
    Refusal,
    check_degrees,
    has_experts,
    mixed_recompute,
    model_of,
    no_decoder,
    other_work,
    own_bytes,
    refuse,
    shared_heads,
    split_experts,
    uniform_recompute,
)
from planner.export.render import DOCUMENT, Files, render
from planner.export.renumbering import needed_host_numbers
from planner.result import Plan, StrategyRecord

PRECISIONS = ("bf16", "fp32")
SCHEDULES = {"1f1b": "1F1B", "interleaved": "Interleaved1F1B", "zbv": "ZBVZeroBubble", "dualpipev": "DualPipeV"}


def torchtitan(plan: Plan) -> Files:
    """``torchtitan_plan.py``, ``torchtitan.sh`` and the ``launch.sh`` it calls.

    Raises ``Unsupported`` for what torchtitan has no setting for, ``BadInput`` for a plan that does not add up.
    """
    check_degrees(plan)
    refuse("torchtitan", _cannot(plan))
    hosts = needed_host_numbers(plan, "torchtitan")
    config = render(
        "torchtitan_plan.py.j2", plan=plan, target=target("torchtitan"), layers=plan.model.layers,
        settings=pprint.pformat(settings(plan), width=118, compact=True, sort_dicts=False),
        recompute=repr(uniform_recompute(plan.strategy)),
    )  # fmt: skip
    script = framework_files(
        plan, "torchtitan", ["torchtitan.train", "--module", "torchtitan_plan", "--config", "planned"], hosts=hosts,
        program="-m", beside=True,
        about=("MESHWRIGHT_CONFIG    your config: torchtitan.models.llama3.config_registry:llama3_8b",),
    )  # fmt: skip
    return script | {"torchtitan_plan.py": (config, DOCUMENT)}


def settings(plan: Plan) -> dict[str, dict[str, Any]]:
    """Fields of torchtitan's configs by section."""
    found = {"parallelism": _parallelism(plan), "training": _training(plan)}
    checked("torchtitan", flat(found) | {"activation_checkpoint": uniform_recompute(plan.strategy)})
    return found


def module_names(sizes: list[int]) -> list[list[str]]:
    """The modules of every stage, in model order, by the names that torchtitan's decoders give them."""
    ends = list(itertools.accumulate(sizes))
    stages = [[f"layers.{i}" for i in range(end - size, end)] for size, end in zip(sizes, ends, strict=True)]
    stages[0].insert(0, "tok_embeddings")
    stages[-1] += ["norm", "lm_head"]
    return stages


def _parallelism(plan: Plan) -> dict[str, Any]:
    strategy = plan.strategy
    degrees = {
        "data_parallel_replicate_degree": strategy.dp_replicate,
        "data_parallel_shard_degree": strategy.dp_shard,
        "fsdp_reshard_after_forward": "always" if strategy.zero == 3 and strategy.pp == 1 else "never",
        "tensor_parallel_degree": strategy.tp,
        "enable_sequence_parallel": plan.workload.stack.sequence_parallel,
        "context_parallel_degree": strategy.cp,
        "expert_parallel_degree": strategy.ep,
        "pipeline_parallel_degree": strategy.pp,
    }
    return degrees | (_pipeline(strategy) if strategy.pp > 1 else {})


def _pipeline(strategy: StrategyRecord) -> dict[str, Any]:
    return {
        "pipeline_parallel_schedule": SCHEDULES[strategy.schedule],
        "pipeline_parallel_microbatch_size": strategy.micro_batch,
        "module_fqns_per_model_part": module_names(strategy.layers_per_stage),
    }


def _training(plan: Plan) -> dict[str, Any]:
    strategy, work = plan.strategy, plan.workload
    together = strategy.micro_batches if strategy.pp > 1 else 1
    return {
        "local_batch_size": strategy.micro_batch * together,
        "global_batch_size": work.global_batch,
        "seq_len": work.seq_len,
        "dtype": "float32",
        "mixed_precision_param": "bfloat16" if work.precision == "bf16" else "float32",
        "mixed_precision_reduce": "float32",
        "disable_cuda_graphs": not work.stack.cuda_graphs,
    }


def _cannot(plan: Plan) -> Iterator[Refusal]:
    strategy = plan.strategy
    yield from no_decoder(plan)
    yield from other_work(plan, PRECISIONS)
    yield from own_bytes(plan)
    yield from _states(plan)
    yield from split_experts(plan)
    yield from _expert_mesh(plan)
    yield from _model(plan)
    yield from mixed_recompute(strategy, "recomputes alike in all layers", ("recompute=none", "recompute=full"))
    if uniform_recompute(strategy) == "selective" and plan.workload.stack.selective != "alternate":
        why = "its selective policy repeats every second matrix product too, and the plan counts on keeping them"
        yield Refusal("selective recompute", why, ("recompute=none", "recompute=full"))
    if plan.workload.stack.cuda_graphs and strategy.pp > 1:
        yield Refusal("CUDA graphs with a pipeline", "it captures no pipeline", ("pp=1",))


def _states(plan: Plan) -> Iterator[Refusal]:
    strategy = plan.strategy
    if strategy.zero == 0 and strategy.cp > 1:
        why = f"it shards states over dp_shard * cp = {strategy.dp_shard} * {strategy.cp}"
        yield Refusal("states replicated over cp", why, ("zero=1",) if strategy.pp > 1 else ("zero=2", "zero=3"))
    if strategy.pp > 1:
        yield from _states_of_a_pipeline(plan)
    elif strategy.zero == 1:
        why = "its FSDP shards gradients as well (zero 2: never reshard) and weights (zero 3: always)"
        yield Refusal("ZeRO-1 without a pipeline", why, ("zero=2", "zero=3"))


def _states_of_a_pipeline(plan: Plan) -> Iterator[Refusal]:
    """torch's stages gather weights once and sum whole gradients until the last micro-batch: that is ZeRO-1.

    Source: torch/distributed/pipelining/stage.py, ``backward_maybe_with_nosync``, and schedules.py,
    ``_add_unshard_reshard``, which holds three stages' weights.
    """
    strategy = plan.strategy
    once = strategy.zero == 3 and plan.workload.stack.gather_once
    if strategy.zero >= 2 and not once:
        why = "its stages gather weights once and hold whole gradients until the last micro-batch, which is ZeRO-1"
        yield Refusal(f"ZeRO-{strategy.zero} under a pipeline", why, ("zero=1", "pp=1"))
    if strategy.virtual_stages > 3 and strategy.zero:
        why = "it holds the gathered weights of three at a time and gathers them again, and the plan holds all"
        yield Refusal(f"{strategy.virtual_stages} virtual stages", why, ("virtual_stages=1",))


def _expert_mesh(plan: Plan) -> Iterator[Refusal]:
    """With ep the experts are whole; without, they are divided by tp."""
    strategy = plan.strategy
    wanted = 1 if strategy.ep > 1 else strategy.tp
    if has_experts(plan) and strategy.etp != wanted:
        why = f"with ep = {strategy.ep} and tp = {strategy.tp} its experts have etp {wanted}"
        yield Refusal(f"etp = {strategy.etp}", why, (f"etp={wanted}",))


def _model(plan: Plan) -> Iterator[Refusal]:
    model, strategy = model_of(plan), plan.strategy
    yield from shared_heads(plan, "it does not repeat the model's")
    if model is not None and model.tied and strategy.pp > 1:
        yield Refusal(f"pp = {strategy.pp}", "embedding and head are tied, and it ties none across stages", ("pp=1",))
