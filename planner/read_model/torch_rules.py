"""Tensor-parallel rules of any module: the user's, Hugging Face's own, and inferred ones for the rest.

A rule stated for a module takes the place of what was inferred for it: Hugging Face's plan (``base_model_tp_plan``
of a config, whose names may have ``*`` for layer numbers), and before it the user's. :func:`check_rules` runs the
module split against the module whole.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

import torch

from planner.read_model.torch_module import read_example, traced
from planner.read_model.traced import Trace
from planner.read_model.traced_rules import Rule, Source, Style, TensorRules, inferred_rules, read_in_part
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
    for stated, source in ((_hugging_face(module), "hugging face"), (_checked(trace, given or {}), "user")):
        for name, style in stated.items():
            for match in _matching(trace, name):
                found[match] = _stated(found.get(match), match, style, source)
    rules = tuple(rule for rule in found.values() if rule.style != "replicated")
    return TensorRules(rules, _divided(trace, module, rules), read_in_part(trace, rules))


def _stated(before: Rule | None, module: str, style: Style, source: Source) -> Rule:
    """The rule stated for a module; sections that ranks keep, and what comes before, stay as they were found."""
    if before is None:
        return Rule(module, style, source)
    if source == "hugging face" and before.style == "experts":
        return before  # its plan splits inside experts; ours gives each rank whole ones
    sections = before.sections if style == "colwise" else ()  # outputs that are put together again keep their order
    return dataclasses.replace(before, style=style, source=source, sections=sections)


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


def _divided(trace: Trace, module: torch.nn.Module, rules: tuple[Rule, ...]) -> tuple[tuple[str, str], ...]:
    """Whole numbers that say how many heads a split attention has, or how wide the slices of a fused product are."""
    heads: dict[str, set[int]] = {}
    for op in trace.ops:
        if op.attending is not None:
            heads.setdefault(op.path, set()).update({op.attending.heads, op.attending.kv_heads})
    slices = {rule.module.rpartition(".")[0]: set(rule.sections) for rule in rules if rule.sections}
    split = {rule.module.rpartition(".")[0] for rule in rules if rule.style in ("colwise", "rowwise")}
    found = []
    for path in sorted(split):
        for name, value in vars(module.get_submodule(path)).items():
            if type(value) is not int or value < 2:
                continue
            counts = "head" in name and "dim" not in name and value in heads.get(path, set())
            if counts or (value in slices.get(path, set()) and "dim" not in name):
                found.append((path, name))
    return tuple(found)
