"""A time limit that work looks at by itself: at places where it may end, it asks whether the moment has passed.

The search looks at the clock between its steps. Steps call others that last: tables, schedules, trials of repairs. Each
of these begins with :func:`look`, which raises an exception once a moment has passed that someone around it set with
:func:`in_time`. Whoever catches it takes what it uses from what was true before. CP-SAT, which looks at nothing of
ours, runs in a thread of its own (:mod:`planner.search.watched`). Nothing is raised from outside: an exception thrown
into a thread between any two bytecodes would also hit locks, and threads that are just being started.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


class OutOfTime(BaseException):
    """The moment has passed. Not an ``Exception``: nothing that handles errors may take it for one."""

    def __init__(self, moment: object) -> None:
        super().__init__("the time limit has passed")
        self.moment = moment


class _Moments(threading.local):
    """The moments that were set in one thread, outermost first, each with what tells it from others."""

    def __init__(self) -> None:
        self.stack: list[tuple[float, object]] = []


_SET = _Moments()


def in_time(deadline: float, work: Callable[[], Any]) -> bool:
    """Whether ``work()`` ended before it looked at the clock past ``deadline``, a ``time.monotonic()`` moment.

    Everything else that ``work`` raises passes through.
    """
    moment = object()
    _SET.stack.append((deadline, moment))
    try:
        work()
    except OutOfTime as over:
        if over.moment is not moment:
            raise
        return False
    finally:
        _SET.stack.pop()
    return True


def look() -> None:
    """Raise :class:`OutOfTime` for the outermost moment that has passed, if any has."""
    now = time.monotonic()
    for deadline, moment in _SET.stack:
        if now > deadline:
            raise OutOfTime(moment)


def left_s(deadline: float) -> float:
    """Seconds until ``deadline``; never below 0."""
    return max(0.0, deadline - time.monotonic())
