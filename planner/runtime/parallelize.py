"""A plan applied to a module: stages cut, layers split, recomputed and sharded, in the order torch needs.

Each layer is filled, split over tp and wrapped for recomputation before data parallelism shards it: tensor
parallelism has to see whole weights, and sharding has to see the wrapped module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from planner.errors import BadInput, Unsupported
from planner.mixed.uneven import UnevenJob
from planner.result import Plan, StrategyRecord
from planner.runtime.data_parallel import agree, shard
from planner.runtime.decoder import Decoder, DecoderPart, find_decoder
from planner.runtime.last_words import name_this_rank
from planner.runtime.limits import TIED, check_plan, check_sequence
from planner.runtime.mesh import build_mesh, join, planned_device_type
from planner.runtime.pipeline import pipeline_schedule, stage_layers
from planner.runtime.recompute import kinds_by_layer, recomputing
from planner.runtime.schedule import AccumulationSchedule, PipelineSchedule, Schedule
from planner.runtime.target_mean import Loss, TargetMean
from planner.runtime.tensor_parallel import check_tensor_parallel, split_ends, split_layer
from planner.runtime.uneven_stages import decoder_of, stage_mesh, uneven_schedule
from planner.runtime.vocabulary_loss import split_target_mean

Fill = Callable[[str, nn.Module], None]


def parallelize(
    plan: Plan | UnevenJob,
    module: nn.Module,
    *,
    loss_fn: Loss | None = None,
    device_type: str | None = None,
    fill: Fill | None = None,
    example_inputs: Any = None,
    rules: Mapping[str, str] | None = None,
    by_micro_batch: bool = False,
    timeout_s: float = 600.0,
) -> tuple[nn.Module, Schedule]:
    """``(model, schedule)``: this rank's share of ``module``, and the step that trains it.

    ``model`` is ``module`` itself, changed in place: it keeps the names of its parameters and only the layers
    of this rank's stages. ``example_inputs`` are those that the module was planned with: layers are found by them.
    Decoders that the runtime knows (:mod:`planner.runtime.decoder`) need none, and are taken apart without them;
    their sequence is split between layers as planned, where any other module's ``forward`` runs as it is. ``rules``
    are tensor-parallel styles by module name that take the place of inferred ones. A module that mixes the samples of
    a batch (a contrastive loss, a norm over the batch other than BatchNorm) is refused where the batch is run in parts,
    unless ``by_micro_batch`` says that its loss is to be what each micro-batch gives.

    ``loss_fn(logits, targets)`` is a mean over its micro-batch (and its part of the sequence), and the mean of these is
    trained; without one it is the mean cross-entropy over all targets of the global batch but those of -100, which
    never gathers the logits that tp splits. Copies of a layer take the first copy's weights, except with
    ``fill(name, submodule)``: then ``module`` may be on the meta device, and ``fill`` gives each submodule its values
    right before it is split, alike on every rank. A rank that waits ``timeout_s`` for another ends the job and names
    it; errors that end a rank are told by rank from here on (:mod:`planner.runtime.last_words`).

    Raises ``Unsupported`` for what the runtime has no code for; ``BadInput`` for a plan of another model or
    another number of processes, for what is no module, or outside a torchrun job.
    """
    _check_module(module)
    name_this_rank()
    if isinstance(plan, UnevenJob):
        return _uneven(plan, module, loss_fn, device_type, fill, rules, timeout_s)
    check_plan(plan)
    decoder = _decoder(plan, module, example_inputs, rules)
    if decoder is None:
        from planner.runtime.any_module import parallelize_any

        return parallelize_any(
            plan, module, _example(plan, module, example_inputs), loss_fn=loss_fn, device_type=device_type, fill=fill,
            rules=rules, by_micro_batch=by_micro_batch, timeout_s=timeout_s,
        )  # fmt: skip
    return _one_by_one(plan, decoder, loss_fn, device_type, fill, timeout_s)


def _check_module(module: Any) -> None:
    """Refuse what is no module, or one whose compiled forward would not see what is done to it."""
    if not isinstance(module, nn.Module):
        raise BadInput(f"apply takes a torch module, and {type(module).__name__} is none; give the model itself")
    if type(module).__name__ == "OptimizedModule":
        inner = type(module._orig_mod).__name__
        raise BadInput(
            f"apply takes a module before torch.compile, and this {inner} is compiled; give module._orig_mod"
        )


def _one_by_one(
    plan: Plan, decoder: Decoder, loss_fn: Loss | None, device_type: str | None, fill: Fill | None, timeout_s: float
) -> tuple[nn.Module, Schedule]:
    """:func:`parallelize` of a decoder whose layers the runtime runs one by one."""
    check_sequence(plan)
    check_model(plan, decoder)
    device = join(plan, device_type or planned_device_type(plan), timeout_s)
    strategy, module = plan.strategy, decoder.module
    mesh = build_mesh(strategy, device.type)
    held = strategy.stages_of(mesh["pp"].get_local_rank())
    parts = _cut(strategy, held, decoder, _Placer(mesh, device, fill), whole_logits=loss_fn is not None)
    loss_fn = loss_fn or _default_loss(decoder, mesh)
    for part in parts:
        shard(part, mesh, strategy.zero, plan.workload.precision)
    if strategy.pp == 1:
        return module, AccumulationSchedule(strategy, mesh, module, parts[0], loss_fn)
    schedule = pipeline_schedule(strategy, mesh, device, parts, loss_fn)
    return module, PipelineSchedule(strategy, mesh, module, parts, loss_fn, schedule)


def _uneven(
    job: UnevenJob, module: nn.Module, loss_fn: Loss | None, device_type: str | None, fill: Fill | None,
    rules: Mapping[str, str] | None, timeout_s: float,
) -> tuple[nn.Module, Schedule]:  # fmt: skip
    """:func:`parallelize` where stages have meshes of their own."""
    decoder = decoder_of(module, rules)
    if decoder.tied:
        raise Unsupported(TIED)
    for view in map(job.as_stage, range(len(job.stages))):
        check_plan(view)
        check_sequence(view)
        check_model(view, decoder)
    device = join(job, device_type or planned_device_type(job), timeout_s)
    stage = job.stage_of(dist.get_rank())
    mesh = stage_mesh(job, stage, device.type)
    own = job.stages[stage]
    [part] = _cut(own, [stage], decoder, _Placer(mesh, device, fill), whole_logits=loss_fn is not None)
    shard(part, mesh, own.zero, job.workload.precision)
    return module, uneven_schedule(job, stage, mesh, device, decoder, part, loss_fn or _default_loss(decoder, mesh))


def _decoder(plan: Plan, module: nn.Module, example_inputs: Any, rules: Mapping[str, str] | None) -> Decoder | None:
    """The module taken apart, where that is how it runs; ``None`` where its own forward does."""
    if plan.strategy.cp > 1 or plan.strategy.ep * plan.strategy.etp > 1 or rules or example_inputs is not None:
        return None
    found = _known_decoder(module)
    return None if found.tied and plan.strategy.pp > 1 else found


def _known_decoder(module: nn.Module) -> Decoder:
    try:
        return find_decoder(module)
    except Unsupported as error:
        raise BadInput(
            f"{error}. Any module runs by its own forward if its layers can be found: give apply(module, "
            "example_inputs=...), those that it was planned with"
        ) from error


def _example(plan: Plan, module: nn.Module, example_inputs: Any) -> Any:
    """The example inputs; for a decoder without, tokens of the planned sequence."""
    if example_inputs is not None:
        return example_inputs
    _known_decoder(module)
    return torch.zeros(1, plan.workload.seq_len, dtype=torch.long)


def check_model(plan: Plan, decoder: Decoder) -> None:
    """Compare ``decoder`` with what was planned.

    Raises ``BadInput`` for another model, ``Unsupported`` for one that this plan cannot be applied to.
    """
    planned, parameters = plan.model, sum(p.numel() for p in decoder.module.parameters())
    pairs = [("parameters", planned.parameters, parameters), ("layers", planned.layers, len(decoder.body.layers))]
    if planned.config and "hidden_size" in planned.config:
        pairs.append(("hidden size", planned.config["hidden_size"], decoder.config.hidden_size))
    for what, wanted, found in pairs:
        if wanted != found:
            raise BadInput(
                f"the plan is for {planned.name!r} with {what} = {wanted}, but the module has {found}; plan again"
            )
    stages = plan.strategy.layers_per_stage
    if sum(stages) != planned.layers:
        raise BadInput(
            f"the stages hold {'+'.join(map(str, stages))} = {sum(stages)} layers, but the model has {planned.layers}; "
            "plan again"
        )
    check_tensor_parallel(decoder, plan.strategy.tp)


class _Placer:
    """Brings one submodule at a time to this rank's device, with its values."""

    def __init__(self, mesh: DeviceMesh, device: torch.device, fill: Fill | None):
        self.mesh, self.device, self.fill = mesh, device, fill

    def place(self, name: str, module: nn.Module) -> None:
        """Move or fill ``module``, called ``name`` in the whole model."""
        if self.fill is None:
            module.to(self.device, torch.float32)  # the master copy, whatever type the weights came in
            agree(module, self.mesh)
        else:
            module.to(torch.float32).to_empty(device=self.device)
            self.fill(name, module)


def _default_loss(decoder: Decoder, mesh: DeviceMesh) -> Loss:
    tp = mesh["tp"]
    return TargetMean() if tp.size() == 1 else split_target_mean(tp, decoder.config.vocab_size)


def _cut(
    strategy: StrategyRecord, held: list[int], decoder: Decoder, placer: _Placer, whole_logits: bool
) -> list[DecoderPart]:
    """The parts of the stages that this rank holds, placed, split and wrapped; the module keeps nothing else."""
    mesh, ranges = placer.mesh, stage_layers(strategy.layers_per_stage)
    kinds = kinds_by_layer(strategy.recompute)
    tied = decoder.tied
    layers: dict[str, nn.Module] = {}
    for index in (index for stage in held for index in ranges[stage]):
        layer = decoder.body.layers[index]
        placer.place(f"{decoder.body_name}.layers.{index}", layer)
        if strategy.tp > 1:
            split_layer(layer, mesh["tp"], recomputed=kinds[index] != "none")
        layers[str(index)] = recomputing(layer, kinds[index])
    parts = [_part(decoder, {str(i): layers[str(i)] for i in ranges[s]}, s, len(ranges), strategy.tp) for s in held]
    _place_ends(decoder, parts, placer)
    for part in parts:
        if strategy.tp > 1:
            split_ends(part, mesh["tp"], whole_logits)
    if tied:
        decoder.module.lm_head.weight = decoder.body.embed_tokens.weight
    _prune(decoder, layers, parts)
    return parts


def _part(decoder: Decoder, layers: dict[str, nn.Module], stage: int, stages: int, tp: int) -> DecoderPart:
    return DecoderPart(decoder, layers, tp, first=stage == 0, last=stage == stages - 1)


def _place_ends(decoder: Decoder, parts: list[DecoderPart], placer: _Placer) -> None:
    """Place embedding, norm and head where they are held, and the rotary tables everywhere."""
    decoder.body.rotary_emb.to(placer.device)
    for part in parts:
        for name in ("embed_tokens", "norm", "lm_head"):
            module = getattr(part, name)
            if module is not None:
                prefix = "" if name == "lm_head" else f"{decoder.body_name}."
                placer.place(prefix + name, module)


def _prune(decoder: Decoder, layers: dict[str, nn.Module], parts: list[DecoderPart]) -> None:
    """Leave in the user's module what this rank holds, under the names it had."""
    body, module = decoder.body, decoder.module
    for owner, name in ((body, "embed_tokens"), (body, "norm"), (module, "lm_head")):
        if all(getattr(part, name) is None for part in parts):
            setattr(owner, name, None)
    decoder.body.layers = nn.ModuleDict(layers)
