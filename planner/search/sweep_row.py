"""One row's own trade-off between time and energy, swept by CP-SAT until a front's points cover it.

    T_i <= (1 + eps) min T   with E <= E_limit, T < what a point covers already       none: the row is done
    E_limit = E_i / (1 + eps)    with E_i of that plan, which is a new point

Plans above the new limit last ``min T`` at least and are covered by the point; those below go on. The least joules of
any cut that fits are a sum over stages, so a shortest path over the columns lifts the bound vector first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.offload import lightest
from cost_models.price import Prices
from planner.search.bounds import dynamic_joules
from planner.search.certificate import Certificate, OpenRow, ceiling, certify, least_joules, open_row
from planner.search.cover import Point
from planner.search.incumbent import Found

if TYPE_CHECKING:
    from planner.search.front import FrontSearch

Floats = NDArray[np.float64]
FINE = 1e-6
"""Below this tolerance a minimum is asked for at once."""
LEAST_STEP = 1e-10
"""By how much more than rounding the next point of a row must have fewer joules."""
ROUNDING = 1e-12


@dataclass
class OpenPlans:
    """A complete 1F1B row that the points do not cover yet: its prices, bound vector ``[3]``, balanced plan."""

    one: Prices
    bound: Floats
    known: Point | None


class RowSweep:
    """The sweep of one row. ``run`` is called once; the row's bound is true whenever it is cut short."""

    def __init__(self, front: FrontSearch, it: OpenPlans) -> None:
        self.front, self.it, self.one, self.bound, self.eps = front, it, it.one, it.bound, front.cover.eps
        self.chain = Chain(front.model, it.one, 0)
        self.most_j = np.inf

    def run(self) -> bool:
        """Add points until the rest of the row is covered; whether that was reached in time."""
        while True:
            row = self._opened("time", self._known_s, energy=self.most_j)
            if row is None:
                return True
            lean = self._opened("energy", np.inf, energy=self.most_j, time=self._known_s)
            if lean is None:
                return True
            self._raise(row.bound, least_joules(lean))
            if self.front.cover.covered(self.bound[None])[0]:
                return True
            found, least_s, proved = self._quickest()
            if found is None or not proved:
                return proved
            if self.eps < FINE:
                found = self._leanest(found)
            new = self.front.add(self.one, 1, found)
            self.most_j = new.joules / (1 + max(self.eps, LEAST_STEP))
            self._raise(least_s, 0.0)

    @property
    def _known_s(self) -> float:
        return self.front.cover.known_s(self.bound)

    def _raise(self, least_s: float, least_j: float) -> None:
        """Lift the row's bound vector to what is known of its seconds and dynamic joules."""
        self.bound[0] = max(self.bound[0], least_s * (1 - ROUNDING))
        dynamic = max(least_j, float(dynamic_joules(lightest(self.one), self.front.model)[0]))
        objective = self.front.objective("energy", self.one.rows)
        energy = float(objective.value(self.bound[:1], np.array([dynamic]))[0])
        self.bound[1] = max(self.bound[1], energy * (1 - ROUNDING))

    def _quickest(self) -> tuple[Found | None, float, bool]:
        """The row's quickest plan of no more joules, to within ``eps``; seconds none is below; whether that is so.

        CP-SAT proves that nothing is below a target much sooner than it proves a minimum, so targets halve the
        distance, in ratio, between the bound and the best plan. The first asks whether there is any plan at all that is
        not covered yet.
        """
        least, beat, found = float(self.bound[0]), self._known_s, None
        known = self.it.known
        if known is not None and known.joules <= self.most_j and known.step_s < beat:
            found, beat = known.kept.found, known.step_s
        widest = self._opened("time", beat, energy=self.most_j)
        if widest is None:
            return found, beat, True
        beat = min(beat, ceiling(widest), widest.objective.most_step_s() * (1 + 1e-9))
        first = found is None
        while beat > (1 + self.eps) * least or found is None:
            halfway = not first and self.eps >= FINE and beat > (1 + self.eps) * least
            target = float(np.sqrt(least * beat)) if halfway else beat
            row = self._opened("time", target, energy=self.most_j)
            answer = None if row is None else self._asked(row, target, only_whether=self.eps >= FINE)
            first = False
            if answer is not None and answer.best is not None:
                found, beat = answer.best, answer.best.value
                least = max(least, answer.bound)
            elif answer is not None and not answer.proved:
                return None, least, False
            elif target == beat:
                return found, beat, True
            else:
                least = target
        return found, least, True

    def _leanest(self, found: Found) -> Found:
        """A plan as quick as one that was found, with the fewest joules.

        Where ``eps`` is fine this saves a round for every joule between; else the next limit on joules asks for less.
        """
        seconds, spent_j = self.front.weighed(self.one, found)
        row = self._opened("energy", spent_j, time=seconds)
        answer = None if row is None else self._asked(row, spent_j, only_whether=False)
        return found if answer is None or answer.best is None else answer.best

    def _opened(self, name: str, beat: float, **limits: float) -> OpenRow | None:
        """The row with the columns of every plan within limits that has less than ``beat``; ``None`` without any."""
        front, rows = self.front, self.one.rows
        given = {quantity: most for quantity, most in limits.items() if np.isfinite(most)}
        objective, size = front.objective(name, rows, **given), int(rows.stage_size[0])
        known = front.paths[self.chain.pp, self.chain.micro_batches]
        return open_row(self.chain, objective, size, 0.0, beat, front.limit, front.recompute, known)

    def _asked(self, row: OpenRow, beat: float, *, only_whether: bool) -> Certificate:
        front, answer = self.front, Certificate(None, row.bound, False)
        certify(
            row, min(beat, ceiling(row)), front.limit, answer, budget=front.budget, only_whether=only_whether,
            workers=front.options.workers,
        )  # fmt: skip
        front.counts["rows_to_solver"] += 1
        front.counts["solver_rounds"] += answer.rounds
        front.counts["solver_cuts"] += answer.cuts
        return answer
