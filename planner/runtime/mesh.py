"""The job's processes: joining them, and the device mesh that the plan's placement gives."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from planner.errors import BadInput, Unsupported
from planner.mixed.uneven import UnevenJob
from planner.ranks import rank_grid, world_size
from planner.result import Plan, StrategyRecord
from planner.runtime.last_words import name_this_rank
from planner.runtime.limits import runs_on_cpu

MESH_AXES = ("pp", "dp_replicate", "dp_shard", "tp")
"""Axes of the mesh, outermost first; context-parallel ranks are among those of ``dp_shard`` (see ``Meshes``)."""


def planned_device_type(plan: Plan | UnevenJob) -> str:
    """``"cpu"`` or ``"cuda"``, by the plan's accelerator. A CPU plan runs on CPUs wherever it is started."""
    return "cpu" if runs_on_cpu(plan.cluster) else "cuda"


def join(plan: Plan | UnevenJob, device_type: str, timeout_s: float = 600.0) -> torch.device:
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
        name_this_rank()  # torch has just put its own hook in the place of ours
    check_world(plan, dist.get_world_size())
    return this_device(device_type)


def limit_waits(device: torch.device) -> None:
    """Make waits in all groups of this rank end when those of the whole job do; torch gives new groups half an hour."""
    timeout = dist.group.WORLD._get_backend(device).options._timeout
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def _take_gpu(plan: Plan | UnevenJob, local_rank: int) -> None:
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


def draw_alike(group: dist.ProcessGroup, device: torch.device) -> None:
    """Give all ranks of ``group`` its first one's state of random numbers, so that they draw the same from here on.

    Ranks that hold the same hidden states have to drop the same of them out, whatever seeds the script gave.
    """
    generators = [(torch.get_rng_state, torch.set_rng_state)]
    if device.type == "cuda":
        generators.append((torch.cuda.get_rng_state, torch.cuda.set_rng_state))
    for get, put in generators:
        state = get().to(device)
        dist.broadcast(state, group=group, group_src=0)
        put(state.cpu())


def leave(code: int) -> NoReturn:
    """End this process at once: tearing down gloo's threads aborts now and then, after the work is done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def check_world(plan: Plan | UnevenJob, processes: int) -> None:
    """Compare the plan's ranks with the job's processes. Raises ``BadInput`` with the arithmetic."""
    if isinstance(plan, UnevenJob):
        sizes = [len(plan.ranks_of(stage)) for stage in range(len(plan.stages))]
        text, world = f"stages of {' + '.join(map(str, sizes))} devices", plan.world_size
    else:
        s, world = plan.strategy, world_size(plan.strategy)
        text = f"dp_replicate*dp_shard*cp*tp*pp = {s.dp_replicate}*{s.dp_shard}*{s.cp}*{s.tp}*{s.pp}"
    if world != processes:
        raise BadInput(
            f"{text} = {world}, but the job has {processes} processes; start {world}, or plan for {processes} devices"
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


@dataclass(frozen=True)
class ExpertMeshes:
    """Where experts are: ``whole`` is ``[pp, edp, ep, etp]``, and ``travel`` the ranks that tokens travel among.

    Slices of an expert are on ranks that see the same tokens (``same_tokens``), part of a tp group, or else on ranks
    of ``travel``: tokens then go to every slice.
    """

    whole: DeviceMesh
    travel: DeviceMesh
    same_tokens: bool


@dataclass(frozen=True)
class Meshes:
    """The meshes of one job, and this rank's place.

    ``dense`` is ``[pp, dp_replicate, dp_shard, tp]`` with the context-parallel ranks among ``dp_shard``, since both
    see their own tokens; ``cp`` and ``experts`` are ``None`` where these axes are 1. ``data`` and ``part`` are
    ``(index, count)`` of the batch and of the sequence.
    """

    dense: DeviceMesh
    cp: DeviceMesh | None
    experts: ExpertMeshes | None
    data: tuple[int, int]
    part: tuple[int, int]

    @property
    def stage_ranks(self) -> int:
        """Ranks of one pipeline stage."""
        return self.dense.size() // self.dense["pp"].size()


def build_meshes(strategy: StrategyRecord, device_type: str) -> Meshes:
    """The meshes of a job for any module. Raises ``Unsupported`` for experts that ranks cannot be found for."""
    grid = rank_grid(strategy)
    pp, replicate, shard, cp, tp = grid.shape
    joined = grid.reshape(pp, replicate, shard * cp, tp)
    if strategy.zero == 0:
        joined = joined.reshape(pp, replicate * shard * cp, 1, tp)
        joined.sort(axis=1)
    else:
        joined.sort(axis=2)
    at = np.argwhere(grid == dist.get_rank())[0].tolist()
    parts = DeviceMesh(device_type, _by_last(grid.transpose(0, 1, 2, 4, 3)), mesh_dim_names=("rest", "cp"))
    return Meshes(
        DeviceMesh(device_type, torch.from_numpy(joined.copy()), mesh_dim_names=MESH_AXES),
        parts["cp"] if cp > 1 else None,
        _expert_meshes(grid, strategy.ep, strategy.etp, device_type),
        (at[1] * shard + at[2], replicate * shard),
        (at[3], cp),
    )


def _by_last(grid: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(grid).reshape(-1, grid.shape[-1]))


def _expert_meshes(grid: np.ndarray, ep: int, etp: int, device_type: str) -> ExpertMeshes | None:
    """Neighbours among the ranks that see different tokens hold different experts; slices are on tp ranks if they fit.

    Raises ``Unsupported`` where neither ``etp`` divides ``tp`` nor ``ep * etp`` the ranks with different tokens.
    """
    if ep * etp == 1:
        return None
    pp, replicate, shard, cp, tp = grid.shape
    data, same = replicate * shard * cp, tp % etp == 0
    away = ep if same else ep * etp
    if data % away:
        raise Unsupported(
            f"the runtime spreads experts over ranks with different tokens, and {'ep' if same else 'ep*etp'} = {away} "
            f"does not divide dp_replicate*dp_shard*cp = {replicate}*{shard}*{cp} = {data}; pin another "
            f"{'ep' if same else 'etp, or one that divides tp'}"
        )
    groups = grid.transpose(0, 4, 1, 2, 3).reshape(pp, tp, data // away, away)
    groups.sort(axis=-1)
    whole = _slices_on_tp(groups, etp) if same else groups.reshape(pp, -1, ep, etp)
    if (np.diff(whole, axis=1) < 0).any():
        whole = whole[:, np.argsort(whole[0, :, 0, 0])]
    mesh = DeviceMesh(device_type, torch.from_numpy(whole.copy()), mesh_dim_names=("pp", "edp", "ep", "etp"))
    if same:
        return ExpertMeshes(mesh, mesh["ep"], same)
    travel = DeviceMesh(device_type, _by_last(groups), mesh_dim_names=("rest", "travel"))
    return ExpertMeshes(mesh, travel["travel"], same)


def _slices_on_tp(groups: np.ndarray, etp: int) -> np.ndarray:
    """``[pp, edp, ep, etp]`` from ``[pp, tp, data / ep, ep]``."""
    pp, tp, copies, ep = groups.shape
    return groups.reshape(pp, tp // etp, etp, copies, ep).transpose(0, 1, 3, 4, 2).reshape(pp, -1, ep, etp)
