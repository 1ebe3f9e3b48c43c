"""The trade-offs between time and rent on a mixed cluster, each a proved plan.

    P_1    the cheapest plan
    P_k+1  the cheapest plan of at most  max(quickest, step of P_k / (1 + tolerance))  seconds

until the quickest is among them. A plan ``x`` that is quicker than what was asked of ``P_k+1`` but not than what was
asked of ``P_k`` takes at least the rent of ``P_k``, which takes at most ``1 + tolerance`` times its seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from planner.api import Progress, plan
from planner.errors import InfeasiblePlan, SearchGaveUp
from planner.fronts.record import FrontRecord
from planner.limits import limits_of
from planner.mixed.result import MixedPlan
from planner.stopping import interrupted
from topologies.mixed import MixedCluster

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import RenderableType

Best = Callable[[str, float], MixedPlan]
SHARE = 0.5
"""Part of the time that is left which one plan may take."""
SAME = 1e-9


class MixedFront(FrontRecord):
    """Plans of which none is both quicker and cheaper than another, fastest first, and what is proved about them.

    Every plan has a point that takes at most ``tolerance`` more time, and of rent no more, or ``tolerance`` more where
    a point is not proved. Plans quicker than ``open_below_s`` were not all looked at; ``None`` where all were.
    """

    kind: Literal["mixed"] = "mixed"
    points: list[MixedPlan]
    open_below_s: float | None = None

    @property
    def statement(self) -> str:
        """What is proved, in one sentence."""
        if self.proved:
            return f"every plan has a point here that takes at most {self.tolerance:.3%} more time, and no more rent"
        some = "every plan" if self.open_below_s is None else f"every plan of {self.open_below_s:.6g} s and more"
        return (
            f"{some} has a point here that takes at most {self.tolerance:.3%} more time and rent (the time limit came "
            "before the rest)"
        )

    def view(self) -> RenderableType:
        """The front for a terminal."""
        from planner.fronts.report import mixed_front_view

        return mixed_front_view(self)

    def summary(self) -> str:
        """The points as a table, and what is proved."""
        from planner.report import as_text

        return as_text(self.view())

    def plot(self, axes: Axes | None = None) -> Axes:
        """Step time against rent; needs ``meshwright[plots]``."""
        from planner.fronts.plot import mixed_front_axes

        return mixed_front_axes(self, axes)


def mixed_front(
    model: Any, cluster: MixedCluster, source: str, *, tolerance: float, time_limit_s: float, limits: Any,
    progress: Progress, **asked: Any,
) -> MixedFront:  # fmt: skip
    """The front of (time, money) on a mixed cluster; arguments are those of :func:`planner.plan`. Raises what it does.

    ``source`` is the cluster's name in print.
    """
    began, limits = time.monotonic(), limits_of(limits)

    def best(objective: str, most_s: float) -> MixedPlan:
        left = time_limit_s - (time.monotonic() - began)
        if left <= 0:
            raise SearchGaveUp("the time limit came first")
        step = {"step-time": min(most_s, limits.get("step-time", most_s))} if most_s < math.inf else {}
        return plan(
            model, cluster, objective=objective, limits={**limits, **step}, time_limit_s=max(0.1, SHARE * left),
            alternatives=0, progress=progress, **asked,
        )  # fmt: skip

    cheapest = best("money", math.inf)
    quickest = best("time", math.inf)
    points, open_below_s = _points(best, cheapest, quickest, tolerance)
    reached = max([tolerance, *(it.objective / it.bound - 1 if it.bound > 0 else math.inf for it in points)])
    return MixedFront(
        meshwright_version=quickest.meshwright_version, model=quickest.model.name, model_digest=quickest.model.digest,
        cluster=source, cluster_digest=quickest.cluster_digest, workload=quickest.workload,
        options={**quickest.options, "objective": "time", "time_limit_s": time_limit_s}, tolerance_asked=tolerance,
        tolerance=reached if reached < math.inf else None,
        proved=open_below_s is None and reached <= tolerance, search_s=time.monotonic() - began,
        points=_undominated(points), open_below_s=open_below_s,
    )  # fmt: skip


def _points(
    best: Best, cheapest: MixedPlan, quickest: MixedPlan, tolerance: float
) -> tuple[list[MixedPlan], float | None]:
    """The cheapest plan, then ever quicker ones; and below how many seconds plans were not all looked at, if so."""
    points, stopped = [cheapest], interrupted([*cheapest.notes, *quickest.notes])
    while points[-1].step_s > quickest.step_s * (1 + SAME):
        most_s = max(points[-1].step_s / (1 + tolerance), quickest.step_s)
        try:
            if stopped:
                return points, most_s
            points.append(best("money", most_s))
        except (SearchGaveUp, InfeasiblePlan, KeyboardInterrupt):
            return points, most_s
        stopped = interrupted(points[-1].notes)
    return points, None if quickest.status == "optimal" else quickest.step_s


def _undominated(points: list[MixedPlan]) -> list[MixedPlan]:
    """Those that no other is as quick and as cheap as, fastest first."""
    kept = list[MixedPlan]()
    for it in sorted(points, key=lambda one: (one.step_s, one.objective)):
        if not kept or it.objective < kept[-1].objective:
            kept.append(it)
    return kept
