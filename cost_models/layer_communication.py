"""Communication that one layer causes: seconds that are exposed, and joules of all of it.

Per micro-batch, for hidden states of ``V`` bytes (all tokens of a tp group) in bf16:

    tp    forward: boundaries x (all-gather V + reduce-scatter V); backward the same. The second gather
          of the input for the weight gradient is taken as hidden behind the gradient of the input. Where tp is
          above the KV heads, keys and values are gathered too (:mod:`cost_models.repeated_heads`).
    cp    keys and values go round a ring: as many bytes as an all-gather in forward, as an all-gather and a
          reduce-scatter (of their gradients) in backward. Or heads for tokens: queries, keys, values and results
          in an all-to-all, as much in backward (Jacobs et al., arXiv:2309.14509), which nothing hides.
    ep    forward: dispatch and combine, an all-to-all each; backward the same. Within etp the routed
          tokens are gathered and scattered.
    zero  3: weights gathered in forward and again in backward; 2 and 3: gradients scattered in backward.

Per step: gradients of what is trained reduced (all-reduce for zero 0, reduce-scatter for 1, shards' all-reduce between
replicas, of which DualPipe's two copies of a stage are two), weights gathered after the update (1 and 2). Each layer
is one bucket. Stacks that gather once under a pipeline do what ZeRO-1 does. Where ranks own whole tensors, each of at
most as many ranks as there are tensors broadcasts to the ``n`` of its group, one after the other along a ring:

    t = min(tensors, n) (n - 1) hop  +  all-gather of the weights

Source: Korthikanti et al., arXiv:2205.05198 (tp); Rajbhandari et al., arXiv:1910.02054 (zero);
Liu et al., arXiv:2504.14960 (the two meshes of experts).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.communication import Terms, all_to_all_s, collective_terms, token_exchange_s
from cost_models.kept import stops_before_product
from cost_models.memory import LocalParameters, local_parameters, shard_group, trained_parameters
from cost_models.model_graph import Attention, Layer, ModelGraph
from cost_models.repeated_heads import gathered_elements
from cost_models.rows import Rows
from cost_models.vocabulary import rows_of, rows_of_ends
from cost_models.work import LayerCompute, Work
from cost_models.workload import OPERAND_BYTES, Training
from topologies.cluster import Cluster

Floats = NDArray[np.float64]
Pair = tuple[Work, Work]


@dataclass(frozen=True)
class LayerCommunication:
    """A micro-batch's passes and what full and selective recompute repeat of them; the rest a step; ``[rows]``.

    ``hidden_s`` is what a forward and a backward pass take less beside another micro-batch's (:meth:`Talk.beside`).
    """

    forward: Work
    backward: Work
    repeated: Work
    repeated_selective: Work
    reduce_s: Floats
    gather_s: Floats
    broadcast_s: Floats
    step_j: Floats
    parts: dict[str, Floats]
    hidden_s: tuple[Floats, Floats]


def layer_communication(layer: Layer, talk: Talk, compute: LayerCompute, *, relaxed: bool) -> LayerCommunication:
    """All communication of one layer of ``talk``'s rows; with ``relaxed`` that of data parallelism is left out.

    So is then that of ends which have a tp of their own, as where their ranks are is not known.
    """
    rows, talk = talk.rows, talk.of(layer)
    tensor, idle = talk.tensor(layer, compute)
    if relaxed and talk.rows is not rows:
        tensor = Work.zero(len(rows)), Work.zero(len(rows))
    inside = [tensor, talk.context(layer, compute), talk.experts(layer, idle)]
    repeated, unsent = talk.repeated([once for once, _ in inside]), talk.unsent(layer, tensor[0])
    inside[0] = tuple(map(Work.__add__, tensor, talk.heads(layer)))
    zero = Work.zero(len(talk.rows))
    forward, backward = sum((f for f, _ in inside), zero), sum((b for _, b in inside), zero)
    sharded = (zero, zero) if relaxed else talk.sharded(layer, compute)
    reduce, gather, broadcast = (zero, zero, zero) if relaxed else talk.step(layer)
    names = ("tensor parallel", "context parallel", "expert parallel", "sharded data parallel")
    pairs = [*inside, sharded]
    return LayerCommunication(
        forward=forward + sharded[0],
        backward=backward + sharded[1],
        repeated=forward + unsent * -1.0,
        repeated_selective=repeated,
        reduce_s=reduce.seconds,
        gather_s=gather.seconds,
        broadcast_s=broadcast.seconds,
        step_j=reduce.joules + gather.joules + broadcast.joules,
        parts={name: f.seconds + b.seconds for name, (f, b) in zip(names, pairs, strict=True)},
        hidden_s=talk.beside(inside[2], compute),
    )


class Talk:
    """The collectives of one table of rows; what a group's kind of collective costs is found once for all layers."""

    def __init__(self, model: ModelGraph, rows: Rows, cluster: Cluster, workload: Training, fits: Calibration) -> None:
        self._asked = model, cluster, workload, fits
        self.factors = {**rows.factors, "mirror": rows.mirror}
        self.rows, self.levels, self.fits, self.recipe = rows, cluster.levels, fits, workload.recipe
        self._known: dict[tuple[str, ...], Terms] = {}
        self._groups: dict[tuple[str, ...], tuple[NDArray, NDArray]] = {}
        self.workload, self.stack = workload, workload.stack
        once = self.stack.gather_once & (rows.pp > 1) & (rows.zero == 3)
        self.zero = np.where(once, 1, rows.zero)
        kinds = [*(model.kinds[kind] for kind in model.order), model.embedding, model.head]
        self.tensors = sum(_tensors(kind) for kind in kinds)
        figures = cluster.accelerator.figures
        self.watts = fits.power_fraction["communication"] * (figures.board_power.value - figures.idle_power.value)
        self.hidden = model.hidden
        self.sequence_tokens = rows.micro_batch * workload.seq_len
        self.hidden_bytes = self.sequence_tokens / rows.cp * model.hidden * self.recipe.activation_bytes

    def of(self, layer: Layer) -> Talk:
        """The collectives of the rows as ``layer`` sees them."""
        return self if rows_of(layer, self.rows) is self.rows else self._of_ends

    @cached_property
    def _of_ends(self) -> Talk:
        model, *rest = self._asked
        return Talk(model, rows_of_ends(self.rows), *rest)

    def tensor(self, layer: Layer, compute: LayerCompute) -> tuple[Pair, tuple[Floats, Floats]]:
        """Sequence-parallel gathers and scatters, or all-reduces; embedding and head have half of a pair.

        They take none of the time in which the device waits for its host anyway, of which they leave the rest.
        """
        if self.stack.sequence_parallel:
            gather = self._collective("all_gather", self.hidden_bytes * self._narrow(layer), "tp")
            seconds = gather + self._collective("reduce_scatter", self.hidden_bytes, "tp")
        else:
            seconds = self._collective("all_reduce", self.hidden_bytes, "tp")
        passes = layer.boundaries if layer.boundaries else 0.5
        overlap = self.fits.overlap["tp"] if self.stack.tp_overlap else 0.0
        once = self._work(seconds * passes * self.fits.tp_wait, overlap)
        return _within((once, once), compute.waiting)

    def heads(self, layer: Layer) -> Pair:
        """Keys and values gathered forward and their gradients scattered, where tp is above the KV heads; exposed.

        Selective recompute repeats none of it: what is gathered is kept.
        """
        tokens = self.sequence_tokens / self.rows.cp * self.recipe.activation_bytes
        volume = tokens * gathered_elements(layer, self.rows, self.stack)
        if not volume.any():
            return Work.zero(len(self.rows)), Work.zero(len(self.rows))
        gather, scatter = (self._collective(way, volume, "tp") for way in ("all_gather", "reduce_scatter"))
        wait = self.fits.tp_wait * (volume > 0)
        return self._work(gather * wait, 0.0), self._work(scatter * wait, 0.0)

    def _narrow(self, layer: Layer) -> float:
        """Width of what is gathered for products, as they multiply it, over 16 bits; embedding and head stay wide.

        Source: NVIDIA/TransformerEngine transformer_engine/pytorch/distributed.py, ``gather_along_first_dim`` with a
        quantizer, forward of the inputs and backward of the outputs' gradients; what is scattered has 16 bits.
        """
        if not (self.stack.quantised_inputs and layer.boundaries):
            return 1.0
        return OPERAND_BYTES.get(self.recipe.compute, 2.0) / 2.0

    def context(self, layer: Layer, compute: LayerCompute) -> tuple[Work, Work]:
        """Keys and values of the whole sequence, gathered by every cp rank, hidden behind attention where it can be."""
        attentions = [op.attention for op in layer.operators if op.attention is not None]
        if self.stack.context_exchange == "all_to_all":
            return self._exchanged_heads(attentions)
        elements = sum((a.qk_dim + a.v_dim) * a.keys * np.maximum(a.kv_heads / self.rows.tp, 1) for a in attentions)
        volume = self.sequence_tokens * elements * self.recipe.activation_bytes
        gather, scatter = self._collective("all_gather", volume, "cp"), self._collective("reduce_scatter", volume, "cp")
        overlap = self.fits.overlap["cp"]
        return (
            self._behind(gather, overlap * compute.attention[0]),
            self._behind(gather + scatter, overlap * compute.attention[1]),
        )

    def _exchanged_heads(self, attentions: list[Attention]) -> tuple[Work, Work]:
        """Queries, keys and values on their way to fewer heads of the whole sequence, and the result back; exposed."""
        tokens = self.sequence_tokens / self.rows.cp * self.recipe.activation_bytes
        seconds = np.zeros(len(self.rows))
        for it in attentions:
            heads = it.heads / self.rows.tp
            keys = np.maximum(it.kv_heads / self.rows.tp, np.minimum(self.rows.cp, heads))
            volume = tokens * (heads + keys) * (it.qk_dim + it.v_dim)
            seconds = seconds + all_to_all_s(volume, self.rows.factors["cp"], self.levels, self.fits)
        once = self._work(seconds, 0.0)
        return once, once

    def experts(self, layer: Layer, idle: tuple[Floats, Floats]) -> Pair:
        """Dispatch and combine over ep, gather and scatter over etp, in ``idle`` time first; none for dense layers.

        One micro-batch's forward exchange runs beside another's backward pass and the other way round, where a layer
        has attention (NVIDIA/Megatron-LM megatron/core/models/gpt/gpt_model.py@d98e8a64: ``build_schedule_plan``;
        hybrids have no such plan): the first forward and the last backward pass of a step have nothing beside them.
        """
        if not layer.experts:
            zero = Work.zero(len(self.rows))
            return zero, zero
        token = self.token_bytes(layer) * self.fits.expert_imbalance
        routed = token * layer.top_k * self.rows.etp
        seconds = 2 * self._exchange(token, layer)
        seconds = seconds + self._collective("all_gather", routed, "etp")
        seconds = seconds + self._collective("reduce_scatter", routed, "etp")
        paired = 1.0 - 1.0 / self.rows.micro_batches if layer.attends else 1.0
        once = self._work(seconds, self.fits.overlap["ep" if layer.attends else "ep_alone"] * paired)
        return _within((once, once), idle)[0]

    def beside(self, exchange: Pair, compute: LayerCompute) -> tuple[Floats, Floats]:
        """Seconds of experts' exchange that hide where a forward pass and another's backward run in one piece.

        A layer's forward exchange hides behind a like layer's backward compute and the other way round, all of it
        where that lasts long enough, but for what it slows that compute by. No step time of such a pair is published;
        that all of it can hide is what the source says. What recompute sends again does not.

        Source: DeepSeek-AI, arXiv:2412.19437, section 3.2.1.
        """
        behind = (compute.backward.seconds - compute.waiting[1], compute.forward.seconds - compute.waiting[0])
        kept = 1.0 - self.fits.interference
        forward, backward = (
            kept * np.minimum(it.seconds, np.maximum(free, 0.0)) for it, free in zip(exchange, behind, strict=True)
        )
        return forward, backward

    def repeated(self, inside: list[Work]) -> Work:
        """What selective recompute sends again: of the network its half of the gathers and all exchange, or everything.

        ``inside`` is tensor, context and expert parallelism's forward. Where every second product is repeated, what was
        scattered is kept and what was gathered is not: the gathers' half. Other kinds repeat nothing that communicates.
        Source: pytorch/torchtitan torchtitan/parallelisms/parallelize_llama.py@9dec370: reduce_scatter_tensor in
        ``_save_list``, no all-gather.
        """
        tensor, _, experts = inside
        if self.stack.selective == "network":
            return tensor * 0.5 + experts
        if self.stack.selective == "alternate":
            return tensor * (0.5 if self.stack.sequence_parallel else 0.0)
        return sum(inside, Work.zero(len(self.rows))) if self.stack.selective == "behind_qkv" else tensor * 0.0

    def unsent(self, layer: Layer, tensor: Work) -> Work:
        """Of tensor parallelism's forward what full recompute leaves out with a layer's last product: its reduction.

        One of the scatters, each half of a pair, or one of the all-reduces; where narrower hidden states are less than
        one, all of these.
        """
        if not (layer.boundaries and stops_before_product(layer, self.workload)):
            return tensor * 0.0
        return tensor * (1.0 / max(layer.boundaries, 1.0) / (2.0 if self.stack.sequence_parallel else 1.0))

    def token_bytes(self, layer: Layer) -> Floats:
        """Bytes of one copy of a tp rank's tokens at the width they travel at, which may be narrower than hidden."""
        tokens = self.sequence_tokens / self.rows.cp / self.rows.tp
        copies = next(op.moved for op in layer.operators if op.name == "dispatch") / 2
        return tokens * copies / layer.top_k * self.recipe.activation_bytes

    def _exchange(self, token: Floats, layer: Layer) -> Floats:
        factors = self.rows.factors["ep"]
        if self.stack.dispatcher == "alltoall":
            return all_to_all_s(token * layer.top_k, factors, self.levels, self.fits)
        in_order = layer.experts if self.stack.consecutive_experts else 0
        return token_exchange_s(token, layer.top_k, factors, self.levels, self.fits, in_order, layer.expert_groups)

    def sharded(self, layer: Layer, compute: LayerCompute) -> tuple[Work, Work]:
        """What ZeRO-2 and 3 do in every micro-batch, less what hides behind the layer's own compute."""
        three, two = self.zero == 3, self.zero >= 2
        weights, learnt = local_parameters(layer, self.rows), trained_parameters(layer, self.rows, self.workload)
        gather = np.where(three, self._shards(weights, "all_gather", self.recipe.gather_bytes), 0.0)
        scatter = np.where(two, self._shards(learnt, "reduce_scatter", self.recipe.reduce_bytes), 0.0)
        overlap = self.fits.overlap["dp"] if self.stack.dp_overlap else 0.0
        return (
            self._behind(gather, overlap * compute.forward.seconds),
            self._behind(gather + scatter, overlap * compute.backward.seconds),
        )

    def step(self, layer: Layer) -> tuple[Work, Work, Work]:
        """Gradient reduction and weight gathering of one step, before overlap; and broadcasts of weights.

        The two copies of a stage under DualPipe are replicas of each other, each with its own optimiser states.
        """
        rows, reduce_bytes = self.rows, self.recipe.reduce_bytes
        local, (dense, experts) = trained_parameters(layer, rows, self.workload), shard_group(rows)
        everyone = self._collective(
            "all_reduce", local.dense * reduce_bytes, "cp", "dp_shard", "dp_replicate", "mirror"
        )
        everyone = everyone + self._collective("all_reduce", local.experts * reduce_bytes, "edp", "mirror")
        scatter = self._shards(local, "reduce_scatter", reduce_bytes)
        between = self._collective("all_reduce", local.dense / dense * reduce_bytes, "dp_replicate", "mirror")
        between = between + self._collective("all_reduce", local.experts / experts * reduce_bytes, "mirror")
        first = everyone if self.stack.reduce_whole else scatter + between
        reduce = np.select([self.zero == 0, self.zero == 1], [everyone, first], between)
        reduce = reduce * self.fits.dp_wait
        weights = self._shards(local, "all_gather", self.recipe.gather_bytes) * self.fits.dp_wait
        gather = np.where((self.zero == 1) | (self.zero == 2), weights, 0.0)
        if not self.stack.broadcast_weights:
            return self._work(reduce, 0.0), self._work(gather, 0.0), Work.zero(len(rows))
        sent = gather + np.where(gather > 0, self._broadcast_hops(layer, dense) * self.fits.broadcast_hop_s, 0.0)
        return self._work(reduce, 0.0), Work.zero(len(rows)), self._work(sent, 0.0)

    def _broadcast_hops(self, layer: Layer, group: Floats) -> Floats:
        """Ranks that this layer's broadcasts pass one after the other."""
        return _tensors(layer) * np.minimum(1.0, group / self.tensors) * (group - 1)

    def _shards(self, local: LocalParameters, operation: str, element_bytes: float) -> Floats:
        seconds = self._collective(operation, local.dense * element_bytes, "cp", "dp_shard")
        return seconds + self._collective(operation, local.experts * element_bytes, "edp")

    def _collective(self, operation: str, volume: Floats, *axes: str) -> Floats:
        if not volume.any():
            return np.zeros(len(self.rows))
        key = (operation, *axes)
        if key not in self._known:
            shapes, which = self._shapes(*axes)
            terms = collective_terms(operation, shapes, self.levels, self.fits)
            self._known[key] = Terms(terms.start[which], terms.root[which], terms.slope[which])
        return self._known[key].seconds(volume)

    def _shapes(self, *axes: str) -> tuple[NDArray, NDArray]:
        """Distinct factors of the groups of some axes together, ``[shapes, levels]``, and which of them a row has."""
        if axes not in self._groups:
            factors = np.prod([self.factors[axis] for axis in axes], axis=0)
            number = factors @ np.cumprod([1, *(factors[:, :-1].max(axis=0, initial=1) + 1)])
            _, first, which = np.unique(number, return_index=True, return_inverse=True)
            self._groups[axes] = factors[first], which
        return self._groups[axes]

    def _work(self, seconds: Floats, overlap: float | Floats) -> Work:
        return Work(seconds * (1 - overlap), seconds * self.watts)

    def _behind(self, seconds: Floats, window: Floats) -> Work:
        """What sticks out behind ``window`` seconds of compute, and what the hidden part costs that compute."""
        exposed = np.maximum(seconds - window, 0.0) + self.fits.interference * np.minimum(seconds, window)
        return Work(exposed, seconds * self.watts)


def _within(pair: Pair, idle: tuple[Floats, Floats]) -> tuple[Pair, tuple[Floats, Floats]]:
    """What of a pair's seconds the device's idle time does not hold, and the idle time that is left, by pass."""
    beyond = tuple(Work(np.maximum(it.seconds - free, 0.0), it.joules) for it, free in zip(pair, idle, strict=True))
    return beyond, tuple(np.maximum(free - it.seconds, 0.0) for it, free in zip(pair, idle, strict=True))


def _tensors(layer: Layer) -> int:
    """Weight tensors of a layer."""
    return sum(op.parameters > 0 for op in layer.operators)
