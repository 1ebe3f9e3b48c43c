"""FLOP and matrix shapes of aten operators, a multiply-add being 2.

torch's own counter gives nothing for attention on CPUs (``_scaled_dot_product_flash_attention_for_cpu``) and for
grouped products (``_grouped_mm``), and ignores the groups of a convolution when it goes back; these are here:

    grouped    2 r n k             r rows in all, each with one of the weights [n, k]
    forward    2 o (c/g) n         o outputs positions and channels, c/g inputs and n taps each
    backward   forward for the input's gradient, and as much for the weight's

Everything else is left to ``torch.utils.flop_counter``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from planner.read_model.traced import Product

SDPA = "_scaled_dot_product_"


def product_of(
    name: str, args: tuple, kwargs: dict, out: Any, parameter: Callable[[torch.Tensor], str | None]
) -> Product | None:
    """The matrix product that an operator is, else ``None``."""
    reading = PRODUCTS.get(name)
    return None if reading is None else reading(args, kwargs, out, parameter)


def flop_of(func: Any, args: tuple, kwargs: dict, out: Any) -> float:
    """FLOP of one operator, by ``register_flop_formula`` where it is not torch's; 0 for those that only move data."""
    name = func.overloadpacket.__name__
    if name.startswith(SDPA):
        return _attention(name, args)
    if name == "convolution_backward":
        return _convolution_backward(args)
    known = product_of(name, args, kwargs, out, lambda tensor: None)
    if known is not None:
        return known.flop
    counted = flop_registry.get(func.overloadpacket)
    return float(counted(*args, **kwargs, out_val=out)) if counted else 0.0


def _two(a: torch.Tensor, b: torch.Tensor, parameter: Callable) -> Product:
    """``[m, k] x [k, n]``, with the parameter on the right if there is one."""
    (m, k), n, weight = a.shape, b.shape[1], parameter(b)
    if weight is None and parameter(a) is not None:
        return Product(int(n), int(m), int(k), weight=parameter(a))
    return Product(int(m), int(n), int(k), weight=weight)


def _vector(a: torch.Tensor, b: torch.Tensor, parameter: Callable) -> Product:
    """``[m, k] x [k]``."""
    (m, k), weight = a.shape, parameter(b)
    if weight is None and parameter(a) is not None:
        return Product(1, int(m), int(k), weight=parameter(a))
    return Product(int(m), 1, int(k), weight=weight)


def _distances(args: tuple, kwargs: dict, out: torch.Tensor, parameter: Callable) -> Product:
    """Of rows ``[m, k]`` from rows ``[n, k]``: a product and what little else there is."""
    a, b = args[:2]
    weight = parameter(b)
    return Product(int(a.shape[-2]), int(b.shape[-2]), int(a.shape[-1]), math.prod(out.shape[:-2]), weight=weight)


def _batched(a: torch.Tensor, b: torch.Tensor, parameter: Callable) -> Product:
    """``count`` products; a parameter with as many matrices gives each its own rows, unless all read the same ones."""
    (count, m, k), n, weight = a.shape, b.shape[2], parameter(b)
    if weight is None and parameter(a) is not None:
        m, n, weight = n, m, parameter(a)
    one, other = (b, a) if parameter(b) else (a, b)
    grouped = weight is not None and one.stride(0) != 0 and other.stride(0) != 0
    return Product(int(m), int(n), int(k), int(count), int(count) if grouped else 1, weight)


def grouped_out(a: torch.Tensor, b: torch.Tensor, offs: Any = None, **kwargs: Any) -> torch.Tensor:
    """An empty result of ``_grouped_mm``, in any type; torch's own shape function takes bf16 alone."""
    if a.dim() == 2 and b.dim() == 3:
        shape = (a.shape[0], b.shape[2])
    elif a.dim() == 3 and b.dim() == 2:
        shape = (a.shape[1], b.shape[1])
    else:
        groups = a.shape[0] if a.dim() == 3 else offs.shape[0]
        shape = (groups, a.shape[-2], b.shape[-1])
    return a.new_empty(shape, dtype=kwargs.get("out_dtype") or a.dtype)


def _grouped(args: tuple, kwargs: dict, out: torch.Tensor, parameter: Callable) -> Product:
    a, b = args[:2]
    groups = int(b.shape[0]) if b.dim() == 3 else int(out.shape[0])
    if b.dim() == 3 and a.dim() == 2:
        rows, k, n = a.shape[0], a.shape[1], b.shape[2]
        return Product(rows / groups, int(n), int(k), groups, groups, parameter(b))
    m, k, n = a.shape[-2], a.shape[-1] / (groups if a.dim() == 2 else 1), b.shape[-1]
    return Product(float(m), int(n), k, groups, groups, parameter(b) or parameter(a))


def _convolution(args: tuple, kwargs: dict, out: torch.Tensor, parameter: Callable) -> Product:
    _, weight, *_rest = args
    transposed, groups = bool(args[6]), int(args[8])
    channels, taps = int(weight.shape[0]), math.prod(weight.shape[1:])
    if transposed:
        taps, channels = channels // groups * math.prod(weight.shape[2:]), int(weight.shape[1]) * groups
        positions = args[0].numel() // max(1, args[0].shape[1])
        rows, n, k = positions, int(weight.shape[1]) * math.prod(weight.shape[2:]), int(weight.shape[0]) // groups
        return Product(rows, n, k, groups, 1, parameter(weight), convolution=True)
    positions = out.numel() // max(1, out.shape[1])
    return Product(positions, channels // groups, taps, groups, 1, parameter(weight), convolution=True)


def _convolution_backward(args: tuple) -> float:
    """``grad, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask``."""
    grad, entered, weight, transposed, mask = args[0], args[1], args[2], args[7], args[10]
    made = entered if transposed else grad
    positions = made.numel() // max(1, made.shape[1])
    channels, taps = int(weight.shape[0]), math.prod(weight.shape[1:])
    each = 2.0 * positions * channels * taps
    return each * sum(bool(wanted) for wanted in mask[:2])


def _attention(name: str, args: tuple) -> float:
    """Forward 2 products of all pairs, backward 5; half of it where causal is not counted here."""
    backward = name.endswith("_backward")
    query, key, value = args[1:4] if backward else args[:3]
    pairs = query.numel() // query.shape[-1] * key.shape[-2]
    size = (3 * query.shape[-1] + 2 * value.shape[-1]) if backward else query.shape[-1] + value.shape[-1]
    return 2.0 * pairs * size


PRODUCTS: dict[str, Callable[..., Product | None]] = {
    "mm": lambda args, kwargs, out, p: _two(args[0], args[1], p),
    "addmm": lambda args, kwargs, out, p: _two(args[1], args[2], p),
    "bmm": lambda args, kwargs, out, p: _batched(args[0], args[1], p),
    "baddbmm": lambda args, kwargs, out, p: _batched(args[1], args[2], p),
    "mv": lambda args, kwargs, out, p: _vector(args[0], args[1], p),
    "addmv": lambda args, kwargs, out, p: _vector(args[1], args[2], p),
    "_euclidean_dist": _distances,
    "_cdist_forward": _distances,
    "_grouped_mm": _grouped,
    "convolution": _convolution,
}


def reduced_of(name: str, args: tuple) -> int:
    """Elements along the last dimension that an operator makes one number of, or normalises; 0 for none."""
    entered = next((a for a in args if isinstance(a, torch.Tensor)), None)
    if entered is None or not entered.dim():
        return 0
    if name in ("native_layer_norm", "_fused_rms_norm"):
        return math.prod(int(n) for n in args[1])
    if name == "native_group_norm":
        return int(args[4]) // int(args[6]) if len(args) > 6 else 0
    if name in ("_softmax", "_log_softmax", "cumsum", "topk", "sort"):
        dims = [a for a in args[1:2] if name in ("_softmax", "_log_softmax", "cumsum")] or [-1]
        return int(entered.shape[-1]) if dims[0] in (-1, entered.dim() - 1) else 0
    if name in ("mean", "sum", "var", "var_mean", "amax", "logsumexp", "linalg_vector_norm"):
        dims = next((a for a in args[1:] if isinstance(a, list | tuple)), None)
        last = dims is None or any(d in (-1, entered.dim() - 1) for d in dims)
        return int(entered.shape[-1]) if last else 0
    return 0
