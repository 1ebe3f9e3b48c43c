"""Paths through 1F1B that grow with a pipeline from its last stage on: what each adds to the way through all stages.

With ``A_d`` the work ``t = f + b`` and twice the hops of the last ``d`` stages, a step lasts ``A_pp + M + tail_1`` or
more, where ``M`` is the most that any of these adds, over ``d < m``:

    A_d + (m - 1 - d) t_d                        once more through the last d stages, else at the front one of them
    (m - 1) A_d / d - h                          round and round all of them
    A_d + y R + max(z t_d, z R / l - h)          once more through all of them, then round and round the front l
    A_d + (y + 1) R - (l - z) (t_d + h_d)        so too, but in l - z rounds without the front one of them

``R`` is the work and twice the inner hops of those ``l`` stages, ``y`` and ``z`` are ``m - 1 - d`` by ``l`` and what is
left. A path may go round any stages in a row and gains as many micro-batches as they are. Where that does not come out
even it goes once round fewer, or round two rows: of all choices of ``z`` stages in a circle the mean has ``z / l`` of
the work and ``(z - 1) / l`` of the inner hops, at most ``h``, the longest hop twice, less than ``z R / l``. Or, where
``l - z <= y + 1``, some rounds leave out the front stage and ``h_d``, twice the hop behind it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ROUNDING = 1e-14
"""More than work and what paths add to it are rounded: both are whole ticks but for shares of rounds."""


def once_more(m: int, depth: int, work: Floats, time: Floats, longest: float) -> Floats:
    """The most that a path adds which goes round all of the last ``depth`` stages or stays at the front one."""
    rest = m - 1 - depth
    if rest < 0:
        return np.zeros_like(work)
    return np.maximum(work + rest * time, (m - 1) / depth * work - longest)


def round_and_round(
    m: int, depth: int, work: Floats, time: Floats, hop: Floats, ring: Floats, length: Ints, longest: float
) -> Floats:  # fmt: skip
    """The most that a path adds which goes round the front ``length`` stages, ``ring`` each time.

    ``hop`` is twice the one behind the front stage.
    """
    rest = m - 1 - depth
    if rest < 0:
        return np.zeros(len(work))
    whole, left = np.divmod(rest, length)
    without = length - left
    shorter = np.where((left > 0) & (without <= whole + 1), ring - without * (time + hop), 0.0)
    return work + whole * ring + np.maximum.reduce([left * time, left / length * ring - longest, shorter])


def least_steps(m: int, time: Floats, hop: Floats, tail: Floats) -> Floats:
    """What the steps of pipelines of equal length last at least by these paths, ``[pipelines]``.

    ``time`` is the work of a micro-batch, ``[pipelines, pp]``, ``hop`` that after every stage but the last; ``tail`` of
    the first stage.
    """
    longest = 2.0 * float(hop.max(initial=0.0))
    work, most, ring = np.zeros((3, len(time)))
    length, behind = np.zeros(len(time), dtype=np.int64), np.concatenate([2.0 * hop, np.zeros((len(time), 1))], axis=1)
    for depth, (mine, late) in enumerate(zip(time.T[::-1], behind.T[::-1], strict=True), 1):
        most = np.maximum(most, m * mine - (work + mine + late))
        work = work + mine + late
        most = np.maximum(most, once_more(m, depth, work, mine, longest))
        ring, length = joined(ring, length, mine, late, (most - work) / max(1, m - 1 - depth))
        most = np.maximum(most, round_and_round(m, depth, work, mine, late, ring, length, longest))
    return (work + most + tail) * (1 - ROUNDING)


def joined(ring: Floats, length: Ints, time: Floats, hop: Floats, period: Floats) -> tuple[Floats, Ints]:
    """The ring and its length with one more stage in front, or that stage alone where the others are no help.

    ``period`` is what the slowest path so far takes for a micro-batch; stages that take less begin no slower one.
    """
    slower = ring + hop > length * period
    return np.where(slower, ring + hop, 0.0) + time, np.where(slower, length, 0) + 1
