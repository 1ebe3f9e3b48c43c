"""The training software that runs a job, as far as it changes time or bytes.

A stack's *settings* are facts of a release or choices of its user and stand here; what it *reaches* (how
much communication it hides, what a launch costs its host) is fitted and stands in ``calibration/stacks.toml``
under the stack's name.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SelectiveRecompute = Literal["pointwise", "attention", "alternate"]
AttentionKind = Literal["fused", "flash2", "flash1"]
Bytes = Field(default=None, ge=0, le=64, allow_inf_nan=False)


class Stack(BaseModel):
    """One training software with its settings; the defaults are Megatron-Core's today.

    ``release`` is as the stack's makers write it; empty for the newest.

    ``selective`` says what selective recompute repeats: ``pointwise`` (norms and activation functions),
    ``attention`` (scores and their product with the values), ``alternate`` (pointwise work and every second matrix
    product). ``fused_attention`` is false where scores are written to memory. ``fused_pointwise`` is false
    where every small operator is a kernel of its own. ``master_weights_sharded`` is true where fp32 weights
    themselves are what is sharded and gathered in 16 bits (FSDP). Bytes a parameter replace those of the
    precision where they are given.

    ``attention_kernel`` is the generation of fused attention: ``flash1`` and ``flash2`` by name, ``fused`` the
    best that a device has (cuDNN, flash attention 3). ``fused_dispatch`` sends a token once to every host that
    needs it (DeepEP, HybridEP). ``gather_once`` is true where ZeRO-3 under a pipeline keeps gathered weights and
    sums gradients until the last micro-batch. ``broadcast_weights`` is true where each rank of the shard group
    owns whole tensors and broadcasts them after the update, while nothing computes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "megatron-core"
    release: str = ""
    sequence_parallel: bool = True
    fused_attention: bool = True
    attention_kernel: AttentionKind = "fused"
    fused_pointwise: bool = True
    fused_loss: bool = True
    dropout: bool = False
    selective: SelectiveRecompute = "pointwise"
    tp_overlap: bool = False
    dp_overlap: bool = True
    cuda_graphs: bool = False
    fused_dispatch: bool = False
    gather_once: bool = False
    broadcast_weights: bool = False
    weight_bytes: float | None = Bytes
    gradient_bytes: float | None = Bytes
    reduce_bytes: float | None = Bytes
    gather_bytes: float | None = Bytes
    optimizer_bytes: float | None = Bytes
