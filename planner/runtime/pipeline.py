"""Pipeline stages: which layers this rank holds, and torch's schedule over them.

1F1B and interleaved 1F1B are torch's own. Every other schedule is the order of work that was priced
(:mod:`cost_models.schedules`), run by torch's pipeline runtime, which adds the exchanges between devices: torch's own
ZBV has another order at both ends of a step, and it has neither the other V-shaped ones nor eager 1F1B.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    _Action,
    _ComputationType,
    _PipelineScheduleRuntime,
)
from torch.nn import Module

from cost_models.schedules import FURTHER, Schedule, schedule_of
from planner.result import StrategyRecord
from planner.runtime.pipeline_stage import ScheduledStage

Loss = Callable[..., torch.Tensor]
WHOLE = (_ComputationType.FORWARD, _ComputationType.FULL_BACKWARD)
SPLIT = (_ComputationType.FORWARD, _ComputationType.BACKWARD_INPUT, _ComputationType.BACKWARD_WEIGHT)
"""What the passes of a schedule are called in torch, where the backward pass is whole and where it is split."""


def stage_layers(layers_per_stage: list[int]) -> list[range]:
    """Layers of every virtual stage, in model order."""
    return [range(*ends) for ends in itertools.pairwise(itertools.accumulate(layers_per_stage, initial=0))]


class _PricedOrder(_PipelineScheduleRuntime):
    """torch's runtime over the order of work of a :class:`cost_models.schedules.Schedule`."""

    def __init__(self, stages: list[ScheduledStage], schedule: Schedule, loss_fn: Loss):
        super().__init__(stages, schedule.micro_batches, loss_fn=loss_fn)
        self.pipeline_order = {device: _actions(schedule, device) for device in range(schedule.pp)}
        self._prepare_schedule_with_comms(self.pipeline_order)


def _actions(schedule: Schedule, device: int) -> list[_Action | None]:
    passes = SPLIT if schedule.split else WHOLE
    return [_Action(stage, passes[which], micro_batch) for which, stage, micro_batch in schedule.work(device)]


def pipeline_schedule(
    strategy: StrategyRecord, mesh: DeviceMesh, device: torch.device, parts: list[Module], loss_fn: Loss
) -> Any:
    """torch's schedule for the ``parts`` of this rank, a virtual stage each."""
    count = strategy.micro_batches
    stages = _stages(strategy, mesh, device, parts)
    if strategy.schedule in FURTHER:
        shape = (strategy.pp, strategy.virtual_stages, count, strategy.in_flight)
        return _PricedOrder(stages, schedule_of(strategy.schedule, *shape), loss_fn)
    if strategy.virtual_stages > 1:
        return ScheduleInterleaved1F1B(stages, count, loss_fn=loss_fn)
    return one_stage_schedule(stages[0], strategy, loss_fn)


def one_stage_schedule(stage: ScheduledStage, strategy: StrategyRecord, loss_fn: Loss) -> Any:
    """1F1B of ranks that hold a stage each.

    With fewer micro-batches than stages it never leaves its warm-up: that is GPipe, and torch wants it named so.
    """
    kind = Schedule1F1B if strategy.micro_batches >= strategy.pp else ScheduleGPipe
    return kind(stage, strategy.micro_batches, loss_fn=loss_fn)


def _stages(
    strategy: StrategyRecord, mesh: DeviceMesh, device: torch.device, parts: list[Module]
) -> list[ScheduledStage]:
    held = strategy.stages_of(mesh["pp"].get_local_rank())
    count, group = strategy.pp * strategy.virtual_stages, mesh.get_group("pp")
    found = []
    for part, index in zip(parts, held, strict=True):
        recomputes = any(kind != "none" for _, kind in strategy.recompute[index])
        found.append(ScheduledStage(part, strategy.zero, recomputes, index, count, device, group))
    return found
