"""The model that a published row names, as the graph that the planner prices.

A row gives a title and some sizes (``{"hidden": 4096, "layers": 32, ...}``). Sizes of the row win; what it
leaves out comes from the table of known models; a title that is not in the table is built by the habits of its
family (:mod:`planner.published.habits`), from the parameters in the title where nothing else is known.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from cost_models.kept import in_network
from cost_models.model_graph import Layer, ModelGraph
from planner.published.encoder_decoder import t5
from planner.published.habits import by_habit, check_sizes, is_sized, overlaid, title_size
from planner.published.prediction_layers import with_predictions
from planner.read_model import PRESETS, preset_names, read_config, read_json
from topologies.errors import BadInput

TABLE = Path(__file__).parent / "architectures.toml"
ALIKE = 1.1
"""How far a size in a title may be from that of an entry that its words begin with, before it is another model."""
PUBLISHERS = {"meta", "nvidia", "google", "facebook", "microsoft", "openai", "allenai", "ibm", "amd", "hf", "hugging"}
"""Words that titles put before a model's name."""


def model_of(title: str, arch: dict[str, Any], seq_len: int, *, has_experts: bool = False) -> ModelGraph:
    """The model called ``title`` with the sizes in ``arch``, for sequences of ``seq_len`` tokens.

    ``arch`` is a row's ``arch_json``, may be empty, and may hold ``mtp`` (passes of multi-token prediction, none
    unless it says so) and ``decoder_seq_len`` (T5). ``has_experts``: the row shows that it has, whatever ``arch`` says.

    Raises ``BadInput`` for what is no language model, for a size that is none, and where table and row together leave
    a size open.
    """
    _refuse(title, _words(title))
    check_sizes(title, arch)
    entry = _entry(title)
    if not _has_shape(entry):
        return read_config(by_habit(title, {**entry.get("row", {}), **arch}, seq_len, has_experts), title)
    config = overlaid(_known_config(entry), arch)
    config["max_position_embeddings"] = seq_len
    if config["model_type"] == "t5":
        return t5(title, config, seq_len, arch.get("decoder_seq_len"))
    passes = arch.get("mtp") or 0
    return with_predictions(read_config(config, title), passes, entry.get("mtp", {}).get("layers", ["experts"]))


def shaped_by_size(title: str, arch: dict[str, Any]) -> bool:
    """Whether the model's shape follows from the number of parameters in its title, for want of even its width."""
    entry = _entry(title)
    given = {**entry.get("row", {}), **arch}
    return not _has_shape(entry) and "hidden" not in given and is_sized(title, given)


def _has_shape(entry: dict[str, Any]) -> bool:
    return "config" in entry or "preset" in entry


def block_costs(model: ModelGraph) -> tuple[float, ...]:
    """What each layer and the head count where stages are cut by cost: weights, with as many keys as queries.

    Source: huggingface/nanotron src/nanotron/models/llama.py@03b83fc8, get_block_compute_costs.
    """
    each = [_block_cost(kind, model.hidden) for kind in model.kinds]
    return (*(each[kind] for kind in model.order), float(model.vocab * model.hidden))


def _block_cost(layer: Layer, hidden: int) -> float:
    network = sum(op.n * op.k for op in layer.operators if in_network(op))
    attentions = (op.attention for op in layer.operators if op.attention is not None)
    return network + sum(4.0 * it.heads * it.v_dim * hidden for it in attentions)


def latent(model: ModelGraph) -> bool:
    """Whether keys and values of the model come from a latent vector (multi-head latent attention)."""
    return any(op.name == "kv_a" for kind in model.kinds for op in kind.operators)


def recipe_prediction_passes(title: str, stack: str = "megatron-core") -> int:
    """Passes of multi-token prediction that the recipes of ``stack`` for ``title`` train with; 0 for most."""
    known = _entry(title).get("mtp", {})
    return known.get("passes", 0) if stack in known.get("stacks", ["megatron-core"]) else 0


def trained_vocabulary(title: str, stack: str, release: str) -> int | None:
    """The vocabulary that ``stack`` in ``release`` trains ``title`` with; ``None`` where its own tokenizer is taken."""
    for one in _entry(title).get("tokenized", ()):
        if stack in one["stacks"] and any(fnmatch.fnmatchcase(release, pattern) for pattern in one["releases"]):
            return one["vocab"]
    return None


@cache
def table() -> dict[str, Any]:
    """The table of known models, as read."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def _words(title: str) -> tuple[str, ...]:
    """``"org/Llama3.1-405B (proxy)"`` as ``("llama", "3.1", "405b")``; of a distilled model what it became."""
    plain = re.sub(r"\([^)]*\)", " ", title.lower()).rsplit("/", 1)[-1].split("distill", 1)[-1]
    words = re.findall(r"[a-z]+|\d+(?:\.\d+)?[a-z]*", plain)
    first = next((k for k, word in enumerate(words) if word not in PUBLISHERS), 0)
    return tuple(words[first:])


@cache
def _by_words() -> dict[tuple[str, ...], dict[str, Any]]:
    return {_words(title): entry for entry in table()["model"] for title in entry["titles"]}


@cache
def _by_preset() -> dict[tuple[str, ...], dict[str, Any]]:
    return {_words(name): {"preset": name} for name in preset_names()}


@cache
def _entry(title: str) -> dict[str, Any]:
    """The entry whose title is the longest beginning of this one; empty where there is none, or of another size."""
    words = _words(title)
    for length in range(len(words), 0, -1):
        entry = _by_words().get(words[:length])
        if entry is not None:
            return entry if _alike(entry, words[:length], title) else {}
    return _by_preset().get(words, {})


def _alike(entry: dict[str, Any], words: tuple[str, ...], title: str) -> bool:
    """Whether a size in ``title`` is that of the entry, in all or at work, where the entry's ``words`` name none."""
    size = title_size(re.sub(r"\([^)]*\)", " ", title)).parameters
    if size is None or title_size(" ".join(words)).known:
        return True
    known = [entry[name] * 1e9 for name in ("parameters", "active", "active_bare") if name in entry]
    return not known or any(1 / ALIKE <= size / one <= ALIKE for one in known)


def _refuse(title: str, words: tuple[str, ...]) -> None:
    for entry in table()["refused"]:
        if any(words[: len(start)] == start for start in map(_words, entry["titles"])):
            raise BadInput(f"model {title!r} {entry['reason']}; leave its rows out")


def _known_config(entry: dict[str, Any]) -> dict[str, Any]:
    """A fresh copy of an entry's configuration; fields under ``null`` are null, which TOML cannot say."""
    preset = entry.get("preset")
    config = read_json(PRESETS / f"{preset}.json") if preset else dict(entry["config"])
    return {**config, **dict.fromkeys(entry.get("null", ()))}
