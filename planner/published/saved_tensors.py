"""MaxText's recompute policies, which name the tensors that are kept, as what is repeated.

    kept beside a layer's input               repeated
    nothing of attention                      the layer: full
    queries, keys and values                  all behind them: ``save_qkv_proj``
    also attention's result (``context``)     the feed-forward network: ``mlp``

A tensor that is offloaded to the host's memory counts as kept: its way there and back is not priced. ``out_proj``
and ``mlpwo`` alone spare a product and its input must be there all the same, so they change nothing above.

Source: AI-Hypercomputer/maxtext src/maxtext/configs/base.yml (remat_policy) and layers/decoders.py,
get_remat_policy@e591f30c.
"""

from __future__ import annotations

import re

NAMED = (
    (r"(?:save_)?qkv_proj(?:_offloaded)?|save_dot_except_mlp(?![a-z])", "selective (save_qkv_proj)"),
    (r"save_dot_with_context_except_mlp", "selective (mlp)"),
    (r"save_out_proj", "full"),
)
"""Policies by name, and what they repeat in the words of other rows."""
TENSOR = r"decoder_layer_input|(?:query|key|value|qkv|out)_proj|context|mlpw[io](?:_[01])?"
CUSTOM = re.compile(rf"(?:remat_policy\s*[=:]\s*)?custom\b.*?(?:{TENSOR})", re.IGNORECASE | re.DOTALL)
FATE = r"offload\w*|kept|device|saved?|remat\w*|recomput\w*"
GROUP = re.compile(rf"((?:(?:{TENSOR})[\s,=:]*(?:and )?)+)({FATE})", re.IGNORECASE)
REPEATED = re.compile(r"remat|recomput", re.IGNORECASE)
PROJECTIONS = {"query_proj", "key_proj", "value_proj"}


def in_other_words(policy: str) -> str:
    """``policy`` as other stacks word it, where it is one of MaxText's by name or tensor by tensor; else as it is."""
    for pattern, words in NAMED:
        if re.fullmatch(rf"(?:remat_policy\s*[=:]\s*)?{pattern}", policy.strip(), re.IGNORECASE):
            return words
    return _repeated(_kept(policy)) if CUSTOM.match(policy.strip()) else policy


def _kept(policy: str) -> set[str]:
    """Tensors that a custom policy keeps: ``custom: query_proj, key_proj offloaded, context=device``."""
    groups = ((re.findall(TENSOR, names.lower()), fate) for names, fate in GROUP.findall(policy))
    return {name for names, fate in groups for name in names if not REPEATED.match(fate)}


def _repeated(kept: set[str]) -> str:
    if not (kept >= PROJECTIONS or "qkv_proj" in kept):
        return "full"
    return "selective (mlp)" if "context" in kept else "selective (save_qkv_proj)"
