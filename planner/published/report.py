"""Everything that ``validate`` says about a file's predictions, as figures and as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType

from planner.published.baseline import OneConstant
from planner.published.records import Case, Prediction, Quantity
from planner.published.regret import Choice, Choices, Effect, choices, effects
from planner.published.scores import (
    Errors,
    Fits,
    Names,
    Repeats,
    Score,
    error,
    mean,
    of_quantity,
    out_of_memory,
    repeats,
    same_job,
    score,
    set_of,
)
from planner.published.targets import Interval, Target, intervals, targets

ALL = "all"
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Group:
    """One source, accelerator and kind: the score of a quantity, beside the score when it is left out of the fit.

    ``repeats`` differ in release and flags at most, ``equal_jobs`` in nothing. ``constant`` are the errors of
    :class:`OneConstant` (time only); skill is 1 - mean error / the constant's, on rows that have both.
    """

    source: str
    accelerator: str
    kind: str
    quantity: Quantity
    plain: Score
    left_out: Score | None
    repeats: Repeats | None
    equal_jobs: Repeats | None
    constant: Errors | None
    skill: float | None
    left_out_skill: float | None


@dataclass(frozen=True)
class Report:
    """The figures of one file. ``left_out`` tells whether rows were in the fit and are given without it too."""

    rows: int
    predicted: int
    left_out: bool
    targets: list[Target]
    intervals: list[Interval]
    groups: list[Group]
    fits: dict[str, Fits]
    choices: list[Choices]
    problems: list[Choice]
    effects: list[Effect]
    refused: dict[str, int]
    worst: list[dict[str, Any]]

    def view(self) -> RenderableType:
        """The tables, for a terminal."""
        from planner.published.tables import report_view

        return report_view(self)

    def as_json(self) -> dict[str, Any]:
        """The same figures as one JSON object; fractions, seconds, GiB and watts."""
        return {"schema_version": 1, **asdict(self)}


def report(
    cases: Sequence[Case], lines: Sequence[Prediction], left_out: Sequence[Prediction] | None, worst: int = 0
) -> Report:
    """The report on ``lines``; ``cases`` are all rows of the file, from which the one-constant baseline learns."""
    judged = lines if left_out is None else left_out
    sets, problems = choices(judged)
    return Report(
        rows=len({line.case.id for line in lines}),
        predicted=len({line.case.id for line in lines if line.predicted is not None}),
        left_out=left_out is not None,
        targets=targets(lines, left_out),
        intervals=intervals(judged),
        groups=_groups(cases, lines, left_out),
        fits=_fits(judged),
        choices=sets,
        problems=problems,
        effects=effects(judged),
        refused=dict(Counter(line.reason for line in lines if line.predicted is None and line.reason).most_common()),
        worst=_worst(judged, worst),
    )


def _groups(cases: Sequence[Case], lines: Sequence[Prediction], left_out: Sequence[Prediction] | None) -> list[Group]:
    names, constant = Names(cases), OneConstant(cases)
    found = []
    for quantity in ("step_s", "peak_mem_gib", "node_w"):
        plain = _split(of_quantity(lines, quantity), names)
        out = _split(of_quantity(left_out, quantity), names) if left_out is not None else {}
        found += [
            _group(key, quantity, own, out.get(key), constant if quantity == "step_s" else None)
            for key, own in plain.items()
        ]
    return found


def _split(lines: Sequence[Prediction], names: Callable[[Case], str]) -> dict[Key, list[Prediction]]:
    """Lines by (source, accelerator, kind), sorted; then all of them where that is more than one group."""
    groups: dict[Key, list[Prediction]] = defaultdict(list)
    for line in lines:
        groups[set_of(line.case), names(line.case), line.case.kind].append(line)
    found = dict(sorted(groups.items()))
    return {**found, (ALL, "", ""): list(lines)} if len(found) > 1 else found


def _group(
    key: Key, quantity: Quantity, lines: list[Prediction], out: list[Prediction] | None, constant: OneConstant | None
) -> Group:
    simple = constant.lines(lines) if constant is not None else []
    return Group(
        *key, quantity, score(lines), None if out is None else score(out),
        repeats(lines), repeats(lines, same_job),
        Errors.of([error(line) for line in simple if line.predicted is not None]),
        skill(lines, simple), None if out is None else skill(out, simple),
    )  # fmt: skip


def skill(lines: Sequence[Prediction], simple: Sequence[Prediction]) -> float | None:
    """``1 - mean |error| / mean |error of simple|`` over rows that both predict; ``None`` where there is none."""
    other = {line.case.id: abs(error(line)) for line in simple if line.predicted is not None}
    both = [line for line in lines if line.predicted is not None and line.case.id in other]
    base = mean([other[line.case.id] for line in both])
    return 1.0 - mean([abs(error(line)) for line in both]) / base if base else None


def _fits(lines: Sequence[Prediction]) -> dict[str, Fits]:
    """By source that has ``fits`` answers, and over all."""
    sources = sorted({set_of(line.case) for line in lines if line.quantity == "fits"})
    found = {of: out_of_memory([line for line in lines if set_of(line.case) == of]) for of in sources}
    return {**found, ALL: out_of_memory(lines)} if found else {}


def _worst(lines: Sequence[Prediction], count: int) -> list[dict[str, Any]]:
    """The ``count`` lines with the largest errors, largest first; ``fits`` is not among them."""
    both = [one for one in lines if None not in (one.measured, one.predicted) and one.quantity != "fits"]
    return [_told(line) for line in sorted(both, key=lambda line: -abs(error(line)))[:count]]


def _told(line: Prediction) -> dict[str, Any]:
    case = line.case
    return {
        "id": case.id, "model": case.title, "accelerator": case.accelerator, "kind": case.kind,
        "layout": _degrees(case), "quantity": line.quantity, "measured": line.measured, "predicted": line.predicted,
        "low": line.low, "high": line.high, "error": error(line),
    }  # fmt: skip


def _degrees(case: Case) -> str:
    """Degrees above 1 and the micro-batch: ``tp8 pp4 dp2 mbs1``."""
    if case.job is None:
        return ""
    strategy = case.job.strategy
    names = ("tp", "cp", "ep", "pp", "dp")
    degrees = [f"{name}{getattr(strategy.degrees, name)}" for name in names if getattr(strategy.degrees, name) > 1]
    return " ".join([*degrees, f"mbs{strategy.schedule.micro_batch}"])
