"""Rules checked by what they compute: the module split among ranks against the module whole.

All ranks run in one process, one behind the other in the batch dimension. Where a rule splits columns, each rank's
part of the batch gets its own columns; where it splits rows, the ranks' results are summed and every rank gets the
sum. As functions of the weights both losses are then the same, so losses, outputs and all gradients must agree; the
loss is taken of the first rank's part. Random weights, in double precision where all of the module's kernels take it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from planner.read_model.torch_module import read_example
from planner.read_model.torch_run import Example
from planner.read_model.torch_trial import (
    MOST_PARAMETERS,
    agree,
    first_difference,
    random_copy,
    random_inputs,
    trial_outputs,
    without_dropout,
)
from planner.read_model.traced_rules import Rule, TensorRules
from topologies.errors import BadInput


class SamplesMixed(BadInput):
    """The module mixes the samples of a batch, so that ranks cannot run side by side in one."""


def check_rules(module: torch.nn.Module, example_inputs: Any, rules: TensorRules, tp: int = 2, seed: int = 0) -> None:
    """Compare ``module`` under ``rules`` on ``tp`` ranks with itself, in outputs and gradients, on random weights.

    ``module`` may be on the meta device and is not changed; give a copy with few layers and small widths. Raises
    ``BadInput`` naming the first rule after which the two differ, or the one whose width ``tp`` does not divide, and
    ``SamplesMixed`` for a module that such a comparison says nothing about.
    """
    count = sum(p.numel() for p in module.parameters())
    if count > MOST_PARAMETERS:
        raise BadInput(
            f"rules are checked on small modules, at most {MOST_PARAMETERS:,} parameters, and this one has {count:,}; "
            "give one of the same class with fewer layers and smaller widths"
        )
    example = read_example(module, example_inputs)
    small = random_copy(module, seed)
    _tell_apart(small, seed)
    try:
        whole = _results(small, example, seed)
    except RuntimeError as error:
        if "double" not in str(error).lower():
            raise BadInput(f"{type(module).__name__} does not run: {str(error).splitlines()[0][:200]}") from error
        small = small.float()  # grouped products have no double precision
        whole = _results(small, example, seed)
    alone = _split_results(small, example, TensorRules(()), tp, seed)
    if not agree(whole, alone):
        raise SamplesMixed(
            f"rules of {type(module).__name__} cannot be checked: it mixes the samples of a batch (its "
            f"{first_difference(whole, alone) if not isinstance(alone, str) else alone} changes with the batch), and "
            "ranks are run side by side in it; check a part of it that does not"
        )
    if not agree(whole, _split_results(small, example, rules, tp, seed)):
        raise _wrong(small, example, rules, tp, seed, whole)
    if rules.refused:
        raise BadInput(rules.refused)


def _tell_apart(module: torch.nn.Module, seed: int) -> None:
    """Add noise to what is looked up, alike for all samples: tokens of an example of zeros would all be the same one.

    Attention to like values is the same whatever the scores, and no gradient comes back to queries and keys.
    """
    for inner in module.modules():
        if isinstance(inner, torch.nn.Embedding):
            inner.register_forward_hook(lambda inner, args, out: out + _noise(out.shape[1:], seed).to(out.dtype))


def _noise(shape: torch.Size, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 3), dtype=torch.float64)


def _wrong(
    module: torch.nn.Module, example: Example, rules: TensorRules, tp: int, seed: int, whole: dict
) -> BadInput:  # fmt: skip
    """The error for the first group of rules that changes what the module computes."""
    for group in _groups(rules):
        parents = {rule.module.rpartition(".")[0] for rule in group}
        some = TensorRules(group, tuple(it for it in rules.divided if it.path in parents))
        found = _split_results(module, example, some, tp, seed)
        if not agree(whole, found):
            names = ", ".join(f"{rule.module!r} {rule.style} ({rule.source})" for rule in group)
            how = found if isinstance(found, str) else f"{first_difference(whole, found)} differs"
            return BadInput(
                f"rule {names} is wrong: on {tp} ranks {how}; leave it out ('replicated'), or state the rule of what "
                "reads it"
            )
    return BadInput(f"the rules together change what the module computes on {tp} ranks; pin tp=1 or state fewer")


def _groups(rules: TensorRules) -> Iterator[tuple[Rule, ...]]:
    """Rules that only work together: rows with the columns before them; every other one alone."""
    by_name = {rule.module: rule for rule in rules.rules}
    known = {name for rule in rules.rules for name in rule.before}
    alone = tuple(rule for rule in rules.rules if rule.style == "colwise" and rule.module not in known)
    seen = {rule.module for rule in alone}
    for rule in rules.rules:
        if rule.style == "rowwise":
            columns = tuple(by_name[name] for name in rule.before if name in by_name) if rule.before else alone
            seen.update({rule.module, *(it.module for it in columns)})
            yield (*columns, rule)
    yield from ((rule,) for rule in rules.rules if rule.module not in seen)
    if alone:
        yield alone


def _results(module: torch.nn.Module, example: Example, seed: int, copies: int = 1) -> dict[str, torch.Tensor]:
    """Outputs of the first rank and the gradients of every parameter."""
    args, kwargs = random_inputs(example, seed, copies, next(module.parameters()).dtype)
    module.zero_grad(set_to_none=True)
    with without_dropout(module):
        outputs = [t.chunk(copies)[0] if t.dim() else t for t in trial_outputs(module, args, kwargs)]
    generator = torch.Generator().manual_seed(seed + 2)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in outputs]
    sum((t * w).sum() for t, w in zip(outputs, weights, strict=True)).backward()
    gradients = {f"gradient of {name!r}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {f"output {i}": t.detach() for i, t in enumerate(outputs)} | gradients


def _split_results(
    module: torch.nn.Module, example: Example, rules: TensorRules, tp: int, seed: int
) -> dict[str, torch.Tensor] | str:
    """The same of the module split among ``tp`` ranks, or what stopped it."""
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_fewer(module, rules, tp))
            for rule in rules.rules:
                stack.enter_context(_ruled(module, rule, tp))
            return _results(module, example, seed, copies=tp)
    except BadInput:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        return f"the module fails: {str(error).splitlines()[0][:160]}"


@contextlib.contextmanager
def _fewer(module: torch.nn.Module, rules: TensorRules, tp: int) -> Iterator[None]:
    """Attributes that count heads or slices, divided among the ranks."""
    owners = [module.get_submodule(it.path) for it in rules.divided]
    values = [getattr(owner, it.name) for owner, it in zip(owners, rules.divided, strict=True)]
    for owner, value, it in zip(owners, values, rules.divided, strict=True):
        if value % it.among(tp):
            raise BadInput(f"tp={tp} does not divide {it.name} = {value} of module {it.path!r}")
        setattr(owner, it.name, value // it.among(tp))
    try:
        yield
    finally:
        for owner, value, it in zip(owners, values, rules.divided, strict=True):
            setattr(owner, it.name, value)


@contextlib.contextmanager
def _ruled(module: torch.nn.Module, rule: Rule, tp: int) -> Iterator[None]:
    """One module's forward as its rule has it on ``tp`` ranks."""
    if rule.style == "experts":
        yield
        return
    owner = module.get_submodule(rule.module)
    if isinstance(owner, torch.nn.Embedding) != (rule.style == "vocabulary"):
        raise BadInput(f"rule {rule.module!r} {rule.style} ({rule.source}) does not fit a {type(owner).__name__}")
    if rule.style == "vocabulary":
        forward = _vocabulary(owner, tp)
    else:
        weight = (lambda: owner.weight.T) if type(owner).__name__ == "Conv1D" else (lambda: owner.weight)
        by_rows = rule.style.startswith("rowwise")
        size = weight().shape[1 if by_rows else 0]
        widths = [size] if by_rows else [size, *rule.sections]
        if any(width % tp for width in widths) and rule.style != "colwise_gathered":
            raise BadInput(f"tp={tp} does not divide {size}, the width that {rule.module!r} is split by ({rule.style})")
        makers = {"rowwise": _rows, "rowwise_sliced": _sliced, "colwise": _columns, "colwise_gathered": _gathered}
        forward = makers[rule.style](weight, owner, tp, rule)
    owner.forward = forward
    try:
        yield
    finally:
        del owner.forward


def _columns(weight: Any, owner: Any, tp: int, rule: Rule) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        parts = _own_rows(weight(), tp, rule)
        biases = _own_rows(owner.bias, tp, rule) if owner.bias is not None else [None] * tp
        each = x.chunk(tp)
        return torch.cat([F.linear(each[r], parts[r], biases[r]) for r in range(tp)])

    return forward


def _own_rows(matrix: torch.Tensor, tp: int, rule: Rule) -> list[torch.Tensor]:
    """The rows of what each rank goes on with: its part of every section, of too few KV heads the one that it needs."""
    widths = rule.sections or (matrix.shape[0],)
    counts = [min(tp, heads or tp) for heads in rule.kv_heads or (0,) * len(widths)]
    cut = [section.chunk(n) for section, n in zip(matrix.split(list(widths)), counts, strict=True)]
    return [torch.cat([parts[r * len(parts) // tp] for parts in cut]) for r in range(tp)]


def _rows(weight: Any, owner: Any, tp: int, rule: Rule) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        parts, each = weight().chunk(tp, 1), x.chunk(tp)
        total = sum(F.linear(each[r], parts[r]) for r in range(tp))
        total = total if owner.bias is None else total + owner.bias
        return torch.cat([total] * tp)

    return forward


def _sliced(weight: Any, owner: Any, tp: int, rule: Rule) -> Any:
    own = _rows(weight, owner, tp, rule)
    return lambda x: own(torch.cat([part.chunk(tp, -1)[r] for r, part in enumerate(x.chunk(tp))]))


def _gathered(weight: Any, owner: Any, tp: int, rule: Rule) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        parts, each = weight().tensor_split(tp), x.chunk(tp)
        whole = torch.cat([F.linear(each[r], parts[r]) for r in range(tp)], -1)
        whole = whole if owner.bias is None else whole + owner.bias
        return torch.cat([whole] * tp)

    return forward


def _vocabulary(owner: Any, tp: int) -> Any:
    def forward(tokens: torch.Tensor) -> torch.Tensor:
        each, start, total = tokens.chunk(tp), 0, 0
        for own, rows in zip(each, owner.weight.tensor_split(tp), strict=True):
            inside = (own >= start) & (own < start + len(rows))
            total = total + type(owner).forward(owner, own) * inside.unsqueeze(-1)
            start += len(rows)
        return torch.cat([total] * tp)

    return forward
