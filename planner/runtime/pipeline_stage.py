"""A pipeline stage that exchanges gradients and weights as its ZeRO stage says, micro-batch by micro-batch.

Where a schedule splits the backward pass, the input's gradient is computed first and sent on, and the weights' later
from what the first pass left: torch keeps the graph between them. A stage that recomputes would do that twice, and one
of ZeRO-3 would gather its weights twice, so that these compute both gradients at once, when the input's is due.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage

from planner.runtime.data_parallel import announce, exchange_gradients, hold_gradients


class _Covered(nn.Module):
    """A part whose sharding torch's schedules do not see.

    Where they see it they gather all weights of a stage at once and keep its gradients whole until the step
    ends, whatever the ZeRO stage: more memory than was planned.
    """

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, hidden: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        out = self.part(hidden, **inputs)
        return out.clone() if out._is_view() else out  # torch detaches outputs in place, which views do not take


class ScheduledStage(PipelineStage):
    """One virtual stage. ``recomputes`` says whether any of its layers does; ``shapes`` are torch's, where known."""

    def __init__(
        self, part: nn.Module, zero: int, recomputes: bool, index: int, count: int, device: torch.device, group: Any,
        **shapes: torch.Tensor,
    ):  # fmt: skip
        super().__init__(_Covered(part), index, count, device, group=group, **shapes)
        self.part, self.zero, self.splits, self.done = part, zero, zero < 3 and not recomputes, 0
        self.statistics: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]] = []  # none where shapes are known

    def _to_tensor(self, arg: Any) -> torch.Tensor:
        """Made-up inputs to learn shapes from are zeros, not whatever lay in memory: tp ranks route them alike."""
        made = super()._to_tensor(arg)
        return made if isinstance(arg, torch.Tensor) else made.detach().zero_().requires_grad_(made.requires_grad)

    def _forward_metadata_inference(self, *args: Any, **kwargs: Any) -> Any:
        """Running statistics, and all other buffers, are those of before, once shapes are learned."""
        self.statistics = [
            (owner, name, buffer, buffer.clone())
            for owner in self.submod.modules() for name, buffer in owner.named_buffers(recurse=False)
        ]  # fmt: skip
        return super()._forward_metadata_inference(*args, **kwargs)

    def _post_metadata_inference_cleanup(self) -> None:
        super()._post_metadata_inference_cleanup()
        for owner, name, buffer, before in self.statistics:
            owner._buffers[name] = buffer
            if not torch.equal(buffer, before):
                buffer.copy_(before)

    def clear_runtime_states(self) -> None:
        """Begin a step."""
        super().clear_runtime_states()
        self.done = 0

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        """torch's backward of one micro-batch, whole where this stage does not split what the schedule does."""
        if not full_backward and not self.splits:
            self.done += 1
            full_backward, last_backward = True, self.done == self.chunks
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """The weights' gradients of one micro-batch, where they were not computed with the input's."""
        if self.splits:
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        """torch's pass ``full``, ``input`` or ``weight`` of one micro-batch, announced to the sharded weights.

        Until the weights' gradients are there nothing is exchanged; behind them no hook of autograd would do it.
        """
        if backward_type == "full":
            announce(self.part, self.zero, last_backward)
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        hold_gradients(self.part)
        found = super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        if backward_type == "weight":
            announce(self.part, self.zero, last_backward)
            exchange_gradients(self.part)
        return found
