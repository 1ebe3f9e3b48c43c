"""The tensors in what a module takes and returns, whatever holds them, and those inside functorch's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

DEEPEST = 5
"""Objects within objects that are looked into: an output of outputs of lists, but no chain without an end."""
CLOSED = (str, bytes, int, float, type, torch.nn.Module)


def tensors_of(what: Any, depth: int = DEEPEST) -> list[torch.Tensor]:
    """All tensors of an argument or output: in mappings, lists, dataclasses and attributes, slots too."""
    if isinstance(what, torch.Tensor):
        return [what]
    if what is None or depth == 0 or isinstance(what, CLOSED):
        return []
    return [tensor for part in _parts(what) for tensor in tensors_of(part, depth - 1)]


def _parts(what: Any) -> Iterable[Any]:
    if isinstance(what, Mapping):
        return what.values()
    leaves = tree_leaves(what)
    if len(leaves) != 1 or leaves[0] is not what:
        return leaves
    return (*getattr(what, "__dict__", {}).values(), *_slots(what))


def _slots(what: Any) -> list[Any]:
    names = [slots for kind in type(what).__mro__ if (slots := kind.__dict__.get("__slots__"))]
    each = [name for slots in names for name in ((slots,) if isinstance(slots, str) else slots)]
    return [getattr(what, name) for name in each if name != "__dict__" and hasattr(what, name)]


def closed_to_trees(what: Any) -> Any:
    """The first object among the leaves of ``what`` that holds tensors and that torch's trees do not open."""
    leaves = (leaf for leaf in tree_leaves(what) if not isinstance(leaf, torch.Tensor))
    return next((leaf for leaf in leaves if tensors_of(leaf)), None)


def computed_with(tensor: torch.Tensor) -> torch.Tensor:
    """What operators work on: the tensor itself, or under ``torch.vmap`` and ``torch.func.grad`` the one inside."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
