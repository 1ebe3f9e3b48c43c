"""A plan's step as the cost models see it, term by term and rank by rank, to stand beside what was measured.

forward, backward    compute of all micro-batches; backward with what it recomputes
tensor, context, expert and data parallel    exposed communication, gradients and weights at the end included
optimizer            its update
pipeline             what is left of the step: hops, and waiting for other stages
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cost_models.calibration import Calibration, calibrate
from cost_models.chain import Chain
from cost_models.compute import layer_compute
from cost_models.estimate import Evaluation, evaluate, memory_classes
from cost_models.model_graph import ModelGraph
from cost_models.placed import strategy_chain
from cost_models.rows import Rows
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.errors import BadInput
from planner.explanations.mine import same_inputs_of
from planner.machine.predicted_peak import peak_bytes
from planner.ranks import world_size
from planner.result import Plan
from topologies.cluster import Cluster

TERMS = (
    "forward", "backward", "tensor parallel", "context parallel", "expert parallel", "data parallel", "optimizer",
    "pipeline",
)  # fmt: skip


@dataclass(frozen=True)
class Predicted:
    """What is predicted of every pipeline rank: seconds by term, bytes that torch's allocator holds at most."""

    step_s: float
    terms: tuple[dict[str, float], ...]
    peak_bytes: tuple[float, ...]


def predicted_terms(plan: Plan) -> Predicted:
    """The plan's step priced again and taken apart.

    Raises ``BadInput`` for a plan whose model, cluster or calibration are not what it says, or whose ranks do not add
    up.
    """
    model, cluster = checked_inputs(plan)
    fits, strategy = calibrate(cluster, plan.workload.stack), plan.strategy.strategy()
    chain = strategy_chain(model, cluster, plan.workload, strategy, fits, Ticks.of(model, cluster, plan.workload))
    runs, rows = chain.runs(strategy.stages), Rows.of(strategy)
    found = evaluate(chain, runs, strategy.clocks)
    compute = compute_by_kind(model, rows, cluster, plan.workload, fits)
    terms = [terms_of_rank(chain, runs, found, compute, rank, plan.step_s) for rank in range(chain.pp)]
    peaks = [
        peak_bytes(chain, runs, rank, classes, model, rows, plan.workload, fits)
        for rank, classes in enumerate(memory_classes(chain, runs))
    ]
    return Predicted(plan.step_s, tuple(terms), tuple(peaks))


def checked_inputs(plan: Plan) -> tuple[ModelGraph, Cluster]:
    """The model and cluster of a plan, both what it was made for. Raises ``BadInput`` naming what is not."""
    model, cluster = same_inputs_of(plan)
    world = world_size(plan.strategy)
    if world != plan.cluster.devices_used:
        raise BadInput(
            f"dp_replicate*dp_shard*cp*tp*pp = {world} ranks, but the plan says it uses {plan.cluster.devices_used} "
            "devices; it was changed by hand: plan again"
        )
    return model, cluster


def compute_by_kind(
    model: ModelGraph, rows: Rows, cluster: Cluster, workload: Training, fits: Calibration
) -> dict[str, Any]:
    """Seconds of a micro-batch's passes by kind of layer, ``[rows, kinds]``, as the tables of prices have them."""
    kinds = (*model.kinds, model.embedding, model.head)
    works = [layer_compute(kind, rows, cluster, workload, fits) for kind in kinds]
    return {name: np.stack([getattr(work, name).seconds for work in works], axis=1) for name in ("forward", "backward")}


def terms_of_rank(
    chain: Chain, runs: list, found: Evaluation, compute: dict[str, Any], rank: int, step_s: float
) -> dict[str, float]:
    """Seconds of a step of ``step_s`` on the devices of one pipeline rank, by the names of :data:`TERMS`."""
    tick, mine = chain.prices.ticks.second, chain.schedule.stages_of(rank).tolist()
    spans = [(runs[c][0][1], runs[c][-1][2]) for c in mine]

    def total(table: Any) -> float:
        return chain.micro_batches * sum(float(chain.total(table, i, j)) for i, j in spans)

    parts = {name: total(table) for name, table in chain.prices.parts.items() if name != "compute"}
    again = sum(int(chain.recompute(choice, a, b)) for c in mine for choice, a, b in runs[c]) * tick
    update = sum(float(chain.tail_parts(i, j)["update"]) for i, j in spans) * tick
    terms = {
        "forward": total(compute["forward"]),
        "backward": total(compute["backward"]) + chain.micro_batches * again,
        **{name: parts.get(name, 0.0) for name in TERMS[2:5]},
        "data parallel": parts.get("sharded data parallel", 0.0) + float(found.tail[rank]) * tick - update,
        "optimizer": update,
    }
    return {**terms, "pipeline": max(0.0, step_s - sum(terms.values()))}
