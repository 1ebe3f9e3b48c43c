"""Tensor parallelism of any module, by its rules: weights cut among ranks, collectives around their products.

Hidden states between split products are whole on every rank, and what no rule names (norms, residuals, routers) is
done alike by all: a module's own ``forward`` decides what runs between, so its sequence cannot be split there.
Weights become DTensors over ``tp``. Rows of matrices fused into one are reordered so that each rank's are neighbours;
``SectionedWeight`` says how to order them back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional

from planner.errors import BadInput
from planner.read_model.traced_parts import Entered
from planner.read_model.traced_rules import Rule, TensorRules
from planner.runtime.collectives import add_up, cut, enter, gather, own_head

Forward = Callable[[torch.Tensor], torch.Tensor]
COLUMNS = ("colwise", "colwise_gathered")
ROWS = ("rowwise", "rowwise_sliced")


@dataclass(frozen=True)
class SectionedWeight:
    """A parameter of matrices fused along ``dim``, each cut among ``tp`` ranks: parts of rank 0 first, then of 1."""

    dim: int
    sections: tuple[int, ...]
    tp: int

    def split_order(self, whole: torch.Tensor) -> torch.Tensor:
        """The tensor as ranks hold it, from the module's order."""
        parts = [section.chunk(self.tp, self.dim) for section in whole.split(list(self.sections), self.dim)]
        return torch.cat([chunks[rank] for rank in range(self.tp) for chunks in parts], self.dim)

    def module_order(self, reordered: torch.Tensor) -> torch.Tensor:
        """The tensor in the module's order, from what ranks hold, joined."""
        widths = [size // self.tp for size in self.sections]
        pieces = [rank.split(widths, self.dim) for rank in reordered.chunk(self.tp, self.dim)]
        return torch.cat([rank[i] for i in range(len(widths)) for rank in pieces], self.dim)


class ModuleSplitter:
    """Splits modules one by one over a ``tp`` mesh; parameters that modules share are split once."""

    def __init__(self, module: nn.Module, rules: TensorRules, mesh: DeviceMesh):
        self.module, self.mesh, self.group = module, mesh, mesh.get_group()
        self.tp, self.done = mesh.size(), {}
        self.sectioned: dict[str, SectionedWeight] = {}
        split = [rule for rule in rules.rules if rule.style != "experts" and not self._stays_whole(rule)]
        self.rules = [rule for rule in split if self._owners(rule) <= {it.module for it in split}]
        self.divided, self.summed, self.entered = rules.divided, rules.summed, rules.entered
        self._check()
        if rules.refused:
            raise BadInput(rules.refused)

    def _stays_whole(self, rule: Rule) -> bool:
        """Whether a vocabulary does not divide, or its table does more than look up: whole it is as right."""
        owner = self.module.get_submodule(rule.module)
        if rule.style not in ("vocabulary", "colwise_gathered"):
            return False
        more = isinstance(owner, nn.Embedding) and (
            type(owner).forward is not nn.Embedding.forward or owner.padding_idx is not None or owner.max_norm
        )
        return bool(owner.weight.shape[0] % self.tp or more)

    def _owners(self, rule: Rule) -> set[str]:
        """All modules that hold the weight which a rule splits."""
        weight = self.module.get_submodule(rule.module).weight
        return {name for name, inner in self.module.named_modules() if getattr(inner, "weight", None) is weight}

    def _check(self) -> None:
        for rule in self.rules:
            owner = self.module.get_submodule(rule.module)
            dim = _dim(owner, rule)
            for width in rule.sections or (owner.weight.shape[dim],):
                if width % self.tp:
                    raise BadInput(
                        f"tp = {self.tp} does not divide {width}, a width of {rule.module!r} ({rule.style}); "
                        f"plan with a tp that does, or pin tp=1"
                    )
        for it in self.divided:
            value = getattr(self.module.get_submodule(it.path), it.name)
            if value % it.among(self.tp):
                raise BadInput(f"tp = {self.tp} does not divide {it.name} = {value} of module {it.path!r}; pin tp=1")

    def split(self) -> None:
        """Split every module that has a rule, and divide the whole numbers that count heads or slices."""
        for rule in self.rules:
            self._split_one(rule)
        for it in self.divided:
            owner = self.module.get_submodule(it.path)
            setattr(owner, it.name, getattr(owner, it.name) // it.among(self.tp))
        for path, name in self.summed:
            add_up_gradient(self.module, path, name, self.group)
        for it in self.entered:
            enter_sections(self.module.get_submodule(it.module), it, self.group)

    def keep_columns(self, name: str) -> bool:
        """Leave the outputs of module ``name`` in columns instead of gathering them.

        ``False`` if it is not split by columns, or other modules add them up by rows.
        """
        summed = {before for rule in self.rules for before in rule.before}
        for i, rule in enumerate(self.rules):
            if rule.module == name and rule.style in COLUMNS and name not in summed:
                self.rules[i] = dataclasses.replace(rule, style="colwise")
                return True
        return False

    def _split_one(self, rule: Rule) -> None:
        owner = self.module.get_submodule(rule.module)
        if rule.style == "vocabulary":
            self._distribute(owner, "weight", rule, 0)
            owner.forward = _vocabulary(owner, self)
            return
        self._distribute(owner, "weight", rule, _dim(owner, rule))
        if rule.style in COLUMNS:
            self._distribute(owner, "bias", rule, 0)
            width = owner.weight.shape[_dim(owner, rule)] if rule.style == "colwise_gathered" else None
            owner.forward = _columns(owner, self, width, rule)
        else:
            owner.forward = _rows(owner, self, sliced=rule.style == "rowwise_sliced")

    def _distribute(self, owner: nn.Module, name: str, rule: Rule, dim: int) -> None:
        parameter = getattr(owner, name, None)
        if parameter is None:
            return
        if id(parameter) not in self.done:
            data = parameter.data
            if rule.sections:
                layout = SectionedWeight(dim, rule.sections, self.tp)
                self.sectioned[f"{rule.module}.{name}"] = layout
                data = layout.split_order(data)
            split = nn.Parameter(distribute_tensor(data, self.mesh, [Shard(dim)]), parameter.requires_grad)
            self.done[id(parameter)] = self.done[id(split)] = split
        setattr(owner, name, self.done[id(parameter)])


def add_up_gradient(module: nn.Module, reader: str, name: str, group: dist.ProcessGroup) -> None:
    """Have ranks add up the gradient of parameter ``name``, which submodule ``reader`` uses on each rank's own part.

    Nothing where this rank does not hold the parameter. The parameter itself stays: only while ``reader`` runs is it
    seen through :func:`enter`, as Megatron-LM adds up the gradients of norms of heads.
    """
    inner, (holder, _, own) = module.get_submodule(reader), name.rpartition(".")
    owner = module.get_submodule(holder)
    if owner._parameters.get(own) is None:
        return
    run = inner.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        before = owner._parameters[own]
        owner._parameters[own] = enter(before, group)
        try:
            return run(*args, **kwargs)
        finally:
            owner._parameters[own] = before

    inner.forward = forward


def enter_sections(owner: nn.Module, entered: Entered, group: dist.ProcessGroup) -> None:
    """Have ranks add up the gradient of the sections of a module's output that they go on with differently."""
    run = owner.forward

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        parts = run(*args, **kwargs).split(entered.sections, -1)
        return torch.cat([enter(it, group) if own else it for it, own in zip(parts, entered.marked, strict=True)], -1)

    owner.forward = forward


def _transposed(owner: nn.Module) -> bool:
    """Whether a product keeps its weight as ``[in, out]``, as transformers' Conv1D does."""
    return type(owner).__name__ == "Conv1D"


def _dim(owner: nn.Module, rule: Rule) -> int:
    """The dimension of a weight that its rule cuts."""
    return int((rule.style in ROWS) != _transposed(owner))


def own_part(parameter: torch.Tensor | None) -> torch.Tensor | None:
    """This rank's part of a parameter, as an ordinary tensor with a gradient."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _product(x: torch.Tensor, owner: nn.Module, bias: torch.Tensor | None) -> torch.Tensor:
    weight = own_part(owner.weight)
    return functional.linear(x, weight.t() if _transposed(owner) else weight, bias)


def _columns(owner: nn.Module, splitter: ModuleSplitter, gathered_width: int | None, rule: Rule) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        part = _product(enter(x, splitter.group), owner, own_part(owner.bias))
        if gathered_width is not None:
            return gather(part, -1, gathered_width, splitter.group)
        return _with_whole_heads(part, rule, splitter)

    return forward


def _with_whole_heads(part: torch.Tensor, rule: Rule, splitter: ModuleSplitter) -> torch.Tensor:
    """Columns in which parts of a head of keys or values have become the whole head that this rank's queries need."""
    if not any(0 < heads < splitter.tp for heads in rule.kv_heads):
        return part
    widths = [width // splitter.tp for width in rule.sections] or [part.shape[-1]]
    each = zip(part.split(widths, -1), rule.kv_heads, strict=True)
    return torch.cat([own_head(it, heads, splitter.group) if heads else it for it, heads in each], -1)


def _rows(owner: nn.Module, splitter: ModuleSplitter, sliced: bool) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        own = cut(x, -1, splitter.group) if sliced else x
        total = add_up(_product(own, owner, None), splitter.group)
        return total if owner.bias is None else total + own_part(owner.bias)

    return forward


def _vocabulary(owner: nn.Module, splitter: ModuleSplitter) -> Forward:
    each, rank = owner.weight.shape[0] // splitter.tp, splitter.mesh.get_local_rank()

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        local = tokens - rank * each
        inside = (local >= 0) & (local < each)
        rows = functional.embedding(torch.where(inside, local, 0), own_part(owner.weight))
        return add_up(rows * inside.unsqueeze(-1), splitter.group)

    return forward


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that ranks hold parts of, whole; any other as it is. Every rank of its mesh calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
