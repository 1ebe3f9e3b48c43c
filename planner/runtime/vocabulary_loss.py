"""Cross-entropy over logits whose vocabulary is split across tp ranks: no rank ever holds a whole row.

    loss = sum over targets that count of  log sum_v exp(z_v) - z_target

with the maximum, the sum and the target's logit each all-reduced over the ranks: three numbers a token
instead of a vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from planner.runtime.target_mean import IGNORED, TargetMean


class _SplitCrossEntropy(torch.autograd.Function):
    """Summed loss of local logits ``[tokens, local_vocab]``, targets ``[tokens]`` and the first local column."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, start: int, group: Any) -> torch.Tensor:
        largest = logits.amax(dim=-1, keepdim=True)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        weights = (logits - largest).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        dist.all_reduce(total, group=group)
        own = (targets >= start) & (targets < start + logits.shape[-1])
        column = torch.where(own, targets - start, 0).unsqueeze(-1)
        picked = torch.where(own.unsqueeze(-1), logits.gather(-1, column) - largest, 0.0)
        dist.all_reduce(picked, group=group)
        counts = (targets != IGNORED).unsqueeze(-1)
        ctx.save_for_backward(weights.div_(total), column, own, counts)
        return torch.where(counts, total.log() - picked, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        probabilities, column, own, counts = ctx.saved_tensors
        hit = torch.zeros_like(probabilities).scatter_(-1, column, own.unsqueeze(-1).to(probabilities.dtype))
        return (probabilities - hit) * (gradient * counts), None, None, None


def split_target_mean(mesh: DeviceMesh, vocab: int) -> TargetMean:
    """The cross-entropy, in fp32, of this rank's columns ``[batch, seq, vocab / tp]`` of the logits."""
    start = mesh.get_local_rank() * -(-vocab // mesh.size())
    group = mesh.get_group()

    def summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _SplitCrossEntropy.apply(logits.flatten(0, 1).float(), targets.flatten(), start, group)

    return TargetMean(summed, on_columns=True)
