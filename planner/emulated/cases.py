"""What is run on an emulated cluster: three small models that differ in what they send, ten strategies a world size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A model with its work."""

    name: str
    config: dict[str, Any]
    seq_len: int
    global_batch: int


def _llama(hidden: int, layers: int, width: int, vocab: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": vocab, "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }  # fmt: skip


CASES = (
    Case("even", _llama(128, 4, 352, 512), seq_len=128, global_batch=8),
    Case("deep", _llama(128, 8, 256, 256), seq_len=64, global_batch=8),
    Case("wide", _llama(256, 2, 768, 2048), seq_len=64, global_batch=8),
)
"""Many tokens for its weights; many small layers; many weights for its tokens."""

STRATEGIES = {
    2: (
        "dp=2,zero=0,micro_batch=4", "dp_shard=2,zero=1,micro_batch=4", "dp_shard=2,zero=2,micro_batch=1",
        "dp_shard=2,zero=3,micro_batch=4", "dp_shard=2,zero=3,micro_batch=1", "tp=2,micro_batch=8",
        "tp=2,micro_batch=4", "pp=2,micro_batch=1", "pp=2,micro_batch=4", "pp=2,micro_batch=1,recompute=full",
    ),
    4: (
        "dp=4,zero=0,micro_batch=2", "dp_shard=4,zero=1,micro_batch=2", "dp_shard=4,zero=3,micro_batch=2",
        "dp_shard=4,zero=2,micro_batch=1", "tp=4,micro_batch=8", "tp=2,dp_shard=2,zero=1,micro_batch=4",
        "tp=2,pp=2,micro_batch=2", "pp=2,dp=2,zero=0,micro_batch=1", "pp=2,dp_shard=2,zero=3,micro_batch=2",
        "tp=2,dp_shard=2,zero=3,micro_batch=2",
    ),
}  # fmt: skip
"""Pins of every strategy, by ranks in all."""
