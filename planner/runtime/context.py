"""Context parallelism of any module: ranks of a ``cp`` group hold parts of the sequence between embedding and head.

The first layer takes its part of the hidden states, every layer its part of what is given beside them (rotary
tables, masks), and attention gathers keys and values of all parts: queries of rank r are positions
r s/cp to (r+1) s/cp. The backward pass sums the gradients of keys and values over the ranks. The head works on this
rank's part. Every parameter so sees part of the tokens, as in data parallelism, and is averaged over ``cp`` too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from planner.errors import BadInput, Unsupported
from planner.runtime.collectives import chunk_of, collect


def split_sequence(layers: list[tuple[str, nn.Module]], group: dist.ProcessGroup, from_start: bool) -> None:
    """Make named ``layers``, in order, work on this rank's part of the sequence.

    The first of them is given whole sequences where it is the model's first (``from_start``), else parts already.
    """
    region = _Region(group)
    for number, (name, layer) in enumerate(layers):
        layer.forward = _on_part(layer.forward, name, region, first=from_start and number == 0)


class _Region:
    """The part of the model that runs on parts of the sequence; its length is known once the first layer ran."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.rank, self.count = group, dist.get_rank(group), dist.get_world_size(group)
        self.seq_len = 0

    def enter(self, hidden: torch.Tensor, name: str, is_whole: bool) -> None:
        """Learn the sequence from ``[batch, seq, hidden]`` that a layer is given, all of it or a part."""
        self.seq_len = hidden.shape[1] * (1 if is_whole else self.count)
        if is_whole and self.seq_len % self.count:
            raise BadInput(
                f"cp = {self.count} does not divide the hidden states {tuple(hidden.shape)} of {name!r} along "
                "[batch, seq, hidden]; pin cp=1"
            )

    def part(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """This rank's part of a tensor that has the sequence as one of its dimensions; of a mask, its queries."""
        dims = [dim for dim, size in enumerate(tensor.shape) if size == self.seq_len]
        mask = tensor.dim() >= 3 and dims[-2:] == [tensor.dim() - 2, tensor.dim() - 1] and len(dims) == 2
        if not dims:
            return tensor
        if len(dims) > 1 and not mask:
            raise BadInput(
                f"which dimension of {tuple(tensor.shape)}, given to {name!r}, is the sequence of {self.seq_len}? "
                f"choose a micro_batch or seq_len that differs from its other sizes, or pin cp=1"
            )
        return chunk_of(tensor, dims[0], self.rank, self.count)


def _on_part(forward: Callable[..., Any], name: str, region: _Region, first: bool) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        hidden = next((it for it in (*args, *kwargs.values()) if _is_hidden(it)), None)
        if hidden is None:
            raise Unsupported(f"cp needs layers that are given hidden states, and {name!r} is given none; pin cp=1")
        region.enter(hidden, name, first)

        def own(it: Any) -> Any:
            if not isinstance(it, torch.Tensor) or (it is hidden and not first):
                return it
            return region.part(it, name)

        args, kwargs = tree_map(own, args), tree_map(own, kwargs)
        with _GatheredKeys(region, name) as attending:
            out = forward(*args, **kwargs)
        if not attending.ran:
            raise calls_no_attention(name)
        return out

    return wrapped


def calls_no_attention(name: str) -> Unsupported:
    """The error for a layer whose keys and values nothing would gather."""
    return Unsupported(
        f"cp gathers keys and values in torch's scaled_dot_product_attention, and {name!r} calls none; build the model "
        "with it (attn_implementation='sdpa'), or pin cp=1"
    )


def _is_hidden(it: Any) -> bool:
    return isinstance(it, torch.Tensor) and it.is_floating_point() and it.dim() == 3


class _GatheredKeys(TorchFunctionMode):
    """Attention of this rank's queries to the keys of all ranks."""

    def __init__(self, region: _Region, name: str):
        super().__init__()
        self.region, self.name, self.ran = region, name, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.ran = True
        return self._attend(*args, **kwargs)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, **options: Any,
    ) -> torch.Tensor:  # fmt: skip
        region = self.region
        if key.shape[-2] * region.count != region.seq_len:
            raise Unsupported(f"cp: {self.name!r} attends to something else than its own sequence; pin cp=1")
        if attn_mask is not None and attn_mask.shape[-1] != region.seq_len:
            raise Unsupported(
                f"cp: {self.name!r} makes its mask {tuple(attn_mask.shape)} itself, from a part of the sequence; give "
                "it to the layer, or use is_causal; or pin cp=1"
            )
        key, value = (collect(it, it.dim() - 2, region.group) for it in (key, value))
        if is_causal:
            attn_mask = self._causal(query)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)

    def _causal(self, query: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(self.region.seq_len, device=query.device)
        own = chunk_of(positions, 0, self.region.rank, self.region.count)
        return own.unsqueeze(-1) >= positions
