"""A pipeline over several kinds of hosts as one mesh: stages that are alike but for their layers and recompute.

Ranks count a stage's devices, stage after stage, so that every host runs ranks of one part: with ``d`` devices a stage
and ``p`` processes a host, ``p`` is the largest number that divides what neighbouring stages on one part use, divides
``d`` or is a multiple of it, and leaves every part enough hosts. torchrun starts ``p`` on each.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cost_models.clocks import FULL
from cost_models.workload import Training
from planner.mixed.result import MixedPlan, PartRecord, StageRecord
from planner.result import ClusterRecord, ModelRecord, StrategyRecord

ALIKE = ("tp", "cp", "dp", "ep", "zero")
"""What the stages of one mesh share."""


@dataclass(frozen=True)
class MixedJob:
    """What launch files and the runtime ask of a plan, of one over several kinds of hosts."""

    strategy: StrategyRecord
    cluster: ClusterRecord
    model: ModelRecord
    workload: Training
    step_s: float
    step_interval_s: tuple[float, float]


def one_mesh(plan: MixedPlan) -> MixedJob | None:
    """The job of a plan whose stages form one mesh on hosts of equally many processes; ``None`` where they do not."""
    each = processes(plan.stages, plan.parts)
    if not each:
        return None
    return MixedJob(
        _strategy(plan, each), _cluster(plan, each), plan.model, plan.workload, plan.step_s, plan.step_interval_s
    )


def processes(stages: list[StageRecord], parts: list[PartRecord]) -> int:
    """Processes a host; 0 where stages differ or no number suits all."""
    if any(len({getattr(stage, axis) for stage in stages}) > 1 for axis in ALIKE):
        return 0
    size, inner = stages[0].devices, stages[0].tp * stages[0].cp
    runs = [len(list(some)) * size for _, some in itertools.groupby(stages, key=lambda stage: stage.part)]
    needed = {k: size * sum(stage.part == k for stage in stages) for k in {stage.part for stage in stages}}
    most = min(parts[k].devices // parts[k].hosts for k in needed)
    for each in range(most, 0, -1):
        whole = math.gcd(*runs) % each == 0 and (size % each == 0 or each % size == 0) and each % inner == 0
        if whole and all(count // each <= parts[k].hosts for k, count in needed.items()):
            return each
    return 0


def clocks_of(stages: list[StageRecord]) -> list[float]:
    """The clocks of stages as records of strategies hold them: none where all are full."""
    clocks = [stage.clock for stage in stages]
    return [] if set(clocks) == {FULL} else clocks


def _strategy(plan: MixedPlan, each: int) -> StrategyRecord:
    first, count = plan.stages[0], len(plan.stages)
    sharded = first.dp if first.zero else 1
    inside = {"tp": first.tp, "cp": first.cp, "dp_shard": sharded, "dp_replicate": first.dp // sharded, "pp": 1}
    return StrategyRecord(
        **{**inside, "pp": count}, zero=first.zero, ep=first.ep, etp=1, edp=first.devices // first.ep,
        schedule="1f1b", virtual_stages=1, micro_batch=first.micro_batch, micro_batches=plan.micro_batches,
        layers_per_stage=[stage.layers for stage in plan.stages], recompute=[stage.recompute for stage in plan.stages],
        placement={axis: [degree, count if axis == "pp" else 1] for axis, degree in inside.items()},
        hosts=list(range(count * first.devices // each)), clocks=clocks_of(plan.stages),
    )  # fmt: skip


def _cluster(plan: MixedPlan, each: int) -> ClusterRecord:
    ranks = [stage.part for stage in plan.stages for _ in range(stage.devices)]
    names = list(host_names(ranks[::each], plan.parts))
    return ClusterRecord(
        name=plan.cluster_name, source=plan.cluster_name, digest=plan.cluster_digest,
        accelerator="+".join(dict.fromkeys(plan.parts[part].accelerator for part in ranks)), hosts=len(names),
        devices_per_host=each, scale_up_devices=each, devices=len(names) * each, hosts_used=len(names),
        devices_used=len(ranks), host_names=names,
    )  # fmt: skip


def host_names(parts_of_hosts: list[int], parts: list[PartRecord]) -> Iterator[str]:
    """A name for every host, by its part and kind: ``part0-dgx-a100-1`` is the second of the first part."""
    seen = dict.fromkeys(range(len(parts)), 0)
    for part in parts_of_hosts:
        yield f"part{part}-{re.sub(r'[^A-Za-z0-9._-]', '-', parts[part].host)[:100]}-{seen[part]}"
        seen[part] += 1
