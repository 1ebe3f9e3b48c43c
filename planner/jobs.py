"""Several equal jobs side by side on one cluster, where one batch does not stretch over it or the user asks for it.

    whole tokens/s = jobs x tokens of a step / step seconds of one job

Each job has ``hosts / jobs`` whole hosts and its share of a power cap, and trains a model of its own with the batch
that was asked for: their gradients do not meet, nor do they share network or memory in the models of cost. ``auto``
tries every number of jobs that divides the hosts into whole scale-up domains and keeps the most tokens a second; of
equally many the fewest jobs, since each holds a model of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.candidates import divisors
from planner.errors import BadInput, InfeasiblePlan, SearchGaveUp
from planner.result import Plan
from topologies.cluster import Cluster
from topologies.resized import resized

Planned = Callable[[Cluster, int, float], Plan]
"""A plan for one job on a part of the cluster, given how many jobs there are and the seconds it may take."""
MORE = 1e-3
"""By that part the whole must get faster for more jobs to be worth their copies of the model."""

THIN_UTILISATION = 0.15
"""Below it launches and waiting are most of a step, not arithmetic: large models train at 0.3 to 0.55."""


@dataclass(frozen=True)
class Tried:
    """A number of jobs and what the whole trains a second; ``plan`` is ``None`` where one job found none."""

    jobs: int
    plan: Plan | None
    tokens_per_s: float


def part_of(cluster: Cluster, jobs: int) -> Cluster:
    """The cluster that one of ``jobs`` equal jobs has. Raises ``BadInput`` where the hosts do not divide."""
    if jobs == 1:
        return cluster
    if jobs < 1 or cluster.hosts % jobs or not _whole_domains(cluster, cluster.hosts // jobs):
        legal = ", ".join(map(str, legal_jobs(cluster)))
        raise BadInput(
            f"jobs={jobs} does not cut the {cluster.hosts} hosts of {cluster.name!r} into equal parts of whole "
            f"scale-up domains; legal: {legal}"
        )
    part = resized(cluster, cluster.hosts // jobs)
    return replace(part, name=f"{cluster.name} / {jobs}")


def legal_jobs(cluster: Cluster) -> list[int]:
    """Numbers of equal jobs, each on whole scale-up domains, fewest first."""
    return [n for n in divisors(cluster.hosts) if _whole_domains(cluster, cluster.hosts // n)]


def _whole_domains(cluster: Cluster, hosts: int) -> bool:
    return hosts * cluster.devices_per_host % cluster.domain_devices == 0


def read_jobs(jobs: int | str) -> int | None:
    """The number of jobs, ``None`` for ``"auto"``. Raises ``BadInput`` for anything else."""
    if jobs == "auto":
        return None
    if isinstance(jobs, str) and jobs.isascii() and jobs.isdigit() and len(jobs) < 9:
        jobs = int(jobs)
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise BadInput(f"jobs={str(jobs)[:80]!r} is neither a whole number from 1 nor 'auto'")
    return jobs


def planned_jobs(cluster: Cluster, jobs: int | None, deadline: float, planned: Planned) -> Plan:
    """The plan of one of ``jobs`` jobs, or of as many as train most together, with what the whole does in its notes.

    Raises what ``planned`` raises for one number of jobs; for ``None``, when no number gives a plan, the error of one.
    """
    if jobs is not None:
        found = planned(part_of(cluster, jobs), jobs, max(0.01, deadline - time.monotonic()))
        return _told(found, [Tried(jobs, found, _whole(found, jobs))], cluster)
    return _best(cluster, deadline, planned)


def _best(cluster: Cluster, deadline: float, planned: Planned) -> Plan:
    tried, error, numbers = [], None, legal_jobs(cluster)
    for k, jobs in enumerate(numbers):
        share = max(0.01, (deadline - time.monotonic()) / (len(numbers) - k))
        try:
            plan = planned(part_of(cluster, jobs), jobs, share)
        except (InfeasiblePlan, SearchGaveUp) as none:
            tried.append(Tried(jobs, None, 0.0))
            error = error or none
            if isinstance(none, InfeasiblePlan):
                # Half the devices hold no more: what does not fit here fits no smaller part.
                break
        else:
            tried.append(Tried(jobs, plan, _whole(plan, jobs)))
    best = max(tried, key=lambda one: one.tokens_per_s)
    best = next(one for one in tried if one.tokens_per_s >= best.tokens_per_s * (1 - MORE))
    if best.plan is None:
        raise error
    return _told(best.plan, tried, cluster, best.jobs)


def with_thin_note(plan: Plan) -> Plan:
    """The plan, which says so where its batch hardly stretches over its devices: less than a sequence for each."""
    batch, used, utilised = plan.workload.global_batch, plan.cluster.devices_used, plan.model_flop_utilisation
    if batch >= used or utilised >= THIN_UTILISATION:
        return plan
    note = (
        f"batch {batch} hardly stretches over {used:,} devices (MFU {utilised:.1%}): several jobs side by side, each "
        "with that batch, may train more together; meshwright plan --jobs auto finds how many"
    )
    return plan.model_copy(update={"notes": [*plan.notes, note]})


def _whole(plan: Plan, jobs: int) -> float:
    return jobs * plan.workload.tokens / plan.step_s


def _told(plan: Plan, tried: list[Tried], cluster: Cluster, jobs: int | None = None) -> Plan:
    """The plan with its number of jobs and a note of what the whole does, beside the other numbers that were tried."""
    jobs = jobs or tried[0].jobs
    whole, used = _whole(plan, jobs), jobs * plan.cluster.devices_used
    note = (
        f"{jobs} job{'s' if jobs > 1 else ''} of {plan.cluster.devices_used} devices each, {used} of "
        f"{cluster.devices} in all: {whole:,.0f} tokens/s together"
    )
    others = [
        f"{one.jobs}: {one.tokens_per_s:,.0f} tokens/s" if one.plan else f"{one.jobs}: no plan"
        for one in tried
        if one.jobs != jobs
    ]
    note += f" (other numbers of jobs: {'; '.join(others)})" if others else ""
    return plan.model_copy(update={"jobs": jobs, "notes": [note, *plan.notes]})
