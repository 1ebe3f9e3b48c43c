"""Bytes on one device, per tensor class; arrays ``[rows]``.

Weights, gradients and optimiser states of a layer, with ``P = P_columns / tp + P_whole`` dense
parameters and ``P_e = P_experts / (ep etp)`` expert parameters on a device, ``T`` those of them that are trained
(adapters of rank r beside an ``[n, k]`` matrix: ``r (n + k) / tp``), and ``D`` the shard group
(``dp_shard * cp`` for dense parameters, ``edp`` for experts):

    weights      w P / (D if zero = 3 else 1)
    gradients    g T / (D if zero >= 2 else 1)
    optimiser    o T / (D if zero >= 1 else 1)

Activations of a layer and micro-batch: the elements each operator saves, divided over tp and cp
(sequence parallelism), times the bytes of an element; full recompute keeps the layer's input only. The input
of a frozen matrix is not kept unless an adapter reads it too, whose dropout keeps a second copy of attention's output.

Source: Rajbhandari et al., arXiv:1910.02054 (states); Korthikanti et al., arXiv:2205.05198 (activations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.kept import kept_elements
from cost_models.model_graph import Layer, ModelGraph, Operator
from cost_models.repeated_heads import kept_beyond_share
from cost_models.rows import Rows
from cost_models.strategy import RECOMPUTE
from cost_models.vocabulary import rows_of, rows_of_ends
from cost_models.workload import Training

Floats = NDArray[np.float64]
STATES = ("weights", "gradients", "optimizer")


@dataclass(frozen=True)
class LocalParameters:
    """Parameters of one layer on one device before ZeRO: dense and expert, ``[rows]``."""

    dense: Floats
    experts: Floats


def local_parameters(layer: Layer, rows: Rows) -> LocalParameters:
    """Parameters of ``layer`` that a device of its stage holds when nothing is sharded over data parallelism."""
    rows = rows_of(layer, rows)
    return LocalParameters(
        layer.column_parameters / rows.tp + layer.whole_parameters,
        layer.expert_parameters / (rows.ep * rows.etp),
    )


def trained_parameters(layer: Layer, rows: Rows, workload: Training) -> LocalParameters:
    """Those of :func:`local_parameters` that learn: all of them, or adapters only."""
    if workload.tuning != "lora":
        return local_parameters(layer, rows)
    rows = rows_of(layer, rows)
    adapters = sum(op.n + op.k for op in layer.operators if workload.adapts(op.name)) * workload.lora_rank
    return LocalParameters(adapters / rows.tp, np.zeros(len(rows)))


def shard_group(rows: Rows) -> tuple[Floats, Floats]:
    """Ways that ZeRO divides states: ``(dense, experts)``; 1 when ``zero`` is 0."""
    sharded = rows.zero >= 1
    return np.where(sharded, rows.dp_shard * rows.cp, 1), np.where(sharded, rows.edp, 1)


def state_bytes(layer: Layer, rows: Rows, workload: Training, fits: Calibration | None = None) -> dict[str, Floats]:
    """Bytes of weights, gradients and optimiser states of one layer on one device.

    Sharded fp32 weights are the master copy among the states, but for frozen ones, which have no states; what is
    gathered once stays whole, with its gradients.
    """
    rows = rows_of(layer, rows)
    held, learnt = local_parameters(layer, rows), trained_parameters(layer, rows, workload)
    master = (rows.zero == 3) & workload.stack.master_weights_sharded & (workload.tuning != "lora")
    once = (rows.zero == 3) & (rows.pp > 1) & workload.stack.gather_once
    each = {
        "weights": (held, workload.weight_bytes(frozen_matrices=_frozen(layer, workload)), 3),
        "gradients": (learnt, workload.recipe.gradient_bytes, 2),
        "optimizer": (learnt, _optimizer_bytes(layer, workload), 1),
    }
    if workload.stack.held_gradient_bytes is not None:
        each["gradients"] = (learnt, workload.stack.held_gradient_bytes, 2)
    sizes = {name: size * _divided(local, rows, stage) for name, (local, size, stage) in each.items()}
    whole = held.dense + held.experts
    sizes["weights"] = np.where(master, 0.0, sizes["weights"]) + once * workload.recipe.gather_bytes * whole
    sizes["gradients"] = sizes["gradients"] + once * workload.recipe.gradient_bytes * whole
    sizes["optimizer"] = sizes["optimizer"] + (fits.step_bytes * _divided(learnt, rows, 1) if fits else 0.0)
    return sizes


def _optimizer_bytes(layer: Layer, workload: Training) -> float:
    """Bytes a parameter of the layer's states, which of an embedding may be wider."""
    wider = workload.stack.embedding_optimizer_bytes if layer.kind == "embedding" else None
    return workload.optimizer_bytes if wider is None else wider


def _frozen(layer: Layer, workload: Training) -> bool:
    """Whether a frozen layer's matrices are kept as the stack keeps them: those between the ends, or the head's too."""
    return layer.boundaries > 0 or (workload.stack.bitsandbytes and layer.kind == "head")


def _divided(local: LocalParameters, rows: Rows, stage: int) -> Floats:
    """Parameters of a tensor class that ZeRO divides from ``stage`` on."""
    dense, experts = shard_group(rows)
    whole, sharded = local.dense + local.experts, local.dense / dense + local.experts / experts
    return np.where(rows.zero >= stage, sharded, whole)


def saved_bytes(layer: Layer, hidden: int, rows: Rows, workload: Training, fits: Calibration) -> dict[str, Floats]:
    """Bytes a layer keeps for backward, per micro-batch, by recompute choice."""
    rows = rows_of(layer, rows)
    tokens = rows.micro_batch * workload.seq_len / rows.cp
    element = workload.recipe.activation_bytes
    kept = {"none": "saved", "selective": "saved_selective"}
    sums = {
        choice: sum(
            (
                kept_elements(op, layer, hidden, name, workload) * _share(op, rows, fits, workload)
                for op in layer.operators
            ),
            _extra(layer, hidden, rows, workload, name),
        )
        for choice, name in kept.items()
    }
    entering = hidden if layer.entering is None else layer.entering
    sums["full"] = entering * _sequence_share(rows, workload)
    sums["selective"] = np.minimum(np.maximum(sums["selective"], sums["full"]), sums["none"])
    return {choice: tokens * element * sums[choice] for choice in RECOMPUTE}


def _sequence_share(rows: Rows, workload: Training) -> Floats:
    """Part of a hidden state that a tp rank keeps: its tokens under sequence parallelism, else all of them."""
    return 1.0 / rows.tp if workload.stack.sequence_parallel else np.ones(len(rows))


def _extra(layer: Layer, hidden: int, rows: Rows, workload: Training, name: str) -> Floats:
    """16-bit elements a token of dropout masks (a byte each, twice a layer), scores, gathered inputs and KV heads.

    Scores written to memory: ``2 a s`` bytes behind the softmax, with dropout ``5 a s``, on each tp rank its heads.
    Source: Korthikanti et al., arXiv:2205.05198, section 4.1; 4.2.2 for the inputs, of which a rank keeps its tokens.
    """
    stack, extra = workload.stack, kept_beyond_share(layer, rows)
    if stack.repeats_kv and name == "saved":
        extra = np.zeros(len(rows))
    if stack.dropout and layer.boundaries:
        extra = extra + hidden * _sequence_share(rows, workload)
    if name == "saved":
        extra = extra + layer.boundaries * _gathered(hidden, rows, workload)
    if stack.fused_attention or name != "saved":
        return extra
    attentions = (op.attention for op in layer.operators if op.attention is not None)
    heads = sum(it.heads * it.queries * it.keys for it in attentions)
    return extra + heads * workload.seq_len * (2.5 if stack.dropout else 1.0) / rows.tp


def _gathered(hidden: int, rows: Rows, workload: Training) -> Floats:
    """Elements that a gathered input takes beyond the rank's own tokens, where it is kept and not gathered again."""
    kept = workload.stack.sequence_parallel and not workload.stack.gathers_again
    return hidden * (1 - 1 / rows.tp) if kept else np.zeros(len(rows))


def _share(op: Operator, rows: Rows, fits: Calibration, workload: Training) -> Floats:
    """Part of an operator's saved elements that one device keeps."""
    if op.split == "whole":
        return np.ones(len(rows))
    if op.split == "sequence":
        return _sequence_share(rows, workload)
    if op.split == "routed":
        return fits.expert_imbalance * rows.etp / rows.tp
    return (fits.expert_imbalance if op.split == "experts" else 1.0) / rows.tp


def logit_bytes(model: ModelGraph, rows: Rows, workload: Training, fits: Calibration) -> Floats:
    """Bytes of one micro-batch's logits and their gradient on the last stage, and of the head's gathered input."""
    rows = rows_of_ends(rows)
    each = _logit_bytes(rows, workload, fits)
    gathered = workload.recipe.activation_bytes * _gathered(model.hidden, rows, workload)
    return rows.micro_batch * workload.seq_len / rows.cp * (each * model.vocab / rows.tp + gathered)


def _logit_bytes(rows: Rows, workload: Training, fits: Calibration) -> Floats:
    """Bytes of one logit with all that the loss makes of it."""
    if workload.stack.fused_loss and fits.fused_logit_bytes is not None:
        return np.full(len(rows), fits.fused_logit_bytes)
    split = fits.logit_bytes if fits.split_logit_bytes is None else fits.split_logit_bytes
    return np.where(rows.tp > 1, split, fits.logit_bytes)


def buffer_bytes(model: ModelGraph, rows: Rows, workload: Training, fits: Calibration) -> Floats:
    """Bytes of gathered hidden states, gathered weights and, of each communicator, NCCL's own.

    ZeRO-3 holds two layers' gathered weights (the next is fetched while one computes), ZeRO-2 and 3 one
    layer's unreduced gradients; sequence parallelism :func:`_gathered_states`; context parallelism two blocks of
    keys and values on their way round the ring, and as much of their gradients. CUDA graphs pin buffers of their own,
    but for those of frozen layers: the fits of LoRA with cp 2, 4 and 8 leave 0.3 GiB beside weights for all else.
    """
    ends, wide = rows_of_ends(rows), model.hidden * workload.recipe.activation_bytes
    hidden, outer = (rows.micro_batch * workload.seq_len / it.cp * wide for it in (rows, ends))
    largest = np.max([_parameters(kind, rows) for kind in (*model.kinds, model.embedding, model.head)], axis=0)
    gathered = largest * (
        np.where(rows.zero == 3, 2 * workload.recipe.weight_bytes, 0)
        + np.where(rows.zero >= 2, workload.recipe.gradient_bytes, 0)
    )
    ring = 4 * hidden / model.hidden * _local_kv_elements(model, rows)
    return (
        communicators_bytes(rows, fits)
        + _gathered_states(workload) * np.maximum((rows.tp > 1) * hidden, (ends.tp > 1) * outer)
        + np.where(rows.cp > 1, ring, 0.0)
        + gathered
        + _dequantised(model, rows, workload)
        + _passing(largest, _parameters(model.head, rows), workload)
        + (workload.stack.cuda_graphs and workload.tuning == "all") * fits.graph_bytes
    )


def _gathered_states(workload: Training) -> float:
    """Whole hidden states on a tp rank at once: one gathered and one to scatter, each with a copy in another order.

    No copies where ranks gather along the outermost dimension, nor where products take the parts as they come.
    Source: pytorch/pytorch torch/distributed/_functional_collectives.py@v2.6.0, all_gather_tensor and
    reduce_scatter_tensor with a dimension other than 0: torch.cat(torch.chunk(...)).
    """
    return 4.0 if workload.stack.copies_gathered and not workload.stack.tp_overlap else 2.0


def _passing(largest: Floats, head: Floats, workload: Training) -> Floats:
    """Bytes of the largest gradient where each is applied and freed at once: it is held until then.

    A head that runs once for each chunk of the loss has its gradient summed up beside that of the next chunk.
    """
    at_once = workload.recipe.gradient_bytes == 0 and workload.tuning == "all"
    held = np.maximum(largest, 2 * head) if workload.stack.chunked_loss else largest
    return workload.recipe.activation_bytes * held if at_once else np.zeros_like(held)


def _dequantised(model: ModelGraph, rows: Rows, workload: Training) -> Floats:
    """Bytes of the largest quantised matrix, twice in 16 bits, while its product runs.

    By hand from litgpt's inference table, where 3B to 70B take 0.44 to 1.25 GB beyond their quantised weights.
    """
    if not (workload.stack.bitsandbytes and workload.stack.frozen_bytes and workload.tuning == "lora"):
        return np.zeros(len(rows))
    largest = max(op.n * op.k for kind in (*model.kinds, model.head) for op in kind.operators)
    return 2 * workload.recipe.activation_bytes * largest / rows.tp


def _local_kv_elements(model: ModelGraph, rows: Rows) -> Floats:
    """Elements of keys and values a token on one tp rank, the most of any layer; at least one KV head each."""
    shapes = [op.attention for kind in model.kinds for op in kind.operators if op.attention is not None]
    each = [(it.qk_dim + it.v_dim) * it.keys * np.maximum(it.kv_heads / rows.tp, 1) for it in shapes]
    return np.max(each, axis=0) if each else np.zeros(len(rows))


def _parameters(layer: Layer, rows: Rows) -> Floats:
    local = local_parameters(layer, rows)
    return local.dense + local.experts


def workspace_bytes(model: ModelGraph, rows: Rows, workload: Training, fits: Calibration) -> Floats:
    """Bytes of one layer's temporaries in the backward pass: what it saves when nothing is recomputed."""
    saved = [saved_bytes(kind, model.hidden, rows, workload, fits)["none"] for kind in model.kinds]
    return np.max(saved, axis=0)


def communicators_bytes(rows: Rows, fits: Calibration) -> Floats:
    """Bytes that NCCL takes beside the allocator: one communicator an axis, and one of ends with a tp of their own."""
    ends = np.where(rows_of_ends(rows).tp == rows.tp, 1, rows.vocab_tp)
    axes = (rows.tp, rows.cp, rows.dp, rows.pp, rows.ep, ends)
    return fits.communicator_bytes * sum((axis > 1).astype(float) for axis in axes)


def needed(classes: Mapping[str, float], workload: Training, fits: Calibration, spare: float = 1.0) -> float:
    """Bytes that must be free at once for a step that takes ``spare`` times what is predicted.

    The update's own come when activations and logits are gone.

    Meters of the allocator's pool and of the device show both, as it keeps the blocks of one beside those of the other
    until none is left.
    """
    step = fits.step_bytes / (fits.step_bytes + workload.optimizer_bytes) if fits.step_bytes else 0.0
    return spare * sum(classes.values()) - min(step * classes["optimizer"], classes["activations"] + classes["logits"])


def metered(classes: Mapping[str, float], rows: Rows, fits: Calibration, meter: str) -> float:
    """Bytes of one device as a meter shows them.

    ``device`` is all of it (nvidia-smi); ``reserved`` leaves out the CUDA context and NCCL's buffers, which the
    allocator does not own; ``allocated`` leaves out its unused blocks too.
    """
    total = sum(classes.values())
    if meter == "device":
        return total
    reserved = total - fits.context_bytes - float(communicators_bytes(rows, fits)[0])
    share = fits.fragmentation_fraction
    if meter == "reserved":
        return reserved
    return reserved - share * classes["workspace"] - share / (1 + share) * classes["activations"]
