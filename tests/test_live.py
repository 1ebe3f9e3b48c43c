"""The live line, and where there is none."""

from __future__ import annotations

import math

import pytest

from planner.live import ended, line, live_line


def test_a_line_tells_the_stage_the_incumbent_the_bound_and_the_gap():
    assert line("proving 3 open rows", 20.0, 19.0, 1.25) == ("proving 3 open rows: best 20, bound 19, gap 5.00%, 1.2 s")
    assert line("bounding 9 open rows", math.inf, 19.0, 0.0) == ("bounding 9 open rows: no plan yet, bound 19, 0.0 s")


def test_nothing_is_shown_off_a_terminal(capsys):
    with live_line() as report:
        report("bounding", 1.0, 1.0)

    assert capsys.readouterr() == ("", "")


def test_ctrl_c_says_what_it_ended_and_that_there_is_no_plan():
    assert ended(None, 0.41) == ("interrupted after 0.4 s, before the search had a bound: no plan was found yet")
    assert ended(("bounding 9 open rows", math.inf, 19.0), 3.0).startswith(
        "interrupted after 3.0 s, bounding 9 open rows: no plan was found yet, and none is better than 19; "
    )
    assert ended(("proving 3 open rows", 20.0, 19.0), 1.25) == (
        "interrupted: proving 3 open rows: best 20, bound 19, gap 5.00%, 1.2 s"
    )
    assert ended(("pricing 3 tiers", math.nan, math.nan), 2.0) == "interrupted: pricing 3 tiers, 2.0 s"


def test_what_ctrl_c_ended_is_said_off_a_terminal_too(capsys):
    with pytest.raises(KeyboardInterrupt), live_line() as report:
        report("bounding 9 open rows", math.inf, 19.0)
        raise KeyboardInterrupt

    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("meshwright: interrupted after ") and "bounding 9 open rows: no plan was found yet" in err
