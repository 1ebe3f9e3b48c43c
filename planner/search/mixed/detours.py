"""Detours: what longest paths of pipelines that were found add to the way through all stages, in every other pipeline.

A path that ends with the first stage's last backward passes every stage's forward as often as its backward: once on
the way of the first and last micro-batch, and again where it goes round some stages in a row. Where it does so is told
by depths from the last stage alone, for so do the orders of 1F1B. So with ``r_d`` passes more of the stage at depth
``d``, and ``h_d`` more pairs of hops between it and the stage behind, of one path through one pipeline,

    step >= A_pp + sum_d [ r_d t_d + 2 h_d hop_d ] + tail_1

in every pipeline of as many micro-batches. In one that is less deep, what the path passes in front of its first stage
falls out and leaves a path: an order of 1F1B on the way back down is no earlier than its own. In a deeper one it goes
through the same passes, and what is in front of them once down and once up. A pipeline's own detour gives its whole
step. Labels add the sum up from the last stage on, as they do with ``M``, of which it is a part at every depth
(:mod:`planner.search.mixed.paths` has those that need no pipeline to be known).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.critical_paths import critical_path
from cost_models.pipeline import schedule_graph
from planner.search.mixed.pipelines import Durations

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Detour:
    """Passes more than one by depth, depth 1 first, and pairs of hops more than one to the stage behind."""

    again: tuple[int, ...]
    hops: tuple[int, ...]

    @property
    def deepest(self) -> int:
        """The last depth that it passes."""
        return len(self.again)

    def again_at(self, depth: Ints) -> Ints:
        """``r_d`` of some depths."""
        return np.append(self.again, 0)[np.minimum(depth - 1, self.deepest)]

    def hops_at(self, depth: Ints) -> Ints:
        """``h_d`` of some depths."""
        return np.append(self.hops, 0)[np.minimum(depth - 1, self.deepest)]


def detour_of(found: Durations, micro_batches: int) -> Detour | None:
    """The detour of a longest path of a pipeline; ``None`` where that path does not end with the first stage."""
    graph = schedule_graph(len(found.forward), 1, micro_batches)
    path = critical_path(graph, found.forward, found.backward, found.hop, found.tail)
    if path.device != 0 or not np.array_equal(path.forward, path.backward):
        return None
    again, hops = path.forward[::-1] - 1, np.append(0, path.crossed[::-1] // 2 - 1)
    deepest = int(np.flatnonzero(np.append(1, (again > 0) | (hops > 0))).max())
    return Detour(tuple(again[:deepest].tolist()), tuple(hops[:deepest].tolist()))
