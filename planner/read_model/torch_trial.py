"""A small copy of a module run on random weights, and two such runs compared.

Everything is in double precision, where all of the module's kernels take it, and without anything random.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_map

from planner.read_model.torch_run import Example, no_mkldnn, without_caches
from planner.read_model.torch_tensors import tensors_of
from topologies.errors import BadInput

MOST_PARAMETERS = 50_000_000
TOLERANCE, FLOAT_TOLERANCE = 1e-6, 1e-2


def random_copy(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """A copy of ``module`` on the CPU in double precision, with weights that no symmetry hides anything behind."""
    small = copy.deepcopy(module).to_empty(device="cpu") if _on_meta(module) else copy.deepcopy(module).cpu()
    small = small.double().train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            parameter.requires_grad_(True)
        for name, buffer in small.named_buffers():
            if _on_meta(module) and buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5)
            elif _on_meta(module):
                raise BadInput(f"buffer {name!r} is on the meta device; give a module whose buffers have values")
    return small


def _on_meta(module: torch.nn.Module) -> bool:
    return any(p.is_meta for p in module.parameters())


def random_inputs(
    example: Example, seed: int, copies: int, dtype: torch.dtype, *, alike: bool = True
) -> tuple[tuple, dict[str, Any]]:
    """The example's inputs ``copies`` times along the batch, with random values where they are no whole numbers.

    All copies have the same values if ``alike``.
    """
    generator = torch.Generator().manual_seed(seed + 1)

    def drawn(it: torch.Tensor) -> torch.Tensor:
        if it.is_floating_point():
            return torch.randn(it.shape, generator=generator, dtype=torch.float64).to(dtype)
        return torch.zeros(it.shape, dtype=it.dtype) if it.is_meta else it.clone()

    def one(it: Any) -> Any:
        if not isinstance(it, torch.Tensor):
            return it
        real = drawn(it)
        if not real.dim():
            return real
        return torch.cat([real, *(real if alike else drawn(it) for _ in range(copies - 1))])

    return tree_map(one, example.args), tree_map(one, example.kwargs)


def trial_outputs(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """All floating-point tensors that ``module`` returns; no keys and values are kept meanwhile."""
    with without_caches(module), no_mkldnn():
        return [t for t in tensors_of(module(*args, **kwargs)) if t.is_floating_point()]


def agree(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor] | str) -> bool:
    return not isinstance(other, str) and first_difference(one, other) is None


def first_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str | None:
    """The first output or gradient in which two runs differ."""
    for name, value in one.items():
        if name not in other or other[name].shape != value.shape:
            return name
        near = TOLERANCE if value.dtype == torch.float64 else FLOAT_TOLERANCE
        if (other[name] - value).abs().max() > near * value.abs().max().clamp(min=1e-3):
            return name
    return None


@contextlib.contextmanager
def without_dropout(module: torch.nn.Module) -> Iterator[None]:
    """Nothing random, in modules and in functions that ask whether the module trains."""
    was = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, training in was.items():
            inner.training = training
