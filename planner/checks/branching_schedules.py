"""The least objective of a row's plans under one of the further schedules, for the proof that is derived again.

Where devices have one stage each, every split is put together from the last stage on, with what a stage of layers ``i``
to ``j - 1`` makes a step last, whatever the others hold: what layers below take forward is the same in every split.

    step >= F(0, i) + s hop + m t_s + tail_s
    zb-h1:  step >= (F + B - W)(0, i) + 2 s hop + m t_s - min(m, s + 1) w_s

Where devices have two stages every legal cut is run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from cost_models.chain import Chain
from cost_models.price import Prices
from planner.checks.branching import MOST_PARTIAL, Held, Ints, at_every_clock, joined, least_run
from planner.checks.branching_points import value_of_cut
from planner.checks.check_schedule import TWO_STAGES
from planner.checks.rederive import Problem, TooManySplits, ticks_below


def least_under_schedule(it: Problem, prices: Prices, target: float, counts: dict[str, int]) -> float:
    """The least objective below ``target`` of one row's plans; infinite when there is none.

    Raises ``TooManySplits`` when more partial splits stay open than are practical to hold.
    """
    kind, pp = prices.rows.schedule, int(prices.rows.pp[0])
    held = range(pp + 1, 2 * pp) if kind == "eager-1f1b" else range(1)
    rows = [prices.rows.scheduled(kind, int(prices.rows.virtual[0]), first) for first in held]
    of_row = _least_of_cuts if kind in TWO_STAGES else _least_free
    return min((of_row(it, prices.with_rows(one), target, counts) for one in rows), default=np.inf)


def _least_of_cuts(it: Problem, prices: Prices, target: float, counts: dict[str, int]) -> float:
    chains = [Chain(it.model, prices.only(clock), 0) for clock in prices.clocks]
    values = (value_of_cut(it, chain, cut, counts) for chain in chains for cut in _alike_but_ends(chain))
    return min(values, default=np.inf)


def _alike_but_ends(chain: Chain) -> Iterator[list[int]]:
    """Boundaries where all stages are alike but the first and the last, which have from 1 layer to one more."""
    stages = chain.virtual * chain.pp
    for first, last in itertools.product(range(1, chain.layers), repeat=2):
        size, rest = divmod(chain.layers - first - last, stages - 2)
        if rest == 0 and size >= 1 and max(first, last) <= size + 1:
            yield [0, *itertools.accumulate([first, *[size] * (stages - 2), last])]


def _least_free(it: Problem, prices: Prices, target: float, counts: dict[str, int]) -> float:
    counts["branched"] += 1
    chain = Chain(it.model, prices, 0)
    most = ticks_below(it, prices, target)
    held = [_within(chain, s, at_every_clock(it, chain, s, most), most) for s in range(chain.pp)]
    splits = _complete(chain, held)
    counts["leaves"] += len(splits)
    return least_run(it, chain, held, splits)


def _within(chain: Chain, s: int, stage: Held, most: int) -> Held:
    """Choices of a stage that alone do not make a step of ``most`` ticks, by the quickest clock of the others."""
    below, m = np.zeros_like(stage.i), chain.micro_batches
    forward = np.minimum.reduce([chain.at(clock).forward(below, stage.i) for clock in chain.clocks]) if s else below
    step = forward + s * chain.hop + m * stage.ticks + stage.tail
    if chain.schedule.split and s:
        both = [_not_late(chain.at(clock), below, stage.i) for clock in chain.clocks]
        up = np.minimum.reduce(both) + 2 * s * chain.hop + m * stage.ticks - min(m, s + 1) * stage.weights
        step = np.maximum(step, up)
    return stage.take(np.flatnonzero(step < most))


def _not_late(chain: Chain, i: Ints, j: Ints) -> Ints:
    return chain.forward(i, j) + chain.backward(i, j) - chain.weights(i, j)


def _complete(chain: Chain, held: list[Held]) -> Ints:
    """``[splits, pp]`` positions in ``held`` of every split of all layers."""
    reached = [np.full(chain.layers + 1, False) for _ in range(chain.pp + 1)]
    reached[0][0] = True
    for s, stage in enumerate(held):
        reached[s + 1][stage.j[reached[s][stage.i]]] = True
    picked, at = np.zeros((1, 0), dtype=np.int64), np.array([chain.layers])
    for s in range(chain.pp - 1, -1, -1):
        old, new = joined(at, held[s])
        keep = reached[s][held[s].i[new]]
        picked = np.concatenate([new[keep][:, None], picked[old[keep]]], axis=1)
        at = held[s].i[new[keep]]
        if len(at) > MOST_PARTIAL:
            raise TooManySplits(f"{len(at)} partial splits of one row stay open")
    return picked
