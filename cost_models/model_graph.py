"""A model as the planner sees it: operators with widths, grouped in layers, with repeated layers folded.

All operator figures are *per token of the sequence* and for the whole, unsplit layer; splitting by
tp, cp, ep and etp happens in the cost formulas, guided by ``Operator.split``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

OperatorKind = Literal["matmul", "expert_matmul", "attention", "elementwise", "lookup", "loss"]
Split = Literal["columns", "sequence", "experts", "routed", "whole"]


@dataclass(frozen=True, slots=True)
class Attention:
    """Scores and weighted sum of one attention: the part without weights.

    ``kv_heads`` and ``kv_dim`` (elements a token keeps in a KV cache, all heads) describe what context
    parallelism exchanges; ``window`` is the number of keys a query sees, ``None`` for all. ``queries`` and ``keys``
    are how many of each there are for every token of the sequence: not 1 where an encoder or an image of another
    length is attended from or to.
    """

    heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int
    window: int | None = None
    causal: bool = True
    queries: float = 1.0
    keys: float = 1.0

    def keys_per_query(self, seq_len: int) -> float:
        """Mean number of keys that one query attends to: ``(s + 1) / 2`` when causal, fewer in a window."""
        s = seq_len * self.keys
        w = min(self.window or s, s)
        if not self.causal:
            return float(w)
        return w * (s - w) / s + w * (w + 1) / (2 * s)

    def forward_flop_per_token(self, seq_len: int) -> float:
        """``2 heads (qk_dim + v_dim) keys queries``: one multiply-add a score element and one a weighted value."""
        return 2.0 * self.heads * (self.qk_dim + self.v_dim) * self.keys_per_query(seq_len) * self.queries

    @property
    def kv_elements(self) -> int:
        """Elements of keys and values a token, over all KV heads."""
        return self.kv_heads * (self.qk_dim + self.v_dim)


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a layer.

    ``split`` says what tensor and expert parallelism divide: ``columns`` (heads or feed-forward columns,
    over tp), ``sequence`` (tokens, over tp: norms and residuals under sequence parallelism), ``experts``
    (columns inside an expert, over ep and etp), ``routed`` (hidden states on their way to and from the
    experts, gathered over etp), ``whole`` (nothing: every tp rank does and holds all of it).

    ``n`` and ``k`` are a matrix product's output and inner widths, so 2 n k FLOP a token; an
    ``expert_matmul`` has ``active`` of ``groups`` experts at work on each token. A ``matmul`` multiplies ``rows`` rows
    for each token of the sequence, not 1 where it works on another sequence than the model's own (an encoder's, an
    image's patches, one pooled vector). ``moved`` counts elements
    read and written by an elementwise operator, forward, ``unfused`` those of passes beside it that the grouped
    products of some stacks do (biases of experts, clamps). ``saved`` counts elements kept for the backward
    pass when nothing is recomputed, ``saved_selective`` when only matrix products and attention are kept
    and the cheap rest is recomputed; each saved tensor is counted once, at the operator that reads it.
    """

    name: str
    kind: OperatorKind
    split: Split
    parameters: int = 0
    n: int = 0
    k: int = 0
    groups: int = 1
    active: float = 1.0
    moved: float = 0.0
    unfused: float = 0.0
    saved: float = 0.0
    saved_selective: float = 0.0
    attention: Attention | None = None
    rows: float = 1.0

    def forward_flop_per_token(self, seq_len: int) -> float:
        """FLOP a token, a multiply-add being 2; elementwise work counts as none."""
        if self.attention is not None:
            return self.attention.forward_flop_per_token(seq_len)
        return 2.0 * self.n * self.k * self.active * self.rows


@dataclass(frozen=True, slots=True)
class Layer:
    """Operators between two points where the pipeline may be cut.

    ``boundaries`` is how often sequence parallelism gathers the hidden states and scatters them again in
    one forward pass: 2 for attention followed by a feed-forward network, 1 where the two run in parallel
    or share their input; less or more where the layer's hidden states are fewer or more than the model's own (an
    encoder's). ``experts`` and ``top_k`` are 0 for a dense layer; ``expert_groups`` are how many groups the experts are
    in and of how many of these a token's may be. ``entering`` counts the elements a token
    that come in, ``None`` where they are the model's hidden width; full recompute keeps these.
    """

    kind: str
    operators: tuple[Operator, ...]
    boundaries: float = 0
    experts: int = 0
    top_k: int = 0
    expert_groups: tuple[int, int] = (1, 1)
    entering: float | None = None

    @property
    def attends(self) -> bool:
        """Whether the layer has attention (or a scan) of its own; experts of hybrids are layers without."""
        return any(op.kind == "attention" for op in self.operators)

    @property
    def parameters(self) -> int:
        """Parameters of the layer, experts included."""
        return sum(op.parameters for op in self.operators)

    @property
    def expert_parameters(self) -> int:
        """Parameters that expert parallelism divides."""
        return sum(op.parameters for op in self.operators if op.split == "experts")

    @property
    def whole_parameters(self) -> int:
        """Parameters that tensor parallelism does not divide: norms, routers, low-rank projections."""
        return sum(op.parameters for op in self.operators if op.split in ("sequence", "whole"))

    @property
    def column_parameters(self) -> int:
        """Parameters that tensor parallelism divides."""
        return sum(op.parameters for op in self.operators if op.split == "columns")

    def forward_flop_per_token(self, seq_len: int) -> float:
        """FLOP a token, forward."""
        return sum(op.forward_flop_per_token(seq_len) for op in self.operators)


@dataclass(frozen=True, slots=True)
class Edge:
    """``elements`` values a token that pass from layer ``source`` to layer ``target``, both indices in ``order``.

    ``source`` is -1 for the embedding, ``target`` the number of layers for the head.
    """

    source: int
    target: int
    elements: float


@dataclass(frozen=True)
class ModelGraph:
    """A decoder: embedding, then ``order`` (each entry an index into ``kinds``), then head and loss.

    ``widths`` are the sizes that tensor parallelism must divide, by name: ``{"attention heads": 64,
    "feed-forward width": 28672}``; ``kv_heads`` may be fewer than tp (they are then repeated).
    ``expert_widths`` are those that etp must divide. ``flows`` are the edges of a model that is no plain chain (an
    encoder read by every decoder layer, the skips of a U-Net): what passes over a layer is sent on by every stage it
    passes. ``config`` is the outside description it was read from, when there is one; ``modules`` the qualified names
    of the modules in the embedding, each layer and the head of a traced module, and of parameters that both ends have
    beside them; ``notes`` what its trace assumed, and ``example_seq_len`` the tokens a sample
    that it was traced with.
    """

    name: str
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    max_positions: int
    kinds: tuple[Layer, ...]
    order: tuple[int, ...]
    embedding: Layer
    head: Layer
    tied: bool
    widths: tuple[tuple[str, int], ...]
    expert_widths: tuple[tuple[str, int], ...] = ()
    flows: tuple[Edge, ...] = ()
    config: dict | None = dataclasses.field(default=None, compare=False, repr=False)
    modules: tuple[tuple[str, ...], ...] = dataclasses.field(default=(), compare=False, repr=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)
    example_seq_len: int | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def is_decoder(self) -> bool:
        """Whether it predicts each token from those before it, along one chain of layers: no encoder, no image."""
        layers = (self.embedding, *self.kinds, self.head)
        attended = [op.attention for layer in layers for op in layer.operators if op.attention]
        return self.vocab > 0 and not self.flows and all(attention.causal for attention in attended)

    @property
    def layers(self) -> int:
        """Layers between embedding and head."""
        return len(self.order)

    @property
    def experts(self) -> int:
        """Routed experts in a layer that has any, else 0."""
        return max((kind.experts for kind in self.kinds), default=0)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the whole model, a tied head counted once."""
        return self.embedding.parameters + self.head.parameters + sum(self.kinds[k].parameters for k in self.order)

    @cached_property
    def active_parameters(self) -> int:
        """Parameters that work on one token: all but the experts it is not routed to."""
        idle = sum(
            round(op.parameters * (1 - op.active / op.groups))
            for k in self.order
            for op in self.kinds[k].operators
            if op.kind == "expert_matmul"
        )
        return self.parameters - idle

    def forward_flop_per_token(self, seq_len: int) -> float:
        """FLOP a token, forward, embedding and head included."""
        blocks = sum(self.kinds[k].forward_flop_per_token(seq_len) for k in self.order)
        return blocks + sum(end.forward_flop_per_token(seq_len) for end in (self.embedding, self.head))

    @property
    def edges(self) -> tuple[Edge, ...]:
        """What passes between layers: the hidden states between neighbours, unless ``flows`` says otherwise."""
        return self.flows or tuple(Edge(i, i + 1, self.hidden) for i in range(self.layers - 1))

    @cached_property
    def crossing(self) -> float:
        """Elements a token that a cut between two layers sends on, at the cut that sends most."""
        inner = range(1, self.layers)
        cuts = (sum(e.elements for e in self.flows if e.source < cut <= e.target) for cut in inner)
        return max(cuts, default=self.hidden) if self.flows else self.hidden

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change when anything the costs depend on does."""
        priced = dataclasses.replace(self, config=None, modules=(), notes=(), example_seq_len=None)
        parts = _without_defaults(dataclasses.asdict(priced))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


LATER_DEFAULTS = {
    "rows": 1.0, "queries": 1.0, "keys": 1.0, "entering": None, "flows": (), "modules": (), "notes": (),
    "example_seq_len": None, "expert_groups": (1, 1),
}  # fmt: skip
"""Fields that models without them are digested without, so that plans saved before they were there still verify."""


def _without_defaults(part: Any) -> Any:
    if isinstance(part, dict):
        kept = {k: v for k, v in part.items() if k not in LATER_DEFAULTS or v != LATER_DEFAULTS[k]}
        return {name: _without_defaults(value) for name, value in kept.items()}
    return [_without_defaults(each) for each in part] if isinstance(part, list | tuple) else part


MATRICES = {"qkv": 3, "gate_up": 2}
"""Weights that modules keep as matrices of their own where the graph has one operator."""


def weight_tensors(layer: Layer) -> int:
    """Weight tensors of a layer as modules hold them, biases aside."""
    return sum(MATRICES.get(op.name, 1) for op in layer.operators if op.parameters > 0)
