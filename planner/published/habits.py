"""Shapes of models that no table knows: what a row states of them, and the habits of their family for the rest.

Families are GPT (feed-forward of four times the hidden width, biases, learned positions, tied head), Llama (gated),
BLOOM, Nemotron, Mixtral and DeepSeek. Where not even the sizes are stated the number of parameters in the title
gives them, for decoders of text:

    dense      h = (128 P / 12)^(1/3)                 layers fill P behind the ends       "13B"
    experts    the layer of a dense model of M        n experts of it, two a token        "8x7B"
    experts    h = (80 A / 12)^(1/3), l = h / 80      8 experts a token, whose width makes A and whose number P
                                                                                          "30B A3B"

since 12 h^2 is a layer and models keep near h = 128 l (dense) or 80 l (A parameters of P at work on a token): 96 to
192, and 43 to 120, among those of ``architectures.toml``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from planner.read_model import read_config
from planner.read_model.config_fields import ALIASES
from topologies.errors import BadInput

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
MAY_BE_NONE = {"experts", "topk", "moe_ffn", "shared_experts", "dense_layers", "mtp"}
"""Sizes of which a model may have none."""
MOST_PREDICTIONS = 16
"""Passes of multi-token prediction; published models have one to four."""
NEEDED = {"hidden": "hidden size", "layers": "number of layers", "heads": "number of heads"}
MEGATRON_VOCAB = 51_200
"""50,257 tokens of GPT-2 padded to a multiple of 128 x 8, as Megatron-LM's tables count them."""
UNTIED_VOCAB = 131_072
"""Vocabulary of Megatron-LM's 2024 scaling table, whose sizes in the titles count an untied head."""
ALIBI_VOCAB = 250_000
"""Vocabularies from here on are BLOOM's: no learned positions, a norm behind the embedding."""
GATED_TITLES = ("llama", "mistral", "qwen", "internlm", "baichuan", "yi")
UNGATED_TITLES = ("gpt", "megatron", "turing", "opt", "bloom", "mpt", "pythia", "cerebras")
"""First words of models of GPT's kind; any other that states no more than its size is taken to be gated."""
WIDTH_A_LAYER, SPARSE_WIDTH_A_LAYER = 128, 80
HEAD_DIM, SMALL_HEAD_DIM, SMALL = 128, 64, 2048
ROUTED_EXPERTS = 8
"""Experts a token where a title gives the parameters at work."""
MOST_OFF = 0.05
"""Share by which a shape may miss the parameters in its title."""
ROUNDING = ((4096, 1024), (2048, 512), (0, 128))
"""From which width on widths are multiples of what."""
SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([MBT])(\d?)(?![a-z])(?![ -]?(?:tok|active))", re.IGNORECASE)
EACH_OF = re.compile(r"(?<![\w.])(\d+)\s?x\s?(\d+(?:\.\d+)?)B(?![a-z])", re.IGNORECASE)
AT_WORK = re.compile(r"\bA(\d+(?:\.\d+)?)B\b|(\d+(?:\.\d+)?)B active", re.IGNORECASE)
NO_PLAIN_DECODER = re.compile(
    r"\b(?:u?m?t5|ul2|flan|bart|vl|vlm|vision|llava|clip|whisper|mamba|jamba|rwkv|imagen|diffusion|audio|omni)",
    re.IGNORECASE,
)
MOST_PARAMETERS = 1e14
"""Beyond what a title may name: a hundred times the largest published models."""
UNIT = {"M": 1e6, "B": 1e9, "T": 1e12}


def stated_sizes(arch: dict[str, Any]) -> dict[str, Any]:
    """``arch`` under this module's names, whole numbers as such: ``{"num_layers": "32"}`` is ``{"layers": 32}``."""
    ours = {spelled: key for key, field in FIELDS.items() for spelled in (field, *ALIASES.get(field, ()))}
    return {ours.get(key, key) if ours.get(key, key) not in arch else key: _whole(arch[key]) for key in arch}


def _whole(value: Any) -> Any:
    text = str(value).replace(",", "") if isinstance(value, str | float) else ""
    return int(float(text)) if re.fullmatch(r"\d{1,12}(?:\.0*)?", text) else value


@dataclass(frozen=True)
class TitleSize:
    """Parameters that a title names: in all, at work on a token, or ``experts`` times a dense model of ``each``."""

    parameters: float | None
    active: float | None
    experts: int | None
    each: float | None

    @property
    def known(self) -> bool:
        """Whether there is a size to shape a model by."""
        return self.parameters is not None or self.each is not None


def title_size(title: str) -> TitleSize:
    """The sizes in a title: ``"7B1"`` is 7.1 billion, ``"30B A3B"`` in all and at work, ``"8x7B"`` eight of seven.

    Of several the first counts; ``"1T tokens"`` is none.
    """
    many, work = EACH_OF.search(title), AT_WORK.search(title)
    whole = [float(f"{n}.{tenths}" if tenths else n) * UNIT[unit.upper()] for n, unit, tenths in SIZE.findall(title)]
    return TitleSize(
        parameters=whole[0] if whole else None,
        active=float(work[1] or work[2]) * 1e9 if work else None,
        experts=int(many[1]) if many else None,
        each=float(many[2]) * 1e9 if many else None,
    )


def check_sizes(title: str, arch: dict[str, Any]) -> None:
    """Raises ``BadInput`` for a size in ``arch`` that is no whole number, or none of what every model has."""
    for key in sorted(arch.keys() & {*FIELDS, "mtp", "decoder_seq_len"}):
        least, value = 0 if key in MAY_BE_NONE else 1, arch[key]
        if value is not None and (type(value) is not int or value < least):
            raise BadInput(
                f"model {title[:60]!r}: {key} in arch_json is a whole number from {least}; got {str(value)[:40]!r}; "
                "leave it out if it is not known"
            )
    if (arch.get("mtp") or 0) > MOST_PREDICTIONS:
        raise BadInput(f"model {title[:60]!r}: mtp in arch_json is at most {MOST_PREDICTIONS}; got {arch['mtp']}")


def is_sized(title: str, arch: dict[str, Any]) -> bool:
    """Whether a model without an entry takes one of its sizes from the parameters in its title."""
    return any(arch.get(key) is None for key in NEEDED) and title_size(title).known


def by_habit(title: str, arch: dict[str, Any], seq_len: int, has_experts: bool = False) -> dict[str, Any]:
    """The configuration of a title that is not in the table; ``has_experts`` where the row shows so otherwise.

    Raises ``BadInput`` naming each size that is open, and for a size in the title that says too little.
    """
    arch = {key: value for key, value in arch.items() if value is not None and key != "family"}
    if not arch.get("experts", 1):
        arch = {key: value for key, value in arch.items() if key not in ("experts", "topk", "moe_ffn")}
    if is_sized(title, arch):
        arch = _filled(title, arch, title_size(title), has_experts)
    missing = [f"{words} ({key})" for key, words in NEEDED.items() if key not in arch]
    if missing:
        stated = f"its row states no {' and no '.join(missing)}"
        raise BadInput(f"model {title!r} is not in the table and {stated}; give them in arch_json")
    return overlaid(_habits(family_of(title, arch), arch, seq_len), arch)


def overlaid(config: dict[str, Any], arch: dict[str, Any]) -> dict[str, Any]:
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


def family_of(title: str, arch: dict[str, Any]) -> str:
    """The ``model_type`` whose habits a title follows."""
    hidden, ffn = arch.get("hidden", 0), arch.get("ffn")
    if arch.get("attn") == "MLA":
        return "deepseek_v3"
    if "experts" in arch:
        return arch.get("family", "mixtral")
    grouped = arch.get("kv_heads", arch.get("heads")) != arch.get("heads")
    if arch.get("act") == "squared_relu" or (grouped and arch.get("gated") is False):
        return "nemotron"
    if grouped or arch.get("gated") or _begins(title, GATED_TITLES) or ffn not in (None, 4 * hidden):
        return "llama"
    return "bloom" if arch.get("vocab", 0) >= ALIBI_VOCAB else "gpt2"


def _begins(title: str, words: tuple[str, ...]) -> bool:
    return "".join(re.findall(r"[a-z]+", title.lower())[:1]).startswith(words)


def _habits(family: str, arch: dict[str, Any], seq_len: int) -> dict[str, Any]:
    """What a family does where a row says nothing."""
    config: dict[str, Any] = {"model_type": family, "max_position_embeddings": seq_len, "vocab_size": MEGATRON_VOCAB}
    if family == "llama" and "ffn" not in arch:
        config["intermediate_size"] = -(-8 * arch["hidden"] // (3 * 256)) * 256
    if family == "mixtral" and "moe_ffn" not in arch:
        config["intermediate_size"] = arch.get("ffn", 4 * arch["hidden"])
    if family == "qwen3_moe":
        config |= {"intermediate_size": arch["moe_ffn"], "head_dim": HEAD_DIM}
    if family == "gpt2":
        config["tie_word_embeddings"] = arch.get("vocab") != UNTIED_VOCAB
    return config


def _filled(title: str, arch: dict[str, Any], size: TitleSize, has_experts: bool) -> dict[str, Any]:
    """``arch`` with what the size in the title leaves open."""
    if NO_PLAIN_DECODER.search(title):
        raise BadInput(f"model {title!r} is not in the table, and only plain decoders are shaped by their size alone")
    _check_title(title, size)
    if size.active is not None and size.parameters is not None and "experts" not in arch:
        return _fine_experts(title, arch, size.parameters, size.active)
    if size.each is not None:
        return _kept_kv_heads({"experts": size.experts, "topk": 2} | _dense(title, arch, size.each))
    if has_experts or "experts" in arch:
        raise BadInput(
            f"model {title!r} is not in the table, and how many of its parameters work on a token is stated nowhere; "
            'write them as "30B A3B", or the sizes in arch_json'
        )
    return _dense(title, arch, size.parameters)


def _check_title(title: str, size: TitleSize) -> None:
    """Raises ``BadInput`` for parameters that no model has: none, too many, or as many at work as there are."""
    whole = size.parameters if size.each is None else size.experts * size.each
    if not 0 < whole <= MOST_PARAMETERS:
        raise BadInput(
            f"model {title[:60]!r}: a title names from 1 to {MOST_PARAMETERS:g} parameters; got {whole:g}; "
            "give the sizes in arch_json"
        )
    if size.active is not None and not 0 < size.active < whole:
        raise BadInput(
            f"model {title[:60]!r}: fewer parameters work on a token than there are, and some; got {size.active:g} of "
            f"{whole:g}; write them as '30B A3B'"
        )


def _dense(title: str, arch: dict[str, Any], parameters: float) -> dict[str, Any]:
    """A dense decoder of that many parameters: its width first, then as many layers as are left for."""
    gated = not arch.keys() & {"hidden", "layers"} and not _begins(title, UNGATED_TITLES)
    arch = ({"gated": True} if gated else {}) | arch
    if "hidden" not in arch:
        cube = parameters / (12 * arch["layers"]) if "layers" in arch else None
        arch["hidden"] = _rounded(math.sqrt(cube) if cube else (WIDTH_A_LAYER * parameters / 12) ** (1 / 3))
    if "heads" in arch and arch["hidden"] % arch["heads"] and "head_dim" not in arch:
        arch["hidden"] = max(1, round(arch["hidden"] / (8 * arch["heads"]))) * 8 * arch["heads"]
    arch.setdefault("heads", _heads(arch["hidden"]))
    if "layers" not in arch:
        arch["layers"] = _layers(title, arch, parameters)
    return arch


def _layers(title: str, arch: dict[str, Any], parameters: float) -> int:
    """Layers that make the size in a title: ``P / (12 h^2)``, or those of the family's own layer behind its ends.

    The first where a row states the width of a model of GPT's kind, whose titles do not count embeddings.
    """
    family = family_of(title, arch)
    if family in ("gpt2", "bloom"):
        return max(1, round(parameters / (12 * arch["hidden"] ** 2)))
    one = read_config(overlaid(_habits(family, arch, SMALL), {**arch, "layers": 1}), title)
    layer = one.kinds[0].parameters
    return max(1, round((parameters - (one.parameters - layer)) / layer))


def _kept_kv_heads(arch: dict[str, Any]) -> dict[str, Any]:
    """``arch`` with Mixtral's eight heads for keys, or as many of them as divide the heads."""
    return {"kv_heads": math.gcd(arch["heads"], 8)} | arch


def _fine_experts(title: str, arch: dict[str, Any], parameters: float, active: float) -> dict[str, Any]:
    """A decoder with ``active`` of ``parameters`` at work on a token.

    Attention with an eighth of the heads for keys is ``2.25 h^2`` a layer; experts are gated, ``3 h f`` each. Raises
    ``BadInput`` where no number of experts comes to about ``parameters``.
    """
    hidden = arch.get("hidden") or _rounded((SPARSE_WIDTH_A_LAYER * active / 12) ** (1 / 3))
    layers = arch.get("layers") or max(1, round(hidden / SPARSE_WIDTH_A_LAYER))
    ends, attention = 2 * UNTIED_VOCAB * hidden, 2.25 * hidden**2
    each = max(active - ends, active / 2) / layers - attention
    width = arch.get("moe_ffn") or max(128, _nearest(each / (3 * hidden * ROUTED_EXPERTS), 128))
    count = _expert_count(((parameters - ends) / layers - attention) / (3 * hidden * width))
    reached = ends + layers * (attention + 3 * hidden * width * count)
    if abs(reached / parameters - 1) > MOST_OFF:
        raise BadInput(
            f"model {title[:60]!r}: the nearest usual shape has {reached:.3g} parameters, not {parameters:.3g}; "
            "give the sizes in arch_json"
        )
    sized = {
        "family": "qwen3_moe", "hidden": hidden, "layers": layers, "heads": hidden // HEAD_DIM,
        "kv_heads": math.gcd(hidden // HEAD_DIM, 8), "vocab": UNTIED_VOCAB, "moe_ffn": width,
        "experts": count, "topk": ROUTED_EXPERTS,
    }  # fmt: skip
    return sized | arch


def _expert_count(exact: float) -> int:
    """About ``exact`` experts, a multiple of as high a power of two, to 32, as stays near."""
    counts = (max(ROUTED_EXPERTS, _nearest(exact, step)) for step in (32, 16, 8, 4, 2))
    return next((one for one in counts if abs(one / exact - 1) <= MOST_OFF), max(ROUTED_EXPERTS, round(exact)))


def _heads(hidden: int) -> int:
    """Heads of 128 elements, in small models of 64, where that divides."""
    dim = HEAD_DIM if hidden >= SMALL else SMALL_HEAD_DIM
    return hidden // dim if hidden % dim == 0 else 1


def _rounded(width: float) -> int:
    step = next(step for least, step in ROUNDING if width >= least)
    return max(step, _nearest(width, step))


def _nearest(value: float, step: int) -> int:
    return round(value / step) * step
