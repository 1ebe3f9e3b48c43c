"""The leanest plan of a space: which one needs least memory, and its bytes by class of tensor."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cost_models.chain import Chain
from cost_models.estimate import Runs, memory_classes
from cost_models.price import Prices, price
from cost_models.rows import Rows
from planner.candidates import Space, degree_table, relaxed_rows
from planner.infeasible.changes import Problem
from planner.search.bounds import fits_somehow, objective_of
from planner.search.expand import with_experts, with_placement, with_sharding
from planner.search.incumbent import stage_need_bytes
from planner.search.interleaved import even_cuts, point

LEANEST_DEGREES = 64
LEANEST_ROWS = 8
LOOSER = (1.001, 1.005, 1.01, 1.02, 1.035, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0)
"""Limits that rows are tried under, of the least that any of them may do with."""


@dataclass(frozen=True)
class Lean:
    """A plan that needs little memory: its degrees as text, bytes by class of its fullest device."""

    degrees: str
    classes: dict[str, float]

    @property
    def need_bytes(self) -> float:
        """Bytes on the fullest device."""
        return sum(self.classes.values())

    def as_json(self) -> dict[str, Any]:
        """The plan's degrees and bytes as one JSON object."""
        return {"degrees": self.degrees, "need_bytes": self.need_bytes, "classes": self.classes}


def leanest(problem: Problem) -> Lean | None:
    """The plan that needs least of those with the most promising degrees; ``None`` when none of them can be cut."""
    rows = complete_rows(problem, _leanest_degrees(problem))
    if not len(rows):
        return None
    space = problem.space
    prices = price(space.model, space.cluster, space.workload, rows, problem.fits, problem.ticks)
    kept, least = _least_limit(problem, prices, buffers=True)
    for row in kept[:LEANEST_ROWS]:
        one = prices.take(np.array([row]))
        classes = _interleaved_classes(problem, one, least) if "virtual_stages" in problem.options.pins else None
        classes = classes or _classes(problem, one, int(least))
        if classes is not None:
            return Lean(_degrees_text(one.rows, 0, problem.options.pins), classes)
    return None


def _leanest_degrees(problem: Problem) -> Rows:
    """Degrees that may need least, everything left open at its best."""
    space, rows = problem.space, _degrees(problem.space)
    prices = price(space.model, space.cluster, space.workload, rows, problem.fits, problem.ticks, relaxed=True)
    kept, _ = _least_limit(problem, prices, buffers=False)
    return rows.take(kept[:LEANEST_DEGREES])


def _degrees(space: Space) -> Rows:
    """All legal degrees whose dp can be shards and replicas as pinned; what else is open is at its best."""
    rows = relaxed_rows(space, degree_table(space))
    shards, replicas = (int(space.pins.get(name, 1)) for name in ("dp_shard", "dp_replicate"))
    dp = rows.dp_shard * rows.dp_replicate
    both = {"dp_shard", "dp_replicate"} <= space.pins.keys()
    return rows.take(np.flatnonzero(dp == shards * replicas if both else dp % (shards * replicas) == 0))


def complete_rows(problem: Problem, rows: Rows) -> Rows:
    """The rows with every choice of experts, placement and sharding that they leave open."""
    for step in (with_experts, with_placement, with_sharding):
        rows = step(problem.space, rows) if len(rows) else rows
    return rows


def _least_limit(problem: Problem, prices: Prices, *, buffers: bool) -> tuple[np.ndarray, float]:
    """Rows in the order of the memory that they may do with, about, and the least such memory, by bisection."""
    model, recompute = problem.space.model, str(problem.options.pins.get("recompute", "full"))
    left, order = np.arange(len(prices.rows)), []
    low, high = 2.0**20, 2.0**50
    while high / low > 1.002:
        middle = math.sqrt(low * high)
        fits = fits_somehow(prices.take(left), model, middle, recompute, buffers=buffers)
        if fits.any():
            order.append(left[~fits])
            left, high = left[fits], middle
        else:
            low = middle
    return np.concatenate([left, *order[::-1]]), high


def _classes(problem: Problem, one: Prices, limit: int) -> dict[str, float] | None:
    """Bytes by class on the fullest device of a 1F1B plan of that row under that limit, all layers recomputed alike."""
    recompute = str(problem.options.pins.get("recompute", "full"))
    chain = Chain(problem.space.model, one, 0)
    cut = _longest_first(chain, limit, recompute)
    return None if cut is None else _fullest(chain, [[(recompute, i, j)] for i, j in itertools.pairwise(cut)])


def _longest_first(chain: Chain, limit: int, recompute: str) -> list[int] | None:
    """Boundaries where each stage has the longest run that fits and leaves a layer to every stage after it."""
    cut = [0]
    for stage in range(chain.pp):
        ends = np.arange(cut[-1] + 1, chain.layers - (chain.pp - 1 - stage) + 1)
        fits = stage_need_bytes(chain, stage, np.full_like(ends, cut[-1]), ends, recompute) <= limit
        if not fits.any():
            return None
        cut.append(int(ends[fits][-1]))
    return cut if cut[-1] == chain.layers else None


def _interleaved_classes(problem: Problem, one: Prices, least: float) -> dict[str, float] | None:
    """The same of the pinned number of virtual stages, under the tightest of some limits that has a plan."""
    space, options = problem.space, problem.options
    free = options.model_copy(update={"power_cap_w": None, "limits": {}, "objective": "time"})
    objective = objective_of(one.rows, space.cluster, free)
    virtual, stage = int(options.pins["virtual_stages"]), int(one.rows.stage_size[0])
    if virtual == 1:
        return None
    chain, pinned = Chain(space.model, one.with_virtual(virtual), 0), options.pins.get("recompute", "full")
    for factor in LOOSER:
        for cut in even_cuts(space.model.layers, chain.pp, virtual):
            found = point(chain, np.array(cut), objective, stage, int(least * factor), pinned, math.inf)
            if found is not None:
                return _fullest(chain, found.runs)
    return None


def _fullest(chain: Chain, runs: Runs) -> dict[str, float]:
    return max(memory_classes(chain, runs), key=lambda classes: sum(classes.values()))


def _degrees_text(rows: Rows, at: int, pins: dict[str, int | str]) -> str:
    names = ("tp", "cp", "pp", "dp_shard", "dp_replicate", "ep", "zero", "micro_batch")
    parts = [f"{name} {int(getattr(rows, name)[at])}" for name in names if int(getattr(rows, name)[at]) > 1]
    return ", ".join([*parts, f"{pins.get('recompute', 'full')} recompute"])


def fewest_devices(problem: Problem) -> Rows:
    """Rows of the fewest devices that may fit."""
    space, rows = problem.space, _degrees(problem.space)
    prices = price(space.model, space.cluster, space.workload, rows, problem.fits, problem.ticks, relaxed=True)
    recompute = str(problem.options.pins.get("recompute", "full"))
    fitting = rows.take(np.flatnonzero(fits_somehow(prices, space.model, problem.limit, recompute, buffers=False)))
    return fitting.take(np.argsort(fitting.world_size, kind="stable")[:LEANEST_DEGREES])
