"""``launch.sh``: one bash script that every host runs with its number; static rendezvous keeps the planned order."""

from __future__ import annotations

from planner.errors import PlannerError
from planner.export.hosts import hosts_file
from planner.export.render import DOCUMENT, SCRIPT, Files, render
from planner.host_order import by_node_rank, numbered_hosts
from planner.mixed.uneven import UnevenJob
from planner.ranks import processes_per_host
from planner.result import Plan
from planner.runtime.limits import check_trainer


def torchrun(plan: Plan) -> Files:
    """``launch.sh`` for ``plan``, and ``hosts.txt`` where it matters which host is which.

    Raises ``Unsupported`` when hosts would need different numbers of processes.

    Without a program of the user's the script starts the built-in trainer; a plan that the trainer cannot
    run still gets its script, which then asks for a program and says why.
    """
    text = render(
        "launch.sh.j2",
        plan=plan,
        hosts=plan.cluster.hosts_used,
        processes=processes_per_host(plan.strategy, plan.cluster),
        differ=bool(plan.strategy.hosts),
        clocks=plan.strategy.clocks,
        refusal=trainer_refusal(plan),
        unnamed=[] if plan.cluster.hosts_are_named else by_node_rank(plan),
    )
    return {"launch.sh": (text, SCRIPT)} | hosts_file(plan)


def torchrun_uneven(job: UnevenJob) -> Files:
    """``launch.sh``, ``hosts.txt`` and ``rank_map.csv`` of a job whose hosts start unequal numbers of processes."""
    names = job.cluster.host_names
    text = render(
        "launch.sh.j2",
        plan=job,
        hosts=len(names),
        processes=job.processes,
        differ=True,
        clocks=job.stages[0].clocks,
        refusal=trainer_refusal(job),
        unnamed=numbered_hosts(names),
    )
    listed = "".join(f"{name}\n" for name in names)
    return {
        "launch.sh": (text, SCRIPT), "hosts.txt": (listed, DOCUMENT), "rank_map.csv": (job.rank_map(), DOCUMENT)
    }  # fmt: skip


def trainer_refusal(plan: Plan | UnevenJob) -> str | None:
    """Why the built-in trainer cannot run ``plan``; ``None`` when it can."""
    try:
        check_trainer(plan)
    except PlannerError as error:
        return str(error)
    return None
