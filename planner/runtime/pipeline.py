"""Pipeline stages: which layers this rank holds, and torch's schedule over them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from planner.result import StrategyRecord
from planner.runtime.data_parallel import announce


def stage_layers(layers_per_stage: list[int]) -> list[range]:
    """Layers of every virtual stage, in model order."""
    return [range(*ends) for ends in itertools.pairwise(itertools.accumulate(layers_per_stage, initial=0))]


def held_stages(strategy: StrategyRecord, pipeline_rank: int) -> list[int]:
    """Virtual stages of one member of the pipeline: ``s, s + pp, s + 2 pp, ...``."""
    return list(range(pipeline_rank, strategy.pp * strategy.virtual_stages, strategy.pp))


class _Covered(nn.Module):
    """A part whose sharding torch's schedules do not see.

    Where they see it they gather all weights of a stage at once and keep its gradients whole until the step
    ends, whatever the ZeRO stage: more memory than was planned.
    """

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, hidden: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        return self.part(hidden, **inputs)


class _Stage(PipelineStage):
    """A stage that exchanges gradients and weights as its ZeRO stage says, micro-batch by micro-batch."""

    def __init__(self, part: nn.Module, zero: int, index: int, count: int, device: torch.device, group: Any):
        super().__init__(_Covered(part), index, count, device, group=group)
        self.part, self.zero = part, zero

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        """torch's backward of one micro-batch, announced to the sharded weights."""
        announce(self.part, self.zero, last_backward)
        return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)


def pipeline_schedule(
    strategy: StrategyRecord,
    mesh: DeviceMesh,
    device: torch.device,
    parts: list[nn.Module],
    loss_fn: Callable[..., torch.Tensor],
) -> Any:
    """torch's schedule for these parts: 1F1B, or interleaved 1F1B when a rank holds several stages.

    With fewer micro-batches than stages 1F1B never leaves its warm-up: that is GPipe, and torch wants it named so.
    """
    group, count = mesh.get_group("pp"), strategy.pp * strategy.virtual_stages
    held = held_stages(strategy, mesh["pp"].get_local_rank())
    stages = [_Stage(part, strategy.zero, index, count, device, group) for part, index in zip(parts, held, strict=True)]
    if strategy.virtual_stages > 1:
        return ScheduleInterleaved1F1B(stages, strategy.micro_batches, loss_fn=loss_fn)
    kind = Schedule1F1B if strategy.micro_batches >= strategy.pp else ScheduleGPipe
    return kind(stages[0], strategy.micro_batches, loss_fn=loss_fn)
