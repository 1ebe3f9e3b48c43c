"""Bytes that torch's allocator holds at the fullest moment of a step, beside the need that a plan is checked against.

A plan's need keeps every class side by side. In the runtime gradients of a step's first backward passes appear as the
activations they come from go, so that a rank holds both in full only where it takes another micro-batch afterwards:

    begin    states + [G] + A + max(L, inside + gathered) + [ends]         the first layer goes back; L logits
    middle   states + [G] + A - one layer + inside + gathered + reduced   its gradients are there, and a copy on its way
    end      states + G + ends' gradients and their copy                   embedding and head are one group of FSDP's
    peak     the most of the three; [G] only if micro-batches follow that a backward pass goes before

``gathered`` are, under ZeRO-3, the ends, one layer and the buffer that the next layer comes in; ``reduced`` a layer's
gradients and the buffer that those of the layer before left in. The buffer of the ends is kept until a layer of the
next micro-batch takes its turn, [ends]. What messages hold is in :mod:`planner.machine.messages`, what a backward pass
in two parts keeps in :mod:`planner.machine.split_backward`. ZeRO-1's gradients are scattered in the only micro-batch,
if there is one. Context, communicators and unused blocks are not the allocator's tensors.

Source: torch 2.13, torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py (``wait_for_unshard``, ``post_backward``,
``reduce_scatter_states``).
"""

from __future__ import annotations

from collections.abc import Mapping

from cost_models.calibration import Calibration
from cost_models.chain import Chain
from cost_models.memory import local_parameters, logit_bytes
from cost_models.model_graph import ModelGraph
from cost_models.rows import Rows
from cost_models.workload import OPTIMISER_STATE_BYTES, Training
from planner.machine.messages import a_backward_ended, messages_held, until_fullest
from planner.machine.split_backward import most_kept_bytes

BEHIND = 0.4
"""Part of what a layer keeps that its backward pass holds besides: the gradient of its output and one of the network's
width, about, since what was read last is freed first."""


def peak_bytes(
    chain: Chain, runs: list, rank: int, classes: Mapping[str, float], model: ModelGraph, rows: Rows,
    workload: Training, fits: Calibration,
) -> float:  # fmt: skip
    """The most that one device of a pipeline rank holds at once, of row 0; ``classes`` are what it needs by class."""
    pp, count, zero = int(rows.pp[0]), int(rows.micro_batches[0]), int(rows.zero[0])
    mine = chain.schedule.stages_of(rank).tolist()
    states = classes["weights"] + _optimizer(classes["optimizer"], rows, workload)
    so_far = until_fullest(chain, rank)
    hidden = _hidden_bytes(model, rows, workload)
    states += messages_held(chain, rank, so_far) * hidden / int(rows.tp[0]) + float(rows.tp[0] > 1) * 2 * hidden
    layer, ends = _groups(mine, chain, model, rows)
    gathers, reduces = 4.0 * (zero == 3), 4.0 * (zero >= 1 and int(rows.dp[0]) > 1)
    if chain.schedule.split:
        kept = most_kept_bytes(chain, runs, rank, model, rows, workload)
    else:
        kept = classes["activations"] / (1 + fits.fragmentation_fraction)
    logits = float(logit_bytes(model, rows, workload, fits)[0]) if pp * chain.virtual - 1 in mine else 0.0
    inside = classes["workspace"] * (BEHIND + any(kind == "full" for stage in mine for kind, _, _ in runs[stage]))
    follows = a_backward_ended(chain, so_far)
    again = classes["gradients"] if follows else 0.0
    left = reduces * ends if follows and zero >= 2 else 0.0
    begin = again + left + kept + max(logits, inside + gathers * (ends + 2 * layer))
    middle = again + max(kept - classes["workspace"], 0.0) + inside + gathers * (ends + 2 * layer) + reduces * 2 * layer
    summed = classes["gradients"] / (int(rows.dp_shard[0]) if zero == 1 and count == 1 else 1)
    end = summed + reduces * 2 * (ends + layer) + gathers * (ends + layer)
    return states + max(begin, middle, end)


def _groups(mine: list[int], chain: Chain, model: ModelGraph, rows: Rows) -> tuple[float, float]:
    """Parameters on one device, before sharding, of the largest layer, and of the ends that the rank holds."""
    whole = [local_parameters(kind, rows) for kind in (*model.kinds, model.embedding, model.head)]
    *layers, first, last = [float(it.dense[0] + it.experts[0]) for it in whole]
    return max(layers), first * (0 in mine) + last * (chain.pp * chain.virtual - 1 in mine)


def _hidden_bytes(model: ModelGraph, rows: Rows, workload: Training) -> float:
    tokens = float(rows.micro_batch[0]) * workload.seq_len / int(rows.cp[0])
    return tokens * model.hidden * workload.recipe.activation_bytes


def _optimizer(size: float, rows: Rows, workload: Training) -> float:
    """Without a master copy where one process holds the whole stage: the weights are it."""
    if int(rows.stage_size[0]) > int(rows.tp[0]) or workload.stack.master_bytes is None:
        return size
    state = OPTIMISER_STATE_BYTES[workload.optimizer]
    return size * state / (state + workload.stack.master_bytes)
