"""A time limit that holds, kept from outside: an alarm in a thread of its own ends work that has no look at a clock.

The search looks at the clock between its steps, which ends nearly every search in time. What a step does may last far
longer than the limit, though: tables of millions of rows, a schedule of a hundred thousand micro-batches. So a second
line stands behind the first. When the moment has passed, an alarm raises an exception in the thread that works, between
two of its bytecodes, as Ctrl-C does in a main thread. numpy calls are short; CP-SAT, which is not, runs in a thread of
its own (:mod:`planner.search.watched`). Whoever catches the exception must take what it uses from what was true before.

Source: Python/C API, ``PyThreadState_SetAsyncExc``: https://docs.python.org/3/c-api/init.html
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

AGAIN_S = 0.1
"""An exception raised inside a ``__del__`` is lost, so an alarm goes on until it is heard."""
MOST_TIMES = 50
"""How often an alarm goes off, so that one whose block was torn down by a second Ctrl-C does not ring for ever."""
APART_S = 0.02
"""An alarm nearer than that to the end of the one around it is left to that one: of two at once one would be lost."""


class OutOfTime(BaseException):
    """The moment has passed. Not an ``Exception``: nothing that handles errors may take it for one."""


class _Alarms(threading.local):
    """The alarms that are set in one thread, outermost first, and whether they are held back."""

    def __init__(self) -> None:
        self.stack: list[_Alarm] = []
        self.lock = threading.Lock()
        self.held = [0]


_SET = _Alarms()


class _Alarm:
    """Raises ``expired`` in the thread that made it, from ``deadline`` on until it is switched off."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self.expired = deadline, type("OutOfTime", (OutOfTime,), {})
        self._off, self._thread = threading.Event(), threading.get_ident()
        self._lock, self._held = _SET.lock, _SET.held

    def on(self, seconds: float) -> None:
        """Go off in ``seconds``, unless the alarm around this one does so first."""
        around = _SET.stack[-1].deadline if _SET.stack else float("inf")
        self.deadline = min(self.deadline, around)
        _SET.stack.append(self)
        if self.deadline < around - APART_S and seconds < threading.TIMEOUT_MAX:
            threading.Thread(target=self._wait, args=(max(0.0, seconds),), daemon=True, name="time limit").start()

    def off(self) -> None:
        """Never again, neither this one nor those set inside it. What is on its way arrives in here at the latest."""
        with self._lock:
            self._off.set()
            while self in _SET.stack:
                _SET.stack.pop()._off.set()
        _nothing()

    def _wait(self, seconds: float) -> None:
        for _ in range(MOST_TIMES):
            if self._off.wait(seconds):
                return
            with self._lock:
                if not self._off.is_set() and not self._held[0]:
                    thrown = ctypes.py_object(self.expired)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), thrown)
            seconds = AGAIN_S


def _nothing() -> None:
    """A call: at calls exceptions that other threads raise arrive."""


def in_time(deadline: float, work: Callable[[], Any]) -> bool:
    """Whether ``work()`` ended before ``deadline``, a ``time.monotonic()`` moment; past it, it is cut short.

    Everything else that ``work`` raises passes through.
    """
    alarm = _Alarm(deadline)
    try:
        try:
            alarm.on(deadline - time.monotonic())
            work()
        finally:
            alarm.off()
    except alarm.expired:
        # It may have arrived at the call of ``off``, before that did anything.
        alarm.off()
        return False
    return True


@contextmanager
def held() -> Iterator[None]:
    """No alarm of this thread goes off inside the block; one that is due does right after it.

    For what must not be torn in two: imports, callbacks of the user.
    """
    counted = 0
    try:
        with _SET.lock:
            _SET.held[0] += 1
            counted = 1
        yield
    finally:
        with _SET.lock:
            _SET.held[0] -= counted


def left_s(deadline: float) -> float:
    """Seconds until ``deadline``; never below 0."""
    return max(0.0, deadline - time.monotonic())
