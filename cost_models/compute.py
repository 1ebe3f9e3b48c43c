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

A device never runs ahead of the host that launches its kernels (:mod:`cost_models.hosts`). Step-wide effects (clocks
under sustained load) scale the compute-bound part.

Source: Williams et al., "Roofline", CACM 52 (2009); factors of backward attention: Dao, arXiv:2307.08691;
unfused attention: Korthikanti et al., arXiv:2205.05198, section 4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.clocks import FULL
from cost_models.hosts import ADAPTER_OPERATORS, Host
from cost_models.kept import REPEATED, leaves
from cost_models.kernels import (
    ROW_CASTS,
    attention_s,
    grouped_s,
    mean_keys,
    moving_s,
    product_s,
    quantise_s,
    unfused_attention_s,
)
from cost_models.model_graph import Layer, Operator
from cost_models.rows import Rows, unique_rows
from cost_models.vocabulary import rows_of
from cost_models.work import LayerCompute, Work
from cost_models.workload import OPERAND_BYTES, Training
from topologies.cluster import Cluster

Floats = NDArray[np.float64]
BACKWARD_MOVED = 1.5
FP32_BYTES = 4.0
NARROW_SUM_MOVED, WIDE_SUM_MOVED = 6.0, 18.0
"""Bytes a parameter that adding up gradients moves a micro-batch where no product does it."""
ALIGNED = 8
"""Elements of 16 bits in 16 bytes, which tensor cores want every row to be a multiple of."""
SCORE_BYTES = 4.0
DROPPED_SCORE_BYTES = 5.0
NETWORK = ("gate_up", "up", "activation", "down")
"""Operators of a dense feed-forward network."""


def layer_compute(
    layer: Layer, rows: Rows, cluster: Cluster, workload: Training, fits: Calibration, clock: float = FULL
) -> LayerCompute:
    """Compute of ``layer`` for every row, at the fraction ``clock`` of the full clock.

    Each distinct (tp, cp, ep, etp, micro-batch) is priced once, and of these (tp, cp, micro-batch) where experts'
    degrees change nothing.
    """
    rows = rows_of(layer, rows)
    first, inverse = unique_rows(rows.tp, rows.cp, rows.ep, rows.etp, rows.micro_batch)
    some, machine = rows.take(first), _Machine(cluster, workload, fits, layer.attends, clock)
    host = Host(workload, fits)
    alike, again_at = unique_rows(some.tp, some.cp, some.micro_batch)
    few = some.take(alike)
    forward = backward = selective = attention = attention_back = left = Work.zero(len(first))
    alternate = False
    for operator in layer.operators:
        if _among_experts(operator):
            once, again = machine.operator(operator, some)
        else:
            once, again = (work[again_at] for work in machine.operator(operator, few))
        forward, backward = forward + once, backward + again
        left = left + once if leaves(operator, workload) else Work.zero(len(first))
        if operator.kind in ("matmul", "expert_matmul"):
            alternate = not alternate
        if machine.repeats(operator, alternate):
            selective = selective + once
        if operator.kind == "attention":
            attention, attention_back = attention + once, attention_back + again
    sorting = machine.sorting(layer, some)
    forward, backward = forward + sorting, backward + sorting
    waiting = tuple(host.waiting_s(layer, work, some)[inverse] for work in (forward, backward))
    forward, backward = (
        Work(work.seconds[inverse] + idle, work.joules[inverse])
        for work, idle in zip((forward, backward), waiting, strict=True)
    )
    if workload.stack.host_adds:
        waiting = tuple(np.zeros_like(idle) for idle in waiting)
    beside = attention.seconds[inverse], attention_back.seconds[inverse]
    repeating = tuple(each[inverse] for each in host.repeating_s(layer, some))
    return LayerCompute(forward, backward, selective[inverse], beside, waiting, repeating, left[inverse])


def _among_experts(operator: Operator) -> bool:
    """Whether the degrees of experts change what an operator takes."""
    return operator.kind == "expert_matmul" or operator.split in ("routed", "experts")


def weight_gradient_s(
    layer: Layer, rows: Rows, cluster: Cluster, workload: Training, fits: Calibration, clock: float = FULL
) -> Floats:
    """Seconds of a layer's backward pass that only the weights' gradients take; nothing waits for them."""
    rows = rows_of(layer, rows)
    first, inverse = unique_rows(rows.tp, rows.cp, rows.ep, rows.etp, rows.micro_batch)
    some, machine = rows.take(first), _Machine(cluster, workload, fits, layer.attends, clock)
    seconds = sum((machine.weight_gradient(op, some).seconds for op in layer.operators), np.zeros(len(some)))
    return seconds[inverse]


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

    def __init__(
        self, cluster: Cluster, workload: Training, fits: Calibration, attends: bool = False, clock: float = FULL
    ) -> None:
        recipe, self.workload, self.stack = workload.recipe, workload, workload.stack
        self.seq_len, self.element_bytes = workload.seq_len, recipe.activation_bytes
        self.accumulated_bytes = 2 * recipe.gradient_bytes if self.stack.fused_accumulation else recipe.activation_bytes
        self.accumulated_wide = recipe.gradient_bytes > recipe.activation_bytes
        low = recipe.compute in ("fp8", "fp4")
        self.wide, self.products = "bf16" if low else recipe.compute, recipe.compute
        self.fused_experts = self.stack.fused_experts and low and attends and cluster.accelerator.family == "blackwell"
        self.peak = {dtype: clock * cluster.peak_flop_per_s(dtype) for dtype in {self.wide, self.products}}
        self.bandwidth = cluster.memory_bandwidth_bytes_per_s
        self.fits, self._random = fits, fits.dropped_attention if workload.stack.dropout else 1.0
        self.passes = fits.pointwise * (1.0 if workload.stack.fused_pointwise else fits.eager_traffic)
        figures = cluster.accelerator.figures
        span = figures.board_power.value - figures.idle_power.value
        self.watts = {kind: part * span for kind, part in fits.power_fraction.items()}
        self.watts["matmul"] *= fits.clock.power(clock)

    def operator(self, op: Operator, rows: Rows) -> tuple[Work, Work]:
        """Forward and backward work of one operator."""
        tokens = rows.micro_batch * self.seq_len / rows.cp
        share = self._share(op, rows)
        if op.kind in ("matmul", "loss", "lookup") and op.n == 0:
            moved = op.moved * tokens / share * (FP32_BYTES if op.kind == "loss" else self.element_bytes)
            return self.moving(moved), self.moving(BACKWARD_MOVED * moved) + self._accumulated(op, share)
        if op.kind == "matmul":
            once, again = self._adapted(op, tokens, self._matmul(op, tokens, share))
            return once, again + self._accumulated(op, share)
        if op.kind == "expert_matmul":
            return self._expert_matmul(op, tokens, rows)
        if op.kind == "attention":
            return self._attention(op, tokens, share, rows)
        passes = 1.0 if op.name in NETWORK and self.stack.fused_network else self.passes
        moved = self._passed(op) * tokens / share * self.element_bytes * passes
        return self.moving(moved), self.moving(BACKWARD_MOVED * moved)

    def _accumulated(self, op: Operator, share: Floats) -> Work:
        """Adding one micro-batch's gradient of ``P`` parameters to the sum, by kernels of their own.

        Into a 16-bit sum: the gradient is read, the sum read and written, 6 P bytes. Into an fp32 sum: it is copied
        to fp32 (2 read, 4 written) and added (8 read, 4 written), 18 P bytes.
        Source: deepspeedai/DeepSpeed deepspeed/runtime/bf16_optimizer.py@v0.7.0, ``update_hp_grads``.
        """
        if self.stack.fused_accumulation or self.workload.tuning == "lora" or not op.parameters:
            return Work.zero(len(share))
        each = WIDE_SUM_MOVED if self.accumulated_wide else NARROW_SUM_MOVED
        return self.moving(op.parameters / share * each)

    def _passed(self, op: Operator) -> float:
        """Elements a token that an elementwise operator moves; none of experts' where their products do its work."""
        if op.split == "experts" and self.fused_experts:
            return 0.0
        return op.moved + op.unfused + self._dropped(op)

    def sorting(self, layer: Layer, rows: Rows) -> Work:
        """Routed tokens brought into the order of a rank's experts once they have come, and back before they leave.

        An all-to-all gives them rank by rank: where there are several experts, every copy is read and written twice, in
        either pass (of which backward's are gradients). DeepEP's and HybridEP's tokens come as one copy, which
        ``dispatch`` deals out to the experts.
        Source: NVIDIA/Megatron-LM megatron/core/transformer/moe/token_dispatcher.py@core_v0.10.0:
        ``sort_chunks_by_idxs`` where ``num_local_experts > 1``.
        """
        dispatch = next((op for op in layer.operators if op.name == "dispatch"), None)
        if dispatch is None or self.stack.dispatcher != "alltoall":
            return Work.zero(len(rows))
        tokens = rows.micro_batch * self.seq_len / rows.cp
        moved = dispatch.moved * tokens / self._share(dispatch, rows) * self.element_bytes * self.passes
        return self.moving(moved) * np.where((rows.ep > 1) & (layer.experts > rows.ep), 2.0, 0.0)

    def _dropped(self, op: Operator) -> float:
        """Elements that dropout of a layer's two outputs moves, at the residual: in, out and a mask of half as many."""
        return 2 * 2.5 * op.moved / 3 if self.stack.dropout and op.name == "residual" else 0.0

    def repeats(self, op: Operator, alternate: bool) -> bool:
        """Whether selective recompute runs ``op`` again; ``alternate`` holds for the first product of every two."""
        if self.stack.selective == "attention":
            return op.kind == "attention"
        if self.stack.selective in REPEATED:
            return REPEATED[self.stack.selective](op)
        return op.kind == "elementwise" or (
            self.stack.selective == "alternate" and op.kind in ("matmul", "expert_matmul") and alternate
        )

    def moving(self, moved_bytes: Floats, launches: float = 1.0) -> Work:
        """Work of a memory-bound operator."""
        kernel = self.fits.moving
        seconds = moving_s(moved_bytes, kernel, self.bandwidth) + (launches - 1.0) * kernel.launch_s
        return Work(seconds, seconds * self.watts["memory"])

    def _share(self, op: Operator, rows: Rows) -> Floats:
        """Ways that an operator's tokens or columns are divided."""
        if op.split == "whole" or (op.split == "sequence" and not self.stack.sequence_parallel):
            return np.ones_like(rows.tp)
        return rows.tp / rows.etp if op.split == "routed" else rows.tp

    def _adapted(self, op: Operator, tokens: Floats, both: tuple[Work, Work]) -> tuple[Work, Work]:
        """The thin products of an adapter, whose whole cost is moving their inputs and outputs."""
        if not self.workload.adapts(op.name):
            return both
        moved = tokens * (op.k + 3 * op.n + 4 * self.workload.lora_rank) * self.element_bytes
        extra = self.moving(moved, launches=float(ADAPTER_OPERATORS))
        return both[0] + extra, both[1] + extra * 2

    def _matmul(self, op: Operator, tokens: Floats, share: Floats) -> tuple[Work, Work]:
        tokens, n, k, dtype = self._dense_shape(op, tokens, share)
        slow, both = self._misaligned(op, n, k), self._three_products(tokens, n, k, dtype, self._casts(op))
        return both[0] * slow, both[1] * slow

    def _dense_shape(self, op: Operator, tokens: Floats, share: Floats) -> tuple[Floats, Floats, Floats, str]:
        tokens = tokens * op.rows
        if op.split == "sequence":
            tokens, share = tokens / share, np.ones_like(share)
        low = op.split == "columns" and (op.name != "logits" or self.stack.quantised_head)
        dtype = self.products if low else self.wide
        n, k = (op.n / share, op.k) if op.n > op.k else (op.n, op.k / share)
        return tokens, n, k, dtype

    def _misaligned(self, op: Operator, n: Floats, k: Floats) -> Floats:
        """How much longer products take whose narrower alignment is not 16 bytes; a padded vocabulary's has that."""
        wide = np.zeros_like(n) if op.name == "logits" and self.stack.padded_vocab else np.floor(n)
        rest = np.stack(np.broadcast_arrays(wide, np.floor(k))) % ALIGNED
        even = np.where((rest > 0).any(axis=0), self.fits.even_product, 1.0)
        return np.where((rest % 2 > 0).any(axis=0), self.fits.odd_product, even)

    def _expert_matmul(self, op: Operator, tokens: Floats, rows: Rows) -> tuple[Work, Work]:
        *shape, groups = self._expert_shape(op, tokens, rows)
        return self._three_products(*shape, self._casts(op), groups)

    def _expert_shape(
        self, op: Operator, tokens: Floats, rows: Rows
    ) -> tuple[Floats, Floats, Floats, str, Floats]:  # fmt: skip
        routed = tokens * op.active / rows.tp * rows.etp * self.fits.expert_imbalance
        n, k = (op.n / rows.etp, op.k) if op.n > op.k else (op.n, op.k / rows.etp)
        groups = np.maximum(op.groups / rows.ep, 1.0)
        return routed / groups, n, k, self.products, groups

    def weight_gradient(self, op: Operator, rows: Rows) -> Work:
        """The third product of a matrix; none where there is no matrix or its weights are frozen."""
        if op.kind not in ("matmul", "expert_matmul") or op.n == 0 or self.workload.tuning == "lora":
            return Work.zero(len(rows))
        m, n, k, dtype, groups = self._shape(op, rows)
        element = OPERAND_BYTES.get(dtype, self.element_bytes)
        slow = self._misaligned(op, n, k) if groups is None else 1.0
        return self._product(n, k, m, dtype, element, self.accumulated_bytes, self._casts(op), groups) * slow

    def _shape(self, op: Operator, rows: Rows) -> tuple[Floats, Floats, Floats, str, Floats | None]:
        """``m``, ``n``, ``k``, type and groups of a forward product on one device."""
        tokens = rows.micro_batch * self.seq_len / rows.cp
        if op.kind == "expert_matmul":
            return self._expert_shape(op, tokens, rows)
        return (*self._dense_shape(op, tokens, self._share(op, rows)), None)

    def _three_products(
        self, m: Floats, n: Floats, k: Floats, dtype: str, casts: float, groups: Floats | None = None
    ) -> tuple[Work, Work]:
        """Forward; and backward: the input's gradient, and the weights' added to what earlier micro-batches left."""
        element = OPERAND_BYTES.get(dtype, self.element_bytes)
        once = self._product(m, n, k, dtype, element, self.element_bytes, casts, groups)
        again = self._product(m, k, n, dtype, element, self.element_bytes, casts, groups)
        if self.workload.tuning == "lora":
            return once, again
        return once, again + self._product(n, k, m, dtype, element, self.accumulated_bytes, casts, groups)

    def _product(
        self, m: Floats, n: Floats, k: Floats, dtype: str, element: float, out: float, casts: float,
        groups: Floats | None,
    ) -> Work:  # fmt: skip
        """One product ``[m, k] x [k, n]``, with ``casts`` kernels that quantise its input where its type needs that."""
        kernel, peak = self.fits.gemm.get(dtype, self.fits.gemm["bf16"]), self._peak(dtype)
        sizes = (element, element, out, kernel, peak, self.bandwidth)
        if groups is None:
            seconds = product_s(m, n, k, *sizes)
        elif self.stack.grouped_experts:
            whole = self.fused_experts | (groups == 1)
            seconds = grouped_s(m, n, k, groups, *sizes, np.where(whole, 1.0, self.fits.grouped_fraction))
        else:
            seconds = groups * product_s(m, n, k, *sizes)
        if dtype in OPERAND_BYTES:
            rows, tiled = (m, False) if groups is None else (m * groups, True)
            seconds = seconds + casts * quantise_s(rows, k, kernel, self.bandwidth, tiled)
        flop = 2.0 * m * n * k * (1.0 if groups is None else groups)
        computing = flop / (kernel.compute_fraction * peak) > 0.5 * seconds
        return Work(seconds, seconds * np.where(computing, self.watts["matmul"], self.watts["memory"]))

    def _casts(self, op: Operator) -> float:
        """Stand-alone kernels that quantise an operand of ``op``, or the part of one that fused casts take.

        Routed tokens come from no norm that could write them cast. A fused network writes what it passes on cast.
        """
        if self.stack.row_scaled:
            return ROW_CASTS
        if op.kind == "expert_matmul" and not self.fused_experts:
            return self.fits.expert_quantise_share
        return 0.0 if op.name in NETWORK and self.stack.fused_network else self.fits.quantise_share

    def _peak(self, dtype: str) -> float:
        """Peak of products in a training step, where fp8 may have a scale a block."""
        blocks = self.fits.block_scaled if dtype == "fp8" and self.stack.block_scaled else 1.0
        return self.peak[dtype] * self.fits.sustained * blocks

    def _attention(self, op: Operator, tokens: Floats, share: Floats, rows: Rows) -> tuple[Work, Work]:
        """Context parallelism passes keys round a ring, of which one kernel sees ``seq_len / cp`` at most, or heads.

        Of ``cp`` steps of a balanced ring one has a causal mask; in each of the others a rank's queries see half
        a block, without a mask. With heads exchanged (all-to-all) a kernel sees the whole sequence of fewer heads.
        """
        it, length = op.attention, self.workload.attended_len
        ring, scan = self.stack.context_exchange == "ring", op.name == "scan"
        keys = np.minimum(self.seq_len / rows.cp if ring else self.seq_len, length) * it.keys
        heads, size = it.heads / share * tokens * it.queries / keys, (it.qk_dim + it.v_dim) / 2
        if not self.stack.fused_attention:
            return self._unfused_attention(heads, keys, size)
        flop = tokens * it.forward_flop_per_token(length) / share
        causal, window = it.causal, float(it.window or 0)
        peak = self.peak[self.wide] * self.fits.sustained * (1.0 if scan else self._fp8_attention)
        first = 4.0 * heads * keys * mean_keys(keys, causal, window) * size
        block = np.maximum(keys / 2, 1.0) if causal else keys
        calls = np.maximum(flop - first, 0.0) / (4.0 * heads * keys * block * size)
        slower = self._random / (self.fits.scan_fraction if scan else 1.0)
        rest = slower * calls * self.fits.ring_blocks
        sizes = (size, size) if scan else (it.qk_dim, it.v_dim)
        once, again = (
            slower * self._flash(heads, keys, keys, sizes, peak, causal, window, backward)
            + rest * self._flash(heads, keys, block, sizes, peak, False, 0.0, backward)
            for backward in (False, True)
        )
        return Work(once, once * self.watts["matmul"]), Work(again, again * self.watts["matmul"])

    def _flash(
        self, heads: Floats, queries: Floats, keys: Floats, sizes: tuple[float, float], peak: float, causal: bool,
        window: float, backward: bool,
    ) -> Floats:  # fmt: skip
        size, value_size = sizes
        return attention_s(
            heads, queries, keys, size, self.fits.flash, peak, causal, window, backward=backward, value_dim=value_size
        )

    @property
    def _fp8_attention(self) -> float:
        """Rate of attention in fp8 over that in 16 bits, 1 where it runs in 16 bits."""
        return self.fits.fp8_attention if self.stack.fp8_attention and self.products != self.wide else 1.0

    def _unfused_attention(self, heads: Floats, keys: Floats, size: float) -> tuple[Work, Work]:
        score_bytes = SCORE_BYTES + self.stack.dropout * DROPPED_SCORE_BYTES
        peak = self.peak[self.wide] * self.fits.sustained
        if size % ALIGNED:
            peak = peak * self.fits.unaligned_attention
        once, again = (
            unfused_attention_s(
                heads, keys, keys, size, self.fits.gemm[self.wide], self.fits.moving, peak, self.bandwidth,
                score_bytes, backward,
            )
            for backward in (False, True)
        )  # fmt: skip
        return Work(once, once * self.watts["memory"]), Work(again, again * self.watts["memory"])
