"""The constants that are checked in are those that ``meshwright calibrate --published`` finds again."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

from cost_models.calibration import FOLDER
from planner.published.fitting import NOISE, Constant, Fit, constants
from planner.published.predict import step_s
from planner.published.refit import carried, observations, telling, thinned

DIRECTIONS = 3
STEP = 0.05
"""Standard deviations by which every constant is moved to see how the loss changes."""


def deviation(constant: Constant) -> float:
    """The standard deviation that is checked in beside a constant; 0 at an end of its range, where it stays."""
    file, rest = constant.path.split(".", 1)
    table, _, name = rest.rpartition(".")
    row = tomllib.loads((FOLDER / f"{file}.toml").read_text(encoding="utf-8"))[table][name]
    inside = constant.least < constant.value < constant.most
    return row["residual"] * abs(constant.value) if inside else 0.0


@pytest.mark.slow
def test_the_checked_in_constants_are_where_the_fit_ends():
    """Along lines on which every constant moves by its own deviation, the loss is least where they are.

    A whole step of the fit needs the rows once for each of the 60 constants; a line needs them once. One constant
    two deviations from where the fit left it moves the least of some line by 0.013 to 0.055; its own end by 0.003.
    """
    parameters = constants()
    fit = Fit(
        thinned(telling(observations(carried()))),
        parameters,
        lambda rows, values: np.array([step_s(row.job, values) for row in rows]),
    )
    at, each = (np.array([f(constant) for constant in parameters]) for f in (lambda it: it.value, deviation))
    residuals = fit.residuals({constant.path: constant.value for constant in parameters})
    for line in np.random.default_rng(0).choice([-1.0, 1.0], size=(DIRECTIONS, len(parameters))) * each:
        there = {constant.path: float(v) for constant, v in zip(parameters, at + STEP * line, strict=True)}
        slope = (fit.residuals(there) - residuals) / STEP
        weight = fit.weights**2 / NOISE**2 / np.sqrt(1.0 + (residuals / NOISE) ** 2)
        pull = np.array([constant.prior for constant in parameters])
        tilt = slope @ (weight * residuals) + line @ ((at - pull[:, 0]) / pull[:, 1] ** 2)
        bend = slope @ (weight * slope) + line @ (line / pull[:, 1] ** 2)
        assert abs(tilt / bend) < 0.01
