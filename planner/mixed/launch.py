"""A pipeline over several kinds of hosts as a job, and its launch files: one mesh, or a mesh a stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cost_models.clocks import FULL
from cost_models.workload import Training
from planner.errors import BadInput, Unsupported
from planner.mixed.one_mesh import MixedJob, one_mesh, processes
from planner.mixed.result import MixedPlan, PartRecord, StageRecord
from planner.mixed.uneven import UNEVEN, UnevenJob, uneven_job, uneven_refusals
from planner.plan_text import loaded, plan_fields
from planner.result import ModelRecord, Plan
from planner.runtime.limits import SAME_FORWARD, is_cpu
from topologies.catalogue import load, names

STARTS = ("torchrun",)
CPU = "cpu"
SETTABLE = ("NVIDIA", "")
"""Vendors whose clocks launch files can set; of a part that the catalogue does not know the driver is asked."""


def job_of(plan: MixedPlan) -> MixedJob | UnevenJob:
    """The job of a pipeline over several parts.

    Raises ``Unsupported`` naming what no job can be made of, ``BadInput`` for a plan on one part alone.
    """
    if plan.alone is not None:
        raise BadInput("this plan runs on one part alone; launch alone, which is an ordinary plan")
    if found := list(refusals(plan.stages, plan.parts, plan.model, plan.workload)):
        raise Unsupported("this plan over several kinds of devices cannot be launched: " + ". ".join(found))
    return one_mesh(plan) or uneven_job(plan)


def load_job(path: str | Path) -> Plan | MixedJob | UnevenJob:
    """A plan from its file, of one kind of devices or several. Raises as :meth:`Plan.load` and :func:`job_of`."""
    return loaded(path, _job)


def _job(text: str) -> Plan | MixedJob | UnevenJob:
    if plan_fields(text).get("kind") != "mixed":
        return Plan.from_json(text)
    plan = MixedPlan.from_json(text)
    return plan.alone or job_of(plan)


def refusals(
    stages: list[StageRecord], parts: list[PartRecord], model: ModelRecord, workload: Training
) -> Iterator[str]:
    """Why stages cannot be launched as one job, in words; nothing where they can."""
    used = [parts[stage.part] for stage in stages]
    vendors = set(map(_vendor, used))
    if len(vendors - {""}) > 1 or (CPU in vendors and len(vendors) > 1):
        kinds = " and ".join(dict.fromkeys(part.accelerator for part in used))
        yield f"{kinds} have no library of collectives in common, so no tensor passes between them; plan one part alone"
    if moved := ", ".join(f"{it.tensors} to {it.tier}" for stage in stages for it in stage.offloads):
        yield f"the runtime offloads nothing, and the plan moves {moved}; plan without tiers"
    for k, stage in enumerate(stages):
        if stage.clock < FULL and _vendor(parts[stage.part]) not in SETTABLE:
            yield (
                f"stage {k} runs {stage.accelerator} at {stage.clock:g} of the full clock, and launch files can set "
                f"the clocks of {SETTABLE[0]} devices only; plan without clocks"
            )
    if not processes(stages, parts):
        yield from uneven_refusals(stages, parts)
        yield from _decoder_refusals(stages, model, workload)


def _decoder_refusals(stages: list[StageRecord], model: ModelRecord, workload: Training) -> Iterator[str]:
    """Why stages with meshes of their own do not run a model's layers; nothing where they do."""
    if (kind := (model.config or {}).get("model_type")) not in SAME_FORWARD:
        what = f"has model_type {kind!r}" if kind else "was planned without a config that names its model_type"
        yield (
            f"{UNEVEN} run decoders of model_type {', '.join(SAME_FORWARD)}, and {model.name!r} {what}; pin tp and "
            "zero where stages differ in them, or plan one part alone"
        )
    for k, stage in enumerate(stages):
        if workload.seq_len % stage.tp:
            yield (
                f"tp = {stage.tp} of stage {k} does not divide seq_len = {workload.seq_len}, and {UNEVEN} split the "
                "sequence between layers; pin another tp, or choose a seq_len that it divides"
            )


def _vendor(part: PartRecord) -> str:
    """Who makes a part's devices, ``cpu`` for processors; nothing where the catalogue does not know them."""
    name = part.accelerator
    if is_cpu(name):
        return CPU
    return load("accelerators", name).vendor if name in names("accelerators") else ""


def check_starts(targets: tuple[str, ...]) -> None:
    """Raises ``Unsupported`` for targets that cannot start stages on several kinds of hosts."""
    if others := [name for name in targets if name not in STARTS]:
        raise Unsupported(
            f"{', '.join(others)} cannot express stages on several kinds of hosts; take {STARTS[0]}, or plan "
            "one part alone"
        )


def write_alone(plan: MixedPlan, directory: Path, targets: tuple[str, ...]) -> list[Path]:
    """Write the files of a plan on one part alone, as :meth:`Plan.write`, and ``mixed_plan.json``, the plan itself."""
    from planner.export import export, write_files
    from planner.export.render import DOCUMENT

    files = export(plan.alone, targets)
    return write_files({**files, "mixed_plan.json": (plan.to_json() + "\n", DOCUMENT)}, directory)


def write_job(plan: MixedPlan, directory: Path, targets: tuple[str, ...]) -> list[Path]:
    """Write ``plan.json``, ``launch.sh``, ``hosts.txt`` and ``rank_map.csv`` of a pipeline over several parts.

    Also ``clocks.sh`` where a stage has a lower clock than the full one. Raises ``Unsupported`` for targets but
    torchrun and as :func:`job_of`.
    """
    from planner.export import write_files
    from planner.export.clocks import clocks, clocks_uneven
    from planner.export.render import DOCUMENT
    from planner.export.torchrun import torchrun, torchrun_uneven

    check_starts(targets)
    job = job_of(plan)
    uneven = isinstance(job, UnevenJob)
    files: dict[str, Any] = torchrun_uneven(job) if uneven else torchrun(job)
    files |= clocks_uneven(job) if uneven else clocks(job)
    return write_files({"plan.json": (plan.to_json() + "\n", DOCUMENT), **files}, directory)
