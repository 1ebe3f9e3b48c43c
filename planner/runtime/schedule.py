"""One training step, whatever the plan: forward and backward of all micro-batches, gradients left in ``.grad``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._pytree import tree_leaves, tree_map

from planner.errors import BadInput
from planner.result import StrategyRecord
from planner.runtime.clipping import clip_gradients
from planner.runtime.data_parallel import announce
from planner.runtime.decoder import DecoderPart
from planner.runtime.mesh import data_shard, leave, limit_waits, this_device
from planner.runtime.target_mean import Loss, TargetMean


class Schedule(ABC):
    """What :func:`planner.runtime.apply` returns beside the model.

    ``step`` leaves in every parameter's ``.grad`` the gradient of the mean loss over the targets of the global batch
    that count; of a ``loss_fn`` of the user's, the gradient of its mean over micro-batches and ranks.
    """

    def __init__(self, strategy: StrategyRecord, mesh: DeviceMesh, model: nn.Module, loss_fn: Loss):
        self.strategy = strategy
        self.mesh = mesh
        self.model = model
        self.loss_fn = loss_fn
        self.index, self.count = data_shard(mesh)
        limit_waits(this_device(mesh.device_type))

    @property
    def rows(self) -> int:
        """Sequences that this rank's replica takes of each global batch."""
        return self.strategy.micro_batch * self.strategy.micro_batches

    def local(self, batch: Any) -> Any:
        """This rank's samples of a global batch, a tensor or several; ``BadInput`` for a batch of another size."""

        def own(tensor: torch.Tensor) -> torch.Tensor:
            if len(tensor) != self.rows * self.count:
                raise BadInput(
                    f"global batch of {len(tensor)} sequences, but micro_batch * micro_batches * dp = "
                    f"{self.strategy.micro_batch} * {self.strategy.micro_batches} * {self.count} = "
                    f"{self.rows * self.count}"
                )
            return self._own_rows(tensor)

        return tree_map(own, batch)

    def _own_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[self.index * self.rows : (self.index + 1) * self.rows]

    def step(self, inputs: Any, targets: torch.Tensor | None = None) -> torch.Tensor | None:
        """Run this rank's ``rows`` samples; their loss on the last stage, elsewhere ``None``.

        Over ranks with samples of their own, losses have the global batch's as their mean (:meth:`mean_loss`). Every
        rank of a pipeline is given the same samples. Where stages have meshes of their own, a rank's are rows of every
        micro-batch that only :meth:`local` cuts right. Raises ``BadInput`` for another number of them.
        """
        sizes = [len(tensor) for tensor in tree_leaves((inputs, targets)) if isinstance(tensor, torch.Tensor)]
        if wrong := [size for size in sizes if size != self.rows]:
            raise BadInput(
                f"step takes micro_batch * micro_batches = {self.rows} sequences a rank, but was given {wrong[0]}; "
                "cut the global batch with schedule.local()"
            )
        return self._step(inputs, targets)

    def _count(self, targets: torch.Tensor) -> None:
        """Tell a loss that counts targets which this rank of the last stage has in the coming step."""
        if isinstance(self.loss_fn, TargetMean):
            self.loss_fn.begin(targets, self.strategy.micro_batches, self.mesh)

    @abstractmethod
    def _step(self, inputs: Any, targets: torch.Tensor | None) -> torch.Tensor | None: ...

    def clip_grad_norm(self, limit: float) -> float:
        """Scale the gradients of all ranks so that their norm together is at most ``limit``; the norm before."""
        ranks = self.mesh.size() // self.mesh["pp"].size()
        return clip_gradients(self.model.parameters(), limit, ranks, this_device(self.mesh.device_type), self._owned())

    def _owned(self) -> dict[int, int]:
        """Parameters in whose place other ranks hold others, and how many ranks do."""
        return {}

    def mean_loss(self, loss: torch.Tensor | None, device: torch.device | None = None) -> float:
        """The loss of the whole global batch, on every rank, from what ``step`` returned on each."""
        device = device or this_device(self.mesh.device_type)
        return self._mean_over_ranks(
            torch.zeros((), device=device) if loss is None else loss.detach().float().to(device)
        )

    def _mean_over_ranks(self, total: torch.Tensor) -> float:
        for axis in ("pp", "dp_replicate", "dp_shard"):
            dist.all_reduce(total, group=self.mesh.get_group(axis))
        return total.item() / (self.mesh["dp_replicate"].size() * self.mesh["dp_shard"].size())

    def finish(self) -> NoReturn:
        """Wait until every rank is here, and end this process: a script's last line."""
        dist.barrier()
        leave(0)


class AccumulationSchedule(Schedule):
    """Micro-batches one after the other, their gradients added up: the schedule without a pipeline."""

    def __init__(
        self, strategy: StrategyRecord, mesh: DeviceMesh, model: nn.Module, part: DecoderPart, loss_fn: Loss
    ):  # fmt: skip
        super().__init__(strategy, mesh, model, loss_fn)
        self.part = part

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self._count(targets)
        count = self.strategy.micro_batches
        pieces = zip(inputs.split(self.strategy.micro_batch), targets.split(self.strategy.micro_batch), strict=True)
        losses = []
        for number, (tokens, wanted) in enumerate(pieces, start=1):
            announce(self.part, self.strategy.zero, last=number == count)
            loss = self.loss_fn(self.part(tokens), wanted)
            (loss / count).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()


class PipelineSchedule(Schedule):
    """torch's pipeline schedule behind the same ``step``."""

    def __init__(
        self, strategy: StrategyRecord, mesh: DeviceMesh, model: nn.Module, parts: list[DecoderPart], loss_fn: Loss,
        schedule: Any,
    ):  # fmt: skip
        super().__init__(strategy, mesh, model, loss_fn)
        self.schedule = schedule
        self.first = any(part.embed_tokens is not None for part in parts)
        self.last = any(part.lm_head is not None for part in parts)

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        if self.last:
            self._count(targets)
        losses: list[torch.Tensor] = []
        fed = (inputs,) if self.first else ()
        wanted = {"target": targets, "losses": losses} if self.last else {}
        self.schedule.step(*fed, **wanted, return_outputs=False)
        return torch.stack([loss.detach() for loss in losses]).mean() if self.last else None
