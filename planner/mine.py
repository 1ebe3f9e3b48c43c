"""A user's own strategy beside the plan, and the inputs of a saved plan read again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType

from cost_models.estimate import Estimate
from cost_models.estimate import estimate as price_strategy
from cost_models.model_graph import ModelGraph
from planner.api import Progress, plan
from planner.check import broken_rules
from planner.defaults import default_workload
from planner.errors import BadInput
from planner.named import named_strategy
from planner.options import parse_assignments
from planner.read_model import read_model
from planner.result import Plan, StrategyRecord
from topologies.cluster import Cluster
from topologies.ready import read_cluster


@dataclass(frozen=True)
class Comparison:
    """One strategy that was asked about, and the best one for the same work."""

    strategy: StrategyRecord
    mine: Estimate
    plan: Plan

    def view(self) -> RenderableType:
        """Both, line by line, for a terminal."""
        from planner.report import comparison

        return comparison(self.mine, self.strategy, self.plan)

    def as_json(self) -> dict[str, Any]:
        """Both as one JSON object."""
        mine = {**asdict(self.mine), "time": dict(self.mine.time), "strategy": self.strategy.model_dump(mode="json")}
        fits = max(self.mine.need_bytes) <= self.plan.memory[0].limit_bytes
        return {"schema_version": 1, "mine": {**mine, "fits": fits}, "plan": self.plan.model_dump(mode="json")}


def mine_and_plan(
    model: str, cluster: str, strategy: str, *, headroom: float = 0.05, time_limit_s: float = 60.0,
    progress: Progress = lambda stage, best, bound: None, **fields: Any,
) -> Comparison:
    """Price ``strategy`` and plan the same work. Raises ``BadInput`` for a strategy that is not legal."""
    graph, machine = read_model(model), read_cluster(cluster)
    workload, _ = default_workload(graph, machine, **fields)
    mine = named_strategy(graph, machine, workload, parse_assignments(strategy))
    if complaints := broken_rules(graph, machine, workload, mine):
        raise BadInput("not a legal strategy: " + "; ".join(complaints))
    priced = price_strategy(graph, machine, workload, mine)
    best = plan(
        graph, machine, seq_len=workload.seq_len, global_batch=workload.global_batch, precision=workload.precision,
        optimizer=workload.optimizer, headroom=headroom, time_limit_s=time_limit_s, progress=progress,
    )  # fmt: skip
    return Comparison(StrategyRecord.of(mine), priced, best)


def inputs_of(saved: Plan) -> tuple[ModelGraph, Cluster]:
    """The model and cluster a saved plan was made for.

    Raises ``BadInput`` when they cannot be had any more; whether they are the same is for ``verify`` to say.
    """
    if saved.model.config is None:
        raise BadInput(f"the plan of {saved.model.name!r} carries no config.json; verify it from Python with its ModelGraph")
    from planner.read_model import read_config

    return read_config(saved.model.config, saved.model.name), read_cluster(saved.cluster.source)
