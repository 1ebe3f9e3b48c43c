"""The search as it goes, in one line on stderr: what it is at, the incumbent, the bound, the gap, the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from planner.terminal import status_line

Report = Callable[[str, float, float], None]
LOOK_AGAIN_S = 0.05


def line(stage: str, best: float, bound: float, seconds: float) -> str:
    """``proving 12 open rows: best 29.8, bound 27.7, gap 7.20%, 0.8 s``; the stage alone where that says it all."""
    if math.isnan(best):
        return f"{stage}, {seconds:.1f} s"
    known = f"best {best:.6g}" if best < math.inf else "no plan yet"
    gap = f", gap {max(0.0, 1 - bound / best):.2%}" if best < math.inf else ""
    return f"{stage}: {known}, bound {bound:.6g}{gap}, {seconds:.1f} s"


@contextmanager
def live_line() -> Iterator[Report]:
    """A line on stderr that follows the search; nothing where stderr is not a terminal."""
    began, shown = time.monotonic(), 0.0
    with status_line("reading") as say:

        def report(stage: str, best: float, bound: float) -> None:
            nonlocal shown
            if time.monotonic() >= shown + LOOK_AGAIN_S:
                shown = time.monotonic()
                say(line(stage, best, bound, shown - began))

        yield report
