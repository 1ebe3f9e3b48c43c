"""A weight that both ends of a pipeline read, such as a tied embedding: its first and its last stage hold a copy each.

    dL/dw = dL/dw of the first stage + dL/dw of the last

is added up once a step, in fp32, so that equal optimisers keep the copies equal. The plan prices the copy.

Source: NVIDIA/Megatron-LM megatron/core/distributed/finalize_model_grads.py, ``_allreduce_word_embedding_grads``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from planner.runtime.blocks import Blocks, parameters_of
from planner.runtime.clipping import own_gradient


def tied_weights(module: nn.Module, blocks: Blocks) -> dict[str, str]:
    """Every weight read before the layers and behind them: its name there by its name before; they may be the same."""
    before, after = (parameters_of(module, names) for names in (blocks.before, blocks.after))
    behind = {id(p): name for name, p in reversed(after.items())}
    found = {id(p): name for name, p in reversed(before.items()) if id(p) in behind}
    return {name: behind[key] for key, name in found.items()}


class TiedEnds:
    """The copies of ``names`` (:func:`tied_weights`) among the stages of ``mesh``, and the one of this rank, if any."""

    def __init__(self, module: nn.Module, names: dict[str, str], mesh: DeviceMesh):
        pairs = mesh.mesh[[0, -1]].flatten(1).T.contiguous()
        self.group = DeviceMesh(mesh.device_type, pairs, mesh_dim_names=("rest", "ends"))
        self.module, stage = module, mesh["pp"].get_local_rank()
        self.first, self.last = stage == 0, stage == mesh["pp"].size() - 1
        self.names = [*names] if self.first else [*names.values()] if self.last else []
        self.copies = {name: first for first, name in names.items() if name != first} if self.last else {}

    def parameters(self) -> list[nn.Parameter]:
        """What this rank holds of them."""
        return [self.module.get_parameter(name) for name in self.names]

    def counted_elsewhere(self) -> dict[int, int]:
        """A factor of 0 by ``id`` of every copy that the first stage has too, for :func:`clip_gradients`."""
        return {id(p): 0 for p in self.parameters()} if self.last else {}

    def agree(self) -> None:
        """Give the last stage the first one's weights."""
        for parameter in self.parameters():
            dist.broadcast(parameter.data, int(self._pair[0]), group=self.group.get_group("ends"))

    @property
    def _pair(self) -> list[int]:
        return self.group.mesh[self.group.get_local_rank("rest")].tolist()

    @contextlib.contextmanager
    def summed(self) -> Iterator[None]:
        """Around a step: what it adds to the gradient of a copy is what it adds to both. Frozen weights have none."""
        held = [(p, p.grad) for p in self.parameters() if p.requires_grad]
        for parameter, _ in held:
            parameter.grad = None
        yield
        for parameter, before in held:
            if parameter.grad is None:  # the other end may have one, and waits for this
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(own_gradient(parameter), group=self.group.get_group("ends"))
            if before is not None:
                parameter.grad += before
