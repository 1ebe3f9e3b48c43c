"""Embedding and head on ranks of their own count, which no launch target has a setting for."""

from __future__ import annotations

from planner.errors import Unsupported
from planner.result import Plan
from planner.runtime.limits import not_launched


def check_vocabulary(plan: Plan, targets: tuple[str, ...]) -> None:
    """Raises ``Unsupported`` where a target is to divide embedding and head over other ranks than those of tp."""
    if targets and (why := not_launched(plan.strategy)):
        raise Unsupported(f"{targets[0]} cannot express this plan: {why}; plan without vocab_tp")
