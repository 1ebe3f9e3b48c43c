"""Which host gets which node rank, where hosts differ: by name, with the stages that run there."""

from __future__ import annotations

import re
from collections.abc import Iterator

from planner.ranks import processes_per_host, rank_grid
from planner.result import Plan

_NUMBERED = re.compile(r"(.*?)([0-9]+)([^0-9]*)")


def host_order(plan: Plan) -> list[str]:
    """The name of the host of every node rank; empty where hosts are alike and any order will do."""
    return [plan.cluster.host_names[position] for position in plan.strategy.hosts]


def stages_by_host(plan: Plan) -> list[tuple[int, int]]:
    """The first and the last pipeline rank on the host of every node rank."""
    each = processes_per_host(plan.strategy, plan.cluster)
    stages: list[list[int]] = [[] for _ in plan.strategy.hosts]
    for stage, ranks in enumerate(rank_grid(plan.strategy)):
        for host in set((ranks.ravel() // each).tolist()):
            stages[host].append(stage)
    return [(min(mine), max(mine)) for mine in stages]


def hosts_by_stage(plan: Plan) -> list[tuple[str, list[str]]]:
    """For every run of stages that share hosts ``"stage 3"`` or ``"stages 0 to 3"`` and the hosts, in order."""
    found: dict[tuple[int, int], list[str]] = {}
    for span, name in zip(stages_by_host(plan), host_order(plan), strict=True):
        found.setdefault(span, []).append(name)
    return [(f"stage {a}" if a == b else f"stages {a} to {b}", names) for (a, b), names in sorted(found.items())]


def idle_hosts(plan: Plan) -> list[str]:
    """Usable hosts that the plan leaves idle, where hosts differ."""
    busy = set(plan.strategy.hosts)
    return [name for position, name in enumerate(plan.cluster.host_names) if busy and position not in busy]


def host_rows(plan: Plan) -> list[tuple[str, str]]:
    """Lines of a summary: the hosts of every stage, and the idle ones; none where hosts are alike."""
    if not plan.strategy.hosts:
        return []
    lines = [f"{stages} on {shortened(names)}" for stages, names in hosts_by_stage(plan)]
    idle = idle_hosts(plan)
    return [("hosts", "\n".join(lines)), *([("idle hosts", shortened(idle))] if idle else [])]


def shortened(names: list[str]) -> str:
    """Names in order, runs of numbers as a range: ``node03 to node09, node17``."""
    return ", ".join(_span(names[first], names[last]) for first, last in _runs(names))


def by_node_rank(plan: Plan) -> list[tuple[str, str]]:
    """Node ranks and the hosts that have them, as ``("0 to 3", "a-0 to a-3")``: a pair for every run of numbers."""
    return numbered_hosts(host_order(plan))


def numbered_hosts(names: list[str]) -> list[tuple[str, str]]:
    """Node ranks and the hosts that have them, of the names in their order, as :func:`by_node_rank`."""
    return [(_span(first, last), _span(names[first], names[last])) for first, last in _runs(names)]


def _span(first: str | int, last: str | int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _runs(names: list[str]) -> Iterator[tuple[int, int]]:
    """The first and the last position of every run of names with numbers that follow one another."""
    start = 0
    for k in range(1, len(names) + 1):
        if k == len(names) or not _follows(names[k - 1], names[k]):
            yield start, k - 1
            start = k


def _follows(one: str, other: str) -> bool:
    a, b = _NUMBERED.fullmatch(one), _NUMBERED.fullmatch(other)
    return bool(a and b) and (a[1], a[3]) == (b[1], b[3]) and int(b[2]) == int(a[2]) + 1
