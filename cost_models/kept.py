"""Elements a token that an operator keeps for the backward pass, in units of 16-bit ones, before anything is divided.

A layer of fused kernels keeps each tensor once, at the operator that reads it (``Operator.saved``). Here stand the
ways in which stacks keep more or less of it.
"""

from __future__ import annotations

import itertools

from cost_models.model_graph import Layer, Operator
from cost_models.workload import OPERAND_BYTES, Training

FP32_BYTES = 4.0
FEEDS = {"attention_norm": ("qkv",), "feed_forward_norm": ("gate_up", "up"), "activation": ("down",)}
"""Matrices that read what an operator leaves behind."""
NORMS = ("attention_norm", "feed_forward_norm", "norm")
NETWORK = {
    "gate_up", "up", "activation", "down", "router", "dispatch", "combine", "latent_down", "latent_up",
}  # fmt: skip
UP_PROJECTION = ("latent_norm", "q_b", "kv_b", "rope")
"""From the latents to queries, keys and values. Source: DeepSeek-AI, arXiv:2412.19437, section 3.2.3."""


def kept_elements(op: Operator, layer: Layer, hidden: int, name: str, workload: Training) -> float:
    """Elements of ``op`` that are kept; ``name`` is ``saved``, or ``saved_selective`` under selective recompute."""
    stack = workload.stack
    if name == "saved_selective" and stack.selective == "alternate":
        return _alternate(op, layer, compiled=stack.fused_pointwise)
    if name == "saved_selective" and stack.selective == "attention":
        name = "saved"
    if name == "saved_selective" and stack.selective in REPEATED:
        if REPEATED[stack.selective](op):
            inputs = NORMS if stack.selective == "small_modules" else NORMS[:1]
            return op.saved_selective if op.name in inputs else 0.0
        return kept_elements(op, layer, hidden, "saved", workload)
    if stack.weights_on_activation and op.name == "combine":
        return 0.0
    elements = getattr(op, name)
    if stack.fp8_activation and op.name.removeprefix("experts_").removeprefix("shared_") in ("gate_up", "up"):
        return elements / 2
    if workload.tuning == "lora":
        return _beside_frozen(op, layer, hidden, name, workload)
    beside = _unfused(op, name, workload) + _beside_whole(op, layer, workload) + _repeated(op, name, workload)
    return elements + beside + _quantised(op, layer, hidden, name, workload)


def leaves(op: Operator, workload: Training) -> bool:
    """Whether full recompute leaves ``op`` out if only such operators follow: backward reads no output of theirs.

    Source: PyTorch 2.1, torch.utils.checkpoint.set_checkpoint_early_stop: checkpoints that are not reentrant stop
    once every saved tensor is there. MPT 7B on A100 at 1,024 tokens with full recompute takes 7 % longer a token
    than at 2,048 without (mosaicml/llm-foundry scripts/train/benchmarking/README.md@b2a43a147).
    """
    return workload.stack.early_stop and not op.saved and not workload.adapts(op.name)


def stops_before_product(layer: Layer, workload: Training) -> bool:
    """Whether full recompute leaves the last product of ``layer`` out."""
    left = itertools.takewhile(lambda op: leaves(op, workload), reversed(layer.operators))
    return any(op.kind == "matmul" for op in left)


def in_network(op: Operator) -> bool:
    """Whether ``op`` belongs to the feed-forward network or the experts, router and exchange included."""
    return op.name in NETWORK or op.name.startswith(("experts_", "shared_"))


def _function(op: Operator) -> bool:
    return op.name.endswith("activation")


def _routed_function(op: Operator) -> bool:
    """Functions of routed experts and of dense networks; those of shared experts are kept.

    Source: NVIDIA/Megatron-LM megatron/core/transformer/moe/experts.py@core_v0.13.0, the one place of ``moe_act``.
    """
    return _function(op) and not op.name.startswith("shared_")


def _behind_qkv(op: Operator) -> bool:
    return op.name != "qkv"


def _up_projection(op: Operator) -> bool:
    return op.name in UP_PROJECTION


def _small_module(op: Operator) -> bool:
    return _up_projection(op) or _function(op) or op.name in NORMS


REPEATED = {
    "network": in_network, "activation": _routed_function, "behind_qkv": _behind_qkv, "up_projection": _up_projection,
    "small_modules": _small_module,
}  # fmt: skip
"""Of these kinds of selective recompute, which operators run again: of them only their own input is kept."""


def _quantised(op: Operator, layer: Layer, hidden: int, name: str, workload: Training) -> float:
    """How much more or less a product's input takes as it is read: attention's result is kept in 16 bits besides.

    A norm before a router or before two low-rank projections has other readers and stays as it is. Source:
    NVIDIA/TransformerEngine transformer_engine/pytorch/module/{linear,layernorm_linear}.py@d0067d0d, which save the
    quantised input in the one layout that the backward product reads.
    """
    if workload.precision not in OPERAND_BYTES or not workload.stack.quantised_inputs:
        return 0.0
    share = OPERAND_BYTES[workload.precision] / 2
    if op.attention is not None:
        return share * op.attention.heads * op.attention.v_dim
    if op.name == "dispatch" or (name == "saved" and op.name.endswith(("activation", "gated_norm"))):
        return (share - 1) * op.saved
    names = {one.name for one in layer.operators}
    alone = "kv_a" not in names and (op.name == "attention_norm" or not layer.experts)
    both = op.name in NORMS and name == "saved" and op.saved == 2 * hidden
    return (share - 1) * hidden if alone and both else 0.0


def _beside_frozen(op: Operator, layer: Layer, hidden: int, name: str, workload: Training) -> float:
    """What stays where adapters learn: the input of a frozen matrix is not kept unless an adapter reads it too.

    An adapter's dropout keeps what it lets through, beside the result that attention keeps anyway.
    """
    stack, read = workload.stack, any(workload.adapts(matrix) for matrix in FEEDS.get(op.name, ()))
    base = getattr(op, name) if read or op.name not in FEEDS else op.saved_selective
    elements = base + _unfused(op, name, workload) + _repeated(op, name, workload)
    if not stack.fused_pointwise and _rms(op):
        elements -= min(base, op.parameters)
    if op.name in FEEDS and stack.bitsandbytes:
        elements += hidden if op.name in NORMS else op.saved
    if op.name == "qkv":
        elements += _beside_qkv(op, layer, hidden, workload)
    return elements + (_beside_attention(op.attention.heads * op.attention.v_dim, workload) if op.attention else 0)


def _beside_attention(result: float, workload: Training) -> float:
    """What an adapter's dropout lets through of attention's ``result``, and its mask; the result in a byte of fp8."""
    dropped = (result + workload.stack.adapter_masks * result / 2) if workload.adapts("output") else 0.0
    return dropped - (result / 2 if workload.stack.fp8_attention else 0.0)


def _beside_qkv(op: Operator, layer: Layer, hidden: int, workload: Training) -> float:
    """Rotated queries and keys beside the whole result; of adapters of queries and values a mask of bytes and result.

    Source: Lightning-AI/litgpt lit_gpt/model.py@034afaca (values are a view of the projection's result) and
    lit_gpt/lora.py@02153072 (dropout, and index_copy, whose derivative reads its source's shape).
    """
    stack, kv = workload.stack, _keys(layer)
    rotated = op.n - kv if stack.whole_qkv else 0.0
    if not workload.adapts("qkv"):
        return rotated
    mask = hidden / 2 if stack.plain_adapters or stack.adapter_masks else 0.0
    return rotated + mask + (op.n - kv if stack.plain_adapters else 0.0)


def _rms(op: Operator) -> bool:
    return op.name in NORMS[:2] and op.parameters == op.saved_selective > 0


def _unfused(op: Operator, name: str, workload: Training) -> float:
    """What a layer of single kernels keeps besides: an RMSNorm's vector in fp32, the gate behind its function."""
    if workload.stack.fused_pointwise or name != "saved":
        return 0.0
    gated = op.name == "activation" and op.moved > 2 * op.saved
    wide = FP32_BYTES / workload.recipe.activation_bytes
    if _rms(op):
        return 0.0 if workload.stack.fused_norms else wide * op.parameters
    return op.saved if gated else 0.0


def _beside_whole(op: Operator, layer: Layer, workload: Training) -> float:
    """Keys and values that stay in the whole result beside the copy of them that attention reads.

    Source: huggingface/nanotron src/nanotron/models/llama.py@03b83fc8; with fewer heads of them each is copied alone.
    """
    if not (workload.stack.joined_kv and op.name == "qkv"):
        return 0.0
    attentions = (one.attention for one in layer.operators if one.attention is not None)
    return sum(it.heads * (it.qk_dim + it.v_dim) for it in attentions if it.heads == it.kv_heads)


def _repeated(op: Operator, name: str, workload: Training) -> float:
    """Keys and values beyond their own heads where each is copied for every head of queries that reads it.

    Source: pytorch/torchtitan torchtitan/models/llama/model.py@9dec370, repeat_kv.
    """
    if not workload.stack.repeats_kv or name != "saved" or op.attention is None:
        return 0.0
    it = op.attention
    return it.keys * (it.heads - it.kv_heads) * (it.qk_dim + it.v_dim)


ALTERNATE = {"output": 0.0, "gate_up": 0.5, "up": 1.0, "down": 1.0}
"""Part of a product's outputs that torchtitan keeps: the odd ones of q, k, v, output, gate, up, down.

Of queries, keys and values the keys are repeated. Source: torchtitan parallelize_llama.py@9dec370, mm_count."""


def _alternate(op: Operator, layer: Layer, *, compiled: bool) -> float:
    """Elements kept where every second matrix product is repeated and pointwise work too.

    Of a compiled layer only what its backward pass reads: not the last product's result, which joins the residual.
    """
    if compiled and op.name == "down":
        return 0.0
    if op.name == "qkv":
        return op.n - _keys(layer)
    if op.name not in ALTERNATE or op.kind != "matmul":
        return op.saved_selective if op.attention is not None or op.split != "sequence" else op.saved_selective / 2
    return ALTERNATE[op.name] * op.n


def _keys(layer: Layer) -> float:
    """Elements a token of the keys that a layer's attention reads."""
    return sum(op.attention.kv_heads * op.attention.qk_dim for op in layer.operators if op.attention is not None)
