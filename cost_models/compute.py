"""Seconds and joules of the operators of a layer, on one device, for one micro-batch.

Roofline with fitted efficiencies, per operator:

    t = launch + max(FLOP / (e_c peak), bytes / (e_b bandwidth))

Backward takes two matrix products for each forward one: the gradient of the input, as dear as forward, and
that of the weights, whose sum over micro-batches is read and written in the gradient's precision. It is 2.5 times
the FLOP in attention (its scores are computed again), and half as many bytes again in elementwise
operators (a gradient comes in beside the saved input). Tensor and context parallelism divide tokens or
columns; experts see ``top_k`` copies of each token, gathered over ``etp``.

Attention's ``e_c`` grows with the keys ``S`` that one kernel sees, as ``S / (S + half_length)``.

Source: Williams et al., "Roofline", CACM 52 (2009); factors of backward attention: Dao, arXiv:2307.08691.
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
    for operator in layer.operators:
        once, again = machine.operator(operator, some)
        forward, backward = forward + once, backward + again
        if operator.kind == "elementwise":
            selective = selective + once
        elif operator.kind == "attention":
            attention, attention_back = attention + once, attention_back + again
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
        recipe = workload.recipe
        self.seq_len, self.element_bytes = workload.seq_len, recipe.activation_bytes
        self.weight_bytes, self.accumulated_bytes = recipe.weight_bytes, 2 * recipe.gradient_bytes
        self.wide = "bf16" if recipe.compute == "fp8" else recipe.compute
        self.products = recipe.compute
        self.peak = {dtype: cluster.peak_flop_per_s(dtype) for dtype in {self.wide, self.products}}
        self.bandwidth = cluster.memory_bandwidth_bytes_per_s
        self.kernels = {"fp8": fits.matmul["fp8"]}
        self.plain, self.fits = fits.matmul["bf16"], fits
        figures = cluster.accelerator.figures
        span = figures.board_power.value - figures.idle_power.value
        self.watts = {kind: part * span for kind, part in fits.power_fraction.items()}

    def operator(self, op: Operator, rows: Rows) -> tuple[Work, Work]:
        """Forward and backward work of one operator."""
        tokens = rows.micro_batch * self.seq_len / rows.cp
        share = {"whole": np.ones_like(rows.tp), "routed": rows.tp / rows.etp}.get(op.split, rows.tp)
        if op.kind in ("matmul", "loss", "lookup") and op.n == 0:
            moved = op.moved * tokens / share * (FP32_BYTES if op.kind == "loss" else self.element_bytes)
            return self.moving(moved), self.moving(BACKWARD_MOVED * moved)
        if op.kind == "matmul":
            return self._matmul(op, tokens, share)
        if op.kind == "expert_matmul":
            return self._expert_matmul(op, tokens, rows)
        if op.kind == "attention":
            return self._attention(op, tokens, share, rows)
        moved = op.moved * tokens / share * self.element_bytes
        return self.moving(moved), self.moving(BACKWARD_MOVED * moved)

    def moving(self, moved_bytes: Floats, launches: float = 1.0) -> Work:
        """Work of a memory-bound operator."""
        seconds = launches * self.plain.launch_s + moved_bytes / (self.plain.memory_fraction * self.bandwidth)
        return Work(seconds, seconds * self.watts["memory"])

    def _matmul(self, op: Operator, tokens: Floats, share: Floats) -> tuple[Work, Work]:
        if op.split == "sequence":
            tokens, share = tokens / share, np.ones_like(share)
        dtype = self.products if op.name != "logits" and op.split == "columns" else self.wide
        flop = 2.0 * tokens * op.n * op.k / share
        small, large = sorted((op.n, op.k))
        activations = tokens * (small + large / share) * self.element_bytes
        return self._three_products(flop, activations, op.n * op.k / share, dtype)

    def _expert_matmul(self, op: Operator, tokens: Floats, rows: Rows) -> tuple[Work, Work]:
        routed = tokens * op.active / rows.tp * rows.etp * self.fits.expert_imbalance
        flop = 2.0 * routed * op.n * op.k / rows.etp / self.fits.grouped_fraction
        activations = routed * (op.n + op.k) / rows.etp * self.element_bytes
        return self._three_products(flop, activations, op.groups / rows.ep * op.n * op.k / rows.etp, self.products)

    def _three_products(self, flop: Floats, activation_bytes: Floats, weights: Floats, dtype: str) -> tuple[Work, Work]:
        """Forward; and backward: the input's gradient, and the weights' added to what earlier micro-batches left."""
        once = self._product(flop, activation_bytes + weights * self.weight_bytes, dtype)
        return once, once + self._product(flop, activation_bytes + weights * self.accumulated_bytes, dtype)

    def _attention(self, op: Operator, tokens: Floats, share: Floats, rows: Rows) -> tuple[Work, Work]:
        """Context parallelism passes keys round a ring, so that one kernel sees ``seq_len / cp`` of them at most."""
        flop = tokens * op.forward_flop_per_token(self.seq_len) / share
        kernel, window = self.fits.attention, op.attention.window or self.seq_len
        keys = np.minimum(self.seq_len / rows.cp, window)
        rate = kernel.compute_fraction * keys / (keys + kernel.half_length) * self.peak[self.wide]
        once = kernel.launch_s + flop / rate
        again = kernel.launch_s + BACKWARD_ATTENTION * flop / (self.fits.attention_backward * rate)
        return Work(once, once * self.watts["matmul"]), Work(again, again * self.watts["matmul"])

    def _product(self, flop: Floats, moved: Floats, dtype: str) -> Work:
        kernel: Kernel = self.kernels.get(dtype, self.plain)
        computing = flop / (kernel.compute_fraction * self.peak[dtype])
        moving = moved / (kernel.memory_fraction * self.bandwidth)
        seconds = kernel.launch_s + np.maximum(computing, moving)
        return Work(seconds, seconds * np.where(computing >= moving, self.watts["matmul"], self.watts["memory"]))
