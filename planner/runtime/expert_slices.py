"""Tensor parallelism inside experts: an expert is the sum of ``etp`` narrower ones, each of which a rank holds.

    W_down act(W_up x) + b  =  sum over slices s of  W_down[:, s] act(W_up[s] x) + b / etp

for any ``act`` that works on every inner column alone (gated ones on every pair). Which matrices have the inner width
in their rows and which in their columns is found by running one expert on a few random rows, and the sum is compared
with the whole before anything is split: an expert for which it does not hold is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.func import functional_call
from torch.nn import functional

from planner.errors import BadInput, Unsupported
from planner.runtime.split_modules import SectionedWeight, own_part

ROWS, TOLERANCE = 6, 1e-4
"""Rows that an expert is tried on, and how far the sum of its slices may be off, relative to the largest output."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Cut:
    """Where parameters of an expert are cut among ``etp`` ranks; those in ``shared`` are whole, and count once."""

    etp: int
    layouts: dict[str, SectionedWeight]
    shared: tuple[str, ...] = ()

    def slice(self, whole: Tensors, rank: int) -> Tensors:
        """The parameters of one rank's narrower expert."""
        cut = {
            name: it.split_order(whole[name]).chunk(self.etp, it.dim)[rank].contiguous()
            for name, it in self.layouts.items()
        }
        return cut | {name: whole[name] / self.etp for name in self.shared}


def slice_list(experts: dict[str, nn.Module], mesh: DeviceMesh) -> dict[str, SectionedWeight]:
    """Leave each of these experts, by name, modules with ``nn.Linear`` inside, this rank's slice over the ``etp`` mesh.

    Gives the layouts of matrices of several parts, by parameter.

    Raises ``Unsupported`` where they are no sum of narrower ones, ``BadInput`` where ``etp`` does not divide them.
    """
    found = {}
    for name, expert in experts.items():
        cut = _cut_of_linears(expert, name, mesh.size())
        found |= {f"{name}.{key}": it for key, it in cut.layouts.items() if len(it.sections) > 1}
        for key, layout in cut.layouts.items():
            owner, _, leaf = key.rpartition(".")
            _distribute(expert.get_submodule(owner), leaf, mesh, [Shard(layout.dim)], layout)
        for key, inner in expert.named_modules():
            if isinstance(inner, nn.Linear):
                inner.forward = _product(inner, mesh.size() if f"{key}.bias" in cut.shared else 1)
    return found


def _product(owner: nn.Linear, ranks: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        bias = own_part(owner.bias)
        bias = bias if bias is None or ranks == 1 else _Once.apply(bias, ranks)
        return functional.linear(x, own_part(owner.weight), bias)

    return forward


class _Once(torch.autograd.Function):
    """A tensor that ``ranks`` ranks add to a sum: its share on the way there, its gradient whole."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ranks: int) -> torch.Tensor:
        return x / ranks

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def _cut_of_linears(expert: nn.Module, name: str, etp: int) -> Cut:
    linears = {key: it for key, it in expert.named_modules() if isinstance(it, nn.Linear)}
    inside = {f"{key}.{leaf}" for key, it in linears.items() for leaf in it._parameters}
    other = [key for key, _ in expert.named_parameters() if key not in inside]
    columns, rows = _roles(expert, linears)
    if other or len(rows) != 1 or len(columns) + 1 != len(linears):
        what = ", ".join(other or linears) or "no nn.Linear"
        raise _refused(name, etp, f"{what}: not columns whose products one product of rows sums up")
    _check_width(linears[rows[0]].in_features, etp, f"{name}.{rows[0]}")
    x = _random((ROWS, linears[columns[0]].in_features), next(expert.parameters()))
    cuts = (_layouts(linears, columns, rows[0], etp, parts) for parts in (1, 2))
    cut = next((it for it in cuts if _adds_up(expert, it, (x,))), None)
    if cut is None:
        raise _refused(name, etp, "they do more than act on every inner column alone")
    return cut


def _layouts(linears: dict[str, nn.Linear], columns: list[str], row: str, etp: int, parts: int) -> Cut:
    """Columns of one matrix, or of ``parts`` behind each other, and the rows that sum them up."""
    found = {f"{row}.weight": SectionedWeight(1, (linears[row].in_features,), etp)}
    for key in columns:
        sections = (linears[key].out_features // parts,) * parts
        for leaf in linears[key]._parameters:
            if linears[key]._parameters[leaf] is not None:
                found[f"{key}.{leaf}"] = SectionedWeight(0, sections, etp)
    return Cut(etp, found, (f"{row}.bias",) if linears[row].bias is not None else ())


def _roles(expert: nn.Module, linears: dict[str, nn.Linear]) -> tuple[list[str], list[str]]:
    """Products that read the expert's input, and those that make its output, as one run of it shows."""
    for width in dict.fromkeys(it.in_features for it in linears.values()):
        x = _random((ROWS, width), next(expert.parameters()))
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # kept, so that no other takes their place in memory
        hooks = [it.register_forward_hook(_seeing(key, seen)) for key, it in linears.items()]
        try:
            made = _run(expert, x)
        except RuntimeError:  # not the width that it takes
            continue
        finally:
            for hook in hooks:
                hook.remove()
        ends = [key for key, (_, after) in seen.items() if after.data_ptr() == made.data_ptr()]
        return [k for k, (read, _) in seen.items() if read.data_ptr() == x.data_ptr() and k not in ends], ends
    return [], []


def _seeing(key: str, seen: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        seen[key] = (args[0], out)

    return hook


def slice_fused(owner: nn.Module, name: str, keys: list[str], mesh: DeviceMesh) -> dict[str, SectionedWeight]:
    """Cut the fused parameters ``keys`` ``[experts, ...]`` of ``owner`` over the mesh ``(ep, etp)``.

    Gives the layouts of matrices of several parts, by parameter's whole name. Raises as :func:`slice_list`.
    """
    etp = mesh.size(1)
    if flat := [key for key in keys if owner.get_parameter(key).dim() != 3]:
        raise _refused(name, etp, f"{', '.join(flat)} is fused with less than three dimensions")
    whole = {key: owner.get_parameter(key).detach() for key in keys}
    cut = next((it for it in _fused_cuts(whole, etp) if _adds_up(owner, it, _calls(whole, it))), None)
    if cut is None:
        raise _refused(name, etp, "no inner width that it divides makes them a sum of narrower ones")
    for key, layout in cut.layouts.items():
        _distribute(owner, key, mesh, [Shard(0), Shard(layout.dim)], layout)
    return {f"{name}.{key}": it for key, it in cut.layouts.items() if len(it.sections) > 1}


def _fused_cuts(whole: Tensors, etp: int) -> Iterator[Cut]:
    """Every way to take one dimension of each parameter as the inner one, of one matrix or of two behind each other."""
    for ways in itertools.product(itertools.product((1, 2), (1, 2)), repeat=len(whole)):
        outer = {it.shape[3 - dim] for it, (dim, _) in zip(whole.values(), ways, strict=True)}
        layouts = {}
        for (key, it), (dim, parts) in zip(whole.items(), ways, strict=True):
            if it.shape[dim] % (parts * etp) == 0:
                layouts[key] = SectionedWeight(dim, (it.shape[dim] // parts,) * parts, etp)
        if len(outer) == 1 and len(layouts) == len(whole) and len({it.sections[0] for it in layouts.values()}) == 1:
            yield Cut(etp, layouts)


def _calls(whole: Tensors, cut: Cut) -> tuple[torch.Tensor, ...]:
    """Rows of the outer width, each to an expert of its own."""
    key, layout = next(iter(cut.layouts.items()))
    experts, width = whole[key].shape[0], whole[key].shape[3 - layout.dim]
    rows = max(ROWS, experts)
    chosen = (torch.arange(rows, device=whole[key].device) % experts).unsqueeze(-1)
    x = _random((rows, width), whole[key])
    return x, chosen, x.new_ones(rows, 1)


def _adds_up(module: nn.Module, cut: Cut, inputs: tuple[torch.Tensor, ...]) -> bool:
    """Whether the slices' outputs sum up to the module's, on this rank alone.

    Tried on random parameters: with the module's own, zeros of a fresh output matrix would hide any other layout.
    """
    whole = {name: _random(it.shape, it, k) for k, (name, it) in enumerate(module.named_parameters(), 1)}
    try:
        made = _run(module, *inputs, weights=whole)
        total = sum(_run(module, *inputs, weights=cut.slice(whole, rank)) for rank in range(cut.etp))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return made.shape == total.shape and bool((made - total).abs().max() <= TOLERANCE * made.abs().max())


def _run(module: nn.Module, *inputs: torch.Tensor, weights: Tensors | None = None) -> torch.Tensor:
    training = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            return functional_call(module, weights or {}, inputs)
    finally:
        for inner, was in training.items():
            inner.training = was


def _random(shape: tuple[int, ...], like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like.device, like.dtype)


def _distribute(
    owner: nn.Module, leaf: str, mesh: DeviceMesh, placements: list[Shard], layout: SectionedWeight
) -> None:  # fmt: skip
    parameter = owner.get_parameter(leaf)
    data = distribute_tensor(layout.split_order(parameter.data), mesh, placements)
    setattr(owner, leaf, nn.Parameter(data, parameter.requires_grad))


def _check_width(width: int, etp: int, what: str) -> None:
    if width % etp:
        raise BadInput(f"etp = {etp} does not divide {width}, the inner width of {what!r}; plan with an etp that does")


def _refused(name: str, etp: int, why: str) -> Unsupported:
    return Unsupported(f"etp = {etp} cannot split the experts of {name!r}: {why}; pin etp=1")
