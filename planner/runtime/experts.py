"""Expert parallelism of any module: every rank of an ``ep`` group holds whole experts, and tokens travel to them.

Two forms are known. Experts in 3-D parameters, called with ``(hidden, chosen [tokens, k], weights [tokens, k])``
as in transformers: all of a layer's tokens are sorted by expert and sent in one all-to-all, and back in another.
Experts in a ``ModuleList`` that a loop calls one by one, each on its own rows: an exchange each, and a rank whose rows
chose none of an expert takes part with none.

A rank's experts see the tokens of all ranks of its group, so that their gradients are sums over these where all others
are means: inside an expert they are divided by the ranks. Copies over ``edp`` are averaged as other weights are.

With ``etp`` a rank holds a slice of an expert (:mod:`planner.runtime.expert_slices`). Slices on tp ranks, which see the
same tokens, sum up what they make; slices on ranks with other tokens are sent every token of the expert, and whoever
sent it sums up what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor

from planner.errors import BadInput, Unsupported
from planner.read_model.traced_rules import TensorRules
from planner.runtime.collectives import add_up, enter, exchange
from planner.runtime.expert_slices import slice_fused, slice_list
from planner.runtime.mesh import ExpertMeshes
from planner.runtime.split_modules import SectionedWeight


def expert_owners(module: nn.Module, rules: TensorRules) -> list[str]:
    """Modules that hold fused experts, or whose child is a list of them. Raises ``Unsupported`` for other forms."""
    found = []
    for name in (rule.module for rule in rules.rules if rule.style == "experts"):
        owner = name.rpartition(".")[0]
        if name in dict(module.named_modules()):
            owner = _list_of(module, name).rpartition(".")[0]
        found.append(owner)
    return list(dict.fromkeys(found))


def _list_of(module: nn.Module, name: str) -> str:
    """The innermost list above a module of an expert."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:length])
        if isinstance(module.get_submodule(path), nn.ModuleList):
            return path
    raise Unsupported(f"ep: the experts of {name!r} are neither in a ModuleList nor fused; pin ep=1")


@dataclass(frozen=True)
class SplitExperts:
    """Modules that now differ between the ranks of a group, and how parameters of theirs were reordered, by name."""

    modules: list[nn.Module]
    sectioned: dict[str, SectionedWeight] = field(default_factory=dict)


def split_experts(owner: nn.Module, name: str, meshes: ExpertMeshes) -> SplitExperts:
    """Leave ``owner`` this rank's experts, or slices of them."""
    fused = [key for key, p in owner.named_parameters(recurse=False) if p.dim() == 3]
    way = _Way(meshes)
    if fused:
        return _split_fused(owner, name, way, owner.get_parameter(fused[0]).shape[0])
    return _split_list(owner, name, way)


class _Way:
    """How rows come to the ranks that hold an expert's slices, and back as a sum."""

    def __init__(self, meshes: ExpertMeshes):
        self.whole, self.same_tokens = meshes.whole, meshes.same_tokens
        self.ep, self.etp = meshes.whole["ep"].size(), meshes.whole["etp"].size()
        self.rank = meshes.whole["ep"].get_local_rank()
        self.group, self.ranks = meshes.travel.get_group(), meshes.travel.size()
        self.together = meshes.whole["etp"].get_group() if self.same_tokens and self.etp > 1 else None
        self.times = 1 if self.same_tokens else self.etp

    def share(self, experts: int, name: str) -> int:
        """Experts a rank. Raises ``BadInput`` where they do not divide."""
        if experts % self.ep:
            raise BadInput(
                f"ep = {self.ep} does not divide the {experts} experts of {name!r}; plan with an ep that does"
            )
        return experts // self.ep

    def sent(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Rows for every rank of the group, from rows in order of the ranks' experts, ``counts`` for each of ``ep``."""
        if self.times == 1:
            return rows
        return torch.cat([part for part in rows.split(counts) for _ in range(self.times)])

    def summed(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """What came back for the rows of :meth:`sent`, summed over the slices."""
        if self.times == 1:
            return rows
        parts = rows.split([count for count in counts for _ in range(self.times)])
        return torch.cat([sum(parts[i : i + self.times]) for i in range(0, len(parts), self.times)])

    def inside(self, rows: torch.Tensor, expert: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What the expert, or its slices on ranks with the same tokens, make of rows."""
        rows = entering(rows, self.ranks)
        made = expert(rows if self.together is None else enter(rows, self.together))
        return leaving(made if self.together is None else add_up(made, self.together), self.ranks)


def _split_fused(owner: nn.Module, name: str, way: _Way, experts: int) -> SplitExperts:
    each = way.share(experts, name)
    split = [key for key, p in owner.named_parameters(recurse=False) if p.shape[0] == experts]
    layouts: dict[str, SectionedWeight] = {}
    if way.etp > 1:
        layouts = slice_fused(owner, name, split, way.whole["ep", "etp"])
    for key in split if way.etp == 1 else ():
        parameter = owner.get_parameter(key)
        setattr(owner, key, nn.Parameter(distribute_tensor(parameter.data, way.whole["ep"], [Shard(0)])))
    for key, value in list(vars(owner).items()):
        if type(value) is int and value == experts and "expert" in key:
            setattr(owner, key, each)
    owner.forward = _dispatching(owner, split, each, way)
    return SplitExperts([owner], layouts)


def _dispatching(owner: nn.Module, split: list[str], each: int, way: _Way) -> Callable[..., torch.Tensor]:
    inner = owner.forward

    def forward(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        order = chosen.flatten().argsort(stable=True)
        tokens = order // chosen.shape[-1]
        counts = torch.bincount(chosen.flatten(), minlength=each * way.ep).view(way.ep, each)
        leaving_here, own = counts.repeat_interleave(way.times, 0), counts.sum(1).tolist()
        arriving = torch.empty_like(leaving_here)
        dist.all_to_all_single(arriving, leaving_here, group=way.group)
        sent, received = leaving_here.sum(1).tolist(), arriving.sum(1).tolist()
        rows = exchange(way.sent(hidden[tokens], own), sent, received, way.group)
        local = torch.arange(each, device=rows.device).repeat(way.ranks).repeat_interleave(arriving.flatten())
        with _local_weights(owner, split):
            made = way.inside(rows, lambda some: _on_rows(inner, some, local))
        made = way.summed(exchange(made, received, sent, way.group), own)
        made = made * weights.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(hidden).index_add(0, tokens, made.to(hidden.dtype))

    return forward


def _on_rows(experts: Callable[..., torch.Tensor], rows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Each row through the one expert it chose; grouped products want at least one row."""
    none = len(rows) == 0
    if none:
        rows, chosen = torch.cat([rows, rows.new_zeros(1, rows.shape[1])]), chosen.new_zeros(1)
    made = experts(rows, chosen.unsqueeze(-1), rows.new_ones(len(rows), 1))
    return made[:0] if none else made


@contextmanager
def _local_weights(owner: nn.Module, names: list[str]) -> Iterator[None]:
    """This rank's experts as ordinary tensors in place of the DTensors, for code that knows none."""
    for name in names:
        owner.__dict__[name] = owner._parameters[name].to_local()
    try:
        yield
    finally:
        for name in names:
            del owner.__dict__[name]


def _split_list(owner: nn.Module, name: str, way: _Way) -> SplitExperts:
    key = next(key for key, child in owner.named_children() if isinstance(child, nn.ModuleList))
    experts = getattr(owner, key)
    each = way.share(len(experts), f"{name}.{key}")
    line = _Line(f"{name}.{key}", len(experts), each, way)
    mine = {f"{name}.{key}.{i}": experts[i] for i in range(len(experts)) if i // each == way.rank}
    layouts = slice_list(mine, way.whole["etp"]) if way.etp > 1 else {}
    for i in range(len(experts)):
        if i // each != way.rank:
            experts[i] = nn.Identity()
        line.add(experts[i])
    owner.forward = line.around(owner.forward)
    return SplitExperts(list(mine.values()), layouts)


class _Line:
    """The experts of one list, whose exchanges all ranks take part in, in the order of the list.

    A scalar leads from each exchange to the next, so that autograd runs their backward passes in one order on all
    ranks, also where a rank made nothing of one.
    """

    def __init__(self, name: str, experts: int, each: int, way: _Way):
        self.name, self.experts, self.each, self.way = name, experts, each, way
        self.modules: list[nn.Module] = []
        self.inner: list[Callable[[torch.Tensor], torch.Tensor]] = []
        self.next, self.lead, self.empty = 0, torch.empty(0), torch.empty(0)

    def add(self, module: nn.Module) -> None:
        """Give the next expert, wherever it is, its forward here."""
        self.inner.append(module.forward)
        self.modules.append(module)
        module.forward = self._turn(len(self.modules) - 1)

    def _turn(self, index: int) -> Callable[..., torch.Tensor]:
        def forward(rows: torch.Tensor) -> torch.Tensor:
            if index < self.next:
                raise Unsupported(
                    f"ep: {self.name!r} calls expert {index} after expert {self.next - 1}; call experts in order, each "
                    "once, or pin ep=1"
                )
            self._skip_to(index)
            return self._exchanged(rows)

        return forward

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of the module around the list: whoever called no more experts takes part in the rest."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            x = next(it for it in (*args, *kwargs.values()) if isinstance(it, torch.Tensor) and it.is_floating_point())
            self.next, self.lead, self.empty = 0, _Lead.apply(x), x.detach().new_zeros(0, x.shape[-1])
            out = forward(*args, **kwargs)
            self._skip_to(self.experts)
            first, *rest = out if isinstance(out, tuple) else (out,)
            first = _After.apply(first, self.lead)
            return (first, *rest) if isinstance(out, tuple) else first

        return wrapped

    def _skip_to(self, index: int) -> None:
        """Call experts that nobody here called, as modules, so that what is gathered around them is too."""
        while self.next < index:
            self.modules[self.next](_After.apply(self.empty, self.lead))

    def _exchanged(self, rows: torch.Tensor) -> torch.Tensor:
        index, self.next, way = self.next, self.next + 1, self.way
        owner = index // self.each
        counts = torch.zeros(way.ranks, dtype=torch.int64, device=rows.device)
        counts[dist.get_rank(way.group)] = len(rows)
        dist.all_reduce(counts, group=way.group)
        own = [len(rows) if rank == owner else 0 for rank in range(way.ep)]
        sent = [count for count in own for _ in range(way.times)]
        received = counts.tolist() if way.rank == owner else [0] * way.ranks
        got = exchange(way.sent(_After.apply(rows, self.lead), own), sent, received, way.group)
        if way.rank == owner:
            got = way.inside(got, lambda some: self._expert(index, some))
        back = way.summed(exchange(got, received, sent, way.group), own)
        self.lead = _Lead.apply(back)
        return back

    def _expert(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        made = self.inner[index](rows)
        if made.shape != rows.shape:
            raise Unsupported(
                f"ep: expert {index} of {self.name!r} makes {tuple(made.shape)} of {tuple(rows.shape)}, and experts "
                "that travel keep the width; pin ep=1"
            )
        return made


def entering(rows: torch.Tensor, ranks: int) -> torch.Tensor:
    """Rows on their way into an expert; undoes for the senders what :func:`leaving` divides."""
    return _Scaled.apply(rows, float(ranks))


def leaving(rows: torch.Tensor, ranks: int) -> torch.Tensor:
    """Rows an expert made, whose gradients are divided by the ranks whose tokens it sees."""
    return _Scaled.apply(rows, 1.0 / ranks)


class _Scaled(torch.autograd.Function):
    """The input; its gradient times ``factor``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


class _Lead(torch.autograd.Function):
    """A zero that depends on ``x``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(ctx.saved_tensors[0])


class _After(torch.autograd.Function):
    """``x``, which the backward pass is through with before it comes to ``lead``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, lead: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return gradient, gradient.new_zeros(())
