"""Spans of ranks joined: terms that sum to the step, waits told from transfers, both timelines in one trace."""

from __future__ import annotations

import pytest

from planner.machine.measured_terms import MEASURED, PREDICTED, measured_terms, spread, step_times, trace

MS = 1_000_000
PAIR = (0, 1)


def span(name: str, kind: str, start: float, end: float, axis: str = "", **more) -> dict:
    """A span in milliseconds."""
    return {"name": name, "kind": kind, "axis": axis, "start_ns": int(start * MS), "end_ns": int(end * MS),
            "issued_ns": int(start * MS), "group": (), "number": 0, "size_bytes": 0} | more  # fmt: skip


def rank(number: int, spans: list[dict], seconds: tuple[float, ...] = (0.1, 0.1)) -> dict:
    return {"rank": number, "pipeline_rank": 0, "spans": spans, "step_s": list(seconds)}


def early() -> dict:
    """Rank 0: joins the all-reduce of its backward pass at 30 ms, 20 ms before rank 1, and is let go at 60 ms."""
    return rank(0, [
        span("step", "step", 0, 100), span("forward", "forward", 0, 20), span("backward", "backward", 25, 70),
        span("backward", "backward", 26, 69), span("all_reduce", "collective", 30, 60, "dp", group=PAIR, number=1),
        span("optimizer", "optimizer", 80, 90), span("pipeline wait", "pipeline", 90, 97),
    ])  # fmt: skip


def late() -> dict:
    return rank(1, [
        span("step", "step", 0, 100), span("forward", "forward", 0, 45),
        span("all_reduce", "collective", 50, 60, "dp", group=PAIR, number=1), span("optimizer", "optimizer", 60, 100),
    ])  # fmt: skip


def test_a_rank_that_waits_for_another_does_not_communicate():
    first, second = measured_terms([early(), late()])

    assert first["waits"] == pytest.approx(0.020) and second["waits"] == 0.0
    assert first["data parallel"] == pytest.approx(0.010) == pytest.approx(second["data parallel"])
    assert first["backward"] == pytest.approx(0.045 - 0.030)
    assert (first["forward"], first["optimizer"], first["pipeline"]) == pytest.approx((0.020, 0.010, 0.007))


def test_terms_sum_to_the_step():
    for terms in measured_terms([early(), late()]):
        assert sum(terms.values()) == pytest.approx(0.100)


def test_a_collective_that_nobody_else_saw_is_all_communication():
    (terms,) = measured_terms([late()])

    assert terms["waits"] == 0.0 and terms["data parallel"] == pytest.approx(0.010)


def test_a_step_takes_what_its_slowest_rank_takes():
    times = step_times([rank(0, [], (1.0, 2.0, 2.5)), rank(1, [], (1.5, 1.0, 2.0))])

    assert times == [1.5, 2.0, 2.5]
    assert spread(times) == pytest.approx(0.5)


def test_the_trace_has_both_timelines_from_the_steps_beginning():
    pieces = [{"rank": 0, "pass": "forward", "virtual_stage": 0, "micro_batch": 3, "start_s": 0.5, "end_s": 0.75},
              {"rank": 1, "pass": "tail", "virtual_stage": None, "micro_batch": None, "start_s": 1.0,
               "end_s": 2.0}]  # fmt: skip
    later = early()
    for one in later["spans"]:
        one["start_ns"], one["end_ns"] = one["start_ns"] + 7 * MS, one["end_ns"] + 7 * MS
    events = [it for it in trace([later], pieces)["traceEvents"] if it["ph"] == "X"]
    seen, foretold = ([it for it in events if it["pid"] == pid] for pid in (MEASURED, PREDICTED))

    assert len(seen) == 7 and (seen[0]["name"], seen[0]["ts"], seen[0]["dur"]) == ("step", 0.0, 1e5)
    assert [(it["name"], it["ts"], it["dur"], it["args"]) for it in foretold] == [
        ("forward", 5e5, 2.5e5, {"virtual_stage": 0, "micro_batch": 3})
    ]
