"""Plan how to train a model on a cluster: ``plan(model, cluster)`` chooses, proves, explains and launches.

from planner import plan
p = plan("llama-3.1-70b", "dgx-h100:4")
print(p.summary())
p.write("launch/")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cost_models.workload import Training
    from planner.api import estimate, plan
    from planner.errors import BadInput, InfeasiblePlan, PlannerError, SearchGaveUp, UnknownName, Unsupported
    from planner.fronts.mixed import MixedFront
    from planner.fronts.pareto import Front, pareto
    from planner.mixed.result import MixedPlan
    from planner.result import Plan
    from topologies.ready import read_cluster

_HOME = {
    "Front": "planner.fronts.pareto", "pareto": "planner.fronts.pareto",
    "MixedFront": "planner.fronts.mixed", "MixedPlan": "planner.mixed.result",
    "plan": "planner.api", "estimate": "planner.api", "Plan": "planner.result",
    "read_cluster": "topologies.ready", "Training": "cost_models.workload",
    "BadInput": "planner.errors", "InfeasiblePlan": "planner.errors", "PlannerError": "planner.errors",
    "SearchGaveUp": "planner.errors", "UnknownName": "planner.errors", "Unsupported": "planner.errors",
}  # fmt: skip
__all__ = [
    "BadInput", "Front", "InfeasiblePlan", "MixedFront", "MixedPlan", "Plan", "PlannerError", "SearchGaveUp",
    "Training", "UnknownName", "Unsupported", "estimate", "pareto", "plan", "read_cluster",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import planner`` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
