"""Strategies around a strategy, and strategies at random."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from oracle import Instance, all_rows, rows_of
from oracle_cuts import even_cuts
from oracle_quantities import objective_values

from cost_models.chain import Chain, joules
from cost_models.estimate import evaluate
from cost_models.price import price
from cost_models.strategy import LayerChoice, LayerRun, Stage, Strategy, uniform_stages

KINDS = ("full", "selective", "none")


def stage_of(counts: tuple[int, int, int]) -> Stage:
    """A stage with that many layers recomputed in full, selectively and not."""
    return Stage(tuple(LayerRun(n, LayerChoice(kind)) for n, kind in zip(counts, KINDS, strict=True) if n))


def counts_of(stage: Stage) -> tuple[int, int, int]:
    """The inverse of :func:`stage_of`."""
    return tuple(stage.recomputed(kind) for kind in KINDS)


def neighbours(it: Instance, plan: Strategy) -> Iterator[Strategy]:
    """Strategies one change away, legal or not."""
    yield from (dataclasses.replace(plan, stages=stages) for stages in _other_stages(plan))
    yield from (dataclasses.replace(plan, zero=zero) for zero in range(4) if zero != plan.zero)
    yield from (dataclasses.replace(plan, placement=placement) for placement in _other_placements(plan))
    yield from _other_degrees(it, plan)


def _other_stages(plan: Strategy) -> Iterator[tuple[Stage, ...]]:
    counts = [counts_of(stage) for stage in plan.stages]
    for s, t in itertools.product(range(len(counts)), repeat=2):
        for a, b in itertools.product(range(3), repeat=2):
            if (s == t and a == b) or abs(s - t) > 1 or not counts[s][a]:
                continue
            changed = [list(c) for c in counts]
            changed[s][a] -= 1
            changed[t][b] += 1
            yield tuple(stage_of(tuple(c)) for c in changed)


def _other_placements(plan: Strategy) -> Iterator[dict[str, tuple[int, ...]]]:
    """Two axes of one mesh swap factors on two levels; with one level there is nothing to swap."""
    for axis, other in itertools.combinations(plan.placement, 2):
        mine, theirs = plan.placement[axis], plan.placement[other]
        if len(mine) > 1 and mine[0] * theirs[1] == mine[1] * theirs[0]:
            yield {**plan.placement, axis: theirs, other: mine}


def _other_degrees(it: Instance, plan: Strategy) -> Iterator[Strategy]:
    """One degree halved, another doubled, or the micro-batch changed; layers spread evenly again."""
    axes = ("tp", "cp", "dp_shard", "dp_replicate", "pp", "ep", "etp")
    for less, more in itertools.permutations((*axes, "micro_batch"), 2):
        degrees = {axis: getattr(plan.degrees, axis) for axis in axes} | {"micro_batch": plan.schedule.micro_batch}
        if degrees[less] % 2:
            continue
        degrees[less] //= 2
        degrees[more] *= 2
        micro = degrees.pop("micro_batch")
        changed = dataclasses.replace(plan.degrees, **degrees)
        batches = it.workload.global_batch // max(1, changed.dp * micro)
        if changed.stage_size % (changed.ep * changed.etp) or len(it.cluster.levels) > 1 or not batches:
            continue
        placement = {axis: (n,) for axis, n in {**degrees, "edp": changed.edp}.items()}
        schedule = dataclasses.replace(
            plan.schedule, micro_batch=micro, micro_batches=batches, kind="1f1b", virtual_stages=1
        )
        for kind, zero in itertools.product(KINDS, range(4)):
            stages = uniform_stages(it.model.layers, min(changed.pp, it.model.layers), kind)
            yield Strategy(changed, zero, schedule, stages, placement)


def random_values(it: Instance, number: int, random: np.random.Generator) -> list[float]:
    """Objectives of ``number`` random strategies that are legal and fit."""
    rows = rows_of(it, list(all_rows(it)))
    prices = price(it.model, it.cluster, it.workload, rows, it.fits, it.ticks)
    values: list[float] = []
    for _ in range(100 * number):
        if len(values) == number:
            break
        one = prices.take(np.array([int(random.integers(len(rows)))]))
        pp, m = int(one.rows.pp[0]), int(one.rows.micro_batches[0])
        virtual = [v for v in range(2, it.model.layers // pp + 1) if even_cuts(it.model.layers, pp, v)]
        if pp > 1 and m % pp == 0 and virtual and random.random() < 0.3:
            one = one.with_virtual(int(random.choice(virtual)))
        chain = Chain(it.model, one, 0)
        runs = _random_runs(chain, random)
        found = evaluate(chain, runs)
        if found.need.max() <= it.limit_bytes:
            dynamic = np.array([float(joules(chain, runs).sum()) * int(one.rows.stage_size[0])])
            values.append(float(objective_values(it, one.rows, np.array([float(found.step)]), dynamic)[0]))
    return values


def _random_runs(chain: Chain, random: np.random.Generator) -> list[list[tuple[str, int, int]]]:
    """A random cut, near even as often as not; every stage of a device recomputes alike."""
    pp, layers = chain.pp, chain.layers
    if chain.virtual > 1:
        cuts = even_cuts(layers, pp, chain.virtual)
        cut = cuts[int(random.integers(len(cuts)))]
    elif random.random() < 0.5:
        inner = np.sort(random.choice(layers - 1, pp - 1, replace=False)) + 1 if pp > 1 else []
        cut = [0, *map(int, inner), layers]
    else:
        inner = np.round(np.linspace(0, layers, pp + 1))[1:-1] + random.integers(-1, 2, pp - 1)
        cut = [0, *map(int, inner), layers]
        if min(np.diff(cut)) < 1:
            cut = [round(x) for x in np.linspace(0, layers, pp + 1)]
    most = max(np.diff(cut)) + 1
    full = random.integers(0, most, pp) * random.integers(0, 2, pp)
    selective = random.integers(0, most, pp) * random.integers(0, 2, pp)
    return [_runs(cut[c], cut[c + 1], int(full[c % pp]), int(selective[c % pp])) for c in range(len(cut) - 1)]


def _runs(i: int, j: int, full: int, selective: int) -> list[tuple[str, int, int]]:
    a = min(i + full, j)
    b = min(a + selective, j)
    return [(kind, x, y) for kind, x, y in (("full", i, a), ("selective", a, b), ("none", b, j)) if y > x]
