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

from pydantic import Field, model_validator

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
    a point is not proved. Plans quicker than ``open_below_s`` were not all looked at, of which the quickest may be a
    point; ``None`` where all were.
    """

    kind: Literal["mixed"] = "mixed"
    points: list[MixedPlan] = Field(min_length=1)
    open_below_s: float | None = None

    @model_validator(mode="after")
    def _points_have_rent(self) -> MixedFront:
        if without := [k for k, it in enumerate(self.points) if it.usd_per_step is None]:
            raise ValueError(f"point {without[0]} has no usd_per_step, its rent; plan the front again")
        return self

    @property
    def statement(self) -> str:
        """What is proved, in one sentence."""
        if self.proved and self.tolerance is not None:
            return f"every plan has a point here that takes at most {self.tolerance:.3%} more time, and no more rent"
        if self.tolerance is None:
            return "the time limit or Ctrl-C came first: nothing is proved about plans that were not looked at"
        some = "every plan" if self.open_below_s is None else f"every plan of {self.open_below_s:.6g} s and more"
        return (
            f"{some} has a point here that takes at most {self.tolerance:.3%} more time and rent (the time limit or "
            "Ctrl-C came before the rest)"
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
    points, open_below_s = _points(best, cheapest, tolerance)
    covers = [it for it in points if it.objective_name == "money"]
    reached = max([tolerance, *(it.objective / it.bound - 1 if it.bound > 0 else math.inf for it in covers)])
    return MixedFront(
        meshwright_version=cheapest.meshwright_version, model=cheapest.model.name, model_digest=cheapest.model.digest,
        cluster=source, cluster_digest=cheapest.cluster_digest, workload=cheapest.workload,
        options={**cheapest.options, "objective": "time", "time_limit_s": time_limit_s}, tolerance_asked=tolerance,
        tolerance=reached if reached < math.inf else None,
        proved=open_below_s is None and reached <= tolerance, search_s=time.monotonic() - began,
        points=_undominated(points), open_below_s=open_below_s,
    )  # fmt: skip


def _points(best: Best, cheapest: MixedPlan, tolerance: float) -> tuple[list[MixedPlan], float | None]:
    """The cheapest plan, then ever quicker ones; and below how many seconds plans were not all looked at, if so.

    Then the quickest is among them too, where that is known.
    """
    points, quickest = [cheapest], cheapest
    try:
        quickest = _going_on(cheapest, best, "time", math.inf)
        last = quickest
        while points[-1].step_s > quickest.step_s * (1 + SAME):
            last = _going_on(last, best, "money", _next_s(points[-1], quickest, tolerance))
            points.append(last)
    except (SearchGaveUp, InfeasiblePlan, KeyboardInterrupt):
        return [*points, quickest], _next_s(points[-1], quickest, tolerance)
    return points, None if quickest.status == "optimal" else quickest.step_s


def _going_on(last: MixedPlan, best: Best, objective: str, most_s: float) -> MixedPlan:
    """The next plan. Raises what ``best`` raises, and ``KeyboardInterrupt`` where Ctrl-C ended the last search."""
    if interrupted(last.notes):
        raise KeyboardInterrupt
    return best(objective, most_s)


def _next_s(point: MixedPlan, quickest: MixedPlan, tolerance: float) -> float:
    """Seconds that the point after this one may take at most."""
    return max(point.step_s / (1 + tolerance), quickest.step_s)


def _undominated(points: list[MixedPlan]) -> list[MixedPlan]:
    """Those that no other is as quick and as cheap as, fastest first."""
    kept = list[MixedPlan]()
    for it in sorted(points, key=_trade):
        if not kept or _trade(it)[1] < _trade(kept[-1])[1]:
            kept.append(it)
    return kept


def _trade(it: MixedPlan) -> tuple[float, float]:
    """Seconds and dollars of a step."""
    return it.step_s, it.usd_per_step or 0.0
