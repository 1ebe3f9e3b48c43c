"""Seconds and joules of one decoded token, with a part of the KV cache in memory tiers.

A pass takes one token of each of ``b`` sequences through all layers; every weight is read once for all of them. Of a
layer with ``c`` bytes of cache on a device, ``s_t`` of it in tier ``t`` and ``s_0`` on the device,

    own    = products + elementwise bytes / bandwidth + reads of s_0 c, or its FLOP + all-reduces over tp
    tiers  = max(link, port, pool) of reading s_t c and writing the new token's part     (cost_models/tiers.py)
    near   = queries out + s_t c / attention bandwidth of t + weighted sums back         t that attends by itself
    layer  = max(own, tiers),   its attention being max(reads of s_0 c, near)
    token  = sum of all layers and the head + (pp - 1) hops

What a tier holds is known before the pass and comes a layer ahead, behind the layer before it; queries of a layer are
not, so attention beside the memory overlaps with the device's own attention alone. What it reads there takes the
memory's joules alone, all else those of the device's link too. Products are those of
:mod:`cost_models.kernels` with ``b`` rows; of ``E`` experts a rank's ``E / tp`` of which ``1 - (1 - k / E)^b`` are met
by a token are read. Elementwise kernels are fused: they cost bytes and no start. Not modelled: the host between two
steps (graphs of the whole step), sampling, prefill beside decoding, and kernels that quantise activations, which are
fused or not needed where weights alone are narrow.

Against gpt-fast's tokens a second at batch 1 (``tests/published/test_decoding.py``): +14 to -7 % on A100 and MI250X
with weights of 16 and 8 bits, 12 to 23 % too few with 4 bits on A100. Narrow products are slower in fp4 than in fp8 on
Blackwell, so that a token of many ranks can be: one row by 1024 x 8192 was measured at 21.5 us, of which quantising is
fitted to 4, against 18.6 with 11.

Source of the form: weights and cache read once a step, Pope et al., arXiv:2211.05102, section 2; the latent attended
to by all heads as one: DeepSeek-AI, arXiv:2405.04434, section 2.1.2; attention beside the memory: Park et al.,
HPCA 2024, and arXiv:2511.00321.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.communication import collective_s, p2p_s
from cost_models.kernels import grouped_s, moving_s, product_s
from cost_models.kv_cache import EXPANSION, SCANS, DecodeRows, latent_elements, layer_cache_bytes, stored_bytes
from cost_models.model_graph import Layer, ModelGraph, Operator
from cost_models.power import host_power
from cost_models.tiers import TierRates
from cost_models.work import Work
from topologies.cluster import Cluster

Floats = NDArray[np.float64]
ACTIVATION_BYTES = 2.0
WIDE = "bf16"
TERMS = ("weights", "attention", "tensor parallel", "pipeline", "memory tiers")


@dataclass(frozen=True)
class DecodedToken:
    """One token of every sequence: seconds by term of :data:`TERMS`, facility joules of one copy; ``[rows]``.

    ``memory tiers`` are the seconds by which tiers hold a layer up.
    """

    terms: dict[str, Floats]
    joules: Floats

    @property
    def seconds(self) -> Floats:
        """From one token to the next."""
        return sum(self.terms.values(), np.zeros_like(self.joules))


def decoded_token(
    model: ModelGraph, cluster: Cluster, rows: DecodeRows, share: Floats, rates: TierRates, fits: Calibration
) -> DecodedToken:
    """What one token costs with ``share`` of every layer's cache in each tier, ``[rows, tiers]``; module's formulas."""
    device = _Device(model.hidden, cluster, rows, fits)
    counts = Counter(model.order)
    parts = [(count, device.layer(model.kinds[kind], share, rates)) for kind, count in counts.items()]
    parts += [(1, device.layer(end, share, rates)) for end in (model.embedding, model.head)]
    terms = {name: sum((n * it.terms[name] for n, it in parts), np.zeros_like(rows.tp)) for name in TERMS}
    terms["pipeline"] = (rows.pp - 1) * device.hop_s()
    moved = sum((n * it.joules for n, it in parts), np.zeros_like(rows.tp))
    seconds = sum(terms.values(), np.zeros_like(rows.tp))
    return DecodedToken(terms, _facility_joules(cluster, rows, seconds, moved))


def _facility_joules(cluster: Cluster, rows: DecodeRows, seconds: Floats, one_rank: Floats) -> Floats:
    """``PUE (t P_idle / copies + J)``: a pass keeps ``tp`` ranks of one stage at work at a time.

    The batch goes through in ``batch / together`` passes, fewer than ``pp`` where there are fewer sequences.
    """
    static = host_power(rows.hosts(cluster), cluster)
    return static.facility_w * seconds / rows.copies + static.pue * one_rank * rows.tp * rows.batch / rows.together


@dataclass(frozen=True)
class _Layer:
    """One layer's seconds by term, and dynamic joules of one rank."""

    terms: dict[str, Floats]
    joules: Floats


class _Device:
    """The rates of one device, for all rows."""

    def __init__(self, hidden: int, cluster: Cluster, rows: DecodeRows, fits: Calibration) -> None:
        self.hidden, self.cluster, self.rows, self.fits = hidden, cluster, rows, fits
        self.bandwidth = cluster.memory_bandwidth_bytes_per_s
        figures = cluster.accelerator.figures
        span = figures.board_power.value - figures.idle_power.value
        self.watts = {kind: part * span for kind, part in fits.power_fraction.items()}
        self.narrow = rows.weights if rows.weights in fits.gemm and cluster.supports(rows.weights) else WIDE
        self.inside, self.across = _factors(rows.tp, cluster), _outermost(cluster)

    def layer(self, layer: Layer, share: Floats, rates: TierRates) -> _Layer:
        """One layer with its traffic hidden behind it as far as it goes."""
        work = sum((self._operator(op) for op in layer.operators), Work.zero(len(self.rows.tp)))
        held, new = self._cache(layer, self.rows.context), self._cache(layer, np.minimum(self.rows.context, 1.0))
        attends = np.isfinite(rates.attend)
        there = held[:, None] * share * attends
        exchanged = self._exchanged(layer)[:, None] * (there > 0)
        near = self._near_s(there, exchanged, rates)
        attention = self._attention(layer, 1.0 - share.sum(axis=1), held + new)
        reduced = layer.boundaries * self._reduce_s()
        own = work.seconds + np.maximum(attention.seconds, near) + reduced
        read, written = held[:, None] * share * ~attends, new[:, None] * share
        waited = np.maximum(rates.seconds(read, written) - own, 0.0)
        return _Layer(
            {
                "weights": work.seconds, "attention": np.maximum(attention.seconds, near), "tensor parallel": reduced,
                "pipeline": np.zeros_like(waited), "memory tiers": waited,
            },
            work.joules + attention.joules + reduced * self.watts["communication"]
            + (there * rates.joules).sum(axis=1) + rates.spent(read + written + 2 * exchanged),
        )  # fmt: skip

    def hop_s(self) -> Floats:
        """From one stage to the next, over the outermost level."""
        message = ACTIVATION_BYTES * self.rows.together * self.hidden / self.rows.tp
        hop = p2p_s(message, self.across, self.cluster.levels, self.fits)
        return np.where(self.rows.pp > 1, hop, 0.0)

    def _cache(self, layer: Layer, tokens: Floats) -> Floats:
        """Bytes of one pass's sequences with so many tokens; of one token, what is written."""
        return self.rows.together * layer_cache_bytes(layer, tokens, self.rows.tp, stored_bytes(self.rows.cache))

    def _operator(self, op: Operator) -> Work:
        """Seconds and joules of a product or of what an elementwise operator moves."""
        if op.kind == "expert_matmul":
            return self._experts(op)
        if op.kind == "matmul":
            return self._product(op)
        if op.kind != "elementwise":
            return Work.zero(len(self.rows.tp))
        ways = self.rows.tp if op.split in ("columns", "experts", "routed") else 1.0
        seconds = self.rows.together * op.moved / ways * ACTIVATION_BYTES / self._reached
        return Work(seconds, seconds * self.watts["memory"])

    @property
    def _reached(self) -> float:
        return self.fits.moving.memory_fraction * self.bandwidth

    def _product(self, op: Operator) -> Work:
        ways = self.rows.tp if op.split == "columns" else np.ones_like(self.rows.tp)
        n, k = (op.n / ways, op.k) if op.n > op.k else (op.n, op.k / ways)
        m = self.rows.together * op.rows
        return self._worked(product_s(m, n, k, *self._sizes()), 2.0 * m * n * k)

    def _experts(self, op: Operator) -> Work:
        """Experts that some token of the pass meets, each with its part of the tokens."""
        spread = np.minimum(self.rows.tp, op.groups)
        tokens, drawn = self.rows.together, op.active / op.groups
        met = np.maximum(op.groups / spread * (1.0 - (1.0 - drawn) ** tokens), 1e-9)
        m = np.maximum(tokens * drawn * op.groups / spread / met, 1.0)
        ways = self.rows.tp / spread
        n, k = (op.n / ways, op.k) if op.n > op.k else (op.n, op.k / ways)
        return self._worked(grouped_s(m, n, k, met, *self._sizes(), self.fits.grouped_fraction), 2 * m * n * k * met)

    def _sizes(self) -> tuple:
        """Bytes of weights, inputs and outputs, the kernel, peak and bandwidth of products."""
        inputs = stored_bytes(self.narrow) if self.narrow != WIDE else ACTIVATION_BYTES
        kernel = self.fits.gemm[self.narrow]
        return (stored_bytes(self.rows.weights), inputs, ACTIVATION_BYTES, kernel, self._peak(self.narrow),
                self.bandwidth)  # fmt: skip

    def _peak(self, dtype: str) -> float:
        return self.cluster.peak_flop_per_s(dtype) * self.fits.sustained

    def _worked(self, seconds: Floats, flop: Floats) -> Work:
        kernel = self.fits.gemm[self.narrow]
        computing = flop / (kernel.compute_fraction * self._peak(self.narrow)) > 0.5 * seconds
        return Work(seconds, seconds * np.where(computing, self.watts["matmul"], self.watts["memory"]))

    def _attention(self, layer: Layer, part: Floats, moved: Floats) -> Work:
        """Attention to the ``part`` of the cache on the device: what it moves, or its FLOP where they take longer."""
        if not layer.attends:
            return Work.zero(len(self.rows.tp))
        reading = moving_s(part * moved, self.fits.moving, self.bandwidth)
        flop = part * self.rows.together * self._attended_flop(layer)
        computing = flop / (self.fits.flash.compute_fraction * self._peak(WIDE))
        watts = np.where(computing > reading, self.watts["matmul"], self.watts["memory"])
        seconds = np.maximum(reading, computing)
        return Work(seconds, seconds * watts)

    def _attended_flop(self, layer: Layer) -> Floats:
        """FLOP of one sequence's token on one rank."""
        found = np.zeros_like(self.rows.tp)
        for op in layer.operators:
            if op.attention is None or op.name in SCANS:
                continue
            seen = np.minimum(self.rows.context, op.attention.window or np.inf)
            found = found + 2.0 * op.attention.heads / self.rows.tp * _widths(layer, op) * seen
        return found

    def _near_s(self, held: Floats, exchanged: Floats, rates: TierRates) -> Floats:
        """Seconds of attention beside the memory to ``held`` bytes of each tier, with the way there and back."""
        if held.shape[1] == 0 or not held.any():
            return np.zeros(len(held))
        there, back = rates.seconds(0.0 * held, exchanged), rates.seconds(exchanged, 0.0 * held)
        with np.errstate(invalid="ignore"):
            return there + np.where(held > 0, held * rates.attend, 0.0).max(axis=1) + back

    def _exchanged(self, layer: Layer) -> Floats:
        """Bytes of a pass's queries of one rank; its weighted sums are taken to be as many."""
        latent = latent_elements(layer)
        width = sum(
            op.attention.heads * (latent or max(op.attention.qk_dim, op.attention.v_dim))
            for op in layer.operators if op.attention is not None
        )  # fmt: skip
        return ACTIVATION_BYTES * self.rows.together * width / self.rows.tp

    def _reduce_s(self) -> Floats:
        volume = ACTIVATION_BYTES * self.rows.together * self.hidden
        return collective_s("all_reduce", volume, self.inside, self.cluster.levels, self.fits)


def _widths(layer: Layer, op: Operator) -> float:
    """Elements of a score and of a weighted sum, a head."""
    latent = latent_elements(layer)
    if not latent:
        return float(op.attention.qk_dim + op.attention.v_dim)
    return latent + next((it.k for it in layer.operators if it.name == EXPANSION), latent)


def _factors(tp: Floats, cluster: Cluster) -> NDArray[np.int64]:
    """``[rows, levels]``: ranks of a tensor-parallel group on each level, as far inside as they go."""
    left, found = tp.astype(np.int64), []
    for k, level in enumerate(cluster.levels):
        here = np.gcd(left, level.fanout) if k < cluster.domain_levels else np.ones_like(left)
        found.append(here)
        left = left // here
    return np.stack(found, axis=-1)


def _outermost(cluster: Cluster) -> NDArray[np.int64]:
    """``[1, levels]``: a pair on the outermost level."""
    return np.array([[1] * (len(cluster.levels) - 1) + [2]])
