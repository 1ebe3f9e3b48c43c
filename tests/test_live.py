"""The live line, and where there is none."""

from __future__ import annotations

import math

from planner.live import line, live_line


def test_a_line_tells_the_stage_the_incumbent_the_bound_and_the_gap():
    assert line("proving 3 open rows", 20.0, 19.0, 1.25) == ("proving 3 open rows: best 20, bound 19, gap 5.00%, 1.2 s")
    assert line("bounding 9 open rows", math.inf, 19.0, 0.0) == ("bounding 9 open rows: no plan yet, bound 19, 0.0 s")


def test_nothing_is_shown_off_a_terminal(capsys):
    with live_line() as report:
        report("bounding", 1.0, 1.0)

    assert capsys.readouterr() == ("", "")
