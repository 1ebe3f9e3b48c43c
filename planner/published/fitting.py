"""Fits what stacks and devices reach in whole training steps to published step times.

Every constant of ``calibration/stacks.toml`` and of the tables ``shared`` and ``sustained`` of ``compute.toml``
that carries ``fit = true`` is fitted, all together: the logarithms of predicted over measured step time under a soft
L1 loss, each (model, accelerator) group of ``n`` rows with the weight of ``sqrt(n)`` rows (rows of a group share most
of their error, layouts and sizes do not), with a weak pull of each constant towards its ``prior`` (mean and standard
deviation). The pull decides what the data leave open, and what a left-out group
falls back to.

Leaving a group out is one Newton step from the joint optimum, with that group's rows taken away; its rows are then
predicted to first order. Both are exact for a quadratic loss and a linear model.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import FOLDER, calibrate
from planner.published.records import Case, Job

Floats = NDArray[np.float64]
NOISE = 0.05
"""Log error from which a row counts linearly: the floor between repeats of one configuration is 2 to 6 %."""
STEP = 1e-3


@dataclass(frozen=True)
class Constant:
    """A fitted constant: ``path`` is file, table and name; ``prior`` its mean and standard deviation."""

    path: str
    value: float
    least: float
    most: float
    prior: tuple[float, float]


@dataclass(frozen=True)
class Observation:
    """A priced job with its measured seconds; ``group`` is its model and accelerator."""

    case: Case
    job: Job
    step_s: float

    @property
    def group(self) -> str:
        """What is left out together."""
        return f"{self.case.title} | {self.case.accelerator}"


def constants() -> list[Constant]:
    """Every constant that is fitted to whole steps, in the order of the files."""
    found = []
    for file in ("compute", "stacks"):
        tables = tomllib.loads((FOLDER / f"{file}.toml").read_text(encoding="utf-8"))
        for table, rows in tables.items():
            for name, row in rows.items():
                if isinstance(row, dict) and row.get("fit"):
                    path = f"{file}.{table}.{name}"
                    found.append(Constant(path, row["value"], *row["range"], tuple(row["prior"])))
    return found


Predict = Callable[[Sequence[Observation], Mapping[str, float]], Floats]


def _moves(constant: Constant, job: Job) -> bool:
    """Whether a job's calibration depends on the constant."""
    stack, other = job.workload.stack, {constant.path: constant.value * 0.9 + 0.01}
    return calibrate(job.cluster, stack, other) != calibrate(job.cluster, stack)


@dataclass
class Fit:
    """A fit of ``parameters`` to ``observations``, whose steps ``predict`` gives under changed constants."""

    observations: Sequence[Observation]
    parameters: list[Constant]
    predict: Predict
    weights: Floats = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        groups = [one.group for one in self.observations]
        count = {name: groups.count(name) for name in set(groups)}
        self.weights = np.array([count[name] ** -0.25 for name in groups])
        self.touches = self._touched()

    def _touched(self) -> list[NDArray]:
        """For each constant, which observations it can move: those whose calibration it changes."""
        keys = [(one.job.cluster.accelerator.name, one.job.workload.stack) for one in self.observations]
        some = dict(zip(keys, self.observations, strict=True))
        found = []
        for constant in self.parameters:
            differs = {key: _moves(constant, one.job) for key, one in some.items()}
            found.append(np.array([differs[key] for key in keys]))
        return found

    def residuals(self, values: Mapping[str, float], mask: NDArray | None = None) -> Floats:
        """``log(predicted / measured)`` under ``values``; rows outside ``mask`` are left at 0."""
        out, chosen = np.zeros(len(self.observations)), np.ones(len(self.observations), bool) if mask is None else mask
        some = [one for one, wanted in zip(self.observations, chosen, strict=True) if wanted]
        if some:
            out[chosen] = np.log(self.predict(some, values) / np.array([one.step_s for one in some]))
        return out

    def jacobian(self, values: dict[str, float], base: Floats) -> Floats:
        """Derivatives of the residuals, by a step inside each constant's range."""
        columns = []
        for constant, mask in zip(self.parameters, self.touches, strict=True):
            width = STEP * (constant.most - constant.least)
            step = width if values[constant.path] + width <= constant.most else -width
            moved = self.residuals({**values, constant.path: values[constant.path] + step}, mask)
            columns.append(np.where(mask, (moved - base) / step, 0.0))
        return np.stack(columns, axis=1)

    def normal(self, residuals: Floats, jacobian: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Hessian and gradient of the loss: soft L1 rows with their weights, and the priors."""
        weight = self.weights**2 / NOISE**2 / np.sqrt(1.0 + (residuals / NOISE) ** 2)
        prior = np.array([constant.prior for constant in self.parameters])
        hessian = jacobian.T @ (weight[:, None] * jacobian) + np.diag(prior[:, 1] ** -2.0)
        gradient = jacobian.T @ (weight * residuals) + (values - prior[:, 0]) / prior[:, 1] ** 2
        return hessian, gradient

    def solve(
        self, rounds: int = 4, report: Callable[[str], None] = lambda text: None
    ) -> tuple[dict[str, float], Floats, Floats]:
        """Fitted values, and residuals and derivatives there, after ``rounds`` Newton steps held inside the ranges."""
        names = [constant.path for constant in self.parameters]
        least, most = (np.array([getattr(c, side) for c in self.parameters]) for side in ("least", "most"))
        values = np.array([constant.value for constant in self.parameters])
        for turn in range(rounds + 1):
            residuals = self.residuals(dict(zip(names, values, strict=True)))
            report(f"round {turn}: mean |error| {np.mean(np.abs(np.expm1(residuals))):.4f}")
            if turn == rounds:
                break
            jacobian = self.jacobian(dict(zip(names, values, strict=True)), residuals)
            values = step_inside(values, *self.normal(residuals, jacobian, values), least, most)
        return dict(zip(names, values.tolist(), strict=True)), residuals, jacobian


def step_inside(values: Floats, hessian: Floats, gradient: Floats, least: Floats, most: Floats) -> Floats:
    """One Newton step; constants that would leave their range are set to its end and the others solved again."""
    free, moved = np.ones(len(values), dtype=bool), values.copy()
    for _ in range(len(values)):
        fixed = gradient[free] + hessian[np.ix_(free, ~free)] @ (moved - values)[~free]
        moved[free] = values[free] - np.linalg.solve(hessian[np.ix_(free, free)], fixed)
        outside = (moved < least) | (moved > most)
        moved = np.clip(moved, least, most)
        if not (outside & free).any():
            break
        free &= ~outside
    return moved


def left_out_errors(
    fit: Fit,
    values: Floats,
    residuals: Floats,
    jacobian: Floats,
    by: Callable[[Observation], str] = lambda row: row.group,
) -> Floats:
    """Residuals of every observation with its own group, or all that ``by`` names alike, left out, to first order."""
    groups = np.array([by(one) for one in fit.observations])
    errors = residuals.copy()
    for name, moved in left_out_values(fit, values, residuals, jacobian, by).items():
        mine = groups == name
        errors[mine] = residuals[mine] + jacobian[mine] @ (moved - values)
    return errors


def left_out_values(
    fit: Fit, values: Floats, residuals: Floats, jacobian: Floats, by: Callable[[Observation], str]
) -> dict[str, Floats]:
    """The constants, in their order, that are left where all observations that ``by`` names alike are left out."""
    hessian, gradient = fit.normal(residuals, jacobian, values)
    weight = fit.weights**2 / NOISE**2 / np.sqrt(1.0 + (residuals / NOISE) ** 2)
    least, most = (np.array([getattr(c, side) for c in fit.parameters]) for side in ("least", "most"))
    groups, found = np.array([by(one) for one in fit.observations]), {}
    for name in np.unique(groups).tolist():
        mine = groups == name
        own = jacobian[mine]
        without = hessian - own.T @ (weight[mine, None] * own)
        found[name] = step_inside(values, without, gradient - own.T @ (weight[mine] * residuals[mine]), least, most)
    return found
