"""A Hugging Face ``config.json`` as a ``ModelGraph``, without torch or transformers, for the families of the tables.

Layers that are alike (same attention window, dense or with experts) become one entry of ``kinds``.
"""

from __future__ import annotations

import difflib

from cost_models.model_graph import Layer, ModelGraph
from planner.read_model import blocks
from planner.read_model.config_fields import fields, shown
from planner.read_model.decoder import Decoder
from planner.read_model.families import FAMILIES
from planner.read_model.more_families import MORE_FAMILIES
from planner.read_model.recent_families import RECENT_FAMILIES
from topologies.errors import BadInput, UnknownName

OTHER_TOWERS = ("vision_config", "audio_config", "speech_config")
AS_FAMILY = {
    "gemma3": "gemma3_text", "llama4": "llama4_text", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text",
    "kimi_k2": "deepseek_v3",
}  # fmt: skip
"""Types that are read as another: text parts of wrappers, and what is published with another's architecture.

Source: huggingface.co/moonshotai/Kimi-K2-Instruct config.json, ``"architectures": ["DeepseekV3ForCausalLM"]``.
"""
INSTALL = "install transformers, which builds it: pip install 'meshwright[transformers]'"
KNOWN = {**FAMILIES, **MORE_FAMILIES, **RECENT_FAMILIES}


def has_reading(config: object) -> bool:
    """Whether :func:`read_config` knows the family, or has a complaint that no other reader would spare."""
    if not isinstance(config, dict) or any(config.get(key) is not None for key in OTHER_TOWERS):
        return True
    text = config.get("text_config")
    model_type = (text if isinstance(text, dict) else config).get("model_type", config.get("model_type"))
    return not isinstance(model_type, str) or AS_FAMILY.get(model_type, model_type) in KNOWN


def read_config(config: dict, name: str) -> ModelGraph:
    """The graph of a configuration in the form of ``config.json``; its parameters equal transformers' to the last one.

    A wrapper with a ``text_config`` is read through it. Fields left out take the family's defaults.

    Raises ``BadInput`` for a missing, contradictory or absurd field and for encoders and vision towers,
    ``UnknownName`` for a ``model_type`` that is not read.
    """
    if not isinstance(config, dict):
        raise BadInput(f"a model config is a JSON object; found {shown(config)}")
    inner = text_part(config)
    if inner.get("is_encoder_decoder") is True:
        raise BadInput(
            f"{shown(config.get('model_type'))} config has is_encoder_decoder true; only decoders are read from a "
            f"config alone, so give the model as a torch module, or {INSTALL}"
        )
    model_type = _model_type(inner)
    family = KNOWN[model_type]
    return graph(family.reading(fields(model_type, inner, dict(family.defaults))), name, inner)


def graph(decoder: Decoder, name: str, config: dict | None = None) -> ModelGraph:
    """The graph of a decoder, like layers folded."""
    kinds, order = _folded(decoder)
    return ModelGraph(
        name=name,
        hidden=decoder.hidden,
        vocab=decoder.vocab,
        heads=decoder.attention.heads,
        kv_heads=decoder.attention.kv_heads,
        max_positions=decoder.max_positions,
        kinds=kinds,
        order=order,
        embedding=blocks.embedding(decoder),
        head=blocks.head(decoder),
        tied=decoder.tied,
        widths=_widths(decoder),
        expert_widths=_expert_widths(decoder),
        config=None if config is None else dict(config),
    )


def _folded(decoder: Decoder) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """The distinct layers, and for each layer which of them it is."""
    layers = decoder.built or tuple(zip(decoder.windows, decoder.sparse, strict=True))
    distinct = tuple(dict.fromkeys(layers))
    position = {kind: index for index, kind in enumerate(distinct)}
    kinds = distinct if decoder.built else tuple(blocks.layer(decoder, *kind) for kind in distinct)
    return kinds, tuple(position[kind] for kind in layers)


def _widths(decoder: Decoder) -> tuple[tuple[str, int], ...]:
    """Sizes that tp must divide. The vocabulary is not among them: it is padded."""
    widths = [("attention heads", decoder.attention.heads)]
    if decoder.feed_forward is not None and not all(decoder.sparse):
        widths.append(("feed-forward width", decoder.feed_forward.width))
    if any(decoder.sparse) and decoder.experts is not None and decoder.experts.shared is not None:
        widths.append(("shared expert width", decoder.experts.shared.width))
    return (*widths, *_mixer_heads(decoder))


def _mixer_heads(decoder: Decoder) -> tuple[tuple[str, int], ...]:
    """Heads of what is not plain attention, one entry a sort."""
    operators = (op for layer in dict.fromkeys(decoder.built) for op in layer.operators)
    heads = ((f"{op.name} heads", op.attention.heads) for op in operators if op.attention and op.name != "attention")
    return tuple(dict.fromkeys(heads))


def _expert_widths(decoder: Decoder) -> tuple[tuple[str, int], ...]:
    if decoder.experts is None or not any(decoder.sparse):
        return ()
    return (("expert feed-forward width", decoder.experts.width),)


def text_part(config: dict) -> dict:
    """The decoder's own fields: ``text_config`` of a wrapper, else the whole. Raises ``BadInput`` for what it omits."""
    towers = [key for key in OTHER_TOWERS if config.get(key) is not None]
    if towers:
        raise BadInput(
            f"{shown(config.get('model_type'))} config has {', '.join(towers)}, whose parameters a config does not "
            "describe; give its text_config alone, or give the whole model as a torch module"
        )
    text = config.get("text_config")
    if text is None:
        return config
    if not isinstance(text, dict):
        raise BadInput(f"text_config is {shown(text)}; it must be a JSON object with the decoder's fields")
    inherited = {key: config[key] for key in ("model_type", "tie_word_embeddings") if key in config}
    return {**inherited, **text}


def _model_type(config: dict) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise BadInput(
            f"model_type is {shown(model_type)}; a config names its family, for example "
            f'"model_type": "llama"; read: {", ".join(list(KNOWN)[:12])} and {len(KNOWN) - 12} more'
        )
    model_type = AS_FAMILY.get(model_type, model_type)
    if model_type not in KNOWN:
        nearest = difflib.get_close_matches(model_type.lower()[:80], list(KNOWN), n=4, cutoff=0.4) or list(KNOWN)
        raise UnknownName(
            f"model_type {shown(model_type)} is not read from a config alone; nearest: {', '.join(nearest)}; "
            f"give another family as a torch module, or {INSTALL}"
        )
    return model_type
