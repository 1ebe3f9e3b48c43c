"""What module cases take out of a parallel job, by name, to see their comparison fail."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from planner.runtime import collectives
from planner.runtime.target_mean import IGNORED


def unsummed(x: torch.Tensor, dim: int, group: Any) -> torch.Tensor:
    return collectives.gather(x, dim, x.shape[dim] * dist.get_world_size(group), group)


def first_head(part: torch.Tensor, heads: int, group: Any) -> torch.Tensor:
    return collectives.collect(part, -1, group).chunk(heads, -1)[0]


def _alone(rows: torch.Tensor, sent: list[int], received: list[int], group: Any) -> torch.Tensor:
    """Rows sent, their gradients kept back."""
    return collectives.exchange(rows.detach(), sent, received, group) + 0 * rows.sum()


def _mean_of_its_own(loss_fn: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return loss_fn.summed(logits, targets) / (targets != IGNORED).sum()


MUTATIONS: dict[str, tuple[str, Any]] = {
    "each rank counts its own targets": ("planner.runtime.target_mean.dist.all_reduce", lambda *args, **kwargs: None),
    "each micro-batch counts its own targets": ("planner.runtime.target_mean.TargetMean.__call__", _mean_of_its_own),
    "no sum of rows": ("planner.runtime.split_modules.add_up", lambda x, group: x),
    "no sum of gradients before columns": ("planner.runtime.split_modules.enter", lambda x, group: x),
    "no sum of gradients over heads": ("planner.runtime.split_modules.add_up_gradient", lambda *args: None),
    "no sum of gradients of shared heads": ("planner.runtime.collectives.collect", unsummed),
    "no sum of gradients of a key that all heads read": (
        "planner.runtime.split_modules.enter_sections",
        lambda *args: None,
    ),
    "the first head for all": ("planner.runtime.split_modules.own_head", first_head),
    "no sum over the vocabulary": ("planner.runtime.vocabulary_loss.dist.all_reduce", lambda *args, **kwargs: None),
    "no sum of gradients of keys": ("planner.runtime.context.collect", unsummed),
    "no division by dp and cp": (
        "torch.distributed.fsdp._fully_shard._fsdp_collectives._get_gradient_divide_factors",
        lambda *args, **kwargs: (None, None, dist.ReduceOp.SUM, dist.ReduceOp.SUM),
    ),
    "no first weights of the ends": ("planner.runtime.tied_ends.TiedEnds.agree", lambda ends: None),
    "no hidden states from the stage before": ("planner.runtime.stages.StagePart._take_arrived", lambda *args: None),
    "no sum of the ends' gradients": ("planner.runtime.tied_ends.TiedEnds.summed", contextlib.nullcontext),
    "no division by ep": ("planner.runtime.experts.leaving", lambda rows, ranks: rows),
    "no sum of gradients over slices": ("planner.runtime.experts.enter", lambda x, group: x),
    "no return of gradients": ("planner.runtime.experts.exchange", _alone),
}
"""What is taken out of a job, by name."""


def mutation(name: str | None) -> contextlib.AbstractContextManager[Any]:
    """The job with one thing taken out."""
    return contextlib.nullcontext() if name is None else mock.patch(*MUTATIONS[name])
