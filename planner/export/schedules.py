"""Which pipeline schedules each launch target runs."""

from __future__ import annotations

from cost_models.schedules import FURTHER
from cost_models.strategy import MIRRORED
from planner.errors import Unsupported
from planner.result import Plan

USUAL = ("1f1b", "interleaved")
EVERY = (*USUAL, *(kind for kind in FURTHER if kind != MIRRORED))
RUNS = {
    "torchrun": EVERY, "slurm": EVERY, "trainjob": EVERY, "skypilot": EVERY,
    "torchtitan": (*USUAL, "zbv", "dualpipev"),
}  # fmt: skip
"""By target, where that is more than the usual two."""


def check_schedule(plan: Plan, targets: tuple[str, ...]) -> None:
    """Raises ``Unsupported`` for the first target that does not run the plan's schedule."""
    check_runs(plan.strategy.schedule, targets)


def check_runs(kind: str, targets: tuple[str, ...]) -> None:
    """Raises ``Unsupported`` for the first target that does not run the schedule ``kind``."""
    for target in targets:
        runs = RUNS.get(target, USUAL)
        if kind not in runs:
            able = ", ".join(name for name, kinds in RUNS.items() if kind in kinds)
            raise Unsupported(
                f"{target} runs the schedules {', '.join(runs)}, and the plan has {kind}; pin schedule="
                + (f"1f1b, or take a target that runs it ({able})" if able else "dualpipev, its half")
            )


def check_asked(pinned: object, schedules: tuple[str, ...], targets: tuple[str, ...]) -> None:
    """Raises ``Unsupported`` where a target runs none of the schedules that a search may choose.

    ``pinned`` is the schedule that is pinned, or ``None``; ``schedules`` are those asked for, empty for the usual.
    """
    asked = schedules if pinned is None else (pinned,)
    for target in targets:
        refused = [kind for kind in asked if kind in FURTHER and kind not in RUNS.get(target, USUAL)]
        if refused and len(refused) == len(asked):
            check_runs(refused[0], (target,))
