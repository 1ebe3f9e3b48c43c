"""A user's own strategy beside the plan, and the inputs of a saved plan read again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType

from cost_models.calibration import calibrate
from cost_models.estimate import Estimate
from cost_models.estimate import estimate as price_strategy
from cost_models.model_graph import ModelGraph
from planner.apart import as_numbered
from planner.api import Progress, plan
from planner.checks.check import broken_rules
from planner.defaults import default_workload
from planner.errors import BadInput, InfeasiblePlan
from planner.jobs import part_of
from planner.named import named_strategy
from planner.options import parse_assignments
from planner.plan_text import SCHEMA_VERSION
from planner.read_model import read_model
from planner.result import ModelRecord, Plan, StrategyRecord
from topologies.calibrated import calibrated
from topologies.cluster import Cluster
from topologies.ready import read_cluster
from topologies.tiers import with_tiers


@dataclass(frozen=True)
class Comparison:
    """One strategy that was asked about, and the best one for the same work, or why there is none."""

    strategy: StrategyRecord
    mine: Estimate
    plan: Plan | InfeasiblePlan
    limit_bytes: float

    @property
    def fits(self) -> bool:
        """Whether the strategy that was asked about fits the memory."""
        return max(self.mine.need_bytes) <= self.limit_bytes

    def view(self) -> RenderableType:
        """Both, line by line, for a terminal."""
        from planner.report import comparison

        return comparison(
            self.mine, self.strategy, self.plan if isinstance(self.plan, Plan) else None, self.limit_bytes
        )

    def as_json(self) -> dict[str, Any]:
        """Both as one JSON object."""
        mine = {**asdict(self.mine), "time": dict(self.mine.time), "strategy": self.strategy.model_dump(mode="json")}
        best = self.plan.as_json() if isinstance(self.plan, InfeasiblePlan) else json.loads(self.plan.to_json())
        return {"schema_version": SCHEMA_VERSION, "mine": {**mine, "fits": self.fits}, "plan": best}


def mine_and_plan(
    model: str,
    cluster: str,
    strategy: str,
    *,
    headroom: float = 0.05,
    time_limit_s: float = 60.0,
    progress: Progress = lambda stage, best, bound: None,
    calibration: str | None = None,
    **fields: Any,
) -> Comparison:
    """Price ``strategy`` and plan the same work. Raises ``BadInput`` for a strategy that is not legal."""
    graph, machine = read_model(model), calibrated(read_cluster(cluster), calibration)
    workload, _ = default_workload(graph, machine, **fields)
    mine = named_strategy(graph, machine, workload, parse_assignments(strategy))
    if complaints := broken_rules(graph, machine, workload, mine):
        raise BadInput("not a legal strategy: " + "; ".join(complaints))
    priced = price_strategy(graph, machine, workload, mine)
    try:
        best: Plan | InfeasiblePlan = plan(
            graph, machine, seq_len=workload.seq_len, global_batch=workload.global_batch, precision=workload.precision,
            optimizer=workload.optimizer, headroom=headroom, time_limit_s=time_limit_s, progress=progress,
            calibration=calibration,
        )  # fmt: skip
    except InfeasiblePlan as error:
        best = error
    return Comparison(StrategyRecord.of(mine), priced, best, machine.memory_bytes * (1 - headroom))


def inputs_of(
    saved: Plan, cluster: str | Cluster | None = None, model: ModelGraph | None = None
) -> tuple[ModelGraph, Cluster]:
    """The model and cluster a saved plan was made for; ``cluster`` says where its file is now, or is it itself.

    Raises ``BadInput`` when they cannot be had any more; whether they are the same is for ``verify`` to say.
    """
    graph = model or model_of(saved.model)
    whole = calibrated(read_cluster(cluster or saved.cluster.source), saved.options.get("calibration"))
    machine = part_of(whole, saved.jobs)
    return graph, with_tiers(as_numbered(machine, saved), tuple(saved.options.get("tiers", ())))


def same_inputs_of(
    saved: Plan, cluster: str | Cluster | None = None, model: ModelGraph | None = None
) -> tuple[ModelGraph, Cluster]:
    """As :func:`inputs_of`, the very ones that the plan was made for, the calibration included.

    Raises ``BadInput`` naming what has another digest now.
    """
    graph, machine = inputs_of(saved, cluster, model)
    digests = {
        f"model {saved.model.name!r}": (saved.model.digest, graph.digest),
        f"cluster {saved.cluster.source!r}": (saved.cluster.digest, machine.digest),
        "calibration": (saved.proof.cost_model_digest, calibrate(machine, saved.workload.stack).digest),
    }
    for what, (stated, found) in digests.items():
        if stated != found:
            raise BadInput(f"the {what} has digest {found}, but the plan was made for {stated}; plan again")
    return graph, machine


def model_of(record: ModelRecord) -> ModelGraph:
    """The model of a saved plan. Raises ``BadInput`` where it was none of a config."""
    if record.config is None:
        raise BadInput(f"the plan of {record.name!r} carries no config.json; verify it from Python with its ModelGraph")
    from planner.read_model import read_config

    return read_config(record.config, record.name)
