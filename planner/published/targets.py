"""The figures to reach: which rows each is over, how it is counted, and whether it is reached.

Errors are over covered rows; the share that is covered is a figure of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.published.records import Case, Prediction, Quantity
from planner.published.regret import Choices, Effect, choices, effects
from planner.published.scores import FSDP, MEGATRON, Score, of_quantity, out_of_memory, score, set_of

SMALL = frozenset({"ie", "nano", "jax", "lit", "tune", "prm", "mbs"})
LONG_RUN_S = 600.0
"""Node power of shorter runs includes their ramps."""
HOLDS = (0.85, 0.97)
"""Share of left-out rows that 90 % intervals have to hold."""
WIDEST = 2.0
"""Half-width of an interval over the set's median error, at most."""


@dataclass(frozen=True)
class Target:
    """One figure with its limit (``most`` or ``least`` that is allowed), over ``rows``; fractions.

    ``left_out`` is the figure with the row's group left out of the fit, ``None`` where there is none;
    ``met`` judges it, or ``plain`` where there is none, and is ``None`` where there is no figure.
    """

    set: str
    figure: str
    sense: str
    limit: float
    rows: int
    plain: float | None
    left_out: float | None
    met: bool | None


@dataclass(frozen=True)
class Interval:
    """Over one set and quantity: share of rows inside their interval, mean half-width, median error."""

    set: str
    quantity: Quantity
    rows: int
    inside: float
    half_width: float
    median_error: float
    met: bool


SETS: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    ("Megatron family, dense", lambda case: case.source in MEGATRON and case.kind == "dense"),
    ("Megatron family, MoE", lambda case: case.source in MEGATRON and case.kind == "moe"),
    ("fine-tuning", lambda case: case.kind == "fine-tuning"),
    ("sweep, multi-host", lambda case: set_of(case) == "vt-m"),
    ("sweep, single-host", lambda case: set_of(case) == "vt-s"),
    ("bs", lambda case: case.source == "bs"),
    ("FSDP stacks", lambda case: case.source in FSDP and case.kind != "fine-tuning"),
    ("ie nano jax lit tune prm mbs", lambda case: case.source in SMALL),
    ("node power, over 600 s", lambda case: _measured_s(case) > LONG_RUN_S),
)
ERRORS: tuple[tuple[str, Quantity, str, float], ...] = (
    ("Megatron family, dense", "step_s", "mean", 0.05),
    ("Megatron family, dense", "step_s", "p90", 0.11),
    ("Megatron family, dense", "peak_mem_gib", "median", 0.04),
    ("Megatron family, MoE", "step_s", "median", 0.12),
    ("fine-tuning", "step_s", "median", 0.12),
    ("fine-tuning", "peak_mem_gib", "median", 0.06),
    ("sweep, multi-host", "step_s", "mean", 0.07),
    ("sweep, single-host", "step_s", "mean", 0.08),
    ("bs", "step_s", "mean", 0.08),
    ("bs", "peak_mem_gib", "median", 0.04),
    ("FSDP stacks", "step_s", "mean", 0.09),
    ("FSDP stacks", "peak_mem_gib", "median", 0.04),
    ("ie nano jax lit tune prm mbs", "step_s", "median", 0.12),
    ("ie nano jax lit tune prm mbs", "peak_mem_gib", "median", 0.06),
    ("node power, over 600 s", "node_w", "mean", 0.08),
)
SHORT = {"step_s": "time", "peak_mem_gib": "memory", "node_w": "power", "fits": "fits"}
Figures = dict[tuple[str, str], tuple[str, float, int, float | None]]
"""By (set, figure): sense, limit, rows, value."""


def _measured_s(case: Case) -> float:
    return float((case.job.switches.get("measured_s") or 0.0) if case.job is not None else 0.0)


def targets(lines: Sequence[Prediction], left_out: Sequence[Prediction] | None) -> list[Target]:
    """Every figure to reach that ``lines`` have rows for."""
    plain, out = _figures(lines), _figures(left_out or ())
    return [
        _target(set_, figure, one, out.get((set_, figure)), left_out is not None)
        for (set_, figure), one in plain.items()
    ]


def _target(set_: str, figure: str, plain: tuple, out: tuple | None, is_judged_out: bool) -> Target:
    sense, limit, rows, value = plain
    apart = out[3] if out is not None else None
    judged = apart if is_judged_out else value
    met = None if judged is None else (judged <= limit if sense == "most" else judged >= limit)
    return Target(set_, figure, sense, limit, rows, value, apart, met)


def _figures(lines: Sequence[Prediction]) -> Figures:
    found = _errors(lines)
    sets, _ = choices(lines)
    for one in sets:
        found |= _regrets(one)
    for effect in effects(lines):
        found |= _effects(effect)
    return _in_order(found) | _fits(lines) | _covered(lines)


def _in_order(found: Figures) -> Figures:
    """By set, in the order of :data:`SETS`."""
    rank = {name: k for k, (name, _) in enumerate(SETS)}
    return dict(sorted(found.items(), key=lambda item: rank[item[0][0]]))


def scores(lines: Sequence[Prediction]) -> dict[tuple[str, Quantity], Score]:
    """The score of each of :data:`SETS` and quantity that has rows."""
    found = {}
    for name, holds in SETS:
        own = [line for line in lines if holds(line.case)]
        for quantity in ("step_s", "peak_mem_gib", "node_w"):
            if of := of_quantity(own, quantity):
                found[name, quantity] = score(of)
    return found


def _errors(lines: Sequence[Prediction]) -> Figures:
    found: Figures = {}
    known = scores(lines)
    for name, quantity, statistic, limit in ERRORS:
        if (one := known.get((name, quantity))) is not None:
            value = None if one.errors is None else getattr(one.errors, statistic)
            found[name, f"{SHORT[quantity]}, {statistic} error"] = ("most", limit, one.covered, value)
    return found


def _regrets(one: Choices) -> Figures:
    if one.source == "vt-m":
        return {("sweep, multi-host", "worst regret"): ("most", 0.01, one.large, one.worst)}
    if one.source == "vt-s":
        name = "sweep, single-host"
        return {
            (name, "mean regret"): ("most", 0.015, one.large, one.mean),
            (name, "worst regret"): ("most", 0.10, one.large, one.worst),
        }
    if one.source == "bs":
        return {("bs", "pairs beyond noise in order"): ("least", 0.90, one.pairs, one.in_order)}
    return {}


def _effects(effect: Effect) -> Figures:
    name = "ie nano jax lit tune prm mbs"
    return {(name, f"part of {effect.source}'s {effect.what} effect"): ("least", 0.5, effect.pairs, effect.size)}


def _fits(lines: Sequence[Prediction]) -> Figures:
    fits = out_of_memory(lines)
    found: Figures = {}
    if fits.out_of_memory:
        share = fits.caught / fits.out_of_memory
        found["out of memory", "caught (11 of 13)"] = ("least", 11 / 13, fits.out_of_memory, share)
    if fits.ran:
        found["out of memory", "false alarms"] = ("most", 0.05, fits.ran, fits.false_alarms / fits.ran)
    return found


def _covered(lines: Sequence[Prediction]) -> Figures:
    """Among rows that state all sizes, the share whose every measured figure is predicted."""
    rows: dict[str, list[Prediction]] = defaultdict(list)
    for line in lines:
        if line.case.stated and line.measured is not None:
            rows[line.case.id].append(line)
    if not rows:
        return {}
    whole = sum(all(line.predicted is not None for line in own) for own in rows.values())
    return {("rows that state all sizes", "covered"): ("least", 0.97, len(rows), whole / len(rows))}


def intervals(lines: Sequence[Prediction]) -> list[Interval]:
    """How the 90 % intervals hold, per set and quantity."""
    return [
        Interval(name, quantity, one.bounded, one.inside, one.half_width, one.errors.median, _honest(one))
        for (name, quantity), one in scores(lines).items()
        if one.bounded
    ]


def _honest(one: Score) -> bool:
    return HOLDS[0] <= one.inside <= HOLDS[1] and one.half_width <= WIDEST * one.errors.median
