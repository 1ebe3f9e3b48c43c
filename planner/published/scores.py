"""How far predictions lie from what was measured.

    e        = predicted / measured - 1                    a line's error
    mean, median, p90, worst over |e|;  bias = mean of e
    inside   = share of lines with low <= measured <= high
    halfway  = mean of (high - low) / (2 predicted)        half-width of the interval

All are fractions. A line counts when it has a measured value; it is covered when it has a predicted one too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from planner.published.records import Case, Prediction, Quantity


@dataclass(frozen=True)
class Errors:
    """Mean, median, 90th percentile (linear between neighbours) and largest of absolute errors."""

    mean: float
    median: float
    p90: float
    worst: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> Errors | None:
        """The four figures of signed or absolute ``errors``; ``None`` where there are none."""
        if not len(errors):
            return None
        size = np.abs(np.asarray(errors, dtype=float))
        return cls(float(size.mean()), float(np.median(size)), float(np.quantile(size, 0.9)), float(size.max()))


@dataclass(frozen=True)
class Score:
    """Errors of ``covered`` of ``rows`` lines; ``refused_as_one`` counts each of the others as 100 %."""

    rows: int
    covered: int
    errors: Errors | None
    refused_as_one: Errors | None
    bias: float | None
    bounded: int
    inside: float | None
    half_width: float | None


@dataclass(frozen=True)
class Repeats:
    """``rows`` that repeat another, and the mean and largest |measured / mean of its repeats - 1|."""

    rows: int
    mean: float
    worst: float


@dataclass(frozen=True)
class Fits:
    """How well "fits" answers: ``caught`` of ``out_of_memory`` rows, ``false_alarms`` among ``ran`` rows.

    A row counts in ``out_of_memory`` also when nothing was predicted for it (it was not caught), in ``ran``
    only when something was.
    """

    out_of_memory: int
    caught: int
    ran: int
    false_alarms: int


def of_quantity(lines: Iterable[Prediction], quantity: Quantity) -> list[Prediction]:
    """The lines of one quantity that were measured."""
    return [line for line in lines if line.quantity == quantity and line.measured is not None]


def error(line: Prediction) -> float:
    """``predicted / measured - 1`` of a line that has both."""
    return line.predicted / line.measured - 1.0


def score(lines: Sequence[Prediction]) -> Score:
    """The figures of this module over measured lines of one quantity."""
    covered = [line for line in lines if line.predicted is not None]
    errors = [error(line) for line in covered]
    bounded = [line for line in covered if line.low is not None and line.high is not None]
    return Score(
        rows=len(lines),
        covered=len(covered),
        errors=Errors.of(errors),
        refused_as_one=Errors.of(errors + [1.0] * (len(lines) - len(covered))),
        bias=mean(errors),
        bounded=len(bounded),
        inside=mean([line.low <= line.measured <= line.high for line in bounded]),
        half_width=mean([(line.high - line.low) / (2 * line.predicted) for line in bounded]),
    )


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; ``None`` of nothing."""
    return float(np.mean(values)) if len(values) else None


def out_of_memory(lines: Iterable[Prediction]) -> Fits:
    """Out-of-memory rows caught and false alarms over ``fits`` lines (1 fits, 0 does not).

    A line without a measured answer counts as one that ran when its row has a measured time or memory.
    """
    answers = [(_did_fit(line), line.predicted) for line in lines if line.quantity == "fits"]
    refused = [predicted for fit, predicted in answers if fit is False]
    ran = [predicted for fit, predicted in answers if fit and predicted is not None]
    return Fits(len(refused), sum(p == 0 for p in refused), len(ran), sum(p == 0 for p in ran))


def _did_fit(line: Prediction) -> bool | None:
    if line.measured is not None:
        return bool(line.measured)
    return any(one.quantity in ("step_s", "peak_mem_gib") for one in line.case.measured) or None


def repeats(lines: Sequence[Prediction], key: Callable[[Case], Hashable] | None = None) -> Repeats | None:
    """Spread between lines whose ``key`` agrees, as |measured / their mean - 1|; ``None`` where none repeats.

    Without ``key``: :func:`same_work`, so rows that differ in nothing but release and flags.
    """
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for line in lines:
        if line.case.job is not None:
            groups[(line.quantity, (key or same_work)(line.case))].append(line.measured)
    apart = [abs(x / np.mean(group) - 1.0) for group in groups.values() if len(group) > 1 for x in group]
    return Repeats(len(apart), float(np.mean(apart)), float(np.max(apart))) if apart else None


WORK_SWITCHES = ("fp8_scaling", "meter", "quantised", "schedule")
"""Switches that say what was run or metered, not how well."""


def same_work(case: Case) -> Hashable:
    """Equal for rows of one source and kind whose jobs differ in release and the stack's settings at most."""
    job = case.job
    model = replace(job.model, name="", config=None)
    work = repr(job.workload.model_dump(exclude={"stack"}))
    said = tuple(job.switches.get(name) for name in WORK_SWITCHES)
    return (set_of(case), case.kind, job.stack, model, job.cluster.digest, work, repr(job.strategy), said)


def same_job(case: Case) -> Hashable:
    """Equal for rows whose problem and jobs do not differ at all: what no model can tell apart."""
    job = case.job
    switches = sorted((name, repr(value)) for name, value in job.switches.items() if name != "measured_s")
    return (same_work(case), case.layout, job.release, repr(job.workload), tuple(switches))


def set_of(case: Case) -> str:
    """A row's source, the sweep's two sets told apart: ``vt-m`` (several hosts) and ``vt-s`` (one host)."""
    if case.source != "vt":
        return case.source
    return "vt-m" if case.id.startswith("vt-m") else "vt-s"


MEGATRON = frozenset({"mb", "nemo", "dgxc", "mlpf", "mlm", "kor"})
FSDP = frozenset({"tt", "llmf", "fms", "am"})
"""Sources whose rows count together: one family of stacks, tuned by its makers."""


def family_of(case: Case) -> str:
    """``Megatron``, ``FSDP`` or the row's own source."""
    if case.source in MEGATRON:
        return "Megatron"
    return "FSDP" if case.source in FSDP else case.source


class Names:
    """Accelerator by which a row is listed: the catalogue's name, the row's own where no job tells it."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._cases = tuple(cases)

    @cached_property
    def _known(self) -> dict[str, str]:
        return {case.accelerator: case.job.cluster.accelerator.name for case in self._cases if case.job is not None}

    def __call__(self, case: Case) -> str:
        if case.job is not None:
            return case.job.cluster.accelerator.name
        return self._known.get(case.accelerator, case.accelerator)
