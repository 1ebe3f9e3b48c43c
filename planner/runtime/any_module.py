"""A plan applied to any module: its own ``forward`` runs, on this rank's weights, tokens, experts and layers.

In the order torch needs: what other stages hold is released, weights come to the device and agree, tp and ep take
them apart, layers are made to work on their part of the sequence and to recompute, data parallelism shards what is
left, and the pipeline's hooks come last.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from planner.errors import BadInput, PlannerError, Unsupported
from planner.read_model.torch_rules import tensor_rules
from planner.read_model.torch_rules_check import SamplesMixed, check_rules
from planner.read_model.torch_samples import mixed_samples
from planner.read_model.torch_trial import MOST_PARAMETERS
from planner.read_model.traced_rules import Rule, TensorRules
from planner.result import Plan
from planner.runtime.blocks import Blocks, check_sequence_kept, read_blocks, returns_loss
from planner.runtime.context import split_sequence
from planner.runtime.data_parallel import COMPUTES_IN, agree, gather_when_needed, wrap, wrap_expert, wrap_statistics
from planner.runtime.experts import expert_owners, split_experts
from planner.runtime.mesh import Meshes, build_meshes, draw_alike, join, planned_device_type
from planner.runtime.module_schedule import ModuleSchedule, Owned
from planner.runtime.pipeline import pipeline_schedule, stage_layers
from planner.runtime.recompute import kinds_by_layer, recompute_inside
from planner.runtime.split_modules import ModuleSplitter
from planner.runtime.stages import StagePart, check_ends, release_layers
from planner.runtime.target_mean import Loss, TargetMean
from planner.runtime.tied_ends import TiedEnds, tied_weights
from planner.runtime.vocabulary_loss import split_target_mean

Fill = Callable[[str, nn.Module], None]
Trial = tuple[str, str, Callable[[], None]]
"""What is tried out, what to pin where that cannot be, and the trial, which raises what is wrong."""
NO_RULES = TensorRules(())
MOST_FORWARD_FLOP_PER_SAMPLE = 2e10
"""Where 14 samples, of whatever example, are run to see whether they mix: about 20 seconds of a core."""


def parallelize_any(
    plan: Plan, module: nn.Module, example_inputs: Any, *, loss_fn: Loss | None, device_type: str | None,
    fill: Fill | None, rules: Mapping[str, str] | None, by_micro_batch: bool, timeout_s: float,
) -> tuple[nn.Module, ModuleSchedule]:  # fmt: skip
    """See :func:`planner.runtime.parallelize.parallelize`."""
    blocks = read_blocks(plan, module, example_inputs)
    strategy = plan.strategy
    found = tensor_rules(module, example_inputs, rules) if strategy.tp * strategy.ep * strategy.etp > 1 else NO_RULES
    check_axes(plan, module, blocks, found)
    if fill is not None:
        _check_filled(module)
    if strategy.cp > 1:
        check_sequence_kept(module, example_inputs, strategy.cp, blocks.chain("cp"))
    device = join(plan, device_type or planned_device_type(plan), timeout_s)
    meshes = build_meshes(strategy, device.type)
    if loss_fn is None and strategy.tp > 1 and returns_loss(module, example_inputs):
        loss_fn = TargetMean()  # not on the columns of split logits, which the module needs whole
    _check_once(module, *_trials(plan, module, example_inputs, found, blocks, by_micro_batch))
    job = _Job(plan, module, blocks, found, meshes, device)
    return module, job.parallel(loss_fn, fill)


def check_axes(plan: Plan, module: nn.Module, blocks: Blocks, rules: TensorRules) -> None:
    """Refuse axes that do not apply to this module. Raises ``Unsupported`` naming axis, thing and way out."""
    strategy = plan.strategy
    if strategy.cp > 1:
        blocks.chain("cp")
    if strategy.pp > 1:
        blocks.chain("pp")
        check_ends(module, blocks, strategy)
    for axis in ("ep", "etp"):
        if getattr(strategy, axis) > 1 and not expert_owners(module, rules):
            name = type(module).__name__
            raise Unsupported(f"{axis} = {getattr(strategy, axis)}: no experts were found in {name}; pin {axis}=1")
    if strategy.tp > 1 and not any(rule.style != "experts" for rule in rules.rules):
        raise Unsupported(f"tp = {strategy.tp}: no rule splits any module of {type(module).__name__}; pin tp=1")


def _check_filled(module: nn.Module) -> None:
    """Refuse values that no submodule holds, which ``fill`` is not called for. Raises ``Unsupported``."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    if own:
        raise Unsupported(
            f"fill gives values to submodules, and {own[0][0]!r} is {type(module).__name__}'s own, in none of them; "
            "put it into a module of its own, or apply without fill to a module that has its weights"
        )


def _trials(
    plan: Plan, module: nn.Module, example_inputs: Any, rules: TensorRules, blocks: Blocks, by_micro_batch: bool
) -> Iterator[Trial]:
    """What has to be tried out before this plan is applied, each on a small copy of ``module``."""
    strategy, graph, seq_len = plan.strategy, blocks.graph, plan.workload.seq_len
    if strategy.tp > 1:
        yield "rules", "tp=1", lambda: _check_rules(module, example_inputs, rules, strategy.tp)
    small = graph.forward_flop_per_token(seq_len) * seq_len <= MOST_FORWARD_FLOP_PER_SAMPLE
    if plan.workload.global_batch > strategy.micro_batch and small and not by_micro_batch:
        whole = f"dp=1 and micro_batch={plan.workload.global_batch}"
        yield "samples", whole, lambda: _check_samples(plan, module, example_inputs)


def _check_rules(module: nn.Module, example_inputs: Any, rules: TensorRules, tp: int) -> None:
    """:func:`check_rules`, but a module that mixes the samples of a batch cannot be compared and is let through."""
    with contextlib.suppress(SamplesMixed):
        check_rules(module, example_inputs, rules, tp)


def _check_samples(plan: Plan, module: nn.Module, example_inputs: Any) -> None:
    """Refuse a module whose loss over the batch is not the mean of its micro-batches'. Raises ``BadInput``."""
    mixed = mixed_samples(module, example_inputs)
    if mixed is not None:
        batch, rows = plan.workload.global_batch, plan.strategy.micro_batch
        raise BadInput(
            f"{type(module).__name__} mixes the samples of a batch: its {mixed} changes with the others in it, so the "
            f"loss over global_batch = {batch} is not the mean over micro-batches of {rows}. Pin dp=1 and "
            f"micro_batch={batch}; or train on what every micro-batch gives, with apply(..., by_micro_batch=True)"
        )


def _not_checked(module: nn.Module, what: str, pins: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    name = type(module).__name__
    return f"{what} of {name} cannot be checked: {reason}; pin {pins}, or make the module run on one CPU"


def _check_once(module: nn.Module, *trials: Trial) -> None:
    """Run all ``trials`` on rank 0, for all. Raises what one says, ``BadInput``, on every rank."""
    if not trials:
        return
    said: list[str | None] = [None]
    if dist.get_rank() == 0 and sum(p.numel() for p in module.parameters()) <= MOST_PARAMETERS:
        said = [next(filter(None, (_said(module, *trial) for trial in trials)), None)]
    dist.broadcast_object_list(said, src=0)
    if said[0] is not None:
        raise BadInput(said[0])


def _said(module: nn.Module, what: str, pins: str, trial: Callable[[], None]) -> str | None:
    """What one trial says against the plan."""
    try:
        trial()
    except PlannerError as error:
        return str(error)
    except Exception as error:  # the other ranks wait to be told
        return _not_checked(module, what, pins, error)
    return None


class _Job:
    """One rank's share of one module, in the making."""

    def __init__(
        self, plan: Plan, module: nn.Module, blocks: Blocks, rules: TensorRules, meshes: Meshes, device: torch.device
    ):  # fmt: skip
        self.plan, self.module, self.blocks, self.rules = plan, module, blocks, rules
        self.meshes, self.device, self.strategy = meshes, device, plan.strategy
        self.parts: list[nn.Module] = [module]
        self.kinds = kinds_by_layer(self.strategy.recompute)
        self.stages = [range(blocks.graph.layers)]
        self.tied: TiedEnds | None = None
        self.split: list[Rule] = []
        if self.strategy.tp > 1:  # of the whole module: stages that share a weight split it alike
            self.split = ModuleSplitter(module, rules, meshes.dense["tp"]).rules

    def parallel(self, loss_fn: Loss | None, fill: Fill | None) -> ModuleSchedule:
        """The step that trains the module, after all of this has been done to it."""
        _without_caches(self.module)
        self.module.sectioned_weights = {}
        self._cut_stages()
        self._place(fill)
        if self.strategy.pp > 1:
            self.parts = [StagePart(self.module, self.blocks, stage, self._zero) for stage in self.stages]
        loss_fn = self._split_weights(loss_fn)
        experts = self._split_experts()
        self._wrap_layers()
        self._shard(experts)
        schedule = None
        if self.strategy.pp > 1:
            for part in self.parts:
                part.give_back(self.module)
                part.hook()
            schedule = pipeline_schedule(self.strategy, self.meshes.dense, self.device, self.parts, loss_fn)
        if self.strategy.tp > 1:
            draw_alike(self.meshes.dense.get_group("tp"), self.device)
        listed = tuple(it for it in experts if not _fused(it))
        owned = Owned(listed, self.strategy.ep, self.tied)
        return ModuleSchedule(self.strategy, self.meshes, self.module, self.parts, loss_fn, owned, schedule)

    def _cut_stages(self) -> None:
        if self.strategy.pp == 1:
            return
        tied, every = tied_weights(self.module, self.blocks), stage_layers(self.strategy.layers_per_stage)
        self.stages = [every[c] for c in self.strategy.stages_of(self.meshes.dense["pp"].get_local_rank())]
        release_layers(self.module, self.blocks, self.stages, self._zero)
        if tied:
            self.tied = TiedEnds(self.module, tied, self.meshes.dense)
            self.module.tied_copies = self.tied.copies

    @property
    def _zero(self) -> torch.Tensor:
        """Of the type that the job computes in, on this rank's device."""
        return torch.zeros((), dtype=COMPUTES_IN[self.plan.workload.precision], device=self.device)

    @property
    def _held(self) -> list[tuple[int, str]]:
        """Number and module of every layer of this rank."""
        return [(i, name) for stage in self.stages for i in stage for name in self.blocks.layers[i]]

    def _place(self, fill: Fill | None) -> None:
        """Bring weights here as fp32, the master copy, alike on every rank that holds them."""
        if fill is None:
            self.module.to(self.device, torch.float32)
        else:
            self.module.to(torch.float32).to_empty(device=self.device)
            for name, child in self.module.named_children():
                fill(name, child)
        agree(self.module, self.meshes.dense, ("dp_replicate", "dp_shard", "tp"))
        if self.tied is not None:
            self.tied.agree()

    def _split_weights(self, loss_fn: Loss | None) -> Loss:
        if self.strategy.tp == 1:
            return loss_fn or TargetMean()
        held = tuple(rule for rule in self.split if self._holds(rule.module))
        entered = tuple(it for it in self.rules.entered if self._holds(it.module))
        rules = dataclasses.replace(self.rules, rules=held, entered=entered)
        splitter = ModuleSplitter(self.module, rules, self.meshes.dense["tp"])
        vocabulary = self.blocks.graph.vocab
        own_loss = loss_fn is None and vocabulary > 0
        columns = [
            name for name in _linear_in(self.module, self.blocks.after) if own_loss and splitter.keep_columns(name)
        ]
        splitter.split()
        self.module.sectioned_weights |= splitter.sectioned
        return split_target_mean(self.meshes.dense["tp"], vocabulary) if columns else loss_fn or TargetMean()

    def _holds(self, name: str) -> bool:
        """Whether this rank's stage has the parameters of a module, or the parameter itself."""
        owner = dict(self.module.named_modules()).get(name)
        if owner is None:
            return True
        return any(p is not None for p in owner._parameters.values()) or any(True for _ in owner.parameters())

    def _split_experts(self) -> list[nn.Module]:
        if self.meshes.experts is None:
            return []
        found = []
        for name in expert_owners(self.module, self.rules):
            owner = self.module.get_submodule(name)
            if any(True for _ in owner.parameters()):
                split = split_experts(owner, name, self.meshes.experts)
                found += split.modules
                self.module.sectioned_weights |= split.sectioned
        return found

    def _wrap_layers(self) -> None:
        if self.meshes.cp is not None:
            layers = [(name, self.module.get_submodule(name)) for _, name in self._held]
            split_sequence(layers, self.meshes.cp.get_group(), from_start=self.stages[0].start == 0)
        for name, kind in {name: self.kinds[i] for i, name in self._held}.items():
            recompute_inside(self.module.get_submodule(name), kind)

    def _shard(self, experts: list[nn.Module]) -> None:
        mesh, zero, precision = self.meshes.dense, self.strategy.zero, self.plan.workload.precision
        if precision == "fp32" and mesh["dp_replicate"].size() * mesh["dp_shard"].size() == 1:
            return
        if precision != "fp32":
            wrap_statistics(self.module, mesh, zero)
        for expert in experts:
            wrap_expert(expert, self.meshes.experts.whole["edp"], zero, precision)
            gather_when_needed(expert)
        for name in dict.fromkeys(name for _, name in self._held):
            layer = self.module.get_submodule(name)
            if layer is not self.module and _alone(self.module, name):
                wrap(layer, mesh, zero, precision)
                if experts:
                    gather_when_needed(layer)
        for part in self.parts:
            wrap(part, mesh, zero, precision)


def _fused(owner: nn.Module) -> bool:
    return any(p.dim() == 3 for p in owner.parameters(recurse=False))


def _alone(module: nn.Module, name: str) -> bool:
    """Whether a layer has parameters, and none that others read too: those are sharded with the rest of the module."""
    own = {id(p) for p in module.get_submodule(name).parameters()}
    elsewhere = (
        id(p) for other, p in module.named_parameters(remove_duplicate=False) if not other.startswith(f"{name}.")
    )
    return bool(own) and not own & set(elsewhere)


def _linear_in(module: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Products among the modules of the head."""
    within = tuple(f"{name}." for name in names)
    return [
        name for name, it in module.named_modules() if isinstance(it, nn.Linear) and f"{name}.".startswith(within)
    ]  # fmt: skip


def _without_caches(module: nn.Module) -> None:
    """No keys and values kept for decoding: a layer that recomputes would keep them twice."""
    for inner in module.modules():
        config = getattr(inner, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False
