"""Bytes that torch's allocator holds at the fullest moment of a step, beside the need that a plan is checked against.

A plan's need keeps every class side by side. In the runtime gradients of a step's first backward passes appear as the
activations they come from go, so that a rank holds both in full only where it takes another micro-batch afterwards:

    begin    states + [G] + A + L + gathered                      the first layer goes back; L logits, on the last stage
    middle   states + [G] + A - one layer + gathered + reduced    its gradients are there, and a copy on its way
    end      states + G + ends' gradients and their copy          embedding and head are one group of FSDP's
    peak     the most of the three; [G] only if micro-batches follow that a backward pass goes before

``gathered`` are the ends and one layer under ZeRO-3, in the middle the next layer too, each with the buffer that it
came in; ``reduced`` a layer's gradients and the buffer that they leave in. A pipeline's ranks keep a buffer for each
message of the step that they receive. ZeRO-1's gradients are scattered in the only micro-batch, if there is one. Context,
communicators and unused blocks are not the allocator's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

from cost_models.calibration import Calibration
from cost_models.memory import local_parameters, logit_bytes
from cost_models.model_graph import ModelGraph
from cost_models.rows import Rows
from cost_models.schedules import Schedule
from cost_models.workload import OPTIMISER_STATE_BYTES, Training

FORWARD, BACKWARD, WEIGHTS = range(3)
"""Passes, as :meth:`cost_models.schedules.Schedule.work` numbers them."""
BEHIND = 0.4
"""Part of what a layer keeps that its backward pass holds besides: the gradient of its output and one of the network's
width, about, since what was read last is freed first."""


def peak_bytes(
    classes: Mapping[str, float], rank: int, model: ModelGraph, rows: Rows, workload: Training, fits: Calibration,
    schedule: Schedule, repeats: bool = False,
) -> float:  # fmt: skip
    """The most that one device of a pipeline rank holds at once, of row 0; ``repeats`` where it recomputes layers
    whole."""
    pp, count, zero = int(rows.pp[0]), int(rows.micro_batches[0]), int(rows.zero[0])
    states = (
        classes["weights"] + _optimizer(classes["optimizer"], rows, workload) + _messages(rank, model, rows, workload)
    )
    states += float(rows.tp[0] > 1) * 2 * _hidden_bytes(model, rows, workload)
    kept = classes["activations"] / (1 + fits.fragmentation_fraction)
    layer, ends = _groups(rank, model, rows)
    gathers, reduces = 4.0 * (zero == 3), 4.0 * (zero >= 1 and int(rows.dp[0]) > 1)
    logits = float(logit_bytes(model, rows, workload, fits)[0]) if rank == pp - 1 else 0.0
    inside = classes["workspace"] * (BEHIND + repeats)
    again = classes["gradients"] if fullest_after_a_backward(schedule, rank) else 0.0
    begin = again + kept + max(logits, inside) + gathers * (ends + layer)
    middle = again + max(kept - classes["workspace"], 0.0) + inside + gathers * (ends + 4 * layer) + reduces * 2 * layer
    summed = classes["gradients"] / (int(rows.dp_shard[0]) if zero == 1 and count == 1 else 1)
    end = summed + reduces * 2 * (ends + layer) + gathers * (ends + layer)
    return states + max(begin, middle, end)


def fullest_after_a_backward(schedule: Schedule, rank: int) -> bool:
    """Whether gradients are there already when a pipeline rank last holds most of its activations."""
    held = most = ended = 0
    found = False
    for which, _, _ in schedule.work(rank):
        if which == FORWARD:
            held += 1
            most, found = (held, ended > 0) if held >= most else (most, found)
        elif which == (WEIGHTS if schedule.split else BACKWARD):
            held, ended = held - 1, ended + 1
    return found


def _groups(rank: int, model: ModelGraph, rows: Rows) -> tuple[float, float]:
    """Parameters on one device, before sharding, of the largest layer, and of the ends that the rank holds."""
    whole = [local_parameters(kind, rows) for kind in (*model.kinds, model.embedding, model.head)]
    *layers, first, last = [float(it.dense[0] + it.experts[0]) for it in whole]
    return max(layers), first * (rank == 0) + last * (rank == int(rows.pp[0]) - 1)


def _hidden_bytes(model: ModelGraph, rows: Rows, workload: Training) -> float:
    tokens = float(rows.micro_batch[0]) * workload.seq_len / int(rows.cp[0])
    return tokens * model.hidden * workload.recipe.activation_bytes


def _optimizer(size: float, rows: Rows, workload: Training) -> float:
    """Without a master copy where one process holds the whole stage: the weights are it."""
    if int(rows.stage_size[0]) > int(rows.tp[0]) or workload.stack.master_bytes is None:
        return size
    state = OPTIMISER_STATE_BYTES[workload.optimizer]
    return size * state / (state + workload.stack.master_bytes)


def _messages(rank: int, model: ModelGraph, rows: Rows, workload: Training) -> float:
    """Buffers of the step's messages: hidden states from the stage before, gradients from the stage behind."""
    received = (rank > 0) + (rank < int(rows.pp[0]) - 1)
    return received * float(rows.micro_batches[0]) * _hidden_bytes(model, rows, workload) / int(rows.tp[0])
