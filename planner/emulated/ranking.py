"""How a study's predictions rank what was measured.

time       median over rounds of a round's median step, the slowest rank's; spread = (largest - least) / median, of one
           round that of its steps
pairs      of one case on one network whose measured gap exceeds both spreads; right where predicted likewise
regret     of the strategy predicted to be quickest: its time over the best one's, less 1, less the larger spread
memory     predicted over measured peak of torch's allocator, of every rank
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import BadInput
from planner.machine.measured_terms import spread, step_times
from planner.machine.predicted_terms import predicted_terms
from planner.result import Plan

if TYPE_CHECKING:
    from planner.emulated.study import Run


@dataclass(frozen=True)
class Row:
    """One strategy of one case on one network."""

    network: str
    case: str
    strategy: str
    predicted_s: float
    measured_s: float
    spread: float
    memory_errors: tuple[float, ...]

    @property
    def time_error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True)
class Score:
    """What rows of one network come to. ``regrets`` are beyond the spread, one a case."""

    network: str
    rows: int
    pairs: int
    right: int
    regrets: dict[str, float]
    median_time_error: float
    mean_time_error: float
    median_memory_error: float
    worst_memory_error: float

    @property
    def in_order(self) -> float:
        """Part of the pairs that are predicted in the measured order."""
        return self.right / self.pairs if self.pairs else 1.0


def rows_of(runs: Iterable[Run], plans: Mapping[tuple[str, str, str], Path], rounds: int) -> list[Row]:
    """A row for everything that was run ``rounds`` times."""
    found: dict[tuple[str, str, str], dict[int, Run]] = defaultdict(dict)
    for run in runs:
        found[run.network, run.case, run.strategy][run.round] = run
    return [_row(key, list(mine.values()), Plan.load(plans[key])) for key, mine in found.items() if len(mine) >= rounds]


def _row(key: tuple[str, str, str], runs: list[Run], plan: Plan) -> Row:
    times = [step_times([rank.model_dump() for rank in run.ranks]) for run in runs]
    medians = [statistics.median(each) for each in times]
    predicted = predicted_terms(plan)
    repeated = medians if len(medians) > 1 else times[0]
    peaks = [(rank.pipeline_rank, rank.peak_bytes) for run in runs for rank in run.ranks if rank.peak_bytes]
    if any(stage >= len(predicted.peak_bytes) for stage, _ in peaks):
        raise BadInput(f"a run of {' '.join(key)} has more stages than its plan; take its lines out of runs.jsonl")
    errors = tuple(predicted.peak_bytes[stage] / peak - 1 for stage, peak in peaks)
    return Row(*key, predicted.step_s, statistics.median(medians), spread(repeated), errors)


def score(network: str, rows: list[Row]) -> Score:
    """The score of one network's rows."""
    mine = [row for row in rows if row.network == network]
    cases = {row.case: [it for it in mine if it.case == row.case] for row in mine}
    pairs = [pair for case in cases.values() for pair in itertools.combinations(case, 2) if told_apart(*pair)]
    right = sum((a.predicted_s < b.predicted_s) == (a.measured_s < b.measured_s) for a, b in pairs)
    times, memory = [abs(row.time_error) for row in mine], [abs(it) for row in mine for it in row.memory_errors]
    return Score(
        network, len(mine), len(pairs), right, {name: regret(case) for name, case in cases.items()},
        statistics.median(times), statistics.mean(times), statistics.median(memory or [0.0]), max(memory or [0.0]),
    )  # fmt: skip


def told_apart(a: Row, b: Row) -> bool:
    """Whether two measured times differ by more than either's spread."""
    gap = abs(a.measured_s - b.measured_s)
    return gap > max(a.spread * a.measured_s, b.spread * b.measured_s)


def regret(case: list[Row]) -> float:
    """What the predicted best loses against the measured best, beyond the larger of both spreads; at least 0."""
    chosen = min(case, key=lambda row: row.predicted_s)
    best = min(case, key=lambda row: row.measured_s)
    return max(0.0, chosen.measured_s / best.measured_s - 1 - max(chosen.spread, best.spread))
