"""Tensor-parallel rules of any module: the user's, Hugging Face's own, and inferred ones for the rest.

A rule stated for a module takes the place of what was inferred for it: Hugging Face's plan (``base_model_tp_plan``
of a config, whose names may have ``*`` for layer numbers), and before it the user's. :func:`check_rules` runs the
module split against the module whole.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from typing import Any

import torch

from planner.read_model.torch_module import read_example, traced
from planner.read_model.traced import Attending, Trace
from planner.read_model.traced_heads import key_value_heads
from planner.read_model.traced_parts import module_of
from planner.read_model.traced_rules import Divided, Rule, Source, Style, TensorRules, added_up, inferred_rules
from topologies.errors import BadInput

STYLES: dict[str, Style] = {
    "colwise": "colwise", "rowwise": "rowwise", "colwise_rep": "colwise_gathered",
    "colwise_gather_output": "colwise_gathered", "colwise_gathered": "colwise_gathered",
    "rowwise_split_input": "rowwise_sliced", "rowwise_sliced": "rowwise_sliced", "embedding_rowwise": "vocabulary",
    "vocabulary": "vocabulary", "replicated": "replicated",
    "grouped_gemm": "experts", "experts": "experts",
}  # fmt: skip
"""Names that plans use, by the style they mean; others of Hugging Face's are left to inference."""


def tensor_rules(module: torch.nn.Module, example_inputs: Any, given: Mapping[str, str] | None = None) -> TensorRules:
    """The rules of ``module``; ``given`` maps module names, with ``*`` for any part, to styles.

    Raises ``BadInput`` for a given rule that names no module or no style.
    """
    trace = traced(module, read_example(module, example_inputs))
    found = {rule.module: rule for rule in inferred_rules(trace)}
    heads = {module_of(trace.ops[op]): counts for op, counts in key_value_heads(trace).items()}
    for stated, source in ((_hugging_face(module), "hugging face"), (_checked(trace, given or {}), "user")):
        for name, style in stated.items():
            for match in _matching(trace, name):
                before = found.get(match, Rule(match, "replicated", source, kv_heads=heads.get(match, ())))
                found[match] = _stated(before, style, source)
    rules = tuple(rule for rule in found.values() if rule.style != "replicated")
    return added_up(trace, rules, _divided(trace, module, rules))


def _stated(before: Rule, style: Style, source: Source) -> Rule:
    """The rule stated for a module; sections that ranks keep, and what comes before, stay as they were found."""
    if source == "hugging face" and before.style == "experts":
        return before  # its plan splits inside experts; ours gives each rank whole ones
    parts = {} if style == "colwise" else {"sections": (), "kv_heads": ()}  # gathered outputs keep their order
    return dataclasses.replace(before, style=style, source=source, **parts)


def _hugging_face(module: torch.nn.Module) -> dict[str, Style]:
    """The plan of the module's config under the module's own names."""
    plan = getattr(getattr(module, "config", None), "base_model_tp_plan", None)
    prefix = getattr(module, "base_model_prefix", "")
    before = f"{prefix}." if prefix and hasattr(module, prefix) else ""
    return {f"{before}{name}": STYLES[style] for name, style in (plan or {}).items() if style in STYLES}


def _checked(trace: Trace, given: Mapping[str, str]) -> dict[str, Style]:
    for name, style in given.items():
        if style not in STYLES:
            raise BadInput(f"rule {name!r} has the style {style!r}; known: {', '.join(sorted(set(STYLES)))}")
        if not _matching(trace, name):
            raise BadInput(
                f"rule {name!r} names no module with a weight; there are for example "
                f"{', '.join(sorted(trace.linear)[:6])}"
            )
    return {name: STYLES[style] for name, style in given.items()}


def _matching(trace: Trace, name: str) -> list[str]:
    """Modules with weights, and parameters, that a name with ``*`` means; a ``*`` stands for one part of a name."""
    parts, known = name.split("."), (*sorted(trace.linear), *trace.parameters)
    return [
        it for it in known
        if len(it.split(".")) == len(parts) and all(map(fnmatch.fnmatchcase, it.split("."), parts))
    ]  # fmt: skip


def _divided(trace: Trace, module: torch.nn.Module, rules: tuple[Rule, ...]) -> tuple[Divided, ...]:
    """Whole numbers that say how many heads a split attention has, or how wide the slices of a fused product are."""
    attentions: dict[str, list[Attending]] = {}
    for op in trace.ops:
        if op.attending is not None:
            attentions.setdefault(op.path, []).append(op.attending)
    slices: dict[str, dict[int, int]] = {}
    for rule in rules:
        heads = rule.kv_heads or (0,) * len(rule.sections)
        slices.setdefault(rule.module.rpartition(".")[0], {}).update(zip(rule.sections, heads, strict=False))
    split = {rule.module.rpartition(".")[0] for rule in rules if rule.style in ("colwise", "rowwise")}
    numbers = (
        (path, name, value) for path in sorted(split) for name, value in vars(module.get_submodule(path)).items()
        if type(value) is int and value > 1
    )  # fmt: skip
    found = (_as_divided(*it, attentions.get(it[0], []), slices[it[0]]) for it in numbers)
    return tuple(it for it in found if it is not None)


def _as_divided(
    path: str, name: str, value: int, attentions: list[Attending], slices: dict[int, int]
) -> Divided | None:
    """How ranks divide one number, told by its name and by what has this value; ``None`` where they do not.

    A dimension (``embed_dim``) may be the width of a slice of queries, keys and values; one as wide as a head stays as
    it is, whether it is ``head_dim`` or the width of a single head's keys, of which every rank has all.
    """
    if "dim" in name:
        of_head = {width for it in attentions for width in (it.qk_dim, it.v_dim)}
        return Divided(path, name, slices[value]) if of_head and value in slices.keys() - of_head else None
    for it in attentions:
        if it.kv_heads < it.heads and value == it.heads // it.kv_heads and re.search("group|rep|per_", name):
            return Divided(path, name, it.kv_heads, shared=True)
    if "head" in name and any(value == it.heads for it in attentions):
        return Divided(path, name)
    if "head" in name and any(value == it.kv_heads for it in attentions):
        return Divided(path, name, kv_heads=value)
    return Divided(path, name, slices[value]) if value in slices else None
