"""A pipeline of no one mesh as a job: a mesh a stage, hosts with unequal numbers of processes.

Its stages differ in tp, dp or ZeRO, or no number of processes a host suits all of them.

Ranks count a stage's devices, stage after stage, tensor-parallel ranks next to each other. Hosts run ranks of one part:
whole tp groups are laid on a part's hosts one after the other, as many as there is room for, and a stage that follows
another on the same part goes on where that one ended. torchrun is told on every host how many processes it starts
there, and numbers ranks by node.

Source: torch 2.13, torch/distributed/elastic/agent/server/api.py, ``_assign_worker_ranks`` (sums of local world sizes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cost_models.workload import Training
from planner.mixed.one_mesh import MixedJob, clocks_of, host_names
from planner.mixed.result import MixedPlan, PartRecord, StageRecord
from planner.result import ClusterRecord, ModelRecord, StrategyRecord

WHOLE = ("cp", "ep")
"""Axes that stages of unequal shapes do not have."""

UNEVEN = "stages that differ in tp, dp or ZeRO, or whose hosts start unequal numbers of processes,"
"""Which stages have meshes of their own, as refusals begin."""


@dataclass(frozen=True)
class UnevenJob:
    """What launch files and the runtime ask of a plan whose stages have meshes of their own.

    ``stages`` has each stage's own degrees beside the number and layers of all; ``processes`` one number a host.
    """

    stages: tuple[StrategyRecord, ...]
    processes: tuple[int, ...]
    cluster: ClusterRecord
    model: ModelRecord
    workload: Training
    step_s: float
    step_interval_s: tuple[float, float]

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return sum(self.processes)

    def ranks_of(self, stage: int) -> range:
        """The ranks of a stage."""
        sizes = [_devices(it) for it in self.stages]
        return range(sum(sizes[:stage]), sum(sizes[: stage + 1]))

    def stage_of(self, rank: int) -> int:
        """The stage of a rank."""
        return next(stage for stage in range(len(self.stages)) if rank in self.ranks_of(stage))

    def as_stage(self, stage: int) -> MixedJob:
        """The job as a stage sees it: with its own degrees."""
        return MixedJob(self.stages[stage], self.cluster, self.model, self.workload, self.step_s, self.step_interval_s)

    def rank_map(self) -> str:
        """``rank,host,local_rank`` and the coordinates of every rank, one a line, as CSV with its heads."""
        hosts = np.repeat(np.arange(len(self.processes)), self.processes)
        first = np.cumsum([0, *self.processes])[:-1]
        lines = ["rank,host,local_rank,pp,dp_replicate,dp_shard,cp,tp"]
        for stage, strategy in enumerate(self.stages):
            shape = (strategy.dp_replicate, strategy.dp_shard, strategy.cp, strategy.tp)
            for rank, at in zip(self.ranks_of(stage), np.ndindex(shape), strict=True):
                host = int(hosts[rank])
                place = f"{rank},{self.cluster.host_names[host]},{rank - int(first[host])}"
                lines.append(f"{place},{stage},{','.join(map(str, at))}")
        return "\n".join(lines) + "\n"


def _devices(strategy: StrategyRecord) -> int:
    return strategy.dp_replicate * strategy.dp_shard * strategy.cp * strategy.tp


def uneven_job(plan: MixedPlan) -> UnevenJob:
    """The job of a plan of which :func:`uneven_refusals` says nothing."""
    hosts = _hosts(plan.stages, plan.parts)
    each = tuple(count for _, count in hosts)
    stages = tuple(_strategy(plan, stage) for stage in plan.stages)
    names = list(host_names([part for part, _ in hosts], plan.parts))
    used = dict.fromkeys(plan.parts[stage.part].accelerator for stage in plan.stages)
    cluster = ClusterRecord(
        name=plan.cluster_name, source=plan.cluster_name, digest=plan.cluster_digest, accelerator="+".join(used),
        hosts=len(each), devices_per_host=max(each), scale_up_devices=max(each), devices=sum(each),
        hosts_used=len(each), devices_used=sum(each), host_names=names,
    )  # fmt: skip
    return UnevenJob(stages, each, cluster, plan.model, plan.workload, plan.step_s, plan.step_interval_s)


def uneven_refusals(stages: list[StageRecord], parts: list[PartRecord]) -> Iterator[str]:
    """Why stages of unequal shapes, or on hosts with unequal numbers of devices, are no job; nothing where they are."""
    for axis in WHOLE:
        if many := [k for k, stage in enumerate(stages) if getattr(stage, axis) > 1]:
            yield (
                f"{UNEVEN} run without {axis}, and stage {many[0]} has {axis} = {getattr(stages[many[0]], axis)}; pin "
                f"{axis}=1"
            )
    for k, stage in enumerate(stages):
        room = _room(parts[stage.part])
        if stage.tp > room:
            yield f"stage {k} has tp = {stage.tp}, more than the {room} devices of a host of {parts[stage.part].name}"
            return
    needed = [part for part, _ in _hosts(stages, parts)]
    for k, part in enumerate(parts):
        if needed.count(k) > part.hosts:
            yield (
                f"tp groups whole on hosts of {_room(part)} devices take {needed.count(k)} hosts of {part.name}, which "
                f"has {part.hosts}; pin a tp that divides them"
            )


def _room(part: PartRecord) -> int:
    return part.devices // part.hosts


def _hosts(stages: list[StageRecord], parts: list[PartRecord]) -> list[tuple[int, int]]:
    """The part and the processes of every host that is used, in the order of ranks."""
    found: list[tuple[int, int]] = []
    for stage in stages:
        for _ in range(stage.devices // stage.tp):
            part, count = found[-1] if found else (-1, 0)
            if part != stage.part or count + stage.tp > _room(parts[stage.part]):
                found.append((stage.part, stage.tp))
            else:
                found[-1] = (part, count + stage.tp)
    return found


def _strategy(plan: MixedPlan, stage: StageRecord) -> StrategyRecord:
    sharded = stage.dp if stage.zero else 1
    degrees = {"tp": stage.tp, "cp": 1, "dp_shard": sharded, "dp_replicate": stage.dp // sharded}
    return StrategyRecord(
        **degrees, pp=len(plan.stages), zero=stage.zero, ep=1, etp=1, edp=stage.devices, schedule="1f1b",
        virtual_stages=1, micro_batch=stage.micro_batch, micro_batches=plan.micro_batches,
        layers_per_stage=[it.layers for it in plan.stages], recompute=[it.recompute for it in plan.stages],
        placement={axis: [degree] for axis, degree in degrees.items()} | {"pp": [1]}, clocks=clocks_of(plan.stages),
    )  # fmt: skip
