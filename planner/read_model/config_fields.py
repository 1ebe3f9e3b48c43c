"""Fields of a ``config.json``: one name each, the family's defaults, and values checked before use.

Model families spell the same size differently (``n_embd``, ``d_model``, ``hidden_size``); ``ALIASES`` maps
every spelling to one field. A JSON ``null`` is a value of its own: ``"sliding_window": null`` switches a
window off where leaving the field out takes the family's default.
"""

from __future__ import annotations

from dataclasses import dataclass

from topologies.errors import BadInput

ALIASES = {
    "hidden_size": ("n_embd", "n_embed", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "n_kv_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"),
    "max_position_embeddings": ("n_positions", "n_ctx", "seq_length"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("experts_per_token", "moe_top_k", "moe_topk", "moe_k"),
}
EXAMPLES = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
    "sliding_window": 4096,
}
MOST = {"num_hidden_layers": 10_000, "max_position_embeddings": 2**32, "sliding_window": 2**32}
MOST_OF_ANY = 2**24
LAYER_TYPES = ("full_attention", "sliding_attention")


def shown(value: object, width: int = 60) -> str:
    """``value`` as an error message shows it: at most ``width`` characters, never failing."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= width else text[: width - 3] + "..."


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one configuration under their own names, read with a check each."""

    model_type: str
    values: dict[str, object]

    def integer(self, field: str, least: int = 1) -> int:
        """A whole number from ``least`` to the field's limit. Raises ``BadInput`` for all else, null too."""
        value = self._needed(field)
        most = MOST.get(field, MOST_OF_ANY)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            example = EXAMPLES.get(field)
            raise self.refused(
                f"{field} is {shown(value)}; it must be a whole number from {least:,} to {most:,}"
                + (f", for example {example}" if example else "")
            )
        return value

    def integer_or_none(self, field: str) -> int | None:
        """A whole number of at least 1, or ``None`` where the configuration says null."""
        return None if self._needed(field) is None else self.integer(field)

    def flag(self, field: str) -> bool:
        """True or false; null counts as false. Raises ``BadInput`` for anything else."""
        value = self._needed(field)
        if value is not None and not isinstance(value, bool):
            raise self.refused(f"{field} is {shown(value)}; write true or false")
        return bool(value)

    def indices(self, field: str, below: int) -> frozenset[int]:
        """A list of layer numbers from 0 to ``below - 1``; null counts as none."""
        value = self._needed(field)
        listed = [] if value is None else value
        if not isinstance(listed, list) or not all(type(i) is int and 0 <= i < below for i in listed):
            raise self.refused(f"{field} is {shown(value)}; it must list layer numbers from 0 to {below - 1:,}")
        return frozenset(listed)

    def layer_types(self, layers: int) -> tuple[str, ...] | None:
        """Kind of attention of each layer, or ``None`` when the family's pattern decides."""
        types = self.values.get("layer_types")
        if types is None:
            return None
        if not isinstance(types, list) or len(types) != layers or not all(kind in LAYER_TYPES for kind in types):
            raise self.refused(
                f"layer_types is {shown(types)}; it must list {layers:,} times one of "
                f"{', '.join(LAYER_TYPES)}, or be left out for the pattern of the family"
            )
        return tuple(types)

    def refused(self, complaint: str) -> BadInput:
        """The error for a configuration that breaks a rule."""
        return BadInput(f"{self.model_type} config: {complaint}")

    def _needed(self, field: str) -> object:
        if field not in self.values:
            also = f" (also read: {', '.join(ALIASES[field])})" if field in ALIASES else ""
            raise self.refused(f'{field} is missing; add it, for example "{field}": {EXAMPLES.get(field, 1)}{also}')
        return self.values[field]


def fields(model_type: str, config: dict, defaults: dict[str, object]) -> Fields:
    """``config`` under the fields' own names, on top of the family's ``defaults``.

    Raises ``BadInput`` when two spellings of one field disagree; positions are let off, since old files
    carry an unused ``n_ctx``.
    """
    found = Fields(model_type, {**defaults, **config})
    for field, aliases in ALIASES.items():
        spelled = [name for name in (field, *aliases) if name in config]
        if not spelled:
            continue
        first, *others = spelled
        for other in others:
            both = (config[first], config[other])
            if field != "max_position_embeddings" and all(type(size) is int for size in both) and both[0] != both[1]:
                raise found.refused(
                    f"{first} is {shown(config[first])} but {other} is {shown(config[other])}; "
                    "they mean the same, so leave one out"
                )
        found.values[field] = next((config[name] for name in spelled if config[name] is not None), None)
    return found
