"""Strategies from a few words: the usual values for what is left out, arithmetic for what does not close."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.strategy import Strategy
from cost_models.workload import Training
from planner.checks.check import broken_rules
from planner.errors import BadInput
from planner.named import WORDS, named_strategy
from planner.options import parse_assignments
from planner.read_model import read_model
from topologies.ready import read_cluster

MODEL, CLUSTER = read_model("llama-3.1-70b"), read_cluster("dgx-h100:4")
EXPERTS = read_model("mixtral-8x22b")
WORK = Training(seq_len=8192, global_batch=512)


def named(words: str, model=MODEL) -> Strategy:
    return named_strategy(model, CLUSTER, WORK, parse_assignments(words))


def test_what_is_left_out_takes_the_usual_value():
    strategy = named("tp=8,pp=2")

    assert (strategy.degrees.tp, strategy.degrees.pp, strategy.degrees.dp_shard) == (8, 2, 2)
    assert strategy.zero == 1
    assert strategy.layers_per_stage == (40, 40)
    assert strategy.placement["tp"] == (8, 1)
    assert strategy.placement["pp"] == (1, 2)
    assert (strategy.schedule.kind, strategy.schedule.micro_batch, strategy.schedule.micro_batches) == ("1f1b", 1, 256)
    assert broken_rules(MODEL, CLUSTER, WORK, strategy) == []


def test_nothing_is_sharded_where_nothing_can_be():
    assert named("tp=8,pp=4").zero == 0
    assert named("tp=8,zero=0").degrees.dp_replicate == 4


@pytest.mark.parametrize(
    ("words", "both"),
    [("dp=4,dp_replicate=1", (1, 4)), ("dp=4,dp_shard=2", (2, 2)), ("dp_shard=2", (1, 2)), ("dp_replicate=2", (2, 1)),
     ("dp=4,dp_shard=4,dp_replicate=1", (1, 4))],
)  # fmt: skip
def test_shards_and_replicas_make_up_dp(words, both):
    degrees = named(f"tp=8,{words}").degrees

    assert (degrees.dp_replicate, degrees.dp_shard) == both


def test_stages_and_recompute_as_told():
    strategy = named("tp=8,pp=4,layers_per_stage=19-20-21-20,recompute=full")

    assert strategy.layers_per_stage == (19, 20, 21, 20)
    assert all(run.choice.recompute == "full" for stage in strategy.stages for run in stage.runs)


def test_experts_live_on_the_devices_of_a_stage():
    strategy = named("tp=2,pp=4,ep=4", EXPERTS)

    assert (strategy.degrees.ep, strategy.degrees.edp) == (4, 2)
    assert broken_rules(EXPERTS, CLUSTER, WORK, strategy) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("tp=8,pp=5", r"8\*1\*5 = 40 does not divide the 32"), ("tp=8,pp=80,dp=64", r"64\*1\*8\*80 = 40960"),
        ("tp=8,pp=4,dp=2", "= 64 devices, but"), ("pp=16,virtual_stages=6,tp=2", "80 layers"), ("tp=1e9", "tp=1e9"),
        ("zero=x", "zero=x"),
        ("zero=2.5", "zero=2.5"), ("zero=-1", "zero=-1"), ("recompute=maybe", "none, selective, full"),
        ("micro_batch=3,tp=8", r"4\*3 = 12 does not divide the global batch of 512"), ("foo=1", "its words are tp"),
        ("tp=8,pp=4,layers_per_stage=20-20", "4 counts"), ("tp=8,pp=4,layers_per_stage=" + "9" * 5000, "4 counts"),
        ("tp=8,pp=4,layers_per_stage=80-0-0-0", "4 counts"), ("dp=4,dp_shard=3", "dp_shard=3 does not divide dp=4"),
        ("dp=8,dp_shard=2,dp_replicate=2", r"2\*2 = 4 is not dp=8"), ("tp=0", "tp=0"),
        ("tp=8,ep=3", r"ep\*etp = 3\*1 does not divide"), ("devices=8", "no 'devices'"),
    ],
)  # fmt: skip
def test_words_that_do_not_close_are_refused_with_their_arithmetic(words: str, says: str):
    with pytest.raises(BadInput, match=says):
        named(words)


def test_degrees_without_a_regular_place_are_refused():
    with pytest.raises(BadInput, match="no regular place"):
        named_strategy(MODEL, read_cluster("dgx-h100:3"), WORK, {"dp": 1, "pp": 23})


VALUES = st.one_of(st.sampled_from(["none", "full", "x", "20-20-20-20"]), st.integers(-1, 90))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=5), st.booleans())
def test_any_words_give_a_strategy_or_are_refused(words: dict, experts: bool):
    model = EXPERTS if experts else MODEL
    try:
        strategy = named_strategy(model, CLUSTER, WORK, words)
    except BadInput as error:
        assert len(str(error)) > 20
        return
    complaints = broken_rules(model, CLUSTER, WORK, strategy)
    assert not [c for c in complaints if "placement" in c or "the degrees need" in c or "global batch" in c], complaints
