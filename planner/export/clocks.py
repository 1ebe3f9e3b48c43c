"""``clocks.sh``: sets the clock of every device of a host as planned, and gives it back.

A launcher cannot set clocks, which takes the rights of an administrator, so it is a script of its own that runs before
the job on every host. Devices whose driver has no such command get the refusal in its place.
"""

from __future__ import annotations

import itertools

from planner.errors import Unsupported
from planner.export.render import SCRIPT, Files, render
from planner.mixed.launch import SETTABLE
from planner.mixed.uneven import UnevenJob
from planner.ranks import processes_per_host, rank_grid
from planner.result import Plan
from topologies.catalogue import load, names


def clocks(plan: Plan) -> Files:
    """``clocks.sh`` where some stage has a lower clock than the full one, else nothing.

    Raises ``Unsupported`` for devices whose clocks it cannot set.
    """
    if not plan.strategy.clocks:
        return {}
    if vendor_of(plan) not in SETTABLE:
        raise Unsupported(
            f"the plan runs stages of {plan.cluster.accelerator} at {min(plan.strategy.clocks):g} of the full clock, "
            f"and launch files can set the clocks of {SETTABLE[0]} devices only; plan without clocks"
        )
    percent = percent_by_rank(plan)
    each = processes_per_host(plan.strategy, plan.cluster)
    return _script(plan, percent, [each] * (len(percent) // each))


def clocks_uneven(job: UnevenJob) -> Files:
    """As :func:`clocks`, of a job whose hosts start unequal numbers of processes."""
    clock = job.stages[0].clocks
    if not clock:
        return {}
    percent = [round(100 * clock[job.stage_of(rank)]) for rank in range(job.world_size)]
    return _script(job, percent, list(job.processes))


def _script(plan: Plan | UnevenJob, percent: list[int], processes: list[int]) -> Files:
    """``clocks.sh`` for hosts of so many ``processes``, which hold the ranks in order."""
    ends = itertools.accumulate(processes)
    hosts = [percent[end - each : end] for end, each in zip(ends, processes, strict=True)]
    return {"clocks.sh": (render("clocks.sh.j2", plan=plan, hosts=hosts), SCRIPT)}


def percent_by_rank(plan: Plan) -> list[int]:
    """Percent of the full clock for every rank, in the order in which the hosts hold them."""
    grid, clock = rank_grid(plan.strategy), plan.strategy.clocks
    percent = [0] * grid.size
    for stage, ranks in enumerate(grid):
        for rank in ranks.ravel().tolist():
            percent[rank] = round(100 * clock[stage])
    return percent


def vendor_of(plan: Plan) -> str:
    """Who makes the plan's devices, as the catalogue says; nothing where it does not know them."""
    name = plan.cluster.accelerator
    return load("accelerators", name).vendor if name in names("accelerators") else ""
