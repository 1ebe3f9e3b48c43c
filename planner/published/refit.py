"""``meshwright calibrate --published``: every constant fitted again from the rows that the project carries."""

from __future__ import annotations

import csv
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import FOLDER, forget
from cost_models.fitting.rewrite import rewrite
from cost_models.model_graph import ModelGraph
from planner.published.csv_rows import read_table
from planner.published.fitting import Fit, Observation, constants, left_out_errors
from planner.published.predict import classes_of, prepared, priced_node, step_s
from planner.published.recipes import recipe
from planner.published.records import Case, Job
from planner.published.rows import CARRIED, read_rows
from planner.published.sizes import QUICKEST
from planner.published.spreads import KNOWN_ROWS_A_GROUP, Error, few_a_group, pair_spread, ranges, shortest, text
from planner.published.training import training_case
from planner.published.unlisted import memory_errors, next_of, strangers, time_errors

Floats = NDArray[np.float64]
WHOLE: dict[str, Callable[[Observation], str]] = {
    "stack": lambda row: row.job.stack,
    "accelerator": lambda row: row.job.cluster.accelerator.whole,
}
"""What is left out whole, beside groups, to see what to expect of one without rows."""
MOST_ROWS_A_GROUP = 6
"""Rows of one (model, accelerator) group that are fitted: what the others add is little."""
UNKNOWN = 0.99
"""Residual of a constant that the rows do not decide: its prior is all that is known."""


def carried() -> list[Case]:
    """Every published row that the project carries."""
    return [case for path in CARRIED for case in read_rows(path)]


def observations(cases: Sequence[Case]) -> list[Observation]:
    """The rows with a job and a measured step, ready to be priced."""
    found = []
    for case in cases:
        seconds = next((one.value for one in case.measured if one.quantity == "step_s"), None)
        if case.job is not None and seconds is not None:
            found.append(Observation(case, prepared(case.job), seconds))
    return found


def thinned(rows: Sequence[Observation]) -> list[Observation]:
    """At most :data:`MOST_ROWS_A_GROUP` of each group, evenly picked in the order of the file."""
    groups: dict[str, list[Observation]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [row for group in groups.values() for row in group[:: -(-len(group) // MOST_ROWS_A_GROUP)]]


def telling(rows: Sequence[Observation]) -> list[Observation]:
    """Rows whose schedule no prediction chose, and whose micro-batch is stated, a recipe's or the whole batch."""
    known = [row for row in rows if not row.job.switches.get("quickest")]
    return [row for row in known if "micro_batch" not in row.case.assumed or _one_way(row.job)]


def _one_way(job: Job) -> bool:
    cells = recipe(job.stack, job.release)
    said = cells.value("micro_batches") or cells.value("micro_batch", QUICKEST) != QUICKEST
    return job.strategy.schedule.micro_batches == 1 or bool(said)


def refit_all(report: Callable[[str], None] = lambda text: None) -> None:
    """Kernels and collectives from their tables, then stacks and clocks from whole steps; all files written."""
    from cost_models.fitting import collectives, kernels

    report("kernels")
    kernels.write()
    report("collectives")
    (FOLDER / "collectives.toml").write_text(collectives.toml(), encoding="utf-8")
    forget()
    refit(report)


def refit(report: Callable[[str], None] = lambda text: None, rounds: int = 3) -> dict[str, float]:
    """Fits the constants, writes them with left-out errors and intervals, and returns them by path."""
    cases = carried()
    rows = observations(cases)
    report(f"{len(rows)} measured steps in {len({row.group for row in rows})} groups")
    fitted = thinned(telling(rows))
    others = strangers(fitted)
    with Spread([*rows, *others]) as spread:
        few = Fit(fitted, constants(), spread)
        values, residuals, jacobian = few.solve(rounds, report)
        here = Fit(rows, few.parameters, spread).residuals(values)
        shift = _shifts(few, values, residuals, jacobian)
        at = np.array(list(values.values()))
        apart = {name: left_out_errors(few, at, residuals, jacobian, by) for name, by in WHOLE.items()}
        unlisted = {"time": time_errors(few, at, residuals, jacobian, others), "memory": memory_errors(cases)}
    write_constants(few, values, residuals, jacobian)
    forget()
    by_row = np.array([shift.get(row.case.id, shift.get(row.group, 0.0)) for row in rows])
    write_left_out(rows, by_row)
    write_intervals(cases, rows, here + by_row, apart, few, unlisted)
    forget()
    return values


def _shifts(fit: Fit, values: Mapping[str, float], residuals: Floats, jacobian: Floats) -> dict[str, float]:
    """How leaving its group out moves each fitted row's log prediction, by id, and a group's mean, by its name."""
    moved = left_out_errors(fit, np.array(list(values.values())), residuals, jacobian) - residuals
    groups: dict[str, list[float]] = {}
    for row, by in zip(fit.observations, moved, strict=True):
        groups.setdefault(row.group, []).append(float(by))
    each = {row.case.id: float(by) for row, by in zip(fit.observations, moved, strict=True)}
    return {name: float(np.mean(own)) for name, own in groups.items()} | each


class Spread:
    """Prices many jobs under changed constants, on all cores: forked workers inherit the jobs, which do not pickle."""

    def __init__(self, rows: Sequence[Observation]) -> None:
        self._place = {row.case.id: at for at, row in enumerate(rows)}
        _JOBS[:] = [row.job for row in rows]
        self._pool = ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork"))

    def __enter__(self) -> Spread:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, rows: Sequence[Observation], values: Mapping[str, float]) -> Floats:
        """Seconds of each row's step."""
        places = [self._place[row.case.id] for row in rows]
        return np.array(list(self._pool.map(_step_at, places, [dict(values)] * len(rows), chunksize=24)))


_JOBS: list[Job] = []


def _step_at(place: int, values: dict[str, float]) -> float:
    return step_s(_JOBS[place], values)


def write_constants(fit: Fit, values: Mapping[str, float], residuals: Floats, jacobian: Floats) -> None:
    """Puts each value, with its relative standard deviation as its residual, where the constant stands."""
    hessian, _ = fit.normal(residuals, jacobian, np.array(list(values.values())))
    spread = np.sqrt(np.diag(np.linalg.inv(hessian)))
    for path, sd in zip(values, spread, strict=True):
        file, rest = path.split(".", 1)
        table, _, name = rest.rpartition(".")
        known = min(float(sd) / abs(values[path]), UNKNOWN)
        rewrite(FOLDER / f"{file}.toml", table, name, {"value": values[path], "residual": known})


def write_left_out(rows: Sequence[Observation], shift: Floats) -> None:
    """``calibration/left_out.csv``: for each row its prediction with its group left out over the plain one."""
    with (FOLDER / "left_out.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "ratio"))
        writer.writerows((row.case.id, f"{np.exp(by):.5g}") for row, by in zip(rows, shift, strict=True))


def write_intervals(
    cases: Sequence[Case], rows: Sequence[Observation], errors: Floats, apart: Mapping[str, Floats], few: Fit,
    unlisted: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:  # fmt: skip
    """``calibration/intervals.toml``: ``errors`` of all rows, and of the fitted ones under every way of leaving out.

    ``apart`` has the latter by what is left out whole, ``"stack"`` or ``"accelerator"``; ``unlisted`` by quantity and
    source those of rows whose source was taken for one in no table.
    """
    time = [Error(classes_of(row.case, row.job), row.group, -error) for row, error in zip(rows, errors, strict=True)]
    kinds = {kind: shortest(logs) for kind, logs in _by_kind(few.observations, -apart["stack"]).items()}
    fitted, node = few.observations, priced_node(cases)
    tables = {"time": ranges(time, kinds)} | {quantity: ranges(found, {}) for quantity, found in node.items()}
    sized = sized_errors(fitted), sized_memory_errors(cases)
    tables["time"] |= _wider(unseen_accelerator=_by_kind(fitted, -apart["accelerator"]), by_size=sized[0])
    tables["memory"] |= _wider(unseen_accelerator=_logs_by_kind(node["memory"]), by_size=sized[1])
    for quantity, sources in unlisted.items():
        tables[quantity]["unseen source"] = next_of(sources), sum(map(len, sources.values()))
    seen = {"time": [row.job.cluster.accelerator.whole for row in fitted]}
    seen |= {quantity: [one.accelerator for one in found] for quantity, found in node.items()}
    (FOLDER / "intervals.toml").write_text(text(tables, seen, 1.28 * pair_spread(rows, errors)), encoding="utf-8")


def _wider(**logs: Mapping[str, list[float]]) -> dict[str, tuple[tuple[float, float], int]]:
    """The ranges that hold besides a class's own, by name: ``"by size dense"``."""
    return {
        f"{what.replace('_', ' ')} {kind}": (shortest(own), len(own))
        for what, kinds in logs.items()
        for kind, own in kinds.items()
    }


def _by_kind(rows: Sequence[Observation], logs: Floats) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row, log in zip(rows, logs, strict=True):
        found.setdefault(row.case.kind, []).append(float(log))
    return found


def _logs_by_kind(errors: Sequence[Error], most: int = KNOWN_ROWS_A_GROUP) -> dict[str, list[float]]:
    """At most ``most`` of each group, by kind of work."""
    found: dict[str, list[float]] = {}
    for one in few_a_group(errors, most):
        found.setdefault(one.classes[-2], []).append(one.log)
    return found


def sized_errors(rows: Sequence[Observation]) -> dict[str, list[float]]:
    """``log(measured / predicted)`` of steps by kind of work where all that is known of a row's model is its size."""
    known = {one.case.id: one for one in rows}
    cases = [case for case in _sized(known.values()) if case.job is not None]
    shaped = [Observation(case, prepared(case.job), known[case.id].step_s) for case in cases]
    with Spread(shaped) as spread:
        seconds = spread(shaped, {})
    return _by_kind(shaped, np.log(np.array([one.step_s for one in shaped]) / seconds))


def sized_memory_errors(cases: Sequence[Case]) -> dict[str, list[float]]:
    """``log(measured / predicted)`` of memory, likewise."""
    measured = [case for case in cases if any(one.quantity == "peak_mem_gib" for one in case.measured)]
    known = [Observation(case, case.job, 0.0) for case in measured if case.job is not None]
    return _logs_by_kind(priced_node(_sized(known))["memory"])


def _sized(rows: Iterable[Observation]) -> list[Case]:
    """The rows' cases under titles that tell a size and nothing else."""
    told = {row["id"]: row for row in read_table(CARRIED[0]).rows}
    known = [(told[one.case.id], _sized_title(one.job.model)) for one in rows if one.case.id in told]
    return [training_case(row | {"model": title, "arch_json": ""}) for row, title in known]


def _sized_title(model: ModelGraph) -> str:
    """A title that says no more than ``"GPT 13B"`` or ``"Decoder 30B A3B"``."""
    learned = any(op.name == "positions" for op in model.embedding.operators)
    active = f" A{model.active_parameters / 1e9:.3g}B" if model.experts else ""
    return f"{'GPT' if learned else 'Decoder'} {model.parameters / 1e9:.3f}B{active}"
