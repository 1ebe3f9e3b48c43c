"""``hosts.txt``: the order of hosts, where it matters which is which."""

from __future__ import annotations

from planner.errors import Unsupported
from planner.export.render import DOCUMENT, Files
from planner.host_order import host_order
from planner.result import Plan


def hosts_file(plan: Plan) -> Files:
    """``hosts.txt``: line ``k`` (from 0) is the host of node rank ``k``; nothing where any order will do."""
    if not plan.strategy.hosts:
        return {}
    return {"hosts.txt": ("".join(f"{name}\n" for name in host_order(plan)), DOCUMENT)}


def check_named(plan: Plan, target: str) -> None:
    """Raises ``Unsupported`` where a target has to name hosts whose names nobody gave."""
    if plan.strategy.hosts and not plan.cluster.hosts_are_named:
        raise Unsupported(
            f"{target} places hosts by name, and the plan depends on which host is which, but cluster "
            f'{plan.cluster.name!r} names none; add host_names = "node[001-064]" to its file and plan again'
        )
