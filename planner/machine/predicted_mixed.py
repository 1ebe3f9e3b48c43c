"""A pipeline over several kinds of devices as the cost models see it, to stand beside what was measured.

Every stage is priced on its own part, as the stage of its number in a pipeline of only such stages; what hops between
kinds take is in what is left of the step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cost_models.chain import Chain
from cost_models.estimate import evaluate, memory_classes
from cost_models.mixed import SETUP, Machine, MixedStage, evaluate_mixed, stage_rows
from cost_models.pipeline import ends, schedule_graph
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.strategy import Stage
from planner.machine.predicted_peak import peak_bytes
from planner.machine.predicted_terms import Predicted, compute_by_kind, terms_of_rank
from planner.mixed.inputs import same_mixed_inputs_of
from planner.mixed.result import MixedPlan
from planner.plots import piece


def predicted_mixed(plan: MixedPlan) -> Predicted:
    """The plan's step priced again and taken apart by stage; raises as :func:`same_mixed_inputs_of`."""
    machine = _machine(plan)
    each = [_stage(plan, machine, stage) for stage in range(len(plan.stages))]
    return Predicted(plan.step_s, tuple(terms for terms, _ in each), tuple(peak for _, peak in each))


def _machine(plan: MixedPlan) -> Machine:
    return Machine.of(*same_mixed_inputs_of(plan), plan.workload)


def _stage(plan: MixedPlan, machine: Machine, at: int) -> tuple[dict[str, float], float]:
    """Seconds by term of one stage's devices, and the most bytes that torch's allocator holds there."""
    stages = plan.strategy().stages
    part, workload = stages[at].part, plan.workload
    cluster, fits = machine.cluster.parts[part], machine.fits[part]
    rows = _rows(machine, stages[at], len(stages))
    prices = price(machine.model, cluster, workload, rows, fits, machine.ticks, devices=machine.cluster.devices)
    chain = Chain(machine.model, prices, 0)
    runs = chain.runs(tuple(Stage(stage.runs) for stage in stages))
    compute = compute_by_kind(machine.model, rows, cluster, workload, fits)
    terms = terms_of_rank(chain, runs, evaluate(chain, runs), compute, at, plan.step_s)
    classes = memory_classes(chain, runs)[at]
    return terms, peak_bytes(chain, runs, at, classes, machine.model, rows, workload, fits)


def _rows(machine: Machine, stage: MixedStage, count: int) -> Rows:
    """The row of a pipeline of ``count`` such stages."""
    setup = np.array([[getattr(stage, name) for name in SETUP]], dtype=np.int64)
    rows = stage_rows(machine.cluster.parts[stage.part], setup, machine.workload)
    return dataclasses.replace(rows, pp=np.array([count]))


def mixed_timeline(plan: MixedPlan) -> list[dict[str, Any]]:
    """The predicted passes and tails of every stage, as :meth:`planner.plots.Plots.timeline_data` has them."""
    machine, strategy = _machine(plan), plan.strategy()
    found, graph = evaluate_mixed(machine, strategy), schedule_graph(len(plan.stages), 1, plan.micro_batches)
    end = ends(graph, found.forward[None], found.backward[None], found.hop[None])[:-1, 0]
    end = end.reshape(graph.passes, graph.chunks, graph.micro_batches) * machine.ticks.second
    took = np.stack([found.forward, found.backward]) * machine.ticks.second
    passes = [
        piece(s, name, float(end[k, s, i] - took[k, s]), float(end[k, s, i]), s, i)
        for k, name in enumerate(("forward", "backward")) for s in range(graph.chunks)
        for i in range(graph.micro_batches)
    ]  # fmt: skip
    last = end.max(axis=(0, 2))
    tails = [
        piece(s, "tail", float(last[s]), float(last[s]) + ticks * machine.ticks.second)
        for s, ticks in enumerate(found.tail.tolist()) if ticks
    ]  # fmt: skip
    return [*passes, *tails]
