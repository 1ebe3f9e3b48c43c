"""Operators of a decoder's layers, with what each moves and saves per token.

With hidden width h, heads a, key-value heads g, head width d and feed-forward width i, a gated dense
layer saves for backward, in elements a token:

    none       2h  +  (a + 2g) d  +  a d + 2a  +  2h  +  2i  +  i
    selective   h  +  (a + 2g) d  +  a d + 2a  +   h  +  2i

norm in and out, queries keys values, attention out and log-sum-exp (fp32, so two 16-bit elements a head),
norm in and out, gate and up, their product. Each saved tensor is counted once. A tensor as wide as
``hidden`` counts at the ``sequence`` operator next to it, because sequence parallelism keeps it scattered;
one as wide as heads or feed-forward at a ``columns`` operator.

Source: the terms of Korthikanti et al., arXiv:2205.05198, section 4, for a flash-attention kernel
(Dao, arXiv:2307.08691), without dropout.
"""

from __future__ import annotations

from cost_models.model_graph import Attention, Layer, Operator
from planner.read_model.decoder import Decoder, Experts, FeedForward, HeadedAttention, LatentAttention

LOG_SUM_EXP = 2


def layer(decoder: Decoder, window: int | None, sparse: bool) -> Layer:
    """One layer: attention with that ``window``, then experts if ``sparse``, else a feed-forward network."""
    name = ("experts" if sparse else "dense") + (f", window {window}" if window else "")
    return mixed_layer(decoder, name, attention_operators(decoder, window), sparse)


def mixed_layer(
    decoder: Decoder, kind: str, operators: tuple[Operator, ...], sparse: bool, around: tuple[Operator, ...] = ()
) -> Layer:  # fmt: skip
    """One layer whose first part is ``operators``, with ``around`` before that part and before the network."""
    it = decoder.experts if sparse else decoder.feed_forward
    if isinstance(it, Experts):
        network, shared = expert_operators(it, decoder.hidden), it.shared is not None
    else:
        network, shared = feed_forward_operators(it, decoder.hidden), False
    return Layer(
        kind=kind,
        operators=_joined(decoder, (*around, *operators), (*around, *network), shared),
        boundaries=_boundaries(decoder, sparse, shared),
        experts=it.experts if isinstance(it, Experts) else 0,
        top_k=it.top_k if isinstance(it, Experts) else 0,
        expert_groups=it.groups if isinstance(it, Experts) else (1, 1),
    )


def _boundaries(decoder: Decoder, sparse: bool, shared: bool) -> int:
    """Gathers of the sequence a forward pass: attention's and the network's; routed tokens stay scattered."""
    if decoder.parallel:
        return 1
    return 1 if sparse and not shared else 2


def _joined(decoder: Decoder, attention: tuple, network: tuple, shared: bool) -> tuple[Operator, ...]:
    """Norms, attention and network in the order they run, with the additions between them."""
    h = decoder.hidden
    if decoder.parallel:
        second = (norm(decoder, "feed_forward_norm", 2, saved=h),) if decoder.layer_norms == 2 else ()
        first = norm(decoder, "attention_norm", 2, saved=2 * h, selective=h)
        return (first, *second, *attention, *network, residual(h, 3))
    before_attention, before_network = _norms_before(decoder)
    behind_attention, behind_network = _norms_behind(decoder)
    return (
        *before_attention,
        *attention,
        *behind_attention,
        *before_network,
        *network,
        *behind_network,
        residual(h, 3 if shared else 2),
    )


def _norms_before(decoder: Decoder) -> tuple[tuple[Operator, ...], tuple[Operator, ...]]:
    """The norms before attention, and before the network with the addition between the two parts."""
    if not decoder.pre_norms:
        return (), ()
    h, post = decoder.hidden, decoder.post_norms
    first = norm(decoder, "attention_norm", 2, saved=2 * h, selective=h)
    return (first,), (norm(decoder, "feed_forward_norm", 4, saved=2 * h, selective=0 if post else h),)


def _norms_behind(decoder: Decoder) -> tuple[tuple[Operator, ...], tuple[Operator, ...]]:
    """The norms of what attention and network give.

    Without norms before the parts these count what the parts' products keep as well: their input, ``h`` each, of
    which selective recompute adds up the network's again. The first then also does the addition between the parts.
    """
    if not decoder.post_norms:
        return (), ()
    h = decoder.hidden
    names = ("attention_post_norm", "feed_forward_post_norm")
    if decoder.pre_norms:
        first, second = (norm(decoder, name, 2, saved=h, selective=h) for name in names)
    else:
        first = norm(decoder, names[0], 5, saved=2 * h, selective=2 * h)
        second = norm(decoder, names[1], 2, saved=2 * h, selective=h)
    return (first,), (second,)


def norm(decoder: Decoder, name: str, passes: int, saved: int = 0, selective: int = 0) -> Operator:
    """A norm over the hidden width that moves ``passes`` times that."""
    return Operator(
        name, "elementwise", "sequence",
        parameters=decoder.norm_vectors * decoder.hidden,
        moved=passes * decoder.hidden, saved=saved, saved_selective=selective,
    )  # fmt: skip


def residual(hidden: int, addends: int) -> Operator:
    """The addition behind a layer's parts."""
    return Operator("residual", "elementwise", "sequence", moved=(addends + 1) * hidden)


def attention_operators(decoder: Decoder, window: int | None) -> tuple[Operator, ...]:
    """Projections and attention of one layer, without its norm."""
    if isinstance(decoder.attention, LatentAttention):
        return _latent_attention(decoder.attention, decoder.hidden, window)
    return _headed_attention(decoder.attention, decoder.hidden, window)


def _headed_attention(it: HeadedAttention, hidden: int, window: int | None) -> tuple[Operator, ...]:
    qkv_width, rotated = (it.heads + 2 * it.kv_heads) * it.head_dim, (it.heads + it.kv_heads) * it.head_dim
    scores = Attention(it.heads, it.kv_heads, it.head_dim, it.head_dim, window)
    return (
        matmul("qkv", qkv_width, hidden, bias=it.qkv_bias, saved=qkv_width),
        *_on_queries_and_keys(it, rotated),
        attention_core(scores, it.sinks),
        matmul("output", hidden, it.heads * it.head_dim, bias=it.output_bias),
    )


def _on_queries_and_keys(it: HeadedAttention, width: int) -> tuple[Operator, ...]:
    """Norm and rotation of queries and keys, ``width`` elements together.

    The norm's scales are whole on every rank while its data are divided by heads; so ``qk_norm`` holds the
    scales, and what it moves and saves counts at the operator after it, which the heads divide.
    """
    if not it.rope:
        return ()
    if not it.qk_norm:
        return (Operator("rope", "elementwise", "columns", moved=2 * width),)
    return (
        Operator("qk_norm", "elementwise", "whole", parameters=it.qk_norm),
        Operator("rope", "elementwise", "columns", moved=4 * width, saved=width),
    )


def _latent_attention(it: LatentAttention, hidden: int, window: int | None) -> tuple[Operator, ...]:
    """Low-rank projections are whole on every tp rank; the expansions to heads are divided."""
    keys, values = it.heads * it.qk_dim, it.heads * it.v_dim
    scores = Attention(it.heads, it.heads, it.qk_dim, it.v_dim, window)
    latents = it.kv_rank + (it.q_rank or 0)
    latent_norm = Operator(
        "latent_norm", "elementwise", "whole", parameters=latents, moved=2 * latents, saved=latents
    )  # fmt: skip
    return (
        *_latent("q_a", it.q_rank, hidden, it.bias),
        *_latent("kv_a", it.kv_rank + it.rope_dim, hidden, it.bias),
        latent_norm,
        matmul("q_b" if it.q_rank else "q", keys, it.q_rank or hidden, saved=keys),
        matmul("kv_b", it.heads * (it.nope_dim + it.v_dim), it.kv_rank, saved=keys + values),
        Operator("rope", "elementwise", "columns", moved=2 * (it.heads * it.rope_dim + keys)),
        attention_core(scores),
        matmul("output", hidden, values, bias=it.bias),
    )


def _latent(name: str, width: int | None, hidden: int, bias: bool) -> tuple[Operator, ...]:
    if width is None:
        return ()
    return (matmul(name, width, hidden, bias=bias, saved=width, split="whole"),)


def attention_core(scores: Attention, parameters: int = 0) -> Operator:
    """Attention without its projections; output and log-sum-exp are kept."""
    kept = scores.heads * (scores.v_dim + LOG_SUM_EXP)
    return Operator(
        "attention", "attention", "columns", parameters=parameters, saved=kept, saved_selective=kept, attention=scores
    )


def matmul(name: str, n: int, k: int, *, bias: bool = False, saved: int = 0, split: str = "columns") -> Operator:
    """A product with an ``[n, k]`` matrix; its kept output is not recomputed under selective recompute."""
    return Operator(name, "matmul", split, parameters=n * k + bias * n, n=n, k=k, saved=saved, saved_selective=saved)


def feed_forward_operators(it: FeedForward, hidden: int, prefix: str = "") -> tuple[Operator, ...]:
    """Up, activation and down of a dense network; a gated one goes up with two matrices in one product."""
    up, i = it.up_width, it.width
    kept, again = (0, i) if it.relu else (up, 0)
    return (
        matmul(prefix + ("gate_up" if it.gated else "up"), up, hidden, bias=it.bias, saved=kept),
        Operator(prefix + "activation", "elementwise", "columns", moved=up + i, saved=i, saved_selective=again),
        matmul(prefix + "down", hidden, i, bias=it.bias),
    )


def expert_operators(it: Experts, hidden: int) -> tuple[Operator, ...]:
    """Router, dispatch, the experts at work and combine; then the shared network, if any.

    The experts' outputs (``width * top_k``) are kept: the gradient of a router weight needs them. Tokens travel
    at the latent width where there is one, projected before dispatch and back after combine.
    """
    width, i, up = it.latent or hidden, it.width, (2 if it.gated else 1) * it.width
    copies = width * it.top_k
    router = Operator(
        "router", "matmul", "sequence", parameters=it.experts * (hidden + it.router_bias),
        n=it.experts, k=hidden, saved=it.experts, saved_selective=it.experts,
    )  # fmt: skip
    return (
        router,
        *_to_latent(it, "latent_down", width, hidden, saved=0),
        Operator("dispatch", "elementwise", "routed", moved=2 * copies, saved=copies, saved_selective=copies),
        _grouped(it, "experts_gate_up" if it.gated else "experts_up", up, width),
        Operator(
            "experts_activation", "elementwise", "experts", moved=(up + i) * it.top_k,
            unfused=_biased(up, width) * it.top_k if it.bias else 0.0, saved=i * it.top_k,
        ),
        _grouped(it, "experts_down", width, i, kept=0),
        Operator("combine", "elementwise", "routed", moved=copies + width, saved=copies, saved_selective=copies),
        *_to_latent(it, "latent_up", hidden, width, saved=width),
        *_shared(it, hidden),
    )  # fmt: skip


def _biased(up: int, width: int) -> float:
    """Elements that biases and clamps of experts move a token and expert beside products and activation, forward.

    Both halves of ``up`` are clamped and joined (2 read, 2 written). The output's bias times the router's weight is
    in fp32, and so is its sum with the output: 28 bytes an output, written as a product, added, joined over the
    experts and rounded. Source: NVIDIA/Megatron-LM megatron/core/fusions/fused_bias_geglu.py and
    megatron/core/transformer/moe/experts.py@d98e8a64, ``weighted_bias_quick_geglu_impl`` and ``_apply_bias``.
    """
    return 4.0 * up + 14.0 * width


def _to_latent(it: Experts, name: str, n: int, k: int, saved: int) -> tuple[Operator, ...]:
    """The projection to or from the width that experts work on; each tp rank does it for its own tokens."""
    return () if it.latent is None else (matmul(name, n, k, saved=saved, split="sequence"),)


def _grouped(it: Experts, name: str, n: int, k: int, kept: int | None = None) -> Operator:
    """One product a working expert: ``[n, k]`` in each of ``experts``, ``top_k`` of them a token.

    ``kept`` is the elements of each product that backward reads: all ``n`` unless it says otherwise.
    """
    saved = (n if kept is None else kept) * it.top_k
    return Operator(
        name, "expert_matmul", "experts", parameters=it.experts * (n * k + it.bias * n), n=n, k=k,
        groups=it.experts, active=it.top_k, saved=saved, saved_selective=saved,
    )  # fmt: skip


def _shared(it: Experts, hidden: int) -> tuple[Operator, ...]:
    if it.shared is None:
        return ()
    # The gate's gradient needs what it multiplies: the shared network's output.
    gate = (matmul("shared_gate", 1, hidden, saved=1 + hidden, split="sequence"),) if it.shared_gate else ()
    return (*feed_forward_operators(it.shared, hidden, "shared_"), *gate)


def embedding(decoder: Decoder) -> Layer:
    """Token rows, learned positions, the projection to ``hidden`` and a norm, as far as the family has them."""
    h, width = decoder.hidden, decoder.token_width or decoder.hidden
    operators = [Operator("tokens", "lookup", "columns", parameters=decoder.vocab * width, moved=2 * width)]
    if width != h:
        operators.append(matmul("embedding_projection", h, width, split="whole"))
    if decoder.position_rows:
        operators.append(
            Operator("positions", "lookup", "whole", parameters=decoder.position_rows * h, moved=2 * h)
        )  # fmt: skip
    if decoder.embedding_norm:
        operators.append(norm(decoder, "embedding_norm", 2, saved=2 * h, selective=h))
    return Layer("embedding", tuple(operators))


def head(decoder: Decoder) -> Layer:
    """Final norm, logits and loss. A tied head's matrix is counted with the embedding; logits are saved elsewhere."""
    h, vocab, width = decoder.hidden, decoder.vocab, decoder.token_width or decoder.hidden
    operators = [norm(decoder, "final_norm", 2, saved=2 * h, selective=h)] if decoder.final_norm else []
    if width != h:
        operators.append(matmul("head_projection", width, h, split="whole"))
    own = (0 if decoder.tied else vocab * width) + decoder.head_bias * vocab
    operators.append(Operator("logits", "matmul", "columns", parameters=own, n=vocab, k=width))
    operators.append(Operator("loss", "loss", "columns", moved=4 * vocab))
    return Layer("head", tuple(operators))
