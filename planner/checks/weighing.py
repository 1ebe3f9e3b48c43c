"""Time and joules of a partial split in one sum, where fewer joules cost time and the other way about.

For a share ``u`` of the time's weight, the rest of which a limit on power turns into joules,

    z >= u w (A sum_s t_s + 2 (pp - 1) hop) + q sum_s e_s        q = p + (1 - u) w wait
    A = 1 + (m - 1) / pp  for m > pp,  1 for m <= pp

holds for every split. What the layers still free add is at least their least sum over all cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.power_levels import wait_s_per_joule
from planner.limits import power_limits
from planner.objectives import minimised

if TYPE_CHECKING:
    from planner.checks.branching import Held
    from planner.checks.rederive import Problem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SHARES = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True)
class Weighing:
    """By share: what is ``fixed``, each choice's sum (``held[s]`` is ``[choices, shares]``), the least of the rest."""

    target: float
    fixed: Floats
    held: list[Floats]
    before: list[Floats]

    @staticmethod
    def of(it: Problem, chain: Chain, held: list[Held], target: float) -> Weighing:
        """The weighing of one row's choices; of no share where joules weigh nothing."""
        per_tick, per_joule = _weights(it, chain)
        m, pp = chain.micro_batches, chain.pp
        factor = 1 + (m - 1) / pp if m > pp else 1.0
        sums = [per_tick * factor * stage.ticks[:, None] + per_joule * stage.joules[:, None] for stage in held]
        before = [np.full((chain.layers + 1, len(per_tick)), np.inf) for _ in range(pp + 1)]
        before[0][0] = 0.0
        for s, stage in enumerate(held):
            np.minimum.at(before[s + 1], stage.j, before[s][stage.i] + sums[s])
        return Weighing(target, per_tick * 2 * (pp - 1) * chain.hop, sums, before)

    def below(self, s: int, at: Ints, weighed: Floats) -> NDArray[np.bool_]:
        """Splits that hold the layers from ``at`` on in stages from ``s`` on and may still be below the target."""
        return ((weighed + self.before[s][at] + self.fixed) * (1 - 1e-12) < self.target).all(axis=1)


def _weights(it: Problem, chain: Chain) -> tuple[Floats, Floats]:
    """What a tick and a joule on one device of a stage weigh, by share, from the objective's own values."""
    rows, one, name = chain.prices.rows, np.ones(1), minimised(it.options.objective)
    second = float(it.quantity(name, rows, one, 0 * one)[0])
    joule = float(it.quantity(name, rows, 0 * one, one)[0])
    wait = float(wait_s_per_joule(rows, it.cluster, power_limits(it.options), placed=True)[0])
    size, tick = float(rows.stage_size[0]), second * it.ticks.second
    if wait == 0:
        return (np.array([tick]), np.array([joule * size])) if joule else (np.zeros(0), np.zeros(0))
    shares = np.array(SHARES)
    return shares * tick, (joule + (1 - shares) * second * wait) * size
