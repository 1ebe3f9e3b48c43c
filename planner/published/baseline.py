"""Step time by one constant: what a model has to beat to be worth having.

    rate_r   = 3 F(seq_len) tokens / (devices step_s)        model FLOP/s a device that row r achieved
    constant = median of rate_r over rows of one (accelerator, precision) and of other (model, accelerator) groups
    step_s   = 3 F(seq_len) tokens / (devices constant)

with F the forward FLOP a token. The rows are those of the same kind and family of sources, which makes the
constant harder to beat than one over everything; where no other group among them has the pair, those of the
same kind; then the accelerator's median fraction of peak times the row's peak, and at last everybody's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from planner.published.records import Case, Job, Prediction
from planner.published.scores import family_of

Group = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Achieved:
    group: Group
    flop_per_s: float
    fraction: float


def group_of(case: Case) -> Group:
    """The row's (model, accelerator), by the row's own names."""
    return case.title, case.accelerator


def model_flop(job: Job) -> float:
    """FLOP of a step: three times the forward pass, whatever is recomputed or frozen."""
    return 3.0 * job.model.forward_flop_per_token(job.workload.seq_len) * job.workload.tokens


class OneConstant:
    """Predicts each row by the rates of the other groups of ``cases``."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._flop: dict[str, float] = {}
        self._achieved: dict[Hashable, list[_Achieved]] = defaultdict(list)
        self._medians: dict[tuple[Hashable, Group, str], float | None] = {}
        for case in cases:
            self._learn(case)

    def _learn(self, case: Case) -> None:
        step_s = next((one.value for one in case.measured if one.quantity == "step_s"), None)
        if case.job is None or step_s is None:
            return
        rate = self._device_flop(case) / step_s
        one = _Achieved(group_of(case), rate, rate / _peak(case.job))
        for pool, _ in _pools(case):
            self._achieved[pool].append(one)

    def step_s(self, case: Case) -> float | None:
        """Seconds a step; ``None`` for a row without a job or where no other group was measured."""
        if case.job is None:
            return None
        for pool, what in _pools(case):
            if (median := self._median(pool, group_of(case), what)) is not None:
                rate = median if what == "flop_per_s" else median * _peak(case.job)
                return self._device_flop(case) / rate
        return None

    def lines(self, lines: Iterable[Prediction]) -> list[Prediction]:
        """``lines`` of step seconds as this baseline predicts them, without intervals."""
        found = [(line, self.step_s(line.case)) for line in lines]
        return [
            Prediction(line.case, line.quantity, line.measured, step_s, None, None, "" if step_s else "no other group")
            for line, step_s in found
        ]

    def _device_flop(self, case: Case) -> float:
        if case.id not in self._flop:
            self._flop[case.id] = model_flop(case.job) / case.job.strategy.degrees.world_size
        return self._flop[case.id]

    def _median(self, pool: Hashable, without: Group, what: str) -> float | None:
        key = (pool, without, what)
        if key not in self._medians:
            values = [getattr(one, what) for one in self._achieved.get(pool, ()) if one.group != without]
            self._medians[key] = float(np.median(values)) if values else None
        return self._medians[key]


def _pools(case: Case) -> tuple[tuple[Hashable, str], ...]:
    """Whose rates, or fractions of peak, tell about a row: the nearest first."""
    name, kind = case.job.cluster.accelerator.name, case.kind
    pair = (name, case.job.workload.precision)
    return (
        ((kind, family_of(case), *pair), "flop_per_s"),
        ((kind, *pair), "flop_per_s"),
        ((kind, name), "fraction"),
        ((name,), "fraction"),
        ((), "fraction"),
    )


def _peak(job: Job) -> float:
    return job.cluster.peak_flop_per_s(job.workload.recipe.compute)
