"""``meshwright calibrate --published``: every constant fitted again from the rows that the project carries."""

from __future__ import annotations

import csv
import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import FOLDER, forget
from cost_models.fitting.rewrite import rewrite
from planner.published.fitting import Fit, Observation, constants, left_out_errors
from planner.published.predict import classes_of, prepared, priced_node, step_s
from planner.published.recipes import recipe
from planner.published.records import Case, Job
from planner.published.rows import read_rows
from planner.published.sizes import QUICKEST

Floats = NDArray[np.float64]
DATA = Path(__file__).parent / "data"
FILES = ("training_runs.csv", "sweep_gpt_a100.csv", "power_runs.csv")
MOST_ROWS_A_GROUP = 6
"""Rows of one (model, accelerator) group that the fit looks at, evenly picked: what the others add is little."""
HELD = 0.9
"""Share of rows that an interval is to hold."""
UNKNOWN = 0.99
"""Residual of a constant that the rows do not decide: its prior is all that is known."""
FEWEST = 8
"""Rows from which a class has a range of its own."""


def carried() -> list[Case]:
    """Every published row that the project carries."""
    return [case for name in FILES for case in read_rows(DATA / name)]


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
    with Spread(rows) as spread:
        few = Fit(thinned(telling(rows)), constants(), spread)
        values, residuals, jacobian = few.solve(rounds, report)
        here = Fit(rows, few.parameters, spread).residuals(values)
        shift = _shifts(few, values, residuals, jacobian)
    write_constants(few, values, residuals, jacobian)
    forget()
    by_row = np.array([shift.get(row.case.id, shift.get(row.group, 0.0)) for row in rows])
    write_left_out(rows, by_row)
    write_intervals(cases, rows, here + by_row)
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


def write_intervals(cases: Sequence[Case], rows: Sequence[Observation], errors: Floats) -> None:
    """``calibration/intervals.toml``: where ``log(measured / predicted)`` lies, by class of run."""
    time = [(classes_of(row.case), -error) for row, error in zip(rows, errors, strict=True)]
    lines = ["# Where measured over predicted lies on rows left out of the fit; from meshwright calibrate --published."]
    for quantity, found in {"time": time, **priced_node(cases)}.items():
        for name, logs in _by_class(found).items():
            low, high = shortest(logs)
            lines += [f'[{quantity}."{name}"]', f"log_ratio = [{low:.4f}, {high:.4f}]", f"rows = {len(logs)}", ""]
    lines += ["[pairs]", f"log_difference = {1.28 * pair_spread(rows, errors):.4f}", ""]
    (FOLDER / "intervals.toml").write_text("\n".join(lines), encoding="utf-8")


def shortest(logs: Sequence[float]) -> tuple[float, float]:
    """The shortest range that holds 0, which is what is predicted itself, and a little over :data:`HELD` of these rows.

    Of ``n`` rows it holds ``HELD (n + 1)``, rounded up. That would cover the next row with probability :data:`HELD`
    were the range fixed before looking; being chosen as the shortest, it covers somewhat less.
    """
    ranked = np.sort(np.asarray(logs, dtype=float))
    held = min(len(ranked), math.ceil(HELD * (len(ranked) + 1)))
    widths = ranked[held - 1 :] - ranked[: len(ranked) - held + 1]
    first = int(np.argmin(widths))
    return min(float(ranked[first]), 0.0), max(float(ranked[first + held - 1]), 0.0)


def pair_spread(rows: Sequence[Observation], errors: Floats) -> float:
    """Standard deviation of the difference of two errors of one problem, in the middle one of all problems."""
    problems: dict[tuple[str, str], list[float]] = {}
    for row, error in zip(rows, errors, strict=True):
        problems.setdefault((row.case.source, row.case.layout), []).append(error)
    spread = [np.var(own, ddof=1) for own in problems.values() if len(own) >= 4]
    return float(np.sqrt(2 * np.median(spread))) if spread else 0.06


def _by_class(found: Sequence[tuple[tuple[str, ...], float]]) -> dict[str, list[float]]:
    """Logarithms of each class that has enough rows."""
    logs: dict[str, list[float]] = {}
    for names, log in found:
        for name in names:
            logs.setdefault(name, []).append(log)
    return {name: own for name, own in sorted(logs.items()) if len(own) >= FEWEST or name == "all"}
