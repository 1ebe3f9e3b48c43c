"""Whole numbers of the example that are known, and what follows from them.

Integer and boolean inputs keep their values, if they have any: sizes of images, lengths, places of image tokens.
What is computed of them alone is computed for real, so that a branch, a loop or a shape that depends on them goes
as the example says. Floating-point data is never known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._pytree import tree_leaves, tree_map

LARGEST = 2**20
LARGEST_FLOATS = 2**12


class KnownData:
    """Real tensors beside the fake ones they belong to."""

    def __init__(self) -> None:
        self.real: dict[int, torch.Tensor] = {}
        self.alive: list[torch.Tensor] = []

    def put(self, fake: torch.Tensor, real: torch.Tensor) -> None:
        """Know ``fake``'s values."""
        self.real[id(fake)] = real
        self.alive.append(fake)

    def has(self, tensor: Any) -> bool:
        """Whether a tensor's values are known."""
        return id(tensor) in self.real

    def scalar(self, tensor: torch.Tensor) -> Any:
        """The one value of a tensor."""
        with unset_fake_temporarily():
            return self.real[id(tensor)].item()

    def nonzero(self, mask: torch.Tensor) -> torch.Tensor:
        """Where a known mask holds, as a fake tensor whose values are known too."""
        with unset_fake_temporarily():
            real = self.real[id(mask)].nonzero()
        fake = torch.empty(tuple(real.shape), dtype=torch.int64, device=mask.device)
        self.put(fake, real)
        return fake

    def all_of(self, args: tuple, kwargs: dict) -> bool:
        """Whether everything that goes into an operator is known."""
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        return all(id(t) in self.real or not isinstance(t, FakeTensor) for t in tensors)

    def sized(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """The result of an operator whose shape depends on known data, fake, with its values known."""
        with unset_fake_temporarily():
            result = func(*self._swapped(args), **self._swapped(kwargs))
        fakes = tree_map(lambda t: torch.empty(tuple(t.shape), dtype=t.dtype), result)
        for fake, real in zip(tree_leaves(fakes), tree_leaves(result), strict=True):
            self.put(fake, real)
        return fakes

    def _swapped(self, what: Any) -> Any:
        return tree_map(lambda t: self.real.get(id(t), t) if isinstance(t, torch.Tensor) else t, what)

    def follow(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """Compute the result of an operator for real where everything that goes in is known and it is small."""
        if "nonzero" in str(func):
            return
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        fakes = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random or not fakes or any(_large(t) for t in fakes) or not self.all_of(args, kwargs):
            self._forget(fakes, tensors)
            return
        try:
            with unset_fake_temporarily():
                result = func(*self._swapped(args), **self._swapped(kwargs))
        except (RuntimeError, TypeError, NotImplementedError, IndexError):
            # Some operators run on fake tensors only; what this one may have written in place is known no more.
            self._forget(fakes, tensors)
            return
        for fake, real in zip(fakes, tree_leaves(result), strict=True):
            self.put(fake, real)

    def _forget(self, fakes: list[torch.Tensor], tensors: list[torch.Tensor]) -> None:
        """What was written in place with unknown data is known no more."""
        for tensor in fakes:
            if any(tensor is t for t in tensors):
                self.real.pop(id(tensor), None)


def _large(tensor: torch.Tensor) -> bool:
    return tensor.numel() > (LARGEST_FLOATS if tensor.is_floating_point() else LARGEST)
