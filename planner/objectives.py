"""What a plan minimises: one quantity of a step, or several in order with a slack between them.

    time                seconds            energy     facility joules
    money               dollars            tokens-per-joule     the most of them: energy, since every plan takes the
                                           same tokens a step
    goodput             seconds with failures: the step over the goodput of its devices and hosts at the best interval
                        of checkpoints (:func:`cost_models.goodput.longer_by_failures`)

``--objective time,energy --slack 2%`` solves time, then minimises energy over the whole space among plans of at most
1.02 times the best time, and so on for every further one.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from cost_models.checkpoints import checkpoint_bytes
from planner.errors import BadInput

if TYPE_CHECKING:
    from cost_models.model_graph import ModelGraph
    from cost_models.workload import Training
    from planner.options import Options

OBJECTIVES = {"time": "s", "energy": "J", "money": "USD", "tokens-per-joule": "tokens/J", "goodput": "s"}
_PERCENT = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})\s*%\s*")


def minimised(objective: str) -> str:
    """The quantity of a step that an objective makes small."""
    return "energy" if objective == "tokens-per-joule" else objective


def with_checkpoints(options: Options, model: ModelGraph, workload: Training) -> Options:
    """The options with the bytes of this work's checkpoints, which failures cost by."""
    return options.model_copy(update={"checkpoint_bytes": checkpoint_bytes(model, workload)})


def objectives_of(text: object) -> tuple[str, ...]:
    """``"time,energy"`` as ``("time", "energy")``. Raises ``BadInput`` for names that are none or one named twice."""
    names = tuple(part.strip() for part in str(text).split(","))
    for name in names:
        if name not in OBJECTIVES:
            near = difflib.get_close_matches(name.lower()[:80], OBJECTIVES, n=1, cutoff=0.5)
            nearest = f"nearest: {near[0]!r}; " if near else ""
            known = ", ".join(map(repr, OBJECTIVES))
            raise BadInput(f"objective={str(text)[:80]!r}: {name[:80]!r} is no objective; {nearest}there are {known}")
    if len({minimised(name) for name in names}) < len(names):
        raise BadInput(f"objective={str(text)[:80]!r} asks for the same thing twice; name each once")
    return names


def slack_of(given: float | str | None) -> float | None:
    """``"2%"`` as 0.02; numbers and ``None`` as they are. Raises ``BadInput`` for any other text."""
    if not isinstance(given, str):
        return given
    part = percent(given)
    if part is None:
        raise BadInput(f"slack={given[:80]!r} is no part of the best value; for example 2% or 0.02")
    return part


def percent(text: str) -> float | None:
    """``"2%"`` and ``"0.02"`` as 0.02; ``None`` for any other text."""
    match = _PERCENT.fullmatch(text)
    if match is not None:
        return float(match[1]) / 100
    try:
        return float(text)
    except ValueError:
        return None
