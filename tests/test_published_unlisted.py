"""The range of a source that nobody fitted: by hand, by draws, and what makes a fitted row a stranger's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from published_rows import bigscience_row, sweep_row, training_row
from test_published_fitting import problem

from planner.published import unlisted
from planner.published.fitting import Observation, left_out_values
from planner.published.predict import prepared
from planner.published.sweep import sweep_case
from planner.published.training import training_case
from planner.published.unlisted import memory_errors, next_of, source_of, strangers, time_errors


def test_two_sources_by_hand():
    """Means 0.1 and 0.3, so 0.2; V = (0.02 + 0.01) / 2; t of one degree is 6.314, times sqrt(3)."""
    low, high = next_of({"a": [0.1 - 0.1, 0.1 + 0.1], "b": [0.3]})

    reach = math.tan(0.45 * math.pi) * math.sqrt(0.015 * 3)
    assert (low, high) == (pytest.approx(0.2 - reach), pytest.approx(0.2 + reach))


def test_rows_of_one_source_are_one_draw():
    """However many they are, and 0 is always inside."""
    others = {"a": [0.2], "b": [0.5]}

    assert next_of({**others, "c": [0.35] * 100}) == pytest.approx(next_of({**others, "c": [0.35]}))
    assert next_of({"a": [0.3], "b": [0.3 + 1e-6]})[0] == 0.0
    with pytest.raises(ValueError, match="1 sources"):
        next_of({"a": [0.1, 0.2]})


@pytest.mark.parametrize(("count", "rows", "most"), [(4, 1, 0.9), (12, 1, 0.9), (4, 5, 0.94), (12, 5, 0.91)])
def test_nine_of_ten_rows_of_one_more_source_are_held(count, rows, most):
    """Sources 0.3 apart, rows within one 0.1; of 2,000 worlds, to two standard deviations of the share. That rows of
    a source lie apart is known better than that sources do, and a few sources with many rows hold more.
    """
    random, held = np.random.default_rng(count), 0
    for _ in range(2000):
        middles = 0.05 + 0.3 * random.normal(size=count + 1)
        *known, (new, *_) = (middle + 0.1 * random.normal(size=rows) for middle in middles)
        low, high = next_of(dict(enumerate(known)))
        held += low <= new <= high

    assert 0.9 - 0.0135 <= held / 2000 <= most + 0.0135


def test_a_stranger_s_steps_are_priced_by_what_the_other_sources_leave():
    """The first three groups are one source; its rows, and strangers made of them, under constants of the fourth's."""
    fit, matrix, _ = problem(noise=1e-2)
    values, residuals, jacobian = fit.solve()
    at = np.array(list(values.values()))
    mine = np.array([row.group < "model 3" for row in fit.observations])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unlisted, "source_of", lambda row: "ours" if row.group < "model 3" else "theirs")
        found = time_errors(fit, at, residuals, jacobian, [fit.observations[0], fit.observations[-1]])
    left = left_out_values(fit, at, residuals, jacobian, lambda row: "ours" if row.group < "model 3" else "theirs")

    first = math.log(fit.observations[0].step_s)
    assert found["ours"] == pytest.approx([first - matrix[0] @ left["ours"]])
    assert not np.allclose(left["ours"], at) and mine[0] and not mine[-1]
    assert len(found["theirs"]) == 1


def rows_of(monkeypatch, *cells):
    """Fitted rows of a file that has these."""
    monkeypatch.setattr(unlisted, "_told", lambda: {row["id"]: row for row in cells})
    cases = [training_case(row) for row in cells]
    return [Observation(case, prepared(case.job), 2.0) for case in cases]


def test_a_row_is_read_as_a_stranger_s(monkeypatch):
    """Not by its source's table: the stack is the one that its words name, and the step the one it took."""
    row = bigscience_row(source="github.com/someone, Megatron-LM", date="2024-03", metric_kind="iter_time_s")
    (known,) = rows_of(monkeypatch, row)
    (found,) = strangers([known])

    assert (known.job.stack, found.job.stack) == ("megatron-deepspeed", "megatron-core")
    assert found.job.release == "megatron-lm 2023"
    assert "source" in found.case.assumed and "source" not in known.case.assumed
    assert (found.step_s, source_of(found)) == (2.0, "bs")


def test_sizes_that_a_table_fills_in_are_said(monkeypatch):
    """Nothing accumulates in a table of fms-fsdp, so that its batch goes without saying; a stranger states it."""
    row = training_row(id="fms-001", zero_or_fsdp_stage="FSDP", global_batch="", micro_batch="2")
    (known,) = rows_of(monkeypatch, row)
    (found,) = strangers([known])

    assert known.job.workload.global_batch == found.job.workload.global_batch == 16


def test_a_row_of_another_schema_is_as_it_is(monkeypatch):
    case = sweep_case(sweep_row())
    monkeypatch.setattr(unlisted, "_told", dict)
    row = Observation(case, prepared(case.job), 3.5)

    assert strangers([row]) == [row]


def test_memory_is_a_stranger_s_too(monkeypatch):
    """Of rows with a figure, by their own source; BigScience's contexts are not Megatron-Core's."""
    row = bigscience_row(source="github.com/someone, Megatron-LM", date="2024-03", peak_mem_gib="60")
    rows = rows_of(monkeypatch, row, row | {"id": "bs-002", "peak_mem_gib": ""})
    found = memory_errors(one.case for one in rows)

    assert {source: len(logs) for source, logs in found.items()} == {"bs": 1}
    assert found["bs"][0] > 0.1
