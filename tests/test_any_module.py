"""Plans applied to modules that run by their own ``forward``: exactness by axis and family, and what is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from module_cases import CHECKPOINT_MATRIX, CHECKPOINTS, MATRIX, MODULE_CASES  # noqa: E402

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


@named([case for case in MODULE_CASES if case.mutation is None and not case.refused])
def test_gradients_equal_a_single_process(case, findings):
    compared(case, findings(case.world)[case.name])


@named([case for case in MODULE_CASES if case.mutation is not None])
def test_a_job_with_a_part_taken_out_is_noticed(case, findings):
    """The comparison above would fail without this exchange or division."""
    assert findings(case.world)[case.name]["error"] > 0.05


@named([case for case in MODULE_CASES if case.refused])
def test_a_wrong_rule_is_refused_on_every_rank(case, findings):
    said = findings(case.world)[case.name]["said"]

    assert case.refused in said and "is wrong: on 2 ranks" in said


@named(CHECKPOINTS)
def test_a_checkpoint_of_one_plan_is_loaded_under_another(case, findings):
    """All weights and both of Adam's moments, bit by bit; the next step's loss too. What is not whole is refused."""
    found = findings(case.world)[case.name]

    saved(found)
    assert "exists; give each its own folder" in found["again"]
    shorter, unfinished, partial = found["said"]
    assert "is no whole checkpoint" in shorter and "distcp was" in shorter
    assert "complete.json is missing" in unfinished and "complete.json is missing" in partial


def saved(found):
    assert (found["step"], found["differ"]) == (2, [])
    assert found["states"] > 3 * 20
    assert found["loss"] == pytest.approx(found["wanted_loss"], rel=1e-5)


@pytest.mark.matrix
@named(CHECKPOINT_MATRIX)
def test_checkpoints_between_more_plans(case, findings):
    saved(findings(case.world, "matrix")[case.name])


@pytest.mark.matrix
@named(MATRIX)
def test_every_axis_and_pair_of_every_family(case, findings):
    compared(case, findings(case.world, "matrix")[case.name])
