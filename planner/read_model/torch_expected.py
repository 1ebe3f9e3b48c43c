"""What is expected where a result depends on data: choices among n are even, else the most there can be.

    nonzero          d N rows of N, a mask of density d; N where none is known
    unique           N of N
    bincount         N / n for each of n, indices chosen out of n
    sum of a mask    d m of the m that are added up
    any of a mask    true, where d N is at least 1

Counts are known from there on, so that lists made of them (``split``, loops over experts) have sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from planner.read_model.torch_data import KnownData
from planner.read_model.traced import Value

EVEN = "depends on data; taken as if choices were even"


class Expected:
    """Stands in for operators whose results depend on unknown data; ``note`` is told what was taken for what."""

    def __init__(self, known: KnownData, value: Callable[[torch.Tensor], Value], note: Callable[[str], None]) -> None:
        self.known, self.value, self.note = known, value, note

    def result(self, name: str, args: tuple, kwargs: dict) -> Any:
        """The result of operator ``name``, ``None`` where it is to run as it is."""
        reading = READINGS.get(name)
        return None if reading is None else reading(self, args, kwargs)

    def nonzero(self, args: tuple, kwargs: dict) -> torch.Tensor:
        """Where a mask holds, ``[count, dimensions]``."""
        mask = args[0]
        if self.known.has(mask):
            return self.known.nonzero(mask)
        density = self.value(mask).density
        count = max(1, round(mask.numel() * (1.0 if density is None else density)))
        how = "the largest possible" if density is None else f"a share of {density:.4g}, as if choices were even"
        self.note(f"a shape depends on data; taken as {how}: {count} of {mask.numel()}")
        return torch.empty((count, mask.dim()), dtype=torch.int64, device=mask.device)

    def unique(self, args: tuple, kwargs: dict) -> tuple[torch.Tensor, ...] | None:
        """As if no two were alike: values, the place of each, and counts."""
        entered, inverse, counts = args[0], *(bool(args[i : i + 1] and args[i]) for i in (2, 3))
        if self.known.has(entered):
            return None
        size = entered.numel()
        self.note(f"a shape depends on data; taken as the largest possible: {size} of {size}")
        whole = {"dtype": torch.int64}
        return (
            entered.new_empty((size,)), entered.new_empty(entered.shape if inverse else (0,), **whole),
            entered.new_empty((size if counts else 0,), **whole),
        )  # fmt: skip

    def bincount(self, args: tuple, kwargs: dict) -> torch.Tensor | None:
        """How often each of n was chosen, n being what the indices were chosen out of, or stated."""
        indices, weights = args[0], args[1] if len(args) > 1 else kwargs.get("weights")
        stated = args[2] if len(args) > 2 else kwargs.get("minlength", 0)
        count = max(int(stated), self.value(indices).choices or 0)
        if self.known.has(indices) or not count or weights is not None:
            return None
        self.note(EVEN)
        return self._counts((count,), indices.numel())

    def sum(self, args: tuple, kwargs: dict) -> torch.Tensor | None:
        """How many of a mask hold, along some or all of its dimensions."""
        mask, density = args[0], self.value(args[0]).density
        if density is None or mask.is_floating_point() or self.known.has(mask):
            return None
        axes = args[1] if len(args) > 1 and args[1] else range(mask.dim())
        keep = bool(args[2]) if len(args) > 2 else False
        axes = {axis % mask.dim() for axis in axes}
        shape = [1 if i in axes else n for i, n in enumerate(mask.shape) if keep or i not in axes]
        return self._counts(tuple(shape), round(density * mask.numel()))

    def any(self, args: tuple, kwargs: dict) -> torch.Tensor | None:
        """Whether any of a whole mask of known density holds."""
        density = self.value(args[0]).density
        if density is None or len(args) > 1 or self.known.has(args[0]):
            return None
        self.note(EVEN)
        return self._known((), lambda: torch.tensor(density * args[0].numel() >= 1))

    def _counts(self, shape: tuple[int, ...], total: int) -> torch.Tensor:
        """``total`` spread evenly over ``shape``."""

        def spread() -> torch.Tensor:
            each = torch.empty(shape, dtype=torch.int64)
            places = torch.arange(each.numel()).reshape(shape)
            return total // max(1, each.numel()) + (places < total % max(1, each.numel()))

        return self._known(shape, spread)

    def _known(self, shape: tuple[int, ...], real: Callable[[], torch.Tensor]) -> torch.Tensor:
        with unset_fake_temporarily():
            values = real()
        fake = torch.empty(shape, dtype=values.dtype)
        self.known.put(fake, values)
        return fake


READINGS: dict[str, Callable[[Expected, tuple, dict], Any]] = {
    "nonzero": Expected.nonzero, "_unique2": Expected.unique, "bincount": Expected.bincount, "sum": Expected.sum,
    "any": Expected.any,
}  # fmt: skip
