"""``job.sbatch``: a Slurm job that runs ``launch.sh`` once on every host, in the order Slurm lists them."""

from __future__ import annotations

from cost_models.strategy import DENSE_ORDER, level_ranks
from planner.export.hosts import check_named
from planner.export.render import SCRIPT, Files, render
from planner.export.torchrun import torchrun
from planner.host_order import host_order
from planner.ranks import processes_per_host
from planner.result import Plan
from planner.runtime.limits import runs_on_cpu


def slurm(plan: Plan) -> Files:
    """``job.sbatch`` and the ``launch.sh`` it calls. Raises ``Unsupported`` as :func:`torchrun` does.

    Where hosts differ it asks for them by name and starts them in the plan's order, which needs their names.
    """
    check_named(plan, "slurm")
    processes = processes_per_host(plan.strategy, plan.cluster)
    text = render(
        "job.sbatch.j2",
        plan=plan,
        hosts=plan.cluster.hosts_used,
        processes=processes,
        segment=_hosts_per_domain(plan, processes),
        names=host_order(plan),
        cpu=runs_on_cpu(plan.cluster),
    )
    return torchrun(plan) | {"job.sbatch": (text, SCRIPT)}


def _hosts_per_domain(plan: Plan, processes: int) -> int:
    """Hosts of one scale-up domain that the plan uses; above 1 they have to lie in one block of the network."""
    return max(1, level_ranks(plan.strategy.placement, DENSE_ORDER, 0) // processes)
