"""What a pipeline rank keeps at most where its schedule computes the weights' gradients later than the input's.

torch's pass for the input's gradient keeps its graph whole, and with it the gradients of what every weight's product
and norm put out: from these and the activations the later pass computes the weights' own. So between the two passes a
micro-batch takes its activations and, a layer,

    (sum of the products' output widths + hidden for each norm) * tokens * bytes

A stage that recomputes or has ZeRO-3 computes both at once, when the input's is due, and the first stage when the
weights' are (:mod:`planner.runtime.pipeline_stage`).

Source: torch 2.13, torch/distributed/pipelining/_backward.py, ``stage_backward_input`` (``retain_graph``, ``grads``).
"""

from __future__ import annotations

from cost_models.chain import Chain
from cost_models.model_graph import Layer, ModelGraph
from cost_models.rows import Rows
from cost_models.workload import Training

FORWARD, BACKWARD, WEIGHTS = range(3)
"""Passes, as :meth:`cost_models.schedules.Schedule.work` numbers them."""


def most_kept_bytes(chain: Chain, runs: list, rank: int, model: ModelGraph, rows: Rows, workload: Training) -> float:
    """Bytes of activations and gradients between the passes at the rank's fullest moment."""
    mine = chain.schedule.stages_of(rank).tolist()
    whole = {c: int(rows.zero[0]) == 3 or any(kind != "none" for kind, _, _ in runs[c]) for c in mine}
    kept = {c: _kept_bytes(chain, runs[c]) for c in mine}
    between = {c: 0.0 if whole[c] or c == 0 else _between_bytes(runs[c], model, rows, workload) for c in mine}
    now = most = 0.0
    for which, stage, _ in chain.schedule.work(rank):
        if which == FORWARD:
            now += kept[stage]
        elif which == BACKWARD:
            now += -kept[stage] if whole[stage] else between[stage]
        elif not whole[stage]:
            now -= kept[stage] + between[stage]
        most = max(most, now)
    return most


def _kept_bytes(chain: Chain, runs: list) -> float:
    ends = chain.saved_ends(runs[0][1], runs[-1][2])
    return float(ends + sum(int(chain.saved(choice, i, j)) for choice, i, j in runs))


def _between_bytes(runs: list, model: ModelGraph, rows: Rows, workload: Training) -> float:
    tokens = float(rows.micro_batch[0]) * workload.seq_len / int(rows.cp[0]) / int(rows.tp[0])
    layers = model.order[runs[0][1] : runs[-1][2]]
    widths = sum(_output_width(model.kinds[kind], model.hidden) for kind in layers)
    return tokens * widths * workload.recipe.activation_bytes


def _output_width(layer: Layer, hidden: int) -> float:
    products = sum(it.n * it.active * it.rows for it in layer.operators if it.k)
    return products + hidden * sum(it.kind == "elementwise" and it.parameters > 0 for it in layer.operators)
