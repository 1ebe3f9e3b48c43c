"""``hosts.txt`` and ``rank_map.csv``: which host is which, where that matters."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from planner.errors import Unsupported
from planner.export.render import DOCUMENT, Files
from planner.host_order import host_order
from planner.ranks import GRID_ORDER, processes_per_host, rank_grid
from planner.result import Plan


def hosts_file(plan: Plan) -> Files:
    """The order of hosts and the map of ranks; nothing where hosts are alike, so that any order will do.

    Line ``k`` of ``hosts.txt``, from 0, is the host of node rank ``k``; ``rank_map.csv`` has a line a rank with its
    host, its number there and its coordinates.
    """
    if not plan.strategy.hosts:
        return {}
    lines = [f"{name}\n" for name in host_order(plan)]
    return {"hosts.txt": ("".join(lines), DOCUMENT), "rank_map.csv": (rank_map(plan), DOCUMENT)}


def rank_map(plan: Plan) -> str:
    """``rank,host,local_rank`` and the coordinates of every rank, one a line, as CSV with its heads."""
    names, each, grid = host_order(plan), processes_per_host(plan.strategy, plan.cluster), rank_grid(plan.strategy)
    order = np.argsort(grid.ravel())
    coordinates = np.stack(np.unravel_index(order, grid.shape), axis=1).tolist()
    rows = (
        f"{rank},{names[rank // each]},{rank % each},{','.join(map(str, at))}\n" for rank, at in enumerate(coordinates)
    )
    return f"rank,host,local_rank,{','.join(GRID_ORDER)}\n" + "".join(rows)


FOLLOWING = ("torchrun", "slurm")
"""Targets that start a plan's hosts in its own order."""


def check_order(plan: Plan, targets: Iterable[str]) -> None:
    """Raises ``Unsupported`` where hosts differ and a target does not say which host is which."""
    others = [name for name in targets if name not in FOLLOWING]
    if plan.strategy.hosts and others:
        raise Unsupported(
            f"{others[0]} does not order hosts, and the plan depends on which host is which: those of cluster "
            f"{plan.cluster.name!r} differ; targets that follow its order are {' and '.join(FOLLOWING)}"
        )


def check_named(plan: Plan, target: str) -> None:
    """Raises ``Unsupported`` where a target has to name hosts whose names nobody gave."""
    if plan.strategy.hosts and not plan.cluster.hosts_are_named:
        raise Unsupported(
            f"{target} places hosts by name, and the plan depends on which host is which, but cluster "
            f'{plan.cluster.name!r} names none; add host_names = "node[001-064]" to its file and plan again'
        )
