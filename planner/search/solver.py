"""The one place where a CP-SAT solver is made, with what its proofs need to be proofs."""

from __future__ import annotations

from ortools.sat.python import cp_model

LEAST_LIMIT_S = 0.1


def cp_sat(limit_s: float, workers: int = 1) -> cp_model.CpSolver:
    """A solver that is the same in every run with one worker and stops after about ``limit_s`` seconds.

    One family of presolve rules is switched off: up to ortools 9.15 it can lose solutions and call a model infeasible
    that is not, as it did with the 32 stages of DeepSeek-V3 on 2,048 devices (tests/test_solver.py). Source:
    github.com/google/or-tools issue 5293, which names the rules (``ProcessAtMostOneAndLinear``) and the parameter.
    """
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = 0
    solver.parameters.max_time_in_seconds = max(LEAST_LIMIT_S, limit_s)
    solver.parameters.presolve_inclusion_work_limit = 0
    return solver
