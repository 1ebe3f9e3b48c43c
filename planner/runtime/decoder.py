"""Decoders as the runtime sees them: embedding, numbered layers, final norm, head; and a piece of one.

The runtime runs the layers itself instead of calling the model's own ``forward``: a pipeline stage has no
first half, and under sequence parallelism a rank's hidden states are shorter than the sequence. That is
right only for models whose forward is exactly "embed, layers, norm, head", so only those are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from planner.errors import Unsupported
from planner.runtime.limits import SAME_FORWARD

BODY_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")


@dataclass(frozen=True)
class Decoder:
    """A causal language model taken apart: ``model.<body>`` holds all but the head."""

    module: nn.Module
    body_name: str
    config: Any

    @property
    def body(self) -> nn.Module:
        """The module with ``embed_tokens``, ``layers``, ``norm`` and ``rotary_emb``."""
        return getattr(self.module, self.body_name)

    @property
    def tied(self) -> bool:
        """Whether embedding and head share their weight."""
        return self.module.lm_head.weight is self.body.embed_tokens.weight


def find_decoder(module: nn.Module) -> Decoder:
    """The parts of ``module``, found by structure.

    Raises ``Unsupported`` when it is built otherwise or its forward does more than the runtime would.
    """
    for name, child in module.named_children():
        if all(hasattr(child, part) for part in BODY_PARTS) and hasattr(module, "lm_head"):
            decoder = Decoder(module, name, getattr(module, "config", None))
            _check_forward(decoder)
            return decoder
    raise Unsupported(
        f"{type(module).__name__} is not built as the runtime expects: "
        f"a child with {', '.join(BODY_PARTS)}, and lm_head beside it"
    )


def _check_forward(decoder: Decoder) -> None:
    config, kind = decoder.config, getattr(decoder.config, "model_type", None)
    if kind not in SAME_FORWARD:
        raise Unsupported(
            f"model_type {kind!r}: its forward may do more than embedding, layers, norm and head; "
            f"the runtime takes {', '.join(SAME_FORWARD)}"
        )
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise Unsupported(f"sliding_window = {config.sliding_window}: the runtime has no windowed attention mask")
    attention = getattr(config, "_attn_implementation", "sdpa")
    if attention != "sdpa":
        raise Unsupported(f"attention implementation {attention!r} needs an explicit mask; build the model with 'sdpa'")


class DecoderPart(nn.Module):
    """Some layers of a decoder, with the embedding before them or the norm and head after them.

    It shares its modules with the whole model. ``sequence_split`` is the tensor-parallel degree: hidden
    states between layers hold that fraction of the sequence.
    """

    def __init__(self, decoder: Decoder, layers: dict[str, nn.Module], sequence_split: int, first: bool, last: bool):
        super().__init__()
        body = decoder.body
        self.embed_tokens = body.embed_tokens if first else None
        self.layers = nn.ModuleDict(layers)
        self.norm = body.norm if last else None
        self.lm_head = decoder.module.lm_head if last else None
        self.rotary_emb = body.rotary_emb
        self.sequence_split = sequence_split

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states or logits ``[batch, seq, width]`` from tokens ``[batch, seq]`` or hidden states."""
        if self.embed_tokens is not None:
            hidden = self.embed_tokens(hidden)
        positions = torch.arange(hidden.shape[1] * self.sequence_split, device=hidden.device).unsqueeze(0)
        rotation = self.rotary_emb(hidden, position_ids=positions)
        for layer in self.layers.values():
            hidden = layer(hidden, position_embeddings=rotation)
        if self.lm_head is not None:
            hidden = self.lm_head(self.norm(hidden))
        return hidden
