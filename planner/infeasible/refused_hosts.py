"""Where hosts differ: whether they are why nothing fits, and what is said then."""

from __future__ import annotations

from planner.infeasible.changes import Problem
from planner.infeasible.leanest import Lean, complete_rows, fewest_devices
from planner.search.bounds import objective_of


def hosts_rule_out(problem: Problem, lean: Lean) -> bool:
    """Whether the leanest plan has memory and power enough, so that only its hosts are not to be found."""
    if problem.space.cluster.irregular is None or lean.need_bytes > problem.limit or problem.options.limits:
        return False
    cap = problem.options.power_cap_w
    rows = complete_rows(problem, fewest_devices(problem))
    idle = objective_of(rows, problem.space.cluster, problem.options).static.facility_w
    return cap is None or float(idle.min()) < cap


def hosts_text(problem: Problem, lean: Lean) -> str:
    """Which hosts there are, beside what the leanest plan needs of each device."""
    cluster, it = problem.space.cluster, problem.space.cluster.irregular
    full = sum(n == cluster.devices_per_host for n in it.devices)
    return (
        f"no plan fits: the leanest ({lean.degrees}) needs {lean.need_bytes / 1e9:.1f} of {problem.limit / 1e9:.1f} GB "
        f"a device, but no placement finds its hosts: of the {len(it.numbers)} usable hosts of {cluster.name!r} {full} "
        f"have all {cluster.devices_per_host} devices, and {it.spare_hosts} stay spare"
    )
