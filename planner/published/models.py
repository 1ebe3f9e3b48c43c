"""The model that a published row names, as the graph that the planner prices.

A row gives a title and some sizes (``{"hidden": 4096, "layers": 32, ...}``). Sizes of the row win; what it
leaves out comes from the table of known models; a title that is not in the table is built by the habits of its
family: GPT (feed-forward of four times the hidden width, biases, learned positions, tied head) or Llama.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from cost_models.model_graph import ModelGraph
from planner.published.encoder_decoder import t5
from planner.published.prediction_layers import with_predictions
from planner.read_model import PRESETS, read_config, read_json
from planner.read_model.config_fields import ALIASES
from topologies.errors import BadInput

TABLE = Path(__file__).parent / "architectures.toml"
FIELDS = {
    "hidden": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "head_dim": "head_dim", "ffn": "intermediate_size", "vocab": "vocab_size",
    "experts": "num_experts", "topk": "num_experts_per_tok", "moe_ffn": "moe_intermediate_size",
    "shared_experts": "n_shared_experts", "dense_layers": "first_k_dense_replace",
}  # fmt: skip
FIELDS_OF = {
    "llama4_text": {"ffn": "intermediate_size_mlp", "moe_ffn": "intermediate_size"},
    "gpt_oss": {"moe_ffn": "intermediate_size"},
    "mixtral": {"moe_ffn": "intermediate_size"},
    "grok": {"moe_ffn": "intermediate_size"},
}
NEEDED = {"hidden": "hidden size", "layers": "number of layers", "heads": "number of heads"}
MEGATRON_VOCAB = 51_200
"""50,257 tokens of GPT-2 padded to a multiple of 128 x 8, as Megatron-LM's tables count them."""
UNTIED_VOCAB = 131_072
"""Vocabulary of Megatron-LM's 2024 scaling table, whose sizes in the titles count an untied head."""
ALIBI_VOCAB = 250_000
"""Vocabularies from here on are BLOOM's: no learned positions, a norm behind the embedding."""
GATED_TITLES = ("llama", "mistral", "qwen", "internlm", "baichuan", "yi")


def model_of(title: str, arch: dict[str, Any], seq_len: int) -> ModelGraph:
    """The model called ``title`` with the sizes in ``arch``, for sequences of ``seq_len`` tokens.

    ``arch`` is a row's ``arch_json``, may be empty, and may hold ``mtp`` (passes of multi-token prediction, none
    unless it says so) and ``decoder_seq_len`` (T5).

    Raises ``BadInput`` for what is no language model, and where table and row together leave a size open.
    """
    words = _words(title)
    _refuse(title, words)
    entry = _entry(words)
    if "config" not in entry and "preset" not in entry:
        return read_config(_by_habit(title, {**entry.get("row", {}), **arch}, seq_len), title)
    config = _overlaid(_known_config(entry), arch)
    config["max_position_embeddings"] = seq_len
    if config["model_type"] == "t5":
        return t5(title, config, seq_len, arch.get("decoder_seq_len"))
    passes = arch.get("mtp", 0)
    return with_predictions(read_config(config, title), passes, entry.get("mtp", {}).get("layers", ["experts"]))


def recipe_prediction_passes(title: str) -> int:
    """Passes of multi-token prediction that the Megatron recipes of ``title`` train with; 0 for most."""
    return _entry(_words(title)).get("mtp", {}).get("passes", 0)


@cache
def table() -> dict[str, Any]:
    """The table of known models, as read."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def _words(title: str) -> tuple[str, ...]:
    """``"Llama3.1 405B (proxy)"`` as ``("llama", "3.1", "405b")``."""
    plain = re.sub(r"\([^)]*\)", " ", title.lower())
    return tuple(re.findall(r"[a-z]+|\d+(?:\.\d+)?[a-z]*", plain))


@cache
def _by_words() -> dict[tuple[str, ...], dict[str, Any]]:
    return {_words(title): entry for entry in table()["model"] for title in entry["titles"]}


def _entry(words: tuple[str, ...]) -> dict[str, Any]:
    """The entry whose title is the longest beginning of ``words``; empty when there is none."""
    for length in range(len(words), 0, -1):
        if words[:length] in _by_words():
            return _by_words()[words[:length]]
    return {}


def _refuse(title: str, words: tuple[str, ...]) -> None:
    for entry in table()["refused"]:
        if any(words[: len(start)] == start for start in map(_words, entry["titles"])):
            raise BadInput(f"model {title!r} {entry['reason']}; leave its rows out")


def _known_config(entry: dict[str, Any]) -> dict[str, Any]:
    """A fresh copy of an entry's configuration; fields under ``null`` are null, which TOML cannot say."""
    preset = entry.get("preset")
    config = read_json(PRESETS / f"{preset}.json") if preset else dict(entry["config"])
    return {**config, **dict.fromkeys(entry.get("null", ()))}


def _overlaid(config: dict[str, Any], arch: dict[str, Any]) -> dict[str, Any]:
    """``config`` with the sizes of ``arch`` in place of its own; fewer layers keep the first of a pattern."""
    own = {**FIELDS, **FIELDS_OF.get(config["model_type"], {})}
    sizes = {field: arch[key] for key, field in own.items() if arch.get(key) is not None}
    config = {key: value for key, value in config.items() if key not in _other_spellings(sizes)}
    config |= sizes
    for field in ("hybrid_override_pattern", "compress_ratios"):
        if field in config and "layers" in arch:
            config[field] = config[field][: arch["layers"]]
    return config


def _other_spellings(fields: dict[str, Any]) -> set[str]:
    return {alias for field in fields for alias in ALIASES.get(field, ())}


def _by_habit(title: str, arch: dict[str, Any], seq_len: int) -> dict[str, Any]:
    """The configuration of a title that is not in the table. Raises ``BadInput`` naming each size that is open."""
    arch = {key: value for key, value in arch.items() if value is not None}
    family = _family(title, arch)
    if family in ("gpt2", "bloom") and "layers" not in arch and "hidden" in arch:
        arch |= _layers_of_title(title, arch["hidden"])
    missing = [f"{words} ({key})" for key, words in NEEDED.items() if key not in arch]
    if missing:
        stated = f"its row states no {' and no '.join(missing)}"
        raise BadInput(f"model {title!r} is not in the table and {stated}; give them in arch_json")
    return _overlaid(_habits(family, arch, seq_len), arch)


def _family(title: str, arch: dict[str, Any]) -> str:
    """The ``model_type`` whose habits a title follows."""
    hidden, ffn = arch.get("hidden", 0), arch.get("ffn")
    if arch.get("attn") == "MLA":
        return "deepseek_v3"
    if "experts" in arch:
        return "mixtral"
    if arch.get("act") == "squared_relu":
        return "nemotron"
    grouped = arch.get("kv_heads", arch.get("heads")) != arch.get("heads")
    named = "".join(_words(title)[:1]).startswith(GATED_TITLES)
    if grouped or named or ffn not in (None, 4 * hidden):
        return "llama"
    return "bloom" if arch.get("vocab", 0) >= ALIBI_VOCAB else "gpt2"


def _habits(family: str, arch: dict[str, Any], seq_len: int) -> dict[str, Any]:
    """What a family does where a row says nothing."""
    config: dict[str, Any] = {"model_type": family, "max_position_embeddings": seq_len, "vocab_size": MEGATRON_VOCAB}
    if family == "llama" and "ffn" not in arch:
        config["intermediate_size"] = -(-8 * arch["hidden"] // (3 * 256)) * 256
    if family == "gpt2":
        config["tie_word_embeddings"] = arch.get("vocab") != UNTIED_VOCAB
    return config


def _layers_of_title(title: str, hidden: int) -> dict[str, int]:
    """Layers that make the size in a title: ``P / (12 h^2)``, embeddings not counted; empty without a size."""
    size = re.search(r"(\d+(?:\.\d+)?)\s*([BT])\b", title)
    if size is None:
        return {}
    parameters = float(size[1]) * {"B": 1e9, "T": 1e12}[size[2]]
    return {"layers": max(1, round(parameters / (12 * hidden**2)))}
