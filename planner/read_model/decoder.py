"""A decoder in plain sizes: what every family's configuration is read into before operators are built."""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.model_graph import Layer


@dataclass(frozen=True, slots=True)
class HeadedAttention:
    """Queries in ``heads`` heads over ``kv_heads`` key-value heads of ``head_dim`` elements each.

    ``qk_norm`` counts the parameters of the norms on queries and keys, ``sinks`` those of learned
    attention sinks; ``rope`` is false for learned positions and for ALiBi.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: int = 0
    sinks: int = 0
    rope: bool = True


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Attention through low-rank latents (MLA): ``q_rank`` is ``None`` where queries are projected directly.

    A query or key head has ``nope_dim`` elements without position and ``rope_dim`` rotated ones.
    """

    heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    bias: bool = False

    @property
    def kv_heads(self) -> int:
        """Key-value heads after expansion from the latent: one a query head."""
        return self.heads

    @property
    def qk_dim(self) -> int:
        """Elements of one query or key head."""
        return self.nope_dim + self.rope_dim


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A dense feed-forward network; ``gated`` has two matrices going up, else one.

    ``relu`` needs nothing to go back but its output, which the matrix going down keeps anyway.
    """

    width: int
    gated: bool = True
    bias: bool = False
    relu: bool = False

    @property
    def up_width(self) -> int:
        """Output width of the matrices going up."""
        return 2 * self.width if self.gated else self.width


@dataclass(frozen=True, slots=True)
class Experts:
    """``top_k`` of ``experts`` networks a token, with an optional network shared by all tokens.

    ``groups`` are how many groups the experts are in and of how many of these a token's may be.

    ``latent`` is the width that tokens are projected to before they are sent to experts, ``None`` where experts
    work on the hidden states themselves.
    """

    experts: int
    top_k: int
    width: int
    bias: bool = False
    router_bias: bool = False
    shared: FeedForward | None = None
    shared_gate: bool = False
    gated: bool = True
    latent: int | None = None
    groups: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Everything about a decoder that operators are built from.

    ``windows`` and ``sparse`` have one entry a layer: keys a query sees (``None`` for all), and whether
    experts take the place of ``feed_forward``. ``norm_vectors`` is 1 for a scale, 2 for scale and shift,
    0 for neither. ``parallel`` layers add attention and feed-forward to the same input, behind
    ``layer_norms`` norms; others norm the inputs of both, unless ``pre_norms`` is false, and their outputs, where
    ``post_norms`` is true. ``position_rows`` are learned
    positions; ``token_width`` is the width of the embedding table where it differs from ``hidden``. ``built``
    are the layers themselves where they differ in more than ``windows`` and ``sparse`` say.
    """

    hidden: int
    vocab: int
    max_positions: int
    tied: bool
    attention: HeadedAttention | LatentAttention
    windows: tuple[int | None, ...]
    sparse: tuple[bool, ...]
    feed_forward: FeedForward | None
    experts: Experts | None = None
    norm_vectors: int = 1
    parallel: bool = False
    layer_norms: int = 2
    pre_norms: bool = True
    post_norms: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    position_rows: int = 0
    token_width: int | None = None
    head_bias: bool = False
    built: tuple[Layer, ...] = ()
