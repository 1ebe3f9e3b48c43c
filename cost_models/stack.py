"""The training software that runs a job, as far as it changes time or bytes.

A stack's *settings* are facts of a release or choices of its user and stand here; what it *reaches* (how
much communication it hides, what a launch costs its host) is fitted and stands in ``calibration/stacks.toml``
under the stack's name.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SelectiveRecompute = Literal["pointwise", "attention", "alternate"]
Dispatcher = Literal["alltoall", "deepep", "hybridep"]
Bytes = Field(default=None, ge=0, le=64, allow_inf_nan=False)


class Stack(BaseModel):
    """One training software with its settings; the defaults are Megatron-Core's today.

    ``release`` is as the stack's makers write it; empty for the newest.

    ``selective`` says what selective recompute repeats: ``pointwise`` (norms and activation functions),
    ``attention`` (scores and their product with the values), ``alternate`` (pointwise work and every second matrix
    product). ``fused_attention`` is false where scores are written to memory. ``fused_pointwise`` is false
    where every small operator is a kernel of its own. ``master_weights_sharded`` is true where fp32 weights
    themselves are what is sharded and gathered in 16 bits (FSDP). ``dispatcher`` ``deepep`` and ``hybridep`` send a
    token once to every host that needs it, ``alltoall`` once to every expert. ``balanced_routing`` is true where every
    expert is given equally many tokens (benchmarks, capacities). Bytes a parameter replace those of the
    precision where they are given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "megatron-core"
    release: str = ""
    sequence_parallel: bool = True
    fused_attention: bool = True
    fused_pointwise: bool = True
    fused_loss: bool = True
    dropout: bool = False
    selective: SelectiveRecompute = "pointwise"
    tp_overlap: bool = False
    dp_overlap: bool = True
    cuda_graphs: bool = False
    dispatcher: Dispatcher = "alltoall"
    balanced_routing: bool = False
    weight_bytes: float | None = Bytes
    gradient_bytes: float | None = Bytes
    reduce_bytes: float | None = Bytes
    gather_bytes: float | None = Bytes
    optimizer_bytes: float | None = Bytes
