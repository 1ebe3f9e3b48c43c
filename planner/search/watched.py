"""CP-SAT in a thread of its own, so that a limit and Ctrl-C need not wait for it.

CP-SAT looks at its own time limit between steps of its presolve and search; a step may last minutes on a large model
(google/or-tools issues on ``max_time_in_seconds``). The caller therefore waits for the thread, not for CP-SAT: when the
moment has passed CP-SAT is told to stop, and a solve that does not listen is left to itself. It ends with its own limit
or with the process, and its answer is not asked for.
"""

from __future__ import annotations

import threading
import time

from ortools.sat.python import cp_model

LOOK_S = 0.05
GRACE_S = 0.3
"""How long a solver that was told to stop may take."""


class Watched:
    """One solve on its way, and its status."""

    def __init__(self, solver: cp_model.CpSolver, model: cp_model.CpModel) -> None:
        self.solver, self.status = solver, cp_model.UNKNOWN
        self._model, self._done, self._error = model, threading.Event(), None

    @property
    def answered(self) -> bool:
        """Whether the solver came back; if not, nothing may be asked."""
        return self._done.is_set()

    def run(self, deadline: float) -> None:
        """Solve until ``deadline``."""
        threading.Thread(target=self._solve, daemon=True, name="CP-SAT").start()
        try:
            while not self._done.wait(LOOK_S):
                if time.monotonic() > deadline:
                    self._stop()
                    break
        except BaseException:
            self._stop()
            raise
        if self._error is not None:
            raise self._error

    def _solve(self) -> None:
        try:
            self.status = self.solver.solve(self._model)
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def _stop(self) -> None:
        end = time.monotonic() + GRACE_S
        while not self._done.is_set() and time.monotonic() < end:
            self.solver.stop_search()
            self._done.wait(LOOK_S)
