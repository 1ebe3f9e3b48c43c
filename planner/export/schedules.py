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
    kind = plan.strategy.schedule
    for target in targets:
        runs = RUNS.get(target, USUAL)
        if kind not in runs:
            able = ", ".join(name for name, kinds in RUNS.items() if kind in kinds) or "none yet"
            raise Unsupported(
                f"{target} runs the schedules {', '.join(runs)}, and the plan has {kind}; pin schedule=1f1b, or take a "
                f"target that runs it ({able})"
            )
