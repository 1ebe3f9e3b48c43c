"""Seconds and joules of the operators of a layer, on one device, for one micro-batch.

Matrix products, attention and memory-bound operators take what :mod:`cost_models.kernels` says of their
shapes; each distinct shape is priced once. Backward takes two products for each forward one: the gradient
of the input, and that of the weights, whose sum over micro-batches is read and written in the gradient's
precision; adapters (``lora``) leave the second out and add two thin products beside attention's
projections. Attention's backward has 2.5 times the FLOP (its scores are computed again), and memory-bound
operators move half as many bytes again (a gradient comes in beside the saved input). Tensor and context
parallelism divide tokens or columns; without sequence parallelism norms and residuals are repeated on every
tp rank. Experts see ``top_k`` copies of each token, gathered over ``etp``.

Attention that is not fused multiplies whole score matrices and moves them: written by the product, read and
written by the softmax, read by the second product, in 16 bits; with dropout once more, with its mask.

A device never runs ahead of the host that launches its kernels: a layer takes at least its launches times
the stack's host time. Step-wide effects (clocks under sustained load) scale the compute-bound part.

Source: Williams et al., "Roofline", CACM 52 (2009); factors of backward attention: Dao, arXiv:2307.08691;
unfused attention: Korthikanti et al., arXiv:2205.05198, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration, Kernel
from cost_models.model_graph import Layer, Operator
from cost_models.rows import Rows, unique_rows
from cost_models.workload import Training
from topologies.cluster import Cluster

Floats = NDArray[np.float64]
BACKWARD_ATTENTION = 2.5
BACKWARD_MOVED = 1.5
FP32_BYTES = 4.0
SCORE_BYTES = 8.0
DROPPED_SCORE_BYTES = 5.0
ADAPTED = ("qkv", "output")
"""Matrices beside which LoRA puts adapters: attention's projections (Hu et al., arXiv:2106.09685, section 4.2)."""


@dataclass(frozen=True)
class Work:
    """Seconds and dynamic joules (above idle) on one device; arrays ``[rows]``."""

    seconds: Floats
    joules: Floats

    def __add__(self, other: Work) -> Work:
        return Work(self.seconds + other.seconds, self.joules + other.joules)

    def __mul__(self, factor: float | Floats) -> Work:
        return Work(self.seconds * factor, self.joules * factor)

    def __getitem__(self, index: NDArray) -> Work:
        return Work(self.seconds[index], self.joules[index])

    @staticmethod
    def zero(rows: int) -> Work:
        """No work."""
        return Work(np.zeros(rows), np.zeros(rows))


@dataclass(frozen=True)
class LayerCompute:
    """Compute of one layer and micro-batch: forward, backward, the forward part that selective recompute repeats.

    ``attention`` is the seconds of attention itself, forward and backward: what context parallelism hides behind.
    """

    forward: Work
    backward: Work
    selective: Work
    attention: tuple[Floats, Floats]


def layer_compute(layer: Layer, rows: Rows, cluster: Cluster, workload: Training, fits: Calibration) -> LayerCompute:
    """Compute of ``layer`` for every row; each distinct (tp, cp, ep, etp, micro-batch) is priced once."""
    first, inverse = unique_rows(rows.tp, rows.cp, rows.ep, rows.etp, rows.micro_batch)
    some, machine = rows.take(first), _Machine(cluster, workload, fits)
    forward = backward = selective = attention = attention_back = Work.zero(len(first))
    alternate = False
    for operator in layer.operators:
        once, again = machine.operator(operator, some)
        forward, backward = forward + once, backward + again
        if operator.kind in ("matmul", "expert_matmul"):
            alternate = not alternate
        if machine.repeats(operator, alternate):
            selective = selective + once
        if operator.kind == "attention":
            attention, attention_back = attention + once, attention_back + again
    forward, backward = machine.launched(layer, forward, 1), machine.launched(layer, backward, 2)
    beside = attention.seconds[inverse], attention_back.seconds[inverse]
    return LayerCompute(forward[inverse], backward[inverse], selective[inverse], beside)


def optimizer_work(parameters: Floats, cluster: Cluster, workload: Training, fits: Calibration) -> Work:
    """One optimiser update of ``parameters`` on a device: gradient read, states and master read and written.

    ``bytes = P (gradient + 2 states + weight)``; memory-bound.
    """
    per_parameter = workload.recipe.gradient_bytes + 2 * workload.optimizer_bytes + workload.recipe.weight_bytes
    if workload.recipe.master_bytes == 0:
        per_parameter += workload.recipe.weight_bytes
    machine = _Machine(cluster, workload, fits)
    return machine.moving(parameters * per_parameter, launches=0.0)


class _Machine:
    """The device's rates under one precision."""

    def __init__(self, cluster: Cluster, workload: Training, fits: Calibration) -> None:
        recipe, self.workload, self.stack = workload.recipe, workload, workload.stack
        self.seq_len, self.element_bytes = workload.seq_len, recipe.activation_bytes
        self.weight_bytes, self.accumulated_bytes = 2.0, 2 * recipe.gradient_bytes
        self.weight_bytes = max(2.0, min(recipe.weight_bytes, recipe.activation_bytes))
        low = recipe.compute in ("fp8", "fp4")
        self.wide, self.products = "bf16" if low else recipe.compute, recipe.compute
        self.peak = {dtype: cluster.peak_flop_per_s(dtype) for dtype in {self.wide, self.products}}
        self.bandwidth = cluster.memory_bandwidth_bytes_per_s
        self.plain, self.fits = fits.matmul["bf16"], fits
        figures = cluster.accelerator.figures
        span = figures.board_power.value - figures.idle_power.value
        self.watts = {kind: part * span for kind, part in fits.power_fraction.items()}

    def operator(self, op: Operator, rows: Rows) -> tuple[Work, Work]:
        """Forward and backward work of one operator."""
        tokens = rows.micro_batch * self.seq_len / rows.cp
        share = self._share(op, rows)
        if op.kind in ("matmul", "loss", "lookup") and op.n == 0:
            moved = op.moved * tokens / share * (FP32_BYTES if op.kind == "loss" else self.element_bytes)
            return self.moving(moved), self.moving(BACKWARD_MOVED * moved)
        if op.kind == "matmul":
            return self._adapted(op, tokens, self._matmul(op, tokens, share))
        if op.kind == "expert_matmul":
            return self._expert_matmul(op, tokens, rows)
        if op.kind == "attention":
            return self._attention(op, tokens, share, rows)
        moved = op.moved * tokens / share * self.element_bytes * self.fits.pointwise
        return self.moving(moved), self.moving(BACKWARD_MOVED * moved)

    def repeats(self, op: Operator, alternate: bool) -> bool:
        """Whether selective recompute runs ``op`` again; ``alternate`` holds for the first product of every two."""
        if self.stack.selective == "attention":
            return op.kind == "attention"
        return op.kind == "elementwise" or (
            self.stack.selective == "alternate" and op.kind in ("matmul", "expert_matmul") and alternate
        )

    def launched(self, layer: Layer, work: Work, passes: int) -> Work:
        """``work``, or the host's time to launch a layer's kernels where that is longer."""
        if self.stack.cuda_graphs:
            return work
        host_s = passes * len(layer.operators) * self.fits.host_s
        return Work(np.maximum(work.seconds, host_s), work.joules)

    def moving(self, moved_bytes: Floats, launches: float = 1.0) -> Work:
        """Work of a memory-bound operator."""
        seconds = launches * self.plain.launch_s + moved_bytes / (self.plain.memory_fraction * self.bandwidth)
        return Work(seconds, seconds * self.watts["memory"])

    def _share(self, op: Operator, rows: Rows) -> Floats:
        """Ways that an operator's tokens or columns are divided."""
        if op.split == "whole" or (op.split == "sequence" and not self.stack.sequence_parallel):
            return np.ones_like(rows.tp)
        return rows.tp / rows.etp if op.split == "routed" else rows.tp

    def _adapted(self, op: Operator, tokens: Floats, both: tuple[Work, Work]) -> tuple[Work, Work]:
        """The thin products of an adapter, whose whole cost is moving their inputs and outputs."""
        if self.workload.tuning != "lora" or op.name not in ADAPTED:
            return both
        moved = tokens * (op.k + 3 * op.n + 4 * self.workload.lora_rank) * self.element_bytes
        extra = self.moving(moved, launches=4.0)
        return both[0] + extra, both[1] + extra * 2

    def _matmul(self, op: Operator, tokens: Floats, share: Floats) -> tuple[Work, Work]:
        if op.split == "sequence":
            tokens, share = tokens / share, np.ones_like(share)
        dtype = self.products if op.name != "logits" and op.split == "columns" else self.wide
        n, k = (op.n / share, op.k) if op.n > op.k else (op.n, op.k / share)
        return self._three_products(tokens, n, k, dtype)

    def _expert_matmul(self, op: Operator, tokens: Floats, rows: Rows) -> tuple[Work, Work]:
        routed = tokens * op.active / rows.tp * rows.etp * self.fits.expert_imbalance
        n, k = (op.n / rows.etp, op.k) if op.n > op.k else (op.n, op.k / rows.etp)
        return self._three_products(routed, n, k, self.products, groups=op.groups / rows.ep)

    def _three_products(
        self, m: Floats, n: Floats, k: Floats, dtype: str, groups: Floats | float = 0.0
    ) -> tuple[Work, Work]:
        """Forward; and backward: the input's gradient, and the weights' added to what earlier micro-batches left."""
        weights, slow = np.maximum(groups, 1.0) * n * k, np.where(np.asarray(groups) > 0, self.fits.grouped_fraction, 1)
        flop, activations = 2.0 * m * n * k / slow, m * (n + k) * self.element_bytes
        once = self._product(flop, activations + weights * self.weight_bytes, dtype)
        if self.workload.tuning == "lora":
            return once, once
        return once, once + self._product(flop, activations + weights * self.accumulated_bytes, dtype)

    def _attention(self, op: Operator, tokens: Floats, share: Floats, rows: Rows) -> tuple[Work, Work]:
        """Context parallelism passes keys round a ring, so that one kernel sees ``seq_len / cp`` of them at most."""
        if not self.stack.fused_attention:
            return self._unfused_attention(op, tokens, share)
        flop = tokens * op.forward_flop_per_token(self.workload.attended_len) / share
        kernel, window = self.fits.attention, op.attention.window or self.seq_len
        keys = np.minimum(np.minimum(self.seq_len / rows.cp, window), self.workload.attended_len)
        rate = kernel.compute_fraction * keys / (keys + kernel.half_length) * self.peak[self.wide] * self.fits.sustained
        once = kernel.launch_s + flop / rate
        again = kernel.launch_s + BACKWARD_ATTENTION * flop / (self.fits.attention_backward * rate)
        return Work(once, once * self.watts["matmul"]), Work(again, again * self.watts["matmul"])

    def _unfused_attention(self, op: Operator, tokens: Floats, share: Floats) -> tuple[Work, Work]:
        it, heads = op.attention, op.attention.heads / share
        flop = 2.0 * tokens * heads * (it.qk_dim + it.v_dim) * self.seq_len
        scores = tokens * heads * self.seq_len * (SCORE_BYTES + self.stack.dropout * DROPPED_SCORE_BYTES)
        products = self._product(flop, np.zeros_like(scores), self.wide)
        softmax = self.moving(scores, launches=3.0)
        return products + softmax, products * 2 + softmax * BACKWARD_MOVED

    def _product(self, flop: Floats, moved: Floats, dtype: str) -> Work:
        kernel: Kernel = self.fits.matmul.get(dtype, self.plain)
        computing = flop / (kernel.compute_fraction * self.peak[dtype] * self.fits.sustained)
        moving = moved / (kernel.memory_fraction * self.bandwidth)
        seconds = kernel.launch_s + np.maximum(computing, moving)
        return Work(seconds, seconds * np.where(computing >= moving, self.watts["matmul"], self.watts["memory"]))
