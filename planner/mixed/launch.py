"""A pipeline over several kinds of hosts as a job: one mesh whose stages are alike but for their layers.

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
from pathlib import Path
from typing import Any

from cost_models.workload import Training
from planner.errors import BadInput, Unsupported
from planner.mixed.result import MixedPlan, PartRecord, StageRecord
from planner.plan_text import loaded, plan_fields
from planner.result import ClusterRecord, ModelRecord, Plan, StrategyRecord
from topologies.catalogue import load, names

ALIKE = ("tp", "cp", "dp", "ep", "zero")
"""What the stages of one mesh share."""
STARTS = ("torchrun",)


@dataclass(frozen=True)
class MixedJob:
    """What launch files and the runtime ask of a plan, of one over several kinds of hosts."""

    strategy: StrategyRecord
    cluster: ClusterRecord
    model: ModelRecord
    workload: Training
    step_s: float
    step_interval_s: tuple[float, float]


def job_of(plan: MixedPlan) -> MixedJob:
    """The job of a pipeline over several parts.

    Raises ``Unsupported`` naming what makes its stages no part of one mesh, ``BadInput`` for a plan on one part alone.
    """
    if plan.alone is not None:
        raise BadInput("this plan runs on one part alone; launch alone, which is an ordinary plan")
    if found := list(refusals(plan.stages, plan.parts)):
        raise Unsupported("a plan over several kinds of devices is launched where its stages form one mesh: "
                          + ". ".join(found))  # fmt: skip
    each = _processes(plan.stages, plan.parts)
    return MixedJob(
        _strategy(plan, each), _cluster(plan, each), plan.model, plan.workload, plan.step_s, plan.step_interval_s
    )


def load_job(path: str | Path) -> Plan | MixedJob:
    """A plan from its file, of one kind of devices or several. Raises as :meth:`Plan.load` and :func:`job_of`."""
    return loaded(path, _job)


def _job(text: str) -> Plan | MixedJob:
    if plan_fields(text).get("kind") != "mixed":
        return Plan.from_json(text)
    plan = MixedPlan.from_json(text)
    return plan.alone or job_of(plan)


def refusals(stages: list[StageRecord], parts: list[PartRecord]) -> Iterator[str]:
    """Why stages cannot be launched as one job, in words; nothing where they can."""
    for axis in ALIKE:
        values = [getattr(stage, axis) for stage in stages]
        if len(set(values)) > 1:
            way = "plan one part alone" if axis == "dp" else f"pin {axis}={values[0]}"
            yield f"stages differ in {axis}: {', '.join(map(str, values))}; {way}"
    used = [parts[stage.part] for stage in stages]
    if len(set(map(_vendor, used)) - {""}) > 1:
        kinds = " and ".join(dict.fromkeys(part.accelerator for part in used))
        yield f"{kinds} have no library of collectives in common, so no tensor passes between them; plan one part alone"
    elif len({stage.devices for stage in stages}) == 1 and not _processes(stages, parts):
        sizes = ", ".join(f"{part.hosts} x {part.devices // part.hosts} of {part.name}" for part in parts)
        yield (
            f"torchrun starts the same number of processes on every host, and no number suits {len(stages)} stages of "
            f"{stages[0].devices} devices on hosts of {sizes}; plan one part alone"
        )


def _vendor(part: PartRecord) -> str:
    """Who makes a part's devices, ``cpu`` for processors; nothing where the catalogue does not know them."""
    name = part.accelerator
    if name.split("-")[0] == "cpu":
        return "cpu"
    return load("accelerators", name).vendor if name in names("accelerators") else ""


def _processes(stages: list[StageRecord], parts: list[PartRecord]) -> int:
    """Processes a host; 0 where no number suits all."""
    size, inner = stages[0].devices, stages[0].tp * stages[0].cp
    runs = [len(list(some)) * size for _, some in itertools.groupby(stages, key=lambda stage: stage.part)]
    needed = {k: size * sum(stage.part == k for stage in stages) for k in {stage.part for stage in stages}}
    most = min(parts[k].devices // parts[k].hosts for k in needed)
    for each in range(most, 0, -1):
        whole = math.gcd(*runs) % each == 0 and (size % each == 0 or each % size == 0) and each % inner == 0
        if whole and all(count // each <= parts[k].hosts for k, count in needed.items()):
            return each
    return 0


def _strategy(plan: MixedPlan, each: int) -> StrategyRecord:
    first, count = plan.stages[0], len(plan.stages)
    sharded = first.dp if first.zero else 1
    inside = {"tp": first.tp, "cp": first.cp, "dp_shard": sharded, "dp_replicate": first.dp // sharded, "pp": 1}
    return StrategyRecord(
        **{**inside, "pp": count}, zero=first.zero, ep=first.ep, etp=1, edp=first.devices // first.ep,
        schedule="1f1b", virtual_stages=1, micro_batch=first.micro_batch, micro_batches=plan.micro_batches,
        layers_per_stage=[stage.layers for stage in plan.stages], recompute=[stage.recompute for stage in plan.stages],
        placement={axis: [degree, count if axis == "pp" else 1] for axis, degree in inside.items()},
        hosts=list(range(count * first.devices // each)),
    )  # fmt: skip


def _cluster(plan: MixedPlan, each: int) -> ClusterRecord:
    ranks = [stage.part for stage in plan.stages for _ in range(stage.devices)]
    names = list(_host_names(ranks[::each], plan.parts))
    return ClusterRecord(
        name=plan.cluster_name, source=plan.cluster_name, digest=plan.cluster_digest,
        accelerator="+".join(dict.fromkeys(plan.parts[part].accelerator for part in ranks)), hosts=len(names),
        devices_per_host=each, scale_up_devices=each, devices=len(names) * each, hosts_used=len(names),
        devices_used=len(ranks), host_names=names,
    )  # fmt: skip


def _host_names(parts_of_hosts: list[int], parts: list[PartRecord]) -> Iterator[str]:
    """A name for every host, by its part and kind: ``part0-dgx-a100-1`` is the second of the first part."""
    seen = dict.fromkeys(range(len(parts)), 0)
    for part in parts_of_hosts:
        yield f"part{part}-{re.sub(r'[^A-Za-z0-9._-]', '-', parts[part].host)[:100]}-{seen[part]}"
        seen[part] += 1


def check_starts(targets: tuple[str, ...]) -> None:
    """Raises ``Unsupported`` for targets that cannot start stages on several kinds of hosts."""
    if others := [name for name in targets if name not in STARTS]:
        raise Unsupported(
            f"{', '.join(others)} cannot express stages on several kinds of hosts; take {STARTS[0]}, or plan "
            "one part alone"
        )


def write_job(plan: MixedPlan, directory: Path, targets: tuple[str, ...]) -> list[Path]:
    """Write ``plan.json``, ``launch.sh``, ``hosts.txt`` and ``rank_map.csv`` of a pipeline over several parts.

    Raises ``Unsupported`` for targets but torchrun and as :func:`job_of`.
    """
    from planner.export import write_files
    from planner.export.render import DOCUMENT
    from planner.export.torchrun import torchrun

    check_starts(targets)
    files: dict[str, Any] = torchrun(job_of(plan))
    return write_files({"plan.json": (plan.to_json() + "\n", DOCUMENT), **files}, directory)
