"""Good plans early: cut the chain where the work balances, recompute what memory asks for, run the schedule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain, joules
from cost_models.estimate import Evaluation, Runs, evaluate
from cost_models.power_levels import wait_s
from cost_models.side_by_side import partly_offloaded
from planner.search.balanced import LEAST, Balanced
from planner.search.bounds import Objective
from planner.search.clocked import thrifty
from planner.search.columns import Columns, column_joules, stage_columns
from planner.search.deadline import look
from planner.search.order import split_key

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """One evaluated plan of one row: its objective, its runs of layers, its evaluation.

    The least seconds that power limits make a step last; its clocks if not all are full; how many first layers of each
    stage the last class of states leaves, and how many activations, if not all that the row says.
    """

    value: float
    runs: Runs
    evaluation: Evaluation
    dynamic_j: float
    clocks: tuple[float, ...] = ()
    leaving: tuple[tuple[int, int], ...] = ()
    wait_s: float = 0.0

    @property
    def order(self) -> tuple[float, ...]:
        """Where the plan stands among equally good ones of its row."""
        return split_key(self.runs, self.clocks, self.leaving)


def judge(
    chain: Chain, runs: Runs, objective: Objective, stage_size: int, limit_bytes: int, clocks: tuple[float, ...] = (),
    leaving: tuple[tuple[int, int], ...] = (),
) -> Found | None:  # fmt: skip
    """The plan's value, or ``None`` when it does not fit or is above a limit."""
    found = weigh(chain, runs, objective, stage_size, limit_bytes, clocks, leaving)
    return found if found is not None and found.value < np.inf else None


def weigh(
    chain: Chain, runs: Runs, objective: Objective, stage_size: int, limit_bytes: int, clocks: tuple[float, ...] = (),
    leaving: tuple[tuple[int, int], ...] = (),
) -> Found | None:  # fmt: skip
    """The plan's value, infinite when it is above a limit; ``None`` when it does not fit the memory."""
    look()
    if leaving:
        chain = partly_offloaded(chain, [stage[-1][2] - stage[0][1] for stage in runs], leaving)
    evaluation = evaluate(chain, runs, clocks)
    if not evaluation.fits(chain, limit_bytes):
        return None
    each = joules(chain, runs, clocks)
    dynamic = float(each.sum() * stage_size)
    wait = float(wait_s(objective.wait_rates(chain.prices.rows, chain.row), each))
    step_s = np.array([max(wait, evaluation.step * chain.prices.ticks.second)])
    value = float(objective.value(step_s, np.array([dynamic]))[0])
    return Found(value, runs, evaluation, dynamic, clocks, leaving, wait)


def quick(
    chain: Chain, objective: Objective, stage_size: int, limit_bytes: int, pinned: str | None, beat: float = np.inf
) -> Found | None:
    """The best of a few balanced cuts of one row; ``None`` when none fits or all are worse than ``beat``.

    A device has one stage, and it may be cut anywhere.
    """
    prices = chain.prices.take(np.array([chain.row]))
    cuts = Balanced.of(chain.model, prices, objective, limit_bytes, pinned).worth_running(0, chain.pp)
    return best_of_cuts(chain, cuts, objective, stage_size, limit_bytes, pinned, beat)


def best_of_cuts(
    chain: Chain, cuts: list[tuple[float, Ints]], objective: Objective, stage_size: int, limit_bytes: int,
    pinned: str | None, beat: float,
) -> Found | None:  # fmt: skip
    """The best plan of cuts that come with the objective's least value; ``None`` as :func:`quick`."""
    best = None
    for least, cut in cuts:
        found = None
        if least <= beat:
            found = best_of_cut(chain, cut, objective, stage_size, limit_bytes, pinned, beat)
        if found is not None and (best is None or found.value < beat or found.order < best.order):
            best, beat = found, found.value
    return best


def best_of_cut(
    chain: Chain, cut: Ints, objective: Objective, stage_size: int, limit_bytes: int, pinned: str | None, beat: float
) -> Found | None:
    """The plan of one cut with the least recompute that fits; ``None`` where none does or it is worse than ``beat``.

    Where stages may have different clocks, the best of them that are worth a look.
    """
    best = _at_full_clock(chain, cut, objective, stage_size, limit_bytes, pinned, beat)
    if len(chain.clocks) == 1:
        return best
    beat = beat if best is None else best.value
    return _with_clocks(chain, cut, objective, stage_size, limit_bytes, pinned, beat) or best


def _at_full_clock(
    chain: Chain, cut: Ints, objective: Objective, stage_size: int, limit_bytes: int, pinned: str | None, beat: float
) -> Found | None:
    columns = stage_columns(chain, np.arange(chain.pp), cut[:-1], cut[1:], limit_bytes, pinned)
    columns = columns.quickest(chain.micro_batches)
    if len(columns) < chain.pp or _least(chain, columns, objective, stage_size) > beat:
        return None
    every = np.arange(chain.pp)
    limits = objective, stage_size, limit_bytes
    found = judge(chain, [columns.runs(s) for s in every], *limits, leaving=columns.leaving(every))
    return found if found is not None and found.value <= beat else None


def _least(chain: Chain, columns: Columns, objective: Objective, stage_size: int) -> float:
    """The objective's least value for given stages, by their joules and the paths that need no schedule."""
    durations = (columns.forward, columns.backward, chain.hop, columns.tail, columns.weights)
    step_s = chain.schedule.seed_table().longest(*durations) * chain.prices.ticks.second
    dynamic = column_joules(chain, columns).sum() * stage_size if objective.counts_joules else 0.0
    least = np.array([step_s]) * LEAST, np.array([dynamic]) * LEAST
    return float(objective.value(*least)[0]) * LEAST


def _with_clocks(
    chain: Chain, cut: Ints, objective: Objective, stage_size: int, limit_bytes: int, pinned: str | None, beat: float
) -> Found | None:
    """The best plan of a cut whose stages may have different clocks; ``None`` when none found is below ``beat``."""
    columns = stage_columns(chain, np.arange(chain.pp), cut[:-1], cut[1:], limit_bytes, pinned, joules=True)
    best = None
    for picked in thrifty(chain, columns, objective, stage_size, beat):
        runs, clocks = [columns.runs(k) for k in picked], tuple(columns.clock[picked].tolist())
        out = columns.leaving(picked)
        found = judge(chain, runs, objective, stage_size, limit_bytes, clocks, out)
        if found is not None and found.value < beat:
            best, beat = found, found.value
    return best


def stage_need_bytes(chain: Chain, stage: int, i: Ints, j: Ints, recompute: str) -> Ints:
    """Bytes of a stage, one on a device, of layers ``i`` to ``j - 1`` that all recompute alike."""
    flight = chain.flight(stage)
    kept = chain.saved(recompute, i, j) + chain.saved_ends(i, j)
    return chain.fixed_bytes + chain.state_bytes(i, j) + chain.logit_bytes(i, j) + flight * kept
