"""Small plans over two kinds of devices, and the problems behind them, for what is asked of such plans afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mixed_oracle import MixedInstance
from strategies import small_cluster, tiny_config
from test_mixed_search import mixed_of

from planner import plan
from planner.checks.mixed_ways import MixedProblem
from planner.mixed.result import MixedPlan
from planner.options import read_options
from planner.read_model import read_config

SHAPE = {"hidden_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 6, "vocab_size": 8192}
MODEL = read_config(tiny_config(**SHAPE), "small")
CLUSTER = mixed_of(small_cluster(2, base="dgx-a100"), small_cluster(1, base="dgx-h100"))
TIGHT = 0.975
"""Headroom that leaves so little memory that layers recompute."""

ALONE = {"headroom": 0.05, "global_batch": 1}
"""What one H100 does by itself: there is nothing to divide."""


@lru_cache(maxsize=8)
def planned(**fields: Any) -> MixedPlan:
    """The plan of six layers on two A100s and one H100 with little memory; three stages where nothing else is asked.

    At steady prices: modules that ask for it are marked ``usefixtures("steady")``.
    """
    asked = {"seq_len": 2048, "global_batch": 16, "precision": "bf16", "headroom": TIGHT, **fields}
    return plan(MODEL, CLUSTER, **asked)


@dataclass(frozen=True)
class Limited(MixedProblem):
    """A problem with bytes of its own in place of its machine's, and clocks in place of all that there are."""

    given: tuple[int, ...] = ()
    slower: tuple[float, ...] = (1.0,)

    @property
    def limits(self) -> tuple[int, ...]:
        return self.given

    @property
    def clocks(self) -> tuple[float, ...]:
        return self.slower


def problem_of(it: MixedInstance, power: dict[str, float] | None = None) -> MixedProblem:
    """What is asked to be derived again, with an instance's own limits and clocks in place of its machine's; ``power``
    are most watts by level."""
    limits = {f"{level}-power": watts for level, watts in (power or {}).items()}
    return Limited(it.machine, read_options(pins=dict(it.pins), limits=limits), given=it.limits, slower=it.clocks)
