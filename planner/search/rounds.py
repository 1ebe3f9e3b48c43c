"""Paths of 1F1B that go round some stages, hops and all: what one choice of columns takes by the longest of them.

Where stages are alike, hops make every window of them slower than its stages, and the longest path of one choice stays
in its slowest window. A solver that learns that path alone moves the window by a stage, and so on through all of them.
Taking the worst window from every stage on teaches it all at once (:func:`cost_models.critical_paths.round_path`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.critical_paths import Path, round_path

Ints = NDArray[np.int64]


def longest_rounds(chain: Chain, forward: Ints, backward: Ints, tail: Ints, beyond: float) -> list[Path]:
    """For each stage the longest path round a window that begins there, of those above ``beyond`` ticks.

    ``forward`` and ``backward`` are the stages' ticks of one micro-batch, ``tail`` those of their ends of the step.
    """
    pp, m, hop, time = chain.pp, chain.micro_batches, chain.hop, forward + backward
    if chain.schedule.kind != "1f1b" or hop == 0 or m <= pp:
        return []
    first, last = np.triu_indices(pp, 1)
    s = _slowest(time)[first, last]
    sums, width = np.concatenate([[0], np.cumsum(time)]), last - first + 1
    rounds = (m - pp + s - 1) // width
    ticks = sums[-1] + sums[-1] - sums[s + 1] + (m - pp + s - rounds * width) * time[s] + int(tail[0])
    ticks += rounds * (sums[last + 1] - sums[first]) + 2 * hop * (2 * (pp - 1) - s + rounds * (width - 1))
    found = []
    for a in range(pp - 1):
        mine = np.flatnonzero(first == a)
        at = mine[np.argmax(ticks[mine])]
        if ticks[at] > beyond:
            found.append(round_path(pp, m, a, int(last[at]), int(s[at])))
    return found


def _slowest(time: Ints) -> Ints:
    """The last of the slowest stages from ``a`` to ``b``, ``[a, b]``; for ``b >= a``."""
    pp = len(time)
    stage = np.arange(pp)
    coded = np.where(stage[None] >= stage[:, None], time * pp + stage, -1)
    return np.maximum.accumulate(coded, axis=1) % pp
