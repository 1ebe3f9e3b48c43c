"""A saved mixed plan's question asked again, and how two such plans differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from cost_models.mixed import Machine
from cost_models.model_graph import ModelGraph
from planner.checks.verify import options_of
from planner.errors import BadInput
from planner.explanations.again import AskedAgain
from planner.mixed.inputs import same_mixed_inputs_of
from planner.mixed.one_mesh import clocks_of
from planner.mixed.result import MixedPlan
from planner.report import clocks_text
from planner.result import Plan
from topologies.mixed import MixedCluster

WAY = ("tp", "cp", "dp", "ep", "zero", "micro_batch")
"""How the devices of a stage share its work."""


@dataclass(frozen=True)
class MixedQuestion(AskedAgain):
    """What a plan answered: the model and the machine it was made for, the plan itself."""

    plan: MixedPlan
    model: ModelGraph
    cluster: MixedCluster

    @cached_property
    def machine(self) -> Machine:
        """The cluster with what prices need."""
        return Machine.of(self.model, self.cluster, self.plan.workload)


def mixed_question_of(
    plan: MixedPlan, model: ModelGraph | None = None, cluster: MixedCluster | str | None = None
) -> MixedQuestion:
    """The question that ``plan`` answered; ``model`` and ``cluster`` where the plan cannot tell them itself.

    Raises ``BadInput`` for options that there are not, and when they are not (any more) those that it was made with.
    """
    options_of(plan)
    return MixedQuestion(plan, *same_mixed_inputs_of(plan, cluster, model))


def part_named(plan: MixedPlan, name: str) -> int:
    """The position of the part that a name means: its own, with or without its count, its accelerator's or host's.

    Raises ``BadInput`` for none or several.
    """
    called = [{it.name, it.name.rpartition(":")[0], it.accelerator, it.host} for it in plan.parts]
    found = [k for k, names in enumerate(called) if name in names]
    if len(found) != 1:
        which = "no part" if not found else "several parts"
        raise BadInput(f"{name[:80]!r} names {which} of the plan; there are {', '.join(it.name for it in plan.parts)}")
    return found[0]


def shape_text(plan: MixedPlan | Plan) -> str:
    """Where a plan runs, in a line: ``"25 + 7 layers on 8 x h100-sxm + 8 x a100-80-sxm"``."""
    from planner.report import degrees_text

    alone = plan if isinstance(plan, Plan) else plan.alone
    if alone is not None:
        return f"{degrees_text(alone.strategy)} on {alone.cluster.source} alone"
    layers = " + ".join(str(stage.layers) for stage in plan.stages)
    return f"{layers} layers on " + " + ".join(f"{stage.devices} x {stage.accelerator}" for stage in plan.stages)


def layout(plan: MixedPlan | Plan) -> tuple[object, ...]:
    """What has to be alike for two plans to be one layout: where stages run and how they share the work."""
    alone = plan if isinstance(plan, Plan) else plan.alone
    if alone is not None:
        it = alone.strategy
        degrees = it.tp, it.cp, it.pp, it.dp_shard, it.dp_replicate, it.ep, it.etp, it.zero, it.micro_batch
        return (alone.cluster.source.rpartition(":")[0], it.virtual_stages, *degrees)
    return tuple((stage.accelerator, *(getattr(stage, axis) for axis in WAY)) for stage in plan.stages)


def mixed_decided_otherwise(chosen: MixedPlan, other: MixedPlan | Plan) -> tuple[str, ...]:
    """Every decision that differs: where it runs, stages, devices and layers by accelerator, clocks, recompute."""
    if isinstance(other, Plan) or chosen.alone is not None or other.alone is not None:
        pair = shape_text(chosen), shape_text(other)
        return () if _same_alone(chosen, other) else (f"{pair[0]} -> {pair[1]}",)
    return tuple(f"{name} {old} -> {new}" for name, old, new in _decisions(chosen, other) if old != new)


def _same_alone(chosen: MixedPlan, other: MixedPlan | Plan) -> bool:
    mine, theirs = chosen.alone, other if isinstance(other, Plan) else other.alone
    return mine is not None and theirs is not None and mine.strategy == theirs.strategy


def _decisions(chosen: MixedPlan, other: MixedPlan) -> Iterator[tuple[str, object, object]]:
    yield "micro-batches", chosen.micro_batches, other.micro_batches
    yield "stages", *(" + ".join(stage.accelerator for stage in it.stages) for it in (chosen, other))
    yield "layers", *("+".join(str(stage.layers) for stage in it.stages) for it in (chosen, other))
    yield "devices", *("+".join(str(stage.devices) for stage in it.stages) for it in (chosen, other))
    if len(chosen.stages) == len(other.stages):
        for s, (one, new) in enumerate(zip(chosen.stages, other.stages, strict=True)):
            for axis in WAY:
                yield f"stage {s} {axis}", getattr(one, axis), getattr(new, axis)
    yield "clocks", *(clocks_text(clocks_of(it.stages)) for it in (chosen, other))
    for kind in ("full", "selective"):
        yield f"layers with {kind} recompute", _recomputed(chosen, kind), _recomputed(other, kind)


def _recomputed(plan: MixedPlan, kind: str) -> int:
    return sum(count for stage in plan.stages for count, choice in stage.recompute if choice == kind)
