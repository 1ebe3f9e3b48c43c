"""The picture of a front: step time against energy, one colour and line a number of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.errors import Unsupported
from planner.fronts.mixed import MixedFront
from planner.fronts.pareto import Front, FrontPoint
from planner.report import degrees_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 12
"""Up to so many points carry their degrees; more would cover each other."""
TOGETHER = 0.04
"""Part of the picture within which two points' degrees would cover each other."""


def front_axes(front: Front, ax: Axes | None = None) -> Axes:
    """Points by step time and energy; money is in the labels, as it follows from time and devices, or from energy.

    Raises ``Unsupported`` where matplotlib is not installed.
    """
    ax = _new_axes() if ax is None else ax
    groups = by_devices(front)
    for k, (devices, points) in enumerate(groups.items()):
        times, joules = [it.step_s for it in points], [it.joules_per_step / 1e6 for it in points]
        style = {"color": _colour(k, len(groups)), "drawstyle": "steps-post", "label": f"{devices:,} devices"}
        ax.plot(times, joules, "o-", **style)
    for it in _named(front.points):
        _beside(ax, it.step_s, it.joules_per_step / 1e6, _label(it))
    ax.set_xlabel("step [s]")
    ax.set_ylabel("energy of a step [MJ]")
    ax.set_title(f"{front.model} on {front.cluster}: every trade-off of time, money, energy and devices", loc="left",
                 fontsize=10)  # fmt: skip
    ax.legend(frameon=False, fontsize=8)
    return ax


def mixed_front_axes(front: MixedFront, ax: Axes | None = None) -> Axes:
    """Points by step time and rent of a step, with the hosts in use of every part.

    Raises ``Unsupported`` where matplotlib is not installed.
    """
    ax = _new_axes() if ax is None else ax
    ax.plot([it.step_s for it in front.points], [it.usd_per_step for it in front.points], "o-", drawstyle="steps-post")
    for it in front.points if len(front.points) <= MOST_NAMED else ():
        used = " + ".join(f"{part.hosts_used} {part.host}" for part in it.parts if part.hosts_used)
        _beside(ax, it.step_s, it.usd_per_step, used)
    ax.set_xlabel("step [s]")
    ax.set_ylabel("rent of a step [USD]")
    ax.set_title(f"{front.model} on {front.cluster}: every trade-off of time and rent", loc="left", fontsize=10)
    return ax


def _beside(ax: Axes, x: float, y: float, text: str) -> None:
    """Writes beside a point, on the side where the picture has room."""
    side, offset = ("left", 6) if x <= sum(ax.get_xlim()) / 2 else ("right", -6)
    ax.annotate(text, (x, y), xytext=(offset, 4), ha=side, textcoords="offset points", fontsize=7)


def _named(points: list[FrontPoint]) -> list[FrontPoint]:
    """The points whose degrees are written beside them: none of many, and of two that lie together the first."""
    spans = [max(values) - min(values) or 1.0 for values in zip(*map(_place, points), strict=True)]
    named: list[FrontPoint] = []
    for it in points if len(points) <= MOST_NAMED else ():
        apart = ([abs(a - b) / s for a, b, s in zip(_place(it), _place(one), spans, strict=True)] for one in named)
        if all(max(distance) > TOGETHER for distance in apart):
            named.append(it)
    return named


def _place(it: FrontPoint) -> tuple[float, float]:
    return it.step_s, it.joules_per_step


def by_devices(front: Front) -> dict[int, list[FrontPoint]]:
    """The points of every number of devices, fastest first."""
    counts = sorted({it.devices for it in front.points})
    return {n: sorted((it for it in front.points if it.devices == n), key=lambda it: it.step_s) for n in counts}


def _label(it: FrontPoint) -> str:
    money = "" if it.usd_per_step is None else f", {it.usd_per_step:.3g} USD"
    return degrees_text(it.strategy) + money


def _colour(k: int, count: int) -> tuple[float, ...]:
    from matplotlib import colormaps

    return colormaps["viridis"](k / max(1, count - 1) * 0.9)


def _new_axes() -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise Unsupported('plots need matplotlib; run: pip install "meshwright[plots]"') from error
    return pyplot.subplots(figsize=(7.2, 4.8), layout="constrained")[1]
