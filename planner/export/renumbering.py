"""Which host of a plan a framework has to call which, where it numbers ranks by a fixed order of axes.

A plan numbers ranks level by level (:mod:`planner.ranks`); Megatron and torchtitan number them as one mixed-radix
number over the axes, whatever the network. Hosts can be started under other numbers, so the two agree wherever
each host of the framework's numbering holds exactly the ranks of one host of the plan.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from cost_models.strategy import DENSE_ORDER, EXPERT_ORDER
from planner.export.refusals import Refusal, refused
from planner.ranks import GRID_ORDER, processes_per_host, rank_grid
from planner.result import Plan, StrategyRecord


def framework_grid(strategy: StrategyRecord, order: tuple[str, ...]) -> np.ndarray:
    """The framework's rank at every coordinate ``[pp, dp_replicate, dp_shard, cp, tp]``; ``order`` innermost first."""
    sizes = [getattr(strategy, axis) for axis in reversed(order)]
    ranks = np.arange(np.prod(sizes, dtype=np.int64)).reshape(sizes)
    return np.moveaxis(ranks, [list(reversed(order)).index(axis) for axis in GRID_ORDER], range(len(order)))


def devices(plan: Plan, order: tuple[str, ...]) -> np.ndarray | None:
    """The plan's device under each rank of the framework, or ``None`` where no numbering of the hosts gives it.

    Devices of one host are alike, so which of them a rank has does not matter unless a host holds several domains.
    """
    at = np.empty(rank_grid(plan.strategy).size, dtype=np.int64)
    at[framework_grid(plan.strategy, order).ravel()] = rank_grid(plan.strategy).ravel()
    each = processes_per_host(plan.strategy, plan.cluster)
    domain = int(np.prod([plan.strategy.placement[axis][0] for axis in DENSE_ORDER]))
    block = domain if domain < each else each
    blocks = (at // block).reshape(-1, block)
    if (blocks != blocks[:, :1]).any():
        return None
    inside = blocks[:, 0].reshape(-1, each // block)
    if (inside != inside[:, :1] + np.arange(each // block)).any():
        return None
    return at


def host_numbers(plan: Plan, order: tuple[str, ...] = DENSE_ORDER) -> list[int] | None:
    """For each host of the plan, the number under which a framework has to start it; ``None`` where none will do."""
    at = devices(plan, order)
    if at is None or not experts_lie_as_planned(plan.strategy, at) or not same_clocks(plan, at):
        return None
    hosts = at[:: processes_per_host(plan.strategy, plan.cluster)] // processes_per_host(plan.strategy, plan.cluster)
    numbers = np.empty_like(hosts)
    numbers[hosts] = np.arange(len(hosts))
    return numbers.tolist()


def needed_host_numbers(plan: Plan, name: str) -> list[int]:
    """:func:`host_numbers` of a framework that nests its axes tp, cp, dp, pp. Raises ``Unsupported`` for none."""
    numbers = host_numbers(plan)
    return placement_refused(plan, name) if numbers is None else numbers


def placement_refused(plan: Plan, name: str) -> NoReturn:
    """Raises ``Unsupported`` for a placement that no numbering of the hosts gives."""
    strategy = plan.strategy
    shown = ", ".join(
        f"{axis} {' x '.join(map(str, factors))}" for axis, factors in strategy.placement.items() if max(factors) > 1
    )
    split = tuple(f"{axis}=1" for axis in ("cp", "pp", "ep") if getattr(strategy, axis) > 1)
    clocks = " and devices of a host differ in clock" if strategy.clocks else ""
    why = f"{shown} (inside a domain x across){clocks}, and it numbers ranks tp, cp, dp, pp from the inside"
    raise refused(name, [Refusal("placement", why, split, "use whole hosts")])


def experts_lie_as_planned(strategy: StrategyRecord, at: np.ndarray) -> bool:
    """Whether groups of ``etp``, ``ep`` and ``edp``, innermost first in every stage, span the planned domains.

    A plan that does not say where its experts lie leaves it open.
    """
    if strategy.ep * strategy.etp == 1 or any(axis not in strategy.placement for axis in EXPERT_ORDER):
        return True
    degrees = [getattr(strategy, axis) for axis in reversed(EXPERT_ORDER)]
    ranks = at.reshape(degrees)
    inside = 1
    for level in range(1, len(strategy.placement["tp"])):
        inside *= int(np.prod([strategy.placement[axis][level - 1] for axis in DENSE_ORDER]))
        for position, axis in enumerate(reversed(EXPERT_ORDER)):
            domains = np.sort(np.moveaxis(ranks // inside, position, -1), axis=-1)
            spanned = 1 + (np.diff(domains, axis=-1) != 0).sum(axis=-1)
            if axis != "pp" and (spanned != np.prod(strategy.placement[axis][level:])).any():
                return False
    return True


def same_clocks(plan: Plan, at: np.ndarray) -> bool:
    """Whether every device runs the stage whose clock ``clocks.sh`` gives it."""
    if not plan.strategy.clocks:
        return True
    each = processes_per_host(plan.strategy, plan.cluster)
    device = at // each * each + np.arange(at.size) % each
    stage = np.empty(at.size, dtype=np.int64)
    for number, ranks in enumerate(rank_grid(plan.strategy)):
        stage[ranks.ravel()] = number
    return bool((stage[at] == stage[device]).all())
