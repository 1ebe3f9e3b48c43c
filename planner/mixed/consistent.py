"""Whether the figures of a mixed plan's record agree with one another, from the record alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.mixed.result import MixedPlan, PartRecord, StageRecord


def complaints(plan: MixedPlan) -> list[str]:
    """What does not add up in a record, in words; empty where all does.

    Prices and fit are not asked: they need the cluster and the model.
    """
    if (plan.alone is None) == (not plan.stages):
        return [f"{len(plan.stages)} stages and {'no' if plan.alone is None else 'a'} plan on one part alone"]
    if strangers := [s for s, stage in enumerate(plan.stages) if stage.part >= len(plan.parts)]:
        s = strangers[0]
        return [f"stage {s} is on part {plan.stages[s].part}, and there are {len(plan.parts)} parts, counted from 0"]
    found = [f"stage {s}: {text}" for s, stage in enumerate(plan.stages) for text in _of_stage(plan, stage)]
    for k, part in enumerate(plan.parts):
        found += [f"part {k}: {text}" for text in _of_part(plan, k, part)]
    if (plan.joules_per_step is None) == ("facility" in plan.watts):
        found.append("watts with those of the facility and joules_per_step are there together or not at all")
    layers = sum(stage.layers for stage in plan.stages)
    if plan.stages and layers != plan.model.layers:
        found.append(f"stages hold {layers} layers, the model has {plan.model.layers}")
    return found


def _of_stage(plan: MixedPlan, stage: StageRecord) -> Iterator[str]:
    used, layers = stage.tp * stage.cp * stage.dp, sum(count for count, _ in stage.recompute)
    if stage.accelerator != plan.parts[stage.part].accelerator:
        yield f"{stage.accelerator} is not the accelerator of part {stage.part}"
    if used != stage.devices:
        yield f"tp {stage.tp} x cp {stage.cp} x dp {stage.dp} = {used}, and it has {stage.devices} devices"
    if stage.devices % stage.ep:
        yield f"ep {stage.ep} does not divide {stage.devices} devices"
    if layers != stage.layers:
        yield f"recompute names {layers} layers, and it holds {stage.layers}"
    sequences, batch = stage.dp * stage.micro_batch * plan.micro_batches, plan.workload.global_batch
    if sequences != batch:
        yield (
            f"dp {stage.dp} x micro_batch {stage.micro_batch} x {plan.micro_batches} micro-batches = {sequences}, and "
            f"the global batch is {batch}"
        )


def _of_part(plan: MixedPlan, number: int, part: PartRecord) -> Iterator[str]:
    used = sum(stage.devices for stage in plan.stages if stage.part == number)
    if part.devices % part.hosts:
        yield f"{part.devices} devices on {part.hosts} hosts alike"
    if part.devices_used > part.devices:
        yield f"{part.devices_used} devices are used of {part.devices}"
    if plan.stages and used != part.devices_used:
        yield f"its stages use {used} devices, and {part.devices_used} are said to be used"
