"""A training step of any module: its inputs by position or keyword, its loss where it computes one itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from planner.errors import BadInput, Unsupported
from planner.result import StrategyRecord
from planner.runtime.collectives import chunk_of
from planner.runtime.data_parallel import announce
from planner.runtime.mesh import Meshes
from planner.runtime.schedule import Schedule
from planner.runtime.stages import logits_of, named, numbered, positional
from planner.runtime.target_mean import Loss, TargetMean, own_loss_over
from planner.runtime.tied_ends import TiedEnds


@dataclass(frozen=True)
class Owned:
    """Modules that other ranks hold others in the place of, and how many ranks do: experts of a list.

    ``tied`` are weights that both ends of the pipeline hold.
    """

    modules: tuple[nn.Module, ...] = ()
    ranks: int = 1
    tied: TiedEnds | None = None

    def parameters(self) -> dict[int, int]:
        """How often a gradient's norm counts, by ``id`` of every parameter that does not count once."""
        found = {id(p): self.ranks for module in self.modules for p in module.parameters()}
        return found if self.tied is None else found | self.tied.counted_elsewhere()


def _rows(batch: Any, rows: slice) -> Any:
    return tree_map(lambda it: it[rows] if isinstance(it, torch.Tensor) else it, batch)


class ModuleSchedule(Schedule):
    """Forward and backward of the planned micro-batches of any module; ``pipeline`` runs them where there is one."""

    def __init__(
        self, strategy: StrategyRecord, meshes: Meshes, model: nn.Module, parts: list[nn.Module], loss_fn: Loss,
        owned: Owned, pipeline: Callable[..., Any] | None = None,
    ):  # fmt: skip
        super().__init__(strategy, meshes.dense, model, loss_fn)
        self.index, self.count = meshes.data
        self.meshes, self.parts, self.owned, self.pipeline = meshes, parts, owned, pipeline

    def _owned(self) -> dict[int, int]:
        return self.owned.parameters()

    def _step(self, inputs: Any, targets: torch.Tensor | None) -> torch.Tensor | None:
        targets = self._own_part(targets)
        if self.pipeline is not None:
            return self._pipelined(numbered(inputs), targets)
        if targets is not None:
            self._count(targets)
            return self._accumulated(inputs, targets)
        if isinstance(self.loss_fn, TargetMean) and self.loss_fn.on_columns:
            raise Unsupported(
                f"tp = {self.strategy.tp} splits the logits by vocabulary, and a loss of the module's own needs them "
                "whole: give step(inputs, targets), or apply with example_inputs of which the module makes its loss"
            )
        with own_loss_over(self.model, numbered(inputs), self.strategy.micro_batches, self.mesh):
            return self._accumulated(inputs, targets)

    def _accumulated(self, inputs: Any, targets: torch.Tensor | None) -> torch.Tensor:
        count, size = self.strategy.micro_batches, self.strategy.micro_batch
        losses = []
        for number in range(count):
            rows = slice(number * size, (number + 1) * size)
            some, wanted = _rows((inputs, targets), rows)
            announce(self.parts[0], self.strategy.zero, last=number == count - 1)
            loss = self._loss(numbered(some), wanted)
            (loss / count).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _own_part(self, targets: torch.Tensor | None) -> torch.Tensor | None:
        """Targets of the tokens that this rank's head sees."""
        rank, count = self.meshes.part
        if count == 1:
            return targets
        if targets is None or targets.dim() < 2 or targets.shape[1] % count:
            shape = None if targets is None else tuple(targets.shape)
            raise BadInput(
                f"cp = {count} needs a target for every position, [batch, seq] with a sequence that {count} divides, "
                f"and got {shape}; pin cp=1 for other losses"
            )
        return chunk_of(targets, 1, rank, count)

    def _loss(self, inputs: dict[str, Any], targets: torch.Tensor | None) -> torch.Tensor:
        output = self.parts[0](*positional(inputs), **named(inputs))
        if targets is not None:
            return self.loss_fn(logits_of(output), targets)
        loss = getattr(output, "loss", output)
        if not isinstance(loss, torch.Tensor) or loss.dim():
            raise BadInput(
                f"without targets the module has to return its loss, a scalar or an output with .loss, and "
                f"{type(self.model).__name__} returned a {type(loss).__name__}; give step(inputs, targets)"
            )
        return loss

    def _pipelined(self, inputs: dict[str, Any], targets: torch.Tensor | None) -> torch.Tensor | None:
        if targets is None:
            raise Unsupported("pp computes the loss behind the last stage: give step(inputs, targets), or pin pp=1")
        losses: list[torch.Tensor] = []
        first, last = self.parts[0].first, self.parts[-1].last
        if last:
            self._count(targets)
        fed = (next(iter(inputs.values())),) if first else ()
        wanted = {"target": targets, "losses": losses} if last else {}
        with contextlib.nullcontext() if self.owned.tied is None else self.owned.tied.summed():
            self.pipeline.step(*fed, **wanted, return_outputs=False, **inputs)
        return torch.stack([loss.detach() for loss in losses]).mean() if last else None
