"""The errors of planning; ``PlannerError``, ``BadInput`` and ``UnknownName`` come from the machines' side."""

from __future__ import annotations

from typing import Any

from topologies.errors import BadInput, PlannerError, UnknownName

__all__ = [
    "BadInput", "InfeasiblePlan", "JobFailed", "PlannerBug", "PlannerError", "SearchGaveUp", "UnknownName",
    "Unsupported",
]  # fmt: skip


class InfeasiblePlan(PlannerError):
    """No strategy of the space meets the limits. ``repairs`` are the minimal sets of changes after which one does.

    ``leanest`` is the plan that needs least memory, where memory is why: its degrees, its bytes by class, the limit.
    """

    def __init__(
        self,
        message: str,
        repairs: list[dict[str, Any]] | None = None,
        space: dict[str, Any] | None = None,
        leanest: dict[str, Any] | None = None,
    ):
        super().__init__(message)
        self.leanest = leanest
        self.repairs = repairs or []
        self.space = space or {}

    def as_json(self) -> dict[str, Any]:
        """The answer as one JSON object, as ``--json`` prints it."""
        return {
            "schema_version": 1,
            "status": "infeasible",
            "message": str(self),
            "leanest": self.leanest,
            "repairs": self.repairs,
            "space": self.space,
        }


class SearchGaveUp(PlannerError):
    """The time limit passed before any plan was found; that says nothing about whether one exists."""


class Unsupported(PlannerError):
    """A launch target or the runtime cannot express this plan; the message names the part it cannot."""


class JobFailed(PlannerError):
    """Processes that were started here ended badly; the message names the rank and its error, and none is left."""


class PlannerBug(PlannerError):
    """The planner contradicted itself: a check outside the search disagreed with the search."""
