"""What stands in for a few functions while a module is recorded.

Attention is one operator whatever kernel the machine would pick for it: ``scaled_dot_product_attention`` is
replaced by a function of its own that keeps queries, keys, values, output and log-sum-exp, as a fused kernel does.
Dropout is left out: its masks are the stack's to price.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from planner.read_model.torch_record import Recorder


class _Fused(torch.autograd.Function):
    """Attention as one kernel: keeps queries, keys, values, output and log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any) -> torch.Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        log_sum = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.bias = None if bias is None else bias.shape
        ctx.save_for_backward(query, key, value, out, log_sum)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        query, key, value, _, _ = ctx.saved_tensors
        bias = None if ctx.bias is None else gradient.new_empty(ctx.bias)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), bias


DROPOUTS = {F.dropout, torch.dropout, F.alpha_dropout, F.dropout2d, F.dropout1d, F.feature_alpha_dropout}


def _drops(input: Any, p: float = 0.5, training: bool = True, train: bool = True, inplace: bool = False) -> bool:
    """Whether a call of dropout, whose arguments these are, drops anything."""
    return p > 0 and training and train


class Functions(TorchFunctionMode):
    """Stands in for attention and dropout."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder, self.dropped = recorder, False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.recorder.phase != "forward":
            return func(*args, **kwargs)
        if func in DROPOUTS:
            self.dropped = self.dropped or _drops(*args, **kwargs)
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        bias = attn_mask if isinstance(attn_mask, torch.Tensor) and attn_mask.requires_grad else None
        self.recorder.phase = "muted"
        try:
            out = _Fused.apply(query, key, value, bias)
        finally:
            self.recorder.phase = "forward"
        self.recorder.attended(query, key, value, attn_mask, out, is_causal)
        return out
