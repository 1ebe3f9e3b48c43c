"""Plans applied to modules that run by their own ``forward``: exactness by axis and family, and what is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from module_cases import AXES, DO_NOT_APPLY, EXPERTS, FAMILIES, MATRIX, MODULE_CASES  # noqa: E402

LIMIT = 0.05


def compared(case, found):
    """Losses, gradients and the norm of all gradients, against a single process's on the same micro-batches."""
    assert found["covered"], "the ranks together do not hold every parameter"
    assert found["loss"] == pytest.approx(found["wanted_loss"], rel=case.tolerance / 10)
    assert found["error"] < case.tolerance, found["worst"]
    assert found["norm"] == pytest.approx(found["wanted_norm"], rel=case.tolerance)
    assert found["clipped"] == pytest.approx(LIMIT, rel=1e-3)


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=[f"{case.name} on {case.world}" for case in cases])


@named([case for case in MODULE_CASES if case.mutation is None])
def test_gradients_equal_a_single_process(case, findings):
    compared(case, findings(case.world)[case.name])


@named([case for case in MODULE_CASES if case.mutation is not None])
def test_a_job_with_a_part_taken_out_is_noticed(case, findings):
    """The comparison above would fail without this exchange or division."""
    assert findings(case.world)[case.name]["error"] > 0.05


@pytest.mark.matrix
@named(MATRIX)
def test_every_axis_and_pair_of_every_family(case, findings):
    compared(case, findings(case.world, "matrix")[case.name])
