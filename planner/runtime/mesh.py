"""The job's processes: joining them, and the device mesh that the plan's placement gives."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from planner.errors import BadInput
from planner.ranks import rank_grid, world_size
from planner.result import Plan, StrategyRecord
from planner.runtime.limits import runs_on_cpu

MESH_AXES = ("pp", "dp_replicate", "dp_shard", "tp")
"""Axes of the mesh, outermost first; context parallelism is not among what runs."""


def planned_device_type(plan: Plan) -> str:
    """``"cpu"`` or ``"cuda"``, by the plan's accelerator. A CPU plan runs on CPUs wherever it is started."""
    return "cpu" if runs_on_cpu(plan.cluster) else "cuda"


def join(plan: Plan, device_type: str, timeout_s: float = 600.0) -> torch.device:
    """Join the job that torchrun started, over gloo or nccl, and return this process's device.

    A peer that does not come or stops answering ends the wait after ``timeout_s`` with an error.

    Raises ``BadInput`` outside a job and in a job of another size than the plan's.
    """
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            raise BadInput("no RANK in the environment: a plan is applied in processes that torchrun started")
        check_world(plan, int(os.environ["WORLD_SIZE"]))
        if device_type == "cuda":
            _take_gpu(plan, int(os.environ["LOCAL_RANK"]))
        backend = "nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    check_world(plan, dist.get_world_size())
    return this_device(device_type)


def _take_gpu(plan: Plan, local_rank: int) -> None:
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise BadInput(
            f"the plan is for {plan.cluster.accelerator} and this is process {local_rank} of its host, but torch sees "
            f"{count} GPUs; start it where they are, or try it slowly on CPUs with device 'cpu'"
        )
    torch.cuda.set_device(local_rank)


def this_device(device_type: str) -> torch.device:
    """The device of this process."""
    return torch.device("cuda", torch.cuda.current_device()) if device_type == "cuda" else torch.device("cpu")


def check_world(plan: Plan, processes: int) -> None:
    """Compare the plan's ranks with the job's processes. Raises ``BadInput`` with the arithmetic."""
    s, world = plan.strategy, world_size(plan.strategy)
    if world != processes:
        raise BadInput(
            f"dp_replicate*dp_shard*cp*tp*pp = {s.dp_replicate}*{s.dp_shard}*{s.cp}*{s.tp}*{s.pp} = {world}, "
            f"but the job has {processes} processes; start {world}, or plan for {processes} devices"
        )


def build_mesh(strategy: StrategyRecord, device_type: str) -> DeviceMesh:
    """The mesh ``[pp, dp_replicate, dp_shard, tp]`` with the planned rank at each coordinate.

    Without sharding (``zero = 0``) all data-parallel ranks are copies, so ``dp_shard`` joins ``dp_replicate``.
    """
    grid = rank_grid(strategy)[:, :, :, 0, :]
    if strategy.zero == 0:
        pp, tp = grid.shape[0], grid.shape[-1]
        # Groups list their members in ascending order, and two placed axes joined need not ascend.
        grid = grid.reshape(pp, -1, 1, tp)
        grid.sort(axis=1)
    return DeviceMesh(device_type, torch.from_numpy(grid.copy()), mesh_dim_names=MESH_AXES)


def data_shard(mesh: DeviceMesh) -> tuple[int, int]:
    """``(index, count)`` of this rank's part of the batch."""
    replicas, shards = mesh["dp_replicate"], mesh["dp_shard"]
    return replicas.get_local_rank() * shards.size() + shards.get_local_rank(), replicas.size() * shards.size()
