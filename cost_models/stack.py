"""The training software that runs a job, as far as it changes time or bytes.

A stack's *settings* are facts of a release or choices of its user and stand here; what it *reaches* (how
much communication it hides, what a launch costs its host) is fitted and stands in ``calibration/stacks.toml``
under the stack's name.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SelectiveRecompute = Literal[
    "pointwise", "activation", "up_projection", "small_modules", "attention", "network", "alternate", "behind_qkv"
]
Dispatcher = Literal["alltoall", "deepep", "hybridep"]
RUNTIME = "torch-eager"
"""The stack whose constants ``meshwright calibrate`` measures."""
AttentionKind = Literal["fused", "flash2", "flash1", "flash1_triton"]
Bytes = Field(default=None, ge=0, le=64, allow_inf_nan=False)


class Stack(BaseModel):
    """One training software with its settings; the defaults are Megatron-Core's today.

    ``release`` is as the stack's makers write it; empty for the newest.

    ``selective`` says what selective recompute repeats: ``pointwise`` (norms and activation functions),
    ``activation`` (the functions alone, but for shared experts'), ``up_projection`` (latent attention's queries, keys
    and values, from their latents), ``small_modules`` (both, and norms), ``attention`` (scores and their product with
    the values), ``network`` (the feed-forward network or the experts, whole), ``alternate`` (pointwise work and every
    second matrix product), ``behind_qkv`` (all but queries, keys and values). ``fused_attention`` is false where scores
    are written to memory. ``fused_pointwise`` is false where every small operator is a kernel of its own, norms
    too unless ``fused_norms``. ``fp8_attention`` runs attention in fp8 where products are, ``fp8_activation`` keeps
    the input of the activation function in fp8. ``block_scaled`` is true where fp8 numbers share a scale a block
    (MXFP8, 128 x 128), not a tensor, ``row_scaled`` where they share one a row, which casts by kernels of their own
    make. ``context_exchange`` says whether context parallelism passes keys round a ring or exchanges heads for tokens.
    ``dispatcher`` ``deepep`` and ``hybridep`` send a token once to every host that needs it, ``alltoall``
    once to every expert; ``balanced_routing`` is true where every expert is given equally many tokens (benchmarks,
    capacities), ``consecutive_experts`` where they are dealt out in their order, so that those of a token lie side by
    side. ``master_weights_sharded`` is true where fp32 weights themselves are what is sharded and gathered in
    16 bits (FSDP). ``fused_accumulation`` is false where a weight's gradient is written by its product and added to
    the sum by kernels of their own. ``fused_network`` holds where a dense network's activation function is one kernel
    a pass and writes its result cast (Transformer Engine's operator fuser). ``fused_experts`` holds where Blackwell's
    products of experts in fp8 or fp4 do their activation and biases too, at the rate of one dense product (DeepSeek
    V3's layer on GB300: 2.5 ms forward and backward in NVIDIA/TransformerEngine
    examples/pytorch/deepseek_v3/README.md@e9fac4f6, 2.46 ms so priced),
    ``expert_graphs`` where experts run from the graph of a whole step; both in layers that have attention too, not in
    hybrids, whose experts are layers of their own. ``grouped_experts`` is false where the products of a device's
    experts are launched one after the other. ``padded_vocab`` is false where the vocabulary is not padded to a
    width that products run well at. ``quantised_head`` holds where logits are products in the low precision, too.
    ``chunked_loss`` holds where head and loss run on a part of the tokens at a time.
    ``reduce_whole`` holds where ZeRO-1 reduces gradients to every rank, not only to
    the one that updates. Bytes a parameter replace those of the precision where they are given;
    ``held_gradient_bytes`` are those of all gradients that a rank holds, where that is not the one sum;
    ``embedding_optimizer_bytes`` those of the embedding's states; ``frozen_bytes`` those of a frozen matrix (LoRA),
    which needs no copy but that of its products (fp8) or may be quantised (QLoRA).

    ``attention_kernel`` is the implementation of fused attention: flash attention 2 and 1, the latter in CUDA
    (``flash1``) or Triton (``flash1_triton``), ``fused`` the best that a device has (cuDNN, flash attention 3).
    ``gather_once`` is true where ZeRO-3 under a pipeline keeps gathered weights and sums gradients until the last
    micro-batch. ``broadcast_weights`` is true where each rank of the shard group owns whole tensors and broadcasts them
    after the update, while nothing computes.

    What backward reads: ``quantised_inputs`` holds where fp8 and fp4 products keep their input as they read it, and
    sequence parallelism gathers it so, not in 16 bits. ``weights_on_activation`` holds where a router's weights scale
    what is inside an expert, so that backward needs no expert's output. ``gathers_again`` is false where sequence
    parallelism keeps the gathered input of a product instead of gathering it a second time. ``gathers_queries`` is
    false where tp above the KV heads gathers keys and values without the queries beside them. ``whole_qkv`` holds where
    values stay a part of the projection's whole result, beside rotated copies of queries and keys; ``joined_kv`` where
    queries do, beside one copy of keys and values, as long as there are as many heads of these; ``repeats_kv``
    where keys and values are copied for every head of queries before attention keeps them; ``plain_adapters``
    where an adapter keeps its dropout's mask and its result before that is put in place, ``adapter_masks`` where it
    keeps the mask alone. ``bitsandbytes`` holds where
    that library has the quantised matrices: the head is one of them, each product keeps its input although its matrix
    is frozen, and takes a 16-bit copy of the matrix twice.

    ``copies_gathered`` holds where a gathered hidden state is copied into the order of its tokens, and so before it is
    scattered, unless a product takes its parts as they come (``tp_overlap``).

    ``early_stop`` holds where full recompute of a layer ends once all that its backward pass reads is there again: the
    layer's last product is left out, and its reduction over tp.

    ``host_adds`` holds where device and host are one processor: what a launch takes is added to what it launches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "megatron-core"
    release: str = ""
    sequence_parallel: bool = True
    fused_attention: bool = True
    attention_kernel: AttentionKind = "fused"
    fused_pointwise: bool = True
    fused_loss: bool = True
    fp8_attention: bool = False
    fp8_activation: bool = False
    block_scaled: bool = False
    row_scaled: bool = False
    context_exchange: Literal["ring", "all_to_all"] = "ring"
    master_weights_sharded: bool = False
    dropout: bool = False
    selective: SelectiveRecompute = "pointwise"
    tp_overlap: bool = False
    dp_overlap: bool = True
    cuda_graphs: bool = False
    fused_accumulation: bool = True
    chunked_loss: bool = False
    padded_vocab: bool = True
    quantised_head: bool = False
    reduce_whole: bool = False
    dispatcher: Dispatcher = "alltoall"
    fused_network: bool = False
    fused_experts: bool = False
    grouped_experts: bool = True
    expert_graphs: bool = True
    balanced_routing: bool = False
    consecutive_experts: bool = False
    gather_once: bool = False
    broadcast_weights: bool = False
    quantised_inputs: bool = True
    weights_on_activation: bool = True
    gathers_again: bool = True
    gathers_queries: bool = True
    whole_qkv: bool = False
    joined_kv: bool = False
    repeats_kv: bool = False
    copies_gathered: bool = False
    fused_norms: bool = False
    plain_adapters: bool = False
    adapter_masks: bool = False
    bitsandbytes: bool = False
    early_stop: bool = False
    host_adds: bool = False
    weight_bytes: float | None = Bytes
    frozen_bytes: float | None = Bytes
    gradient_bytes: float | None = Bytes
    held_gradient_bytes: float | None = Bytes
    reduce_bytes: float | None = Bytes
    gather_bytes: float | None = Bytes
    optimizer_bytes: float | None = Bytes
    embedding_optimizer_bytes: float | None = Bytes
    master_bytes: float | None = Bytes


def runtime_stack(family: str) -> Stack:
    """What :mod:`planner.runtime` runs on devices of ``family``: torch as it comes, FSDP2, DTensor, no fused kernels.

    FSDP's sharded fp32 weights are the master copy, beside which the gathered ones stand, whatever their type.
    gloo's collectives hold up the thread that calls them, so nothing hides behind compute on processors.
    """
    cpu = family == "cpu"
    return Stack(
        name=RUNTIME, fused_pointwise=False, fused_loss=False, dp_overlap=not cpu, host_adds=cpu, padded_vocab=False,
        master_weights_sharded=True, master_bytes=4.0, gathers_queries=False,
    )  # fmt: skip
