"""Seconds of single kernels on one device, from forms fitted to measured kernels.

Matrix product ``[m, k] x [k, n]``, best of a few tiles ``(a, b)`` and split counts ``z``:

    tiles    = groups ceil(m / a) ceil(n / b) z
    waves    = (1 - softness) ceil(tiles / units) + softness max(tiles / units, 1)
    compute  = waves units 2 a b (k / z + ramp) (1 + waste (128 / a + 128 / b - 1)) / (compute_fraction peak) + split
    move     = (in m k + weight n k + out m n) groups / (memory_fraction bandwidth)
    t        = launch + (compute^p + move^p)^(1/p)

``units`` are the multiprocessors (or cores) that take tiles, ``ramp`` the part of ``k`` that filling and draining
a tile costs, ``split`` a start and the fp32 partial sums, half of whose traffic is taken to reach memory.
Flash attention over ``S`` keys, ``c`` the 128-query blocks of the batch:

    t = launch + FLOP / (compute_fraction head(d) peak) (1 + half_length / S) (1 + occupancy units / c)

Memory-bound kernels: ``t = launch + root sqrt(bytes) + bytes / (fraction bandwidth)``.

Quantising the activations for fp8 and fp4 is a kernel of its own (``quantise_s``), not part of a product. None of
these hold the clocks of a device that is power-limited for minutes: the data are short benchmarks.

Source: constants, data and residuals in ``calibration/kernels.toml``, re-fitted by ``fitting/kernels.py``. Tiles
and waves: NVIDIA, "Matrix Multiplication Background User's Guide"; five backward products: Dao, arXiv:2307.08691.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

TILES = ((64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
SPLITS = (1, 2, 4, 8)
BACKWARD_FLOP = 2.5
QUERY_BLOCK = 128
PARTIAL_SUM_BYTES = 4.0
IN_MEMORY = 0.5


@dataclass(frozen=True, slots=True)
class GemmKernel:
    """Constants of the matrix products of one accelerator and data type; names as in the module's formulas.

    ``grain`` scales the sides of the tiles: those of vector units are smaller than those of tensor cores.
    """

    launch_s: float
    compute_fraction: float
    memory_fraction: float
    sharpness: float
    waste: float
    softness: float
    ramp: float
    split_s: float
    units: float
    quantise_launch_s: float
    quantise_bytes: float
    quantise_row: float
    residual: float
    grain: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionKernel:
    """Constants of one flash attention; ``head_64`` and ``head_256`` are rates over that of head size 128.

    Backward reaches ``backward_fraction`` of forward's rate on long sequences, its half length being
    ``backward_length`` times forward's; without a causal mask the half length is ``full_length`` times as long.
    """

    launch_s: float
    compute_fraction: float
    half_length: float
    occupancy: float
    units: float
    backward_fraction: float
    backward_length: float
    full_length: float
    head_64: float
    head_256: float
    residual: float


@dataclass(frozen=True, slots=True)
class MovingKernel:
    """Constants of kernels bound by memory: ``root_s`` is the seconds of ``root sqrt(bytes)`` at 1 MB."""

    launch_s: float
    root_s: float
    memory_fraction: float
    residual: float


def product_s(
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    weight_bytes: float,
    in_bytes: float,
    out_bytes: float,
    kernel: GemmKernel,
    peak: float,
    bandwidth: float,
    groups: ArrayLike = 1.0,
) -> Floats:
    """Seconds of ``groups`` products ``[m, k] x [k, n]`` in one launch; sizes broadcast, ``peak`` in FLOP/s.

    ``in_bytes``, ``weight_bytes`` and ``out_bytes`` are bytes an element of the ``m k``, ``n k`` and ``m n``
    operands: an output added to what memory holds in fp32 counts 8. Formula and source: module.
    """
    m, n, k, groups = (np.asarray(size, dtype=float) for size in (m, n, k, groups))
    rate = kernel.memory_fraction * bandwidth
    moving = groups * (in_bytes * m * k + weight_bytes * n * k + out_bytes * m * n) / rate
    computing = np.maximum(_computing_s(m, n, k, groups, kernel, peak, rate), 1e-12)
    large, small = np.maximum(computing, moving), np.minimum(computing, moving)
    return kernel.launch_s + large * (1.0 + (small / large) ** kernel.sharpness) ** (1.0 / kernel.sharpness)


def _computing_s(
    m: Floats, n: Floats, k: Floats, groups: Floats, kernel: GemmKernel, peak: float, rate: float
) -> Floats:
    """Seconds of the tensor cores: the least over ``TILES x SPLITS``; axes ``[split, tile, ...]``."""
    grow = (slice(None), *(None,) * max(size.ndim for size in (m, n, k, groups)))
    high, wide = (np.array(side, dtype=float)[grow] for side in zip(*TILES, strict=True))
    waste = 1.0 + kernel.waste * (128.0 / high + 128.0 / wide - 1.0)
    high, wide = kernel.grain * high, kernel.grain * wide
    wave = kernel.units * 2.0 * high * wide * waste / (kernel.compute_fraction * peak)
    tiles = groups * np.ceil(m / high) * np.ceil(n / wide) / kernel.units
    best = None
    for split in SPLITS:
        filled = tiles * split
        waves = kernel.softness * np.maximum(filled, 1.0) + (1.0 - kernel.softness) * np.ceil(filled)
        seconds = (waves * wave).min(axis=0) * (k / split + kernel.ramp)
        if split > 1:
            seconds = seconds + kernel.split_s + IN_MEMORY * split * PARTIAL_SUM_BYTES * groups * m * n / rate
        best = seconds if best is None else np.minimum(best, seconds)
    return best


def grouped_s(
    tokens: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    experts: ArrayLike,
    weight_bytes: float,
    in_bytes: float,
    out_bytes: float,
    kernel: GemmKernel,
    peak: float,
    bandwidth: float,
    fraction: float,
) -> Floats:
    """Seconds of the products of ``experts`` local experts with ``tokens`` rows each, at ``fraction`` of dense speed.

    Tiles, waves and weights are counted an expert, so few tokens an expert are slow without further ado.
    """
    dense = product_s(tokens, n, k, weight_bytes, in_bytes, out_bytes, kernel, peak, bandwidth, experts)
    return kernel.launch_s + (dense - kernel.launch_s) / fraction


ROW_CASTS = 2.0
"""Stand-alone kernels that cast an operand with a scale a row: one an axis, as each product reads its own layout.

Llama 3 8B on eight H100 is 1.12 times as fast as in 16 bits by it, as measured. Source: pytorch/ao
docs/source/workflows/training.md; pytorch/torchtitan@7a04053 (6,412 to 6,424 tokens/s a device against 5,760).
"""


def quantise_s(rows: ArrayLike, width: ArrayLike, kernel: GemmKernel, bandwidth: float, tiled: bool = False) -> Floats:
    """Seconds to quantise activations ``[rows, width]`` from bf16, scales included; 0 for kernels that need none.

    ``launch + quantise_bytes rows (width + quantise_row) / rate``: a kernel that takes a block a row, as those
    fused with norms do, is slow on narrow ones; a ``tiled`` one, as that of routed tokens, is not.
    """
    rate = kernel.memory_fraction * bandwidth
    per_row = 0.0 if tiled else kernel.quantise_row
    elements = np.asarray(rows, dtype=float) * (np.asarray(width, dtype=float) + per_row)
    return kernel.quantise_launch_s + kernel.quantise_bytes * elements / rate


def moving_s(moved_bytes: ArrayLike, kernel: MovingKernel, bandwidth: float) -> Floats:
    """Seconds of one memory-bound kernel that reads and writes ``moved_bytes`` in all."""
    moved = np.asarray(moved_bytes, dtype=float)
    return kernel.launch_s + kernel.root_s * np.sqrt(moved / 1e6) + moved / (kernel.memory_fraction * bandwidth)


def mean_keys(keys: ArrayLike, causal: bool, window: float = 0.0) -> Floats:
    """Keys that a query sees on average: ``w (1 - w / 2S)`` under a causal mask and window ``w`` (``S`` if none)."""
    keys = np.asarray(keys, dtype=float)
    seen = np.minimum(keys, window) if window else keys
    return seen * (1.0 - seen / (2.0 * keys)) if causal else seen


def attention_s(
    heads: ArrayLike,
    queries: ArrayLike,
    keys: ArrayLike,
    head_dim: float,
    kernel: AttentionKernel,
    peak: float,
    causal: bool = True,
    window: float = 0.0,
    backward: bool = False,
    value_dim: float | None = None,
) -> Floats:
    """Seconds of flash attention, forward or backward, of ``heads`` (batch x query heads) on one device.

    ``head_dim`` is the size of queries and keys, ``value_dim`` that of values where it is another. A window ``w`` is
    as slow as the keys that its queries see: its half length stands against ``2 w`` keys.
    """
    heads, queries = np.asarray(heads, dtype=float), np.asarray(queries, dtype=float)
    value_dim = head_dim if value_dim is None else value_dim
    flop = 2.0 * heads * queries * mean_keys(keys, causal, window) * (head_dim + value_dim)
    blocks = heads * np.ceil(queries / QUERY_BLOCK)
    length = kernel.half_length * (1.0 if causal else kernel.full_length)
    rate = kernel.compute_fraction * pair_share(head_dim, value_dim, kernel) * peak
    if backward:
        flop, length, rate = BACKWARD_FLOP * flop, length * kernel.backward_length, rate * kernel.backward_fraction
    seen = np.minimum(np.asarray(keys, dtype=float), 2.0 * window) if window else np.asarray(keys, dtype=float)
    return kernel.launch_s + flop / rate * (1.0 + length / seen) * (1.0 + kernel.occupancy * kernel.units / blocks)


def pair_share(head_dim: float, value_dim: float, kernel: AttentionKernel) -> float:
    """Rate of scores over ``head_dim`` and sums of ``value_dim`` over that at 128: each product at its own size's."""
    sizes = [size for size in (head_dim, value_dim) if size > 0]
    return sum(sizes) / sum(size / head_share(size, kernel) for size in sizes)


def head_share(head_dim: float, kernel: AttentionKernel) -> float:
    """Rate at ``head_dim`` over that at 128, counting true FLOP: sizes are padded to 32, or 64 above 128.

    Between 64, 128 and 256 the rate is interpolated; below 64 it falls with the size (softmax stays as dear).
    """
    step = 32 if head_dim <= 128 else 64
    padded = step * np.ceil(head_dim / step)
    level = float(np.interp(padded, (64.0, 128.0, 256.0), (kernel.head_64, 1.0, kernel.head_256)))
    return level * min(padded / 64.0, 1.0) * head_dim / padded


def unfused_attention_s(
    heads: ArrayLike,
    queries: ArrayLike,
    keys: ArrayLike,
    head_dim: float,
    product: GemmKernel,
    moving: MovingKernel,
    peak: float,
    bandwidth: float,
    score_bytes: float = 9.0,
    backward: bool = False,
) -> Floats:
    """Seconds of attention that writes its scores: batched products, and ``score_bytes`` a score of passes between.

    9 bytes are fused softmax (2 read, 2 written) and dropout (2, 2 and a mask of 1) in 16 bits; backward has four
    products and 11 / 9 as many bytes. A causal mask saves nothing. Source: Korthikanti et al., arXiv:2205.05198.
    """
    scores = product_s(queries, keys, head_dim, 2.0, 2.0, 2.0, product, peak, bandwidth, heads)
    context = product_s(queries, head_dim, keys, 2.0, 2.0, 2.0, product, peak, bandwidth, heads)
    elements = np.asarray(heads, dtype=float) * np.asarray(queries, dtype=float) * np.asarray(keys, dtype=float)
    passes = moving_s(elements * score_bytes * (11.0 / 9.0 if backward else 1.0), moving, bandwidth) + moving.launch_s
    return (scores + context) * (2.0 if backward else 1.0) + passes
