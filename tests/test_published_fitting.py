"""The fit to whole steps, on linear problems whose optimum is a line of algebra: bounds, priors, left-out groups."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import make_strategy
from measured import make_case

from planner.published.fitting import NOISE, Constant, Fit, Observation, constants, left_out_errors, step_inside
from planner.published.refit import MOST_ROWS_A_GROUP, telling, thinned
from planner.published.settings import with_settings
from planner.published.spreads import KNOWN_ROWS_A_GROUP, OWN_ROWS, Error, few_a_group, pair_spread, ranges, shortest

PATHS = ("compute.shared.quantise_share", "stacks.megatron-core.overlap_tp", "stacks.megatron-core.host_us")
TRUE = np.array([0.4, 0.5, 6.0])
RANGES = ((0.0, 1.0), (0.0, 0.95), (0.0, 60.0))
PRIORS = ((0.5, 0.3), (0.6, 0.2), (5.0, 5.0))
WIDE = ((0.5, 1e6),) * 3
GROUPS = [5, 3, 2, 4]


def problem(priors=PRIORS, ranges=RANGES, noise=1e-4):
    """A fit whose log step is linear in the constants, the matrix of its derivatives, and the logs measured."""
    random = np.random.default_rng(1)
    matrix = random.normal(size=(sum(GROUPS), 3)) * (0.3, 0.4, 0.2)
    logs = matrix @ TRUE + noise * random.normal(size=len(matrix))
    names = [f"model {g}" for g, count in enumerate(GROUPS) for _ in range(count)]
    job = with_settings(make_case("x-0").job)
    rows = [
        Observation(make_case(f"x-{i}", title=name), job, float(np.exp(log)))
        for i, (name, log) in enumerate(zip(names, logs, strict=True))
    ]
    index = {row.case.id: i for i, row in enumerate(rows)}

    def predict(some, values):
        return np.exp([matrix[index[row.case.id]] @ [values[path] for path in PATHS] for row in some])

    parameters = [
        Constant(path, value, *span, prior) for path, value, span, prior in zip(PATHS, (0.5, 0.6, 5), ranges, priors,
                                                                                strict=True)
    ]  # fmt: skip
    return Fit(rows, parameters, predict), matrix, logs


def ridge(matrix, logs, priors, rows=slice(None)):
    """The optimum by the normal equations: groups weigh as roots of their rows; errors in units of noise; priors."""
    each = np.repeat([count**-0.5 for count in GROUPS], GROUPS)[rows] / NOISE**2
    mean, deviation = np.array(priors).T
    inverse = np.diag(deviation**-2.0)
    some = matrix[rows]
    return np.linalg.solve(some.T @ (each[:, None] * some) + inverse, some.T @ (each * logs[rows]) + inverse @ mean)


@pytest.mark.parametrize("priors", [PRIORS, WIDE], ids=["priors", "no priors"])
def test_the_optimum_is_that_of_the_normal_equations(priors):
    fit, matrix, logs = problem(priors)
    values, residuals, jacobian = fit.solve()
    expected = ridge(matrix, logs, priors)

    assert np.array([values[path] for path in PATHS]) == pytest.approx(expected, rel=1e-3)
    assert residuals == pytest.approx(matrix @ expected - logs, abs=2e-4)
    assert jacobian == pytest.approx(matrix, rel=1e-6)
    assert (expected == pytest.approx(TRUE, rel=1e-3)) == (priors is WIDE)


def test_a_left_out_group_is_predicted_as_by_a_fit_without_it():
    fit, matrix, logs = problem(noise=1e-3)
    values, residuals, jacobian = fit.solve()
    errors = left_out_errors(fit, np.array(list(values.values())), residuals, jacobian)
    names = np.array([row.group for row in fit.observations])

    for name in np.unique(names):
        own, rest = names == name, names != name
        exact = matrix[own] @ ridge(matrix, logs, PRIORS, rest) - logs[own]
        assert errors[own] == pytest.approx(exact, rel=0.03, abs=3e-5), name
        assert not np.allclose(errors[own], residuals[own], rtol=0.05)


def test_several_groups_can_be_left_out_as_one():
    fit, matrix, logs = problem(noise=1e-3)
    values, residuals, jacobian = fit.solve()
    own = np.arange(len(logs)) < sum(GROUPS[:2])

    errors = left_out_errors(
        fit, np.array(list(values.values())), residuals, jacobian, lambda row: str(row.group < "model 2")
    )
    each = np.repeat([count**-0.5 for count in GROUPS], GROUPS)[~own] / NOISE**2
    mean, deviation = np.array(PRIORS).T
    exact = np.linalg.solve(
        matrix[~own].T @ (each[:, None] * matrix[~own]) + np.diag(deviation**-2.0),
        matrix[~own].T @ (each * logs[~own]) + mean / deviation**2,
    )

    assert errors[own] == pytest.approx(matrix[own] @ exact - logs[own], rel=0.03, abs=3e-5)


def test_a_class_of_few_rows_is_drawn_towards_the_wider_one():
    """20 rows of one group weigh as three: 3 / (3 + 15) of their own range, the rest of that of their stack."""
    many = [Error(("s k a", "s k", "k", "all"), "one", log) for log in np.linspace(-0.1, 0.1, 20)]
    found = ranges(many, {"k": (-0.4, 0.6)})
    share = KNOWN_ROWS_A_GROUP / (KNOWN_ROWS_A_GROUP + OWN_ROWS)
    low, high = shortest([one.log for one in many])
    stack = share * low + (1 - share) * -0.4, share * high + (1 - share) * 0.6
    part = share * low + (1 - share) * stack[0], share * high + (1 - share) * stack[1]

    assert found["k"][0] == (-0.4, 0.6) and found["all"][0] == pytest.approx((low, high))
    assert found["s k"][0] == pytest.approx(stack) and found["s k a"] == (pytest.approx(part), 20)


def test_what_cannot_be_reached_ends_at_the_range_and_the_others_make_up_for_it():
    """The first constant may not fall below 0.45, which is more than 0.4: the best there is with it at 0.45."""
    fit, matrix, logs = problem(WIDE, ranges=((0.45, 1.0), *RANGES[1:]))
    values, _, _ = fit.solve()
    each = np.repeat([count**-0.25 for count in GROUPS], GROUPS)
    others = np.linalg.lstsq(each[:, None] * matrix[:, 1:], each * (logs - 0.45 * matrix[:, 0]), rcond=None)[0]

    assert values[PATHS[0]] == 0.45
    assert [values[path] for path in PATHS[1:]] == pytest.approx(others, rel=0.02)


def test_one_row_that_is_far_off_moves_the_fit_less_than_its_square_would():
    fit, matrix, logs = problem(WIDE)
    far = logs + np.where(np.arange(len(logs)) == 0, 1.0, 0.0)
    rows = [dataclasses.replace(row, step_s=float(np.exp(log))) for row, log in zip(fit.observations, far, strict=True)]
    values, _, _ = Fit(rows, fit.parameters, fit.predict).solve(rounds=12)
    found, square = (np.abs(matrix @ v - logs).mean() for v in (list(values.values()), ridge(matrix, far, WIDE)))

    assert found < square / 4


def test_a_constant_of_another_device_stays_at_its_prior():
    fit, _, _ = problem()
    other = Constant("compute.sustained.ampere", 0.8, 0.5, 1.05, (0.9, 0.04))
    wider = Fit(fit.observations, [*fit.parameters, other], fit.predict)
    values, _, jacobian = wider.solve()

    assert [touched.any() for touched in wider.touches] == [True, True, True, False]
    assert (jacobian[:, 3] == 0).all() and values[other.path] == pytest.approx(0.9)


def test_a_step_by_hand():
    """x^2 + x y + y^2 - 3 x - 3 y from (0, 0): to (1, 1); with x <= 0.5 to y = 1.25; with both at 0.5, there."""
    hessian, gradient, here = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([-3.0, -3.0]), np.zeros(2)

    def to(*most):
        return step_inside(here, hessian, gradient, np.full(2, -5.0), np.array(most)).tolist()

    assert to(5.0, 5.0) == pytest.approx([1.0, 1.0])
    assert to(0.5, 5.0) == pytest.approx([0.5, 1.25])
    assert to(0.5, 0.5) == [0.5, 0.5]
    assert step_inside(here, hessian, -gradient, np.array([-0.5, -5.0]), np.full(2, 5.0)) == pytest.approx(
        [-0.5, -1.25]
    )
    assert (here == 0).all()


def test_what_is_fitted_starts_inside_its_range():
    found = constants()

    assert len({constant.path for constant in found}) == len(found) > 12
    for it in found:
        assert it.least <= it.value <= it.most and it.prior[1] > 0, it.path
        assert it.path.split(".")[0] in ("compute", "stacks")


def test_a_large_group_is_thinned_evenly():
    rows = [Observation(make_case(f"x-{i}", title="large"), None, 1.0) for i in range(4 * MOST_ROWS_A_GROUP)]
    few = [Observation(make_case(f"y-{i}", title="small"), None, 1.0) for i in range(3)]

    assert thinned([*rows, *few]) == [*rows[::4], *few]


def test_few_errors_a_group_stand_for_it():
    many = [Error(("k",), "large", float(k)) for k in range(3 * KNOWN_ROWS_A_GROUP)]
    one = Error(("k",), "small", 0.5)

    assert few_a_group([*many, one]) == [*many[::3], one]


def test_layouts_of_one_problem_are_compared_with_each_other():
    """Errors 0.1 either side of the problem's own mean: the difference of two is sqrt(2) times their deviation."""
    errors = [0.4, 0.6, 0.4, 0.6, -0.1, 0.1, -0.1, 0.1, 9.0]
    rows = [Observation(make_case(f"x-{i}", layout=f"problem {min(i // 4, 2)}"), None, 1.0) for i in range(9)]

    assert pair_spread(rows, np.array(errors)) == pytest.approx((2 * 0.04 / 3) ** 0.5)


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ([*(k / 100 for k in range(-9, 10)), 5.0], (-0.09, 0.09)),
        ([0.1 + k / 100 for k in range(19)] + [5.0], (0.0, 0.28)),
        ([-0.3, -0.2], (-0.3, 0.0)),
    ],
    ids=["a far one is left out", "what is predicted is inside", "few rows: all of them"],
)
def test_the_shortest_range_that_holds_nine_of_ten(logs, expected):
    """Of 20 rows 19 are held, 0.9 (20 + 1) rounded up."""
    assert shortest(logs) == pytest.approx(expected)


def test_a_guessed_micro_batch_moves_no_constant():
    """Guessed by a recipe, or one that is the whole batch of its rank, it may; guessed by nobody, it may not."""
    case = dataclasses.replace(make_case("x-0"), assumed=("micro_batch",))
    job = case.job
    whole = dataclasses.replace(job, strategy=make_strategy((4,), micro_batches=1))
    split = dataclasses.replace(job, strategy=make_strategy((4,), micro_batches=2), release="r0.8.0")
    known = dataclasses.replace(split, release="v5.1")
    rows = [Observation(case, one, 1.0) for one in (whole, split, known)]

    chosen = dataclasses.replace(whole, switches={"quickest": ("micro_batch",)})
    rows.append(Observation(case, chosen, 1.0))

    assert telling(rows) == [rows[0], rows[2]], "nor may one that a prediction chose, whatever it is"
    assert telling([Observation(make_case("x-1"), split, 1.0)])
