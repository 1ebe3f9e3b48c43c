"""What the bound of mixed pipelines rests on when it is derived again: speeds, ways that stand for others, devices."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from mixed_cases import CLUSTER, MODEL, TIGHT, planned
from strategies import small_cluster, tiny_config
from test_mixed_search import mixed_of

from cost_models.mixed import Machine, MixedStage, MixedStrategy, evaluate_mixed
from cost_models.strategy import LayerChoice, LayerRun
from cost_models.workload import Training
from planner.checks import rederive_mixed
from planner.checks.mixed_ways import MixedProblem, Ways
from planner.checks.rederive import Rederived
from planner.checks.rederive_mixed import fluid_ticks, rederive_pipelines
from planner.checks.verify_mixed import _places
from planner.options import read_options
from planner.read_model import read_config

pytestmark = pytest.mark.usefixtures("steady")

FEW_EXPERTS = {
    "model_type": "qwen3_moe", "norm_topk_prob": True, "hidden_size": 1024, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 6, "intermediate_size": 16384, "vocab_size": 256,
    "num_experts": 8, "num_experts_per_tok": 1, "moe_intermediate_size": 64, "mlp_only_layers": [0, 1, 2, 3, 4],
    "decoder_sparse_step": 1,
}  # fmt: skip
"""Five heavy dense layers and a light one of experts, which another way runs quickest."""


def test_no_pipeline_is_quicker_than_the_fluid_bound_where_kinds_of_layers_differ():
    """The light layer alone on the A100, which is slow at the heavy ones: the best pipeline there is."""
    model = read_config(tiny_config(**FEW_EXPERTS), "t")
    cluster = mixed_of(small_cluster(1, base="dgx-a100"), small_cluster(4, base="dgx-h100"))
    it = MixedProblem(Machine.of(model, cluster, Training(seq_len=2048, global_batch=24)), read_options())
    heavy = MixedStage(1, 1, 1, 4, 1, 1, 3, (LayerRun(5, LayerChoice("none")),))
    light = MixedStage(0, 1, 1, 1, 1, 0, 12, (LayerRun(1, LayerChoice("none")),))
    step = evaluate_mixed(it.machine, MixedStrategy((heavy, light), 2)).step

    assert 0.5 * step < fluid_ticks(it, Ways(it, 12)) <= step


def standing(*rows: tuple[int, ...], used: tuple[int, ...] | None = None) -> list[bool]:
    """Which of some ways to run one stage stand; each ``(forward, backward, tail, size, same, across)``. ``used`` are
    their devices where these have limits on watts."""
    forward, backward, tail, size, same, across = (
        np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)
    )
    ways = object.__new__(Ways)
    ways.forward, ways.backward, ways.tail = (ticks[:, None, None] for ticks in (forward, backward, tail))
    ways.part, ways.size, ways.sides = np.zeros_like(size), size, np.stack([same, across])
    ways.told_apart = np.zeros_like(size) if used is None else np.array(used)
    return ways._standing(math.inf)[:, 0, 0].tolist()


def test_one_way_stands_for_another_only_where_no_path_is_longer():
    base = (10, 20, 5, 2, 1, 3)

    assert standing(base, (10, 21, 4, 2, 1, 3)) == [True, False]
    assert standing(base, (10, 21, 3, 2, 1, 3)) == [True, True], "a shorter tail outweighs a longer backward"
    assert standing(base, (9, 22, 5, 2, 1, 3)) == [True, True]
    assert standing(base, base) == [True, False]
    assert standing(base, base, used=(2, 1)) == [True, True], "each device draws other watts"
    for other in (10, 21, 5, 1, 1, 3), (10, 21, 5, 2, 0, 3), (10, 21, 5, 2, 1, 2), (10, 21, 5, 2, 2, 3):
        assert standing(base, other) == [True, True], "other devices or hops"
    assert standing((10, 2**60, 0, 2, 1, 3), (11, 21, 5, 2, 1, 3)) == [False, True], "what does not fit"


def test_devices_that_stages_reserve_are_counted():
    """Three devices reserve four of a host of eight."""
    cluster = mixed_of(small_cluster(8, base="dgx-a100"), small_cluster(1, base="dgx-h100"))
    it = MixedProblem(Machine.of(MODEL, cluster, Training(seq_len=1024, global_batch=6)), read_options())

    def said(*stages: tuple[int, int], hosts: tuple[int, int]) -> list[str]:
        held = {"tp": 1, "cp": 1, "ep": 1, "zero": 0, "clock": 1.0, "recompute": []}
        records = [SimpleNamespace(part=part, dp=dp, **held) for part, dp in stages]
        parts = [SimpleNamespace(name=part.name, hosts_used=n) for part, n in zip(cluster.parts, hosts, strict=True)]
        return list(_places(SimpleNamespace(stages=records, parts=parts), it))

    assert said((0, 3), (0, 3), (1, 1), hosts=(1, 1)) == []
    assert said((0, 3), (0, 3), (1, 1), hosts=(1, 0)) == [
        "part-1 has 0 hosts in use, but stages reserve 1 devices there"
    ]
    assert said((0, 3), (0, 3), (0, 2), hosts=(2, 0)) == ["stages reserve 10 devices of part 'part-0', which has 8"]


def least_ticks(monkeypatch, **limits: int) -> tuple[Rederived, int]:
    """What comes of the pipelines of up to 1.12 times the best one's step, and how many chunks were joined."""
    joined, chunks = rederive_mixed._Branching._joined, []
    monkeypatch.setattr(rederive_mixed._Branching, "_joined", lambda *asked: chunks.append(asked) or joined(*asked))
    for name, value in limits.items():
        monkeypatch.setattr(rederive_mixed, name, value)
    it = MixedProblem(Machine.of(MODEL, CLUSTER, planned().workload), read_options(headroom=TIGHT))
    found = rederive_pipelines(it, 1.12 * planned().step_s / planned().proof.tick_s)
    monkeypatch.setattr(rederive_mixed._Branching, "_joined", joined)
    return found, len(chunks)


def test_a_level_of_too_many_is_not_built_to_its_end(monkeypatch):
    """In one chunk each level is whole before it is counted; in chunks of a row or so it ends with the limit."""
    at_once, few = least_ticks(monkeypatch, MOST_PARTIAL=5)
    cut, several = least_ticks(monkeypatch, JOINED_AT_ONCE=1)

    assert (at_once.complete, cut.complete) == (False, False)
    assert 0 < cut.bound <= at_once.bound <= planned().step_s / planned().proof.tick_s
    assert several > few
    assert cut.counts["partial_pipelines"] < at_once.counts["partial_pipelines"]


def test_the_clock_is_looked_at_before_every_chunk(monkeypatch):
    """Time runs out at the last look: what was left open bounds what is known."""
    looks, look = [], rederive_mixed.look_at_clock

    def late(deadline: float) -> None:
        looks.append(deadline)
        look(-math.inf if len(looks) == most else deadline)

    monkeypatch.setattr(rederive_mixed, "look_at_clock", late)
    most = math.inf
    whole, every = least_ticks(monkeypatch, JOINED_AT_ONCE=1)
    most, _ = len(looks), looks.clear()
    cut, some = least_ticks(monkeypatch)

    assert (whole.complete, cut.complete) == (True, False)
    assert 0 < cut.bound <= whole.bound
    assert some == every - 1
