"""A KV cache: what every layer keeps of a sequence, and where it lies when device memory does not hold all of it.

A layer keeps of ``b`` sequences of ``n`` tokens, on each of ``t`` tensor-parallel ranks and at ``e`` bytes an element,

    e b min(n, w) max(h / t, 1) (d_k + d_v)    ``h`` KV heads, fewer than heads with GQA; ``w`` the window
    e b min(n, w) r                            a latent of ``r`` elements (MLA), whole on every rank
    4 b H d_k d_v / t                          the fp32 state of a scan (Mamba-2, delta rule), whatever ``n`` is

The part ``k`` that stays on the device is the same in every layer. What does not stay comes layer by layer, one layer
ahead, so two layers' ``c`` of it, for the sequences of one pass, lie on the device too. Of a stage with ``C``
bytes of cache and room for ``R``,

    k = 1  where C <= R,  else (R - 2 c) / (C - 2 c)

and the stage with least counts. The rest ``S`` goes to the tiers: either to the one that a device reads quickest first
(:func:`shares`), or to all at once, so that they end together (:func:`balanced_shares`). With room ``R_t``, ``a_t``
seconds a byte of tier ``t``'s own port and ``l`` of the device's link, which all but those that attend share,

    s_t = min(R_t, T / a_t),  T the least for which  sum_t s_t >= S  and  sum_{attend} s_t + T / l >= S

Both conditions are of the form ``sum_t min(R_t, T / a_t) >= S``, which sets of full tiers ``K`` solve:
``T = max_K (S - sum_K R_t) / sum_{not K} 1 / a_t``, in the order of ``R_t a_t``.

Source: Ainslie et al., arXiv:2305.13245 (GQA); DeepSeek-AI, arXiv:2405.04434, section 2.1 (MLA); Dao and Gu,
arXiv:2405.21060 (states of scans).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.model_graph import Layer, ModelGraph, Operator
from cost_models.tiers import TierRates, rates_of
from cost_models.workload import OPERAND_BYTES, PRECISIONS, Precision
from topologies.cluster import Cluster
from topologies.errors import BadInput
from topologies.tiers import Tier

Floats = NDArray[np.float64]
SCANS = ("scan", "delta_rule")
"""Operators that carry a state along the sequence."""
LATENT, EXPANSION = "kv_a", "kv_b"
"""Products that make the latent, and heads of it."""
COMPRESSED = ("compress_kv",)
"""Operators of caches whose entries stand for several tokens."""
STATE_BYTES = 4.0
LOGIT_BYTES = 4.0
STAGED_LAYERS = 2


@dataclass(frozen=True)
class DecodeRows:
    """Models that decode, one a row; arrays ``[rows]``.

    A copy of the model is ``tp * pp`` devices, ``copies`` of them work at once, and each decodes ``batch`` sequences
    that have ``context`` tokens so far. With ``pp`` stages so many passes are on their way at the same time, each with
    its part of the batch. ``tp`` stays inside a scale-up domain.
    """

    batch: Floats
    context: Floats
    tp: Floats
    pp: Floats
    copies: Floats
    weights: Precision = "bf16"
    cache: Precision = "bf16"

    @staticmethod
    def of(
        batch: int, context: int, tp: int, pp: int = 1, copies: int = 1, *,
        weights: Precision = "bf16", cache: Precision = "bf16",
    ) -> DecodeRows:  # fmt: skip
        """The single row with these numbers."""
        return DecodeRows(*(np.array([float(n)]) for n in (batch, context, tp, pp, copies)), weights, cache)

    @property
    def together(self) -> Floats:
        """Sequences of one pass."""
        return np.ceil(self.batch / self.pp)

    @property
    def devices(self) -> Floats:
        """Devices of all copies."""
        return self.copies * self.tp * self.pp

    def hosts(self, cluster: Cluster) -> Floats:
        """Hosts that they lie on, side by side."""
        return np.ceil(self.devices / cluster.devices_per_host)


def stored_bytes(precision: Precision) -> float:
    """Bytes an element that is kept in that type: fp4 with its scales."""
    return OPERAND_BYTES.get(precision, PRECISIONS[precision].weight_bytes)


def check_decoder(model: ModelGraph) -> None:
    """Raises ``BadInput`` for a model that has no KV cache of keys and values by token."""
    for op in (op for kind in model.kinds for op in kind.operators):
        if op.attention is not None and not (op.attention.causal and op.attention.keys == op.attention.queries == 1):
            raise BadInput(
                f"a KV cache is a causal decoder's, and operator {op.name!r} of {model.name!r} attends both ways or to "
                "another sequence; name a decoder"
            )
        if op.name in COMPRESSED:
            raise BadInput(
                f"{model.name!r} keeps keys that stand for several tokens (operator {op.name!r}), whose cache is not "
                "described; name a model with keys for every token or a latent"
            )


def layer_cache_bytes(layer: Layer, tokens: Floats, tp: Floats, element_bytes: float) -> Floats:
    """Bytes of one sequence of so many tokens that one tensor-parallel rank keeps of a layer."""
    latent = latent_elements(layer)
    each = [_kept(op, latent, tokens, tp, element_bytes) for op in layer.operators if op.attention is not None]
    return sum(each, np.zeros(np.broadcast_shapes(tokens.shape, tp.shape)))


def latent_elements(layer: Layer) -> int:
    """Elements a token of the latent that stands for all heads' keys and values; 0 where there is none."""
    return sum(op.n for op in layer.operators if op.name == LATENT)


def _kept(op: Operator, latent: int, tokens: Floats, tp: Floats, element_bytes: float) -> Floats:
    it = op.attention
    if op.name in SCANS:
        return STATE_BYTES * it.heads * it.qk_dim * it.v_dim / np.minimum(tp, it.heads)
    seen = np.minimum(tokens, it.window or np.inf)
    return element_bytes * seen * (latent or np.maximum(it.kv_heads / tp, 1.0) * (it.qk_dim + it.v_dim))


def cache_bytes_per_token(model: ModelGraph, context: float, precision: Precision = "bf16") -> float:
    """Bytes that a sequence keeps in all layers and heads, a token of its ``context``: windows and states spread."""
    whole, tokens = np.ones(1), np.array([float(context)])
    each = [layer_cache_bytes(kind, tokens, whole, stored_bytes(precision))[0] for kind in model.kinds]
    return sum(each[k] for k in model.order) / context


def layer_weight_bytes(layer: Layer, rows: DecodeRows) -> Floats:
    """Bytes of a layer's weights on one rank, ``[rows]``: experts are spread over the ranks, norms are whole."""
    split = (layer.column_parameters + layer.expert_parameters) / rows.tp
    return stored_bytes(rows.weights) * (split + layer.whole_parameters)


@dataclass(frozen=True)
class Held:
    """Bytes of one device by pipeline stage, ``[rows, stages]``; nothing in stages that a row does not have.

    ``room`` is what weights leave for the cache, and ``layer`` the largest layer's part of the cache of one pass's
    sequences, ``[rows]``.
    """

    weights: Floats
    cache: Floats
    room: Floats
    layer: Floats

    @property
    def staged(self) -> Floats:
        """Bytes of the layers whose cache is at work or on its way, were none of it kept, ``[rows]``."""
        return STAGED_LAYERS * self.layer

    @property
    def kept(self) -> Floats:
        """Part of the cache that stays on the device, ``[rows]``; below 0 where even that is too much."""
        staged = self.staged[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            part = (self.room - staged) / np.maximum(self.cache - staged, 1e-300)
        part = np.where(self.cache <= self.room, 1.0, np.where(self.room < staged, -1.0, part))
        return np.where((self.cache > 0) | (self.weights > 0), part, 1.0).min(axis=1)


def held(model: ModelGraph, cluster: Cluster, rows: DecodeRows, fits: Calibration, headroom: float = 0.0) -> Held:
    """Weights and cache of every stage, and the room for the cache: of device memory what is not ``headroom``,
    weights, the driver's context, communicators and one pass's logits."""
    stored = stored_bytes(rows.cache)
    cache = [rows.batch * layer_cache_bytes(kind, rows.context, rows.tp, stored) for kind in model.kinds]
    weights = [layer_weight_bytes(kind, rows) for kind in model.kinds]
    by_stage = stage_sums(np.stack([weights[k] for k in model.order], axis=1), rows.pp)
    last = (np.arange(len(rows.pp)), rows.pp.astype(int) - 1)
    by_stage[:, 0] += layer_weight_bytes(model.embedding, rows)
    by_stage[last] += layer_weight_bytes(model.head, rows)
    by_stage[last] += model.tied * (rows.pp > 1) * layer_weight_bytes(model.embedding, rows)
    used = fits.context_bytes + fits.communicator_bytes * ((rows.tp > 1).astype(float) + (rows.pp > 1))
    used = used + logit_bytes(model, rows)
    return Held(
        weights=by_stage,
        cache=stage_sums(np.stack([cache[k] for k in model.order], axis=1), rows.pp),
        room=cluster.memory_bytes * (1 - headroom) - used[:, None] - by_stage,
        layer=np.max(cache, axis=0) * rows.together / rows.batch,
    )


def logit_bytes(model: ModelGraph, rows: DecodeRows) -> Floats:
    """Bytes of one pass's fp32 logits on a device, ``[rows]``."""
    return LOGIT_BYTES * rows.together * model.vocab / rows.tp


def stage_sums(each: Floats, pp: Floats) -> Floats:
    """``[rows, stages]`` sums of ``[rows, layers]`` over even runs of layers; 0 in stages beyond ``pp``."""
    layers, stages = each.shape[1], pp.astype(int)
    before = np.concatenate([np.zeros((len(each), 1)), np.cumsum(each, axis=1)], axis=1)
    ends = np.minimum(np.arange(int(stages.max()) + 1) * layers // stages[:, None], layers)
    return np.diff(np.take_along_axis(before, ends, axis=1), axis=1)


def decode_rates(rows: DecodeRows, tiers: tuple[Tier, ...], cluster: Cluster) -> TierRates:
    """Rates of the tiers when every device of all copies reads its part at the same time."""
    return rates_of(tiers, np.minimum(rows.devices, cluster.devices_per_host), rows.hosts(cluster))


def shares(it: Held, rates: TierRates) -> Floats:
    """Part of the cache that goes to each tier, ``[rows, tiers]``, the quickest filled first.

    They and :attr:`Held.kept` add up to less than 1 where the tiers do not hold the rest.
    """
    need = (it.cache.max(axis=1) * (1 - np.clip(it.kept, 0.0, 1.0)))[:, None]
    order = np.argsort(np.minimum(np.maximum.reduce([rates.link, rates.read, rates.pool]), rates.attend), axis=1)
    room = np.take_along_axis(rates.room_bytes, order, axis=1)
    filled = np.clip(need - (np.cumsum(room, axis=1) - room), 0.0, room)
    found = np.zeros_like(filled)
    np.put_along_axis(found, order, filled, axis=1)
    return found / np.maximum(it.cache.max(axis=1), 1e-300)[:, None]


def balanced_shares(it: Held, rates: TierRates) -> Floats:
    """Part of the cache that goes to each tier, ``[rows, tiers]``, all tiers ending at the same time if none is full.

    Traffic of tiers takes no longer than with any other shares, latencies aside, where all tiers have one device link,
    as those of a host have; where links differ the slowest is taken for all. The module's formula.
    """
    whole = np.maximum(it.cache.max(axis=1), 1e-300)
    need = whole * (1 - np.clip(it.kept, 0.0, 1.0))
    if rates.room_bytes.shape[1] == 0:
        return np.zeros(rates.room_bytes.shape)
    attends = np.isfinite(rates.attend)
    own = np.maximum(np.where(attends, rates.attend, np.maximum(rates.read, rates.pool)), 1e-300)
    link = np.where(attends, 0.0, rates.link).max(axis=1, keepdims=True)
    over_link = np.concatenate([np.where(attends, own, 1.0), np.maximum(link, 1e-300)], axis=1)
    endless = np.concatenate([np.where(attends, rates.room_bytes, 0.0), np.where(link > 0, np.inf, 0.0)], axis=1)
    level = np.maximum(_level(need, rates.room_bytes, own), _level(need, endless, over_link))[:, None]
    with np.errstate(over="ignore"):
        filled = np.minimum(rates.room_bytes, level / own)
        beside = np.where(attends, filled, 0.0).sum(axis=1, keepdims=True)
        over = np.where(attends, 0.0, filled).sum(axis=1, keepdims=True)
        scale = np.clip((need[:, None] - beside) / np.maximum(over, 1e-300), 0.0, 1.0)
    return np.where(attends, filled, filled * scale) / whole[:, None]


def _level(need: Floats, room: Floats, cost: Floats) -> Floats:
    """Seconds after which tiers that fill at ``1 / cost`` hold ``need`` bytes, or all are full."""
    order = np.argsort(room * cost, axis=1)
    room, speed = (np.take_along_axis(each, order, axis=1) for each in (room, 1 / cost))
    none = np.zeros((len(need), 1))
    full = np.concatenate([none, np.cumsum(room, axis=1)], axis=1)
    left = np.concatenate([np.cumsum(speed[:, ::-1], axis=1)[:, ::-1], none], axis=1)
    missing = need[:, None] - full
    with np.errstate(over="ignore", invalid="ignore"):
        at = np.where(missing > 0, missing / np.maximum(left, 1e-300), 0.0)
    return np.minimum(at.max(axis=1), 1e300)
