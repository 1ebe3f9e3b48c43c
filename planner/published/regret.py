"""What choosing a layout by prediction costs, where several layouts of one problem were measured.

    regret   = measured time of the layout predicted fastest / least measured time - 1
    in order = share of pairs, measured further apart than the noise, that the prediction orders as measured

Rows whose jobs do not differ at all count as one layout with their mean time. Among layouts predicted
equal, the regret is their mean, and a pair counts half.

The simple rule to beat is least tp x pp, then the largest micro-batch; where that leaves several, least tp,
which is the best of them on the open sweep.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from planner.published.records import Case, Prediction
from planner.published.scores import of_quantity, repeats, same_job, set_of

LAYOUT_SETS = ("vt-m", "vt-s", "bs", "ie", "prm", "mbs", "nano")
"""Sources that hold several layouts of one model, machine, size and batch."""
NOISE = {"bs": 0.05}
LEAST_NOISE = 0.02
FEW = 4
"""Groups with fewer layouts are left out of the mean and the worst regret."""


@dataclass(frozen=True)
class Option:
    """One layout: its measured and predicted seconds and its place in the simple rule's order, least first."""

    case: Case
    measured_s: float
    predicted_s: float
    simple: tuple[int, int, int]


@dataclass(frozen=True)
class Choice:
    """One problem: regret of the prediction's choice and of the simple rule's, and pairs in order of each."""

    source: str
    layout: str
    layouts: int
    regret: float
    simple_regret: float
    pairs: int
    in_order: float
    simple_in_order: float


@dataclass(frozen=True)
class Choices:
    """All problems of a set: regrets are over ``large`` groups of :data:`FEW` layouts and more, pairs over all."""

    source: str
    groups: int
    large: int
    mean: float | None
    worst: float | None
    simple_mean: float | None
    simple_worst: float | None
    noise: float
    pairs: int
    in_order: float | None
    simple_in_order: float | None


@dataclass(frozen=True)
class Effect:
    """Pairs of layouts that differ in one thing: how many are ordered right, and the predicted part of the effect.

    ``size`` is the slope of log(predicted ratio) on log(measured ratio) through the origin: 1 where the whole
    effect is predicted, 0 where none is, negative where it has the wrong sign.
    """

    source: str
    what: str
    pairs: int
    right_sign: int
    size: float | None


def options(lines: Iterable[Prediction]) -> dict[tuple[str, str], list[Option]]:
    """Layouts of each (set, problem) with two or more that were measured and predicted."""
    rows: dict[tuple[str, str], dict] = defaultdict(lambda: defaultdict(list))
    for line in of_quantity(lines, "step_s"):
        case, source = line.case, set_of(line.case)
        if source in LAYOUT_SETS and case.layout and case.job is not None and line.predicted is not None:
            rows[source, case.layout][same_job(case)].append(line)
    return {key: [_option(same) for same in jobs.values()] for key, jobs in rows.items() if len(jobs) > 1}


def _option(lines: Sequence[Prediction]) -> Option:
    strategy = lines[0].case.job.strategy
    degrees = strategy.degrees
    return Option(
        case=lines[0].case,
        measured_s=float(np.mean([line.measured for line in lines])),
        predicted_s=float(np.mean([line.predicted for line in lines])),
        simple=(degrees.tp * degrees.pp, -strategy.schedule.micro_batch, degrees.tp),
    )


def noise_of(lines: Iterable[Prediction], source: str) -> float:
    """Relative difference that means nothing: 5 % for bs, 2 % elsewhere, or what equal jobs show if that is more."""
    own = [line for line in of_quantity(lines, "step_s") if set_of(line.case) == source]
    seen = repeats(own, same_job)
    return max(NOISE.get(source, LEAST_NOISE), seen.mean if seen else 0.0)


def choice(source: str, layout: str, group: Sequence[Option], noise: float) -> Choice:
    """One problem's regret and order, by the prediction and by the simple rule."""
    pairs = [pair for pair in combinations(group, 2) if _apart(*pair) > noise]
    return Choice(
        source, layout, len(group),
        regret(group, lambda one: one.predicted_s), regret(group, lambda one: one.simple),
        len(pairs), _in_order(pairs, lambda one: one.predicted_s), _in_order(pairs, lambda one: one.simple),
    )  # fmt: skip


def regret(group: Sequence[Option], order: Callable[[Option], object]) -> float:
    """Measured seconds of the least by ``order`` over the least measured, less 1."""
    least = min(map(order, group))
    chosen = np.mean([one.measured_s for one in group if order(one) == least])
    return float(chosen / min(one.measured_s for one in group) - 1.0)


def _apart(a: Option, b: Option) -> float:
    low, high = sorted((a.measured_s, b.measured_s))
    return high / low - 1.0


def _in_order(pairs: Sequence[tuple[Option, Option]], order: Callable[[Option], object]) -> float:
    count = 0.0
    for a, b in pairs:
        if order(a) == order(b):
            count += 0.5
        else:
            count += (order(a) < order(b)) == (a.measured_s < b.measured_s)
    return count


def choices(lines: Sequence[Prediction]) -> tuple[list[Choices], list[Choice]]:
    """The sets of :data:`LAYOUT_SETS` that have problems with several layouts, and these problems."""
    groups = options(lines)
    noise = {source: noise_of(lines, source) for source in LAYOUT_SETS}
    single = [choice(source, layout, group, noise[source]) for (source, layout), group in sorted(groups.items())]
    sets = [source for source in LAYOUT_SETS if any(one.source == source for one in single)]
    return [_over(source, [one for one in single if one.source == source], noise[source]) for source in sets], single


def _over(source: str, groups: Sequence[Choice], noise: float) -> Choices:
    large = [one for one in groups if one.layouts >= FEW]
    pairs = sum(one.pairs for one in groups)
    return Choices(
        source, len(groups), len(large),
        _mean([one.regret for one in large]), max((one.regret for one in large), default=None),
        _mean([one.simple_regret for one in large]), max((one.simple_regret for one in large), default=None),
        noise, pairs,
        sum(one.in_order for one in groups) / pairs if pairs else None,
        sum(one.simple_in_order for one in groups) / pairs if pairs else None,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _sharding_apart(a: Case, b: Case) -> bool:
    """Whether two jobs differ in the group that shards the states, and in no other degree."""
    x, y = a.job.strategy, b.job.strategy
    split = (x.degrees.dp_shard != y.degrees.dp_shard) and x.degrees.dp == y.degrees.dp
    return (
        split and x.zero == y.zero and _degrees(x) == _degrees(y) and x.schedule == y.schedule and x.stages == y.stages
    )


def _schedule_apart(a: Case, b: Case) -> bool:
    """Whether two jobs differ in how micro-batches move through the stages, and in no degree."""
    x, y = a.job, b.job
    same = _degrees(x.strategy) == _degrees(y.strategy) and x.strategy.degrees.dp == y.strategy.degrees.dp
    return same and (x.strategy.schedule, x.switches) != (y.strategy.schedule, y.switches)


def _degrees(strategy) -> tuple[int, ...]:
    degrees = strategy.degrees
    return degrees.cp, degrees.tp, degrees.pp, degrees.ep, degrees.etp


EFFECTS = (("ie", "sharding group", _sharding_apart), ("prm", "schedule", _schedule_apart))


def effects(lines: Sequence[Prediction]) -> list[Effect]:
    """Effect of ie's sharding group and of prm's schedule, over pairs measured further apart than the noise."""
    groups = options(lines)
    found = []
    for source, what, differ in EFFECTS:
        noise = noise_of(lines, source)
        pairs = [
            pair
            for (of, _), group in groups.items() if of == source
            for pair in combinations(group, 2) if differ(pair[0].case, pair[1].case) and _apart(*pair) > noise
        ]  # fmt: skip
        if pairs:
            found.append(_effect(source, what, pairs))
    return found


def _effect(source: str, what: str, pairs: Sequence[tuple[Option, Option]]) -> Effect:
    measured = np.array([math.log(a.measured_s / b.measured_s) for a, b in pairs])
    predicted = np.array([math.log(a.predicted_s / b.predicted_s) for a, b in pairs])
    size = float(measured @ predicted / (measured @ measured))
    return Effect(source, what, len(pairs), int(np.sum(measured * predicted > 0)), size)
