"""A plain Llama in one file: what the built-in trainer trains and the tests compare against.

Attribute names and the config's keys are Hugging Face's, so the runtime treats both alike and weights move
between them.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from planner.errors import BadInput, Unsupported

INITIAL_STD = 0.02


@dataclass(frozen=True)
class LlamaShape:
    """The part of a Hugging Face Llama config that this model reads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: dict[str, Any]
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    model_type: str = "llama"

    @classmethod
    def of(cls, config: dict[str, Any]) -> LlamaShape:
        """The shape in a ``config.json``. Raises ``Unsupported`` for another architecture, ``BadInput`` for a gap."""
        kind, activation = config.get("model_type"), config.get("hidden_act", "silu")
        if (kind, activation) != ("llama", "silu"):
            raise Unsupported(f"model_type {kind!r} with {activation!r}: this model is 'llama' with 'silu'")
        missing = [key for key in _REQUIRED if config.get(key) is None]
        if missing:
            raise BadInput(f"the Llama config lacks {', '.join(missing)}")
        heads = config["num_attention_heads"]
        return cls(
            **{key: config[key] for key in _REQUIRED},
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            rope=_rope(config),
            **{key: bool(config.get(key)) for key in ("tie_word_embeddings", "attention_bias", "mlp_bias")},
        )


_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters, from either spelling of the config."""
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)} | (
        config.get("rope_scaling") or {}
    )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise Unsupported(f"rope_type {kind!r}: only 'default' and 'llama3'")
    return {"rope_theta": 10000.0} | rope | {"rope_type": kind}


def inverse_frequencies(shape: LlamaShape) -> torch.Tensor:
    """Rotary angle per position ``[head_dim / 2]``, stretched for long contexts when the type is ``llama3``.

    Source: the frequency scaling published with Llama 3.1 (also transformers' ``rope_type="llama3"``): wavelengths
    above ``original / low_freq_factor`` are stretched by ``factor``, those below ``original / high_freq_factor``
    kept, with a linear blend between.
    """
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    frequencies = 1.0 / shape.rope["rope_theta"] ** exponents
    if shape.rope["rope_type"] == "default":
        return frequencies
    low, high = shape.rope["low_freq_factor"], shape.rope["high_freq_factor"]
    turns = shape.rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (keep + (1.0 - keep) / shape.rope["factor"])


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the positions' angles; recomputed, since they cost less than a buffer to carry."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.shape = shape

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(cos, sin)``, each ``[batch, seq, head_dim]``, in the type of ``hidden``."""
        angles = position_ids[..., None].float() * inverse_frequencies(self.shape).to(position_ids.device)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x`` ``[batch, heads, seq, head_dim]`` with each pair of its halves turned by the position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x^2) + eps)``, the mean in fp32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The normed ``x``."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention. Heads are counted in the projections' outputs: a tp rank has its own few."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        h, d, bias = shape.hidden_size, shape.head_dim, shape.attention_bias
        self.head_dim = d
        self.num_key_value_groups = shape.num_attention_heads // shape.num_key_value_heads
        self.q_proj = nn.Linear(h, shape.num_attention_heads * d, bias=bias)
        self.k_proj = nn.Linear(h, shape.num_key_value_heads * d, bias=bias)
        self.v_proj = nn.Linear(h, shape.num_key_value_heads * d, bias=bias)
        self.o_proj = nn.Linear(shape.num_attention_heads * d, h, bias=bias)

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        batch, seq, _ = projected.shape
        return projected.view(batch, seq, -1, self.head_dim).transpose(1, 2)

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """``[batch, seq, hidden]`` from the same."""
        q, k = (rotate(self._heads(p(hidden_states)), *position_embeddings) for p in (self.q_proj, self.k_proj))
        v = self._heads(self.v_proj(hidden_states))
        shared = self.num_key_value_groups > 1
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        h, f = shape.hidden_size, shape.intermediate_size
        self.gate_proj = nn.Linear(h, f, bias=shape.mlp_bias)
        self.up_proj = nn.Linear(h, f, bias=shape.mlp_bias)
        self.down_proj = nn.Linear(f, h, bias=shape.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, seq, hidden]`` from the same."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and feed-forward network, each behind a norm and beside a residual."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, hidden: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """``[batch, seq, hidden]`` from the same."""
        normed = self.input_layernorm(hidden)
        hidden = hidden + self.self_attn(hidden_states=normed, position_embeddings=position_embeddings)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class LlamaBody(nn.Module):
    """Everything but the head."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(shape)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Normed hidden states ``[batch, seq, hidden]``."""
        hidden = self.embed_tokens(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        rotation = self.rotary_emb(hidden, position_ids=positions)
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotation)
        return self.norm(hidden)


class SmallLlama(nn.Module):
    """The model: logits ``[batch, seq, vocab]`` from tokens ``[batch, seq]``."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = LlamaShape.of(config)
        self.model = LlamaBody(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token at every position."""
        return self.lm_head(self.model(tokens))


def initialise(name: str, module: nn.Module, seed: int = 0) -> None:
    """Fill the parameters of ``module``, called ``name`` in the whole model, with values that depend on nothing else.

    Every rank of every layout so starts from the same model without any rank ever holding all of it.
    """
    for inner, parameter in module.named_parameters():
        generator = torch.Generator(parameter.device).manual_seed(seed * 2**32 + zlib.crc32(f"{name}.{inner}".encode()))
        with torch.no_grad():
            if "norm" in f"{name}.{inner}":
                parameter.fill_(1.0)
            elif inner.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, INITIAL_STD, generator=generator)
