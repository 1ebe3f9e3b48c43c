"""What a search over mixed pipelines answers: the best one, its bound, and how much was looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.search.mixed.pipelines import Pipeline
from planner.search.mixed.table import StageTable

COUNTS = (
    "batches", "batches_by_bound", "ways", "ways_useless", "jobs", "jobs_by_bound", "bands", "labels", "pipelines",
    "jobs_to_solver", "literals", "solver_rounds", "solver_cuts",
)  # fmt: skip


@dataclass
class MixedResult:
    """The best pipeline with its table, the bound of all of them, whether they meet; ticks. ``stopped`` says by what
    an unproved search was ended."""

    best: Pipeline | None
    table: StageTable | None
    value: float
    bound: float
    proved: bool
    counts: dict[str, int]
    before_solver: float
    bound_root: float
    seconds: float = 0.0
    stopped: str = ""

    @staticmethod
    def unknown(seconds: float, stopped: str) -> MixedResult:
        """Of pipelines that nobody has looked at."""
        counts = dict.fromkeys(COUNTS, 0)
        return MixedResult(None, None, np.inf, 0.0, False, counts, np.inf, 0.0, seconds, stopped)
