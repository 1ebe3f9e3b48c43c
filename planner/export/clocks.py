"""``clocks.sh``: sets the clock of every device of a host as planned, and gives it back.

A launcher cannot set clocks, which takes the rights of an administrator, so it is a script of its own that runs before
the job on every host. Devices whose driver has no such command get the refusal in its place.
"""

from __future__ import annotations

from planner.errors import Unsupported
from planner.export.render import SCRIPT, Files, render
from planner.ranks import processes_per_host, rank_grid
from planner.result import Plan
from topologies.catalogue import load, names

SETTABLE = ("NVIDIA", "")
"""Vendors whose devices ``clocks.sh`` can set; of a part that the catalogue does not know it asks the driver."""


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
    hosts = [percent[at : at + each] for at in range(0, len(percent), each)]
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
