"""The constants that are checked in are those that ``meshwright calibrate --published`` finds again."""

from __future__ import annotations

import numpy as np

from planner.published.fitting import Fit, constants, step_inside
from planner.published.predict import step_s
from planner.published.refit import carried, observations, telling, thinned


def test_the_checked_in_constants_are_where_the_fit_ends():
    """One more step of the fit, from the rows that the project carries, moves none by a third of its own spread."""
    parameters = constants()
    fit = Fit(
        thinned(telling(observations(carried()))),
        parameters,
        lambda rows, values: np.array([step_s(row.job, values) for row in rows]),
    )
    values = {constant.path: constant.value for constant in parameters}
    at = np.array(list(values.values()))
    residuals = fit.residuals(values)
    hessian, gradient = fit.normal(residuals, fit.jacobian(values, residuals), at)
    least, most = (np.array([getattr(constant, side) for constant in parameters]) for side in ("least", "most"))
    spread = np.sqrt(np.diag(np.linalg.inv(hessian)))
    moved = np.abs(step_inside(at, hessian, gradient, least, most) - at) / spread

    assert moved.max() < 1 / 3, dict(zip(values, moved.round(2).tolist(), strict=True))
