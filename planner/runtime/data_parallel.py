"""Data parallelism: copies whose gradients are averaged (zero 0), or sharded states (zero 1 to 3).

    zero 0    replicate: one all-reduce of the gradients a step
    zero 1    fully_shard, weights stay gathered from forward to backward, one reduce-scatter a step
    zero 2    as zero 1, but gradients are scattered after every micro-batch, so no rank keeps them whole
    zero 3    as zero 2, and weights are gathered again for every layer's backward

With ``dp_replicate`` beside ``dp_shard`` the shards are averaged over the copies as well, once a step. These are
the exchanges that the planner charges for.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from planner.runtime.decoder import DecoderPart

COMPUTES_IN = {"fp32": torch.float32, "bf16": torch.bfloat16}
POLICIES = {
    "fp32": MixedPrecisionPolicy(),
    "bf16": MixedPrecisionPolicy(param_dtype=COMPUTES_IN["bf16"], reduce_dtype=torch.float32),
}
"""bf16: fp32 weights are the master copy; forward and backward see 16-bit copies, gradients add up in fp32."""


warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
"""Every transformer's logits are a view; only a loss that writes into them would go wrong."""


def shard(part: DecoderPart, mesh: DeviceMesh, zero: int, precision: str) -> None:
    """Make ``part`` data-parallel, each layer in a group of its own so that its traffic overlaps the others' work."""
    if precision == "fp32" and mesh["dp_replicate"].size() * mesh["dp_shard"].size() == 1:
        return
    for layer in part.layers.values():
        wrap(layer, mesh, zero, precision)
    wrap(part, mesh, zero, precision)


def wrap(module: nn.Module, mesh: DeviceMesh, zero: int, precision: str) -> None:
    """Make the parameters of ``module`` that no module inside it has taken data-parallel, as one group."""
    policy = POLICIES[precision]
    if zero == 0:
        replicate(module, mesh=mesh["dp_replicate"], mp_policy=policy)
        return
    copies = mesh["dp_replicate"].size() > 1
    over = mesh["dp_replicate", "dp_shard"] if copies else mesh["dp_shard"]
    fully_shard(module, mesh=over, reshard_after_forward=zero == 3, mp_policy=policy)


def wrap_expert(module: nn.Module, copies: DeviceMesh, zero: int, precision: str) -> None:
    """The same for experts, of which the ranks of ``copies`` hold the same ones."""
    policy = POLICIES[precision]
    if zero == 0:
        replicate(module, mesh=copies, mp_policy=policy)
    else:
        fully_shard(module, mesh=copies, reshard_after_forward=zero == 3, mp_policy=policy)


def wrap_statistics(module: nn.Module, mesh: DeviceMesh, zero: int) -> None:
    """Make those data-parallel, one by one, that :func:`in_fp32` names inside ``module``; they give what they take."""
    for inner in module.modules():
        if in_fp32(inner) and any(True for _ in inner.parameters()):
            wrap(inner, mesh, zero, "fp32")


def in_fp32(module: nn.Module) -> bool:
    """Whether weights of ``module`` stay in fp32: a BatchNorm's, whose statistics are, and torch wants both alike."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def announce(part: nn.Module, zero: int, last: bool) -> None:
    """Say what the coming backward pass of a micro-batch exchanges; ``last`` of the step or not."""
    if isinstance(part, FSDPModule):
        part.set_is_last_backward(last)
        part.set_requires_gradient_sync(last or zero >= 2)
        part.set_requires_all_reduce(last)
        part.set_reshard_after_backward(last or zero == 3)


def hold_gradients(part: nn.Module) -> None:
    """Keep weights gathered and gradients whole through the coming backward pass."""
    if isinstance(part, FSDPModule):
        part.set_is_last_backward(False)
        part.set_requires_gradient_sync(False)
        part.set_reshard_after_backward(False)


def exchange_gradients(part: nn.Module) -> None:
    """Exchange the gradients of ``part`` as was announced, after a backward pass that ran no hooks on its inputs.

    Source: torch 2.13, torch/distributed/pipelining/stage.py, ``perform_reduce_grad``.
    """
    if not isinstance(part, FSDPModule):
        return
    root = part._get_fsdp_state()
    for state in root._state_ctx.all_states:
        for group in state._fsdp_param_groups:
            group.post_backward()
    root._root_post_backward_final_callback()


def agree(module: nn.Module, mesh: DeviceMesh, axes: tuple[str, ...] = ("dp_replicate", "dp_shard")) -> None:
    """Give all copies of ``module`` over ``axes`` the first one's weights; copies that start apart would stay apart."""
    for axis in axes:
        if mesh[axis].size() > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, group=mesh.get_group(axis), group_src=0)


def gather_when_needed(module: nn.Module) -> None:
    """Gather the weights of ``module`` when its backward begins, and nothing else ahead of others.

    Ranks that hold different experts would gather ahead at different times, while others wait for their tokens.
    """
    if isinstance(module, FSDPModule):
        module.set_modules_to_backward_prefetch([module])
