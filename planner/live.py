"""The search as it goes, in one line on stderr: what it is at, the incumbent, the bound, the gap, the time."""

from __future__ import annotations

import math
import sys
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


def ended(said: tuple[str, float, float] | None, seconds: float) -> str:
    """What Ctrl-C ended, after what was ``said`` last: what was being searched, and that no plan was found yet."""
    if said is None:
        return f"interrupted after {seconds:.1f} s, before the search had a bound: no plan was found yet"
    stage, best, bound = said
    if best < math.inf or math.isnan(best):
        return f"interrupted: {line(stage, best, bound, seconds)}"
    return (
        f"interrupted after {seconds:.1f} s, {stage}: no plan was found yet, and none is better than {bound:.6g}; "
        "a longer search or some pinned axes may find one"
    )


@contextmanager
def live_line() -> Iterator[Report]:
    """A line on stderr that follows the search; nothing where stderr is not a terminal.

    After Ctrl-C that no plan answers, what it ended is said there in any case.
    """
    began, shown, last = time.monotonic(), 0.0, None

    def report(stage: str, best: float, bound: float) -> None:
        nonlocal shown, last
        last = stage, best, bound
        if time.monotonic() >= shown + LOOK_AGAIN_S:
            shown = time.monotonic()
            say(line(stage, best, bound, shown - began))

    try:
        with status_line("reading") as say:
            yield report
    except KeyboardInterrupt:
        print(f"meshwright: {ended(last, time.monotonic() - began)}", file=sys.stderr)
        raise
