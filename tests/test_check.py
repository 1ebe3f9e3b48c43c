"""Every rule of legality broken once, and named; what the search chooses passes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from searching import search_of
from strategies import examples, instances, small_cluster, tiny_config, with_memory

from cost_models.strategy import LayerChoice, LayerRun, ParallelDegrees, Stage, Strategy, TrainingSchedule
from cost_models.workload import Training
from planner.checks.check import check_strategy, require_legal
from planner.errors import BadInput
from planner.read_model import read_config

CLUSTER = small_cluster(4, 2)
MODEL = read_config(tiny_config(num_hidden_layers=8), "tiny")
EXPERTS = read_config(tiny_config(model_type="mixtral", num_local_experts=3, num_experts_per_tok=1), "tiny-moe")
WORKLOAD = Training(seq_len=64, global_batch=12)


def stages(*sizes: int) -> tuple[Stage, ...]:
    return tuple(Stage((LayerRun(n),)) for n in sizes)


def make(**changes) -> Strategy:
    """tp 2, pp 2, dp_shard 2 on two hosts of four; ``changes`` replace degrees, schedule, placement or the rest."""
    degrees = {"tp": 2, "pp": 2, "dp_shard": 2}
    schedule = {"micro_batch": 1, "micro_batches": 6}
    placement = {
        "tp": (2, 1), "cp": (1, 1), "dp_shard": (2, 1), "dp_replicate": (1, 1), "pp": (1, 2), "etp": (1, 1),
        "ep": (1, 1), "edp": (4, 1),
    }  # fmt: skip
    rest = {"zero": 1, "stages": stages(4, 4)}
    for name, value in changes.items():
        for part in (degrees, schedule, placement, rest):
            if name in part or (part is degrees and name in ("cp", "dp_replicate", "ep", "etp")):
                part[name] = value
                break
        else:
            schedule[name] = value
    placement |= changes.get("place", {})
    schedule.pop("place", None)
    if schedule.get("virtual_stages", 1) > 1:
        schedule.setdefault("kind", "interleaved")
    return Strategy(ParallelDegrees(**degrees), rest["zero"], TrainingSchedule(**schedule), rest["stages"], placement)


def test_a_legal_strategy_passes():
    assert check_strategy(MODEL, CLUSTER, WORKLOAD, make()) == []
    require_legal(MODEL, CLUSTER, WORKLOAD, make())


INTERLEAVED = {"virtual_stages": 2, "stages": stages(2, 2, 2, 2)}
BROKEN = [
    ({"tp": 8}, "tp=8 does not divide 4 attention heads of 'tiny'; legal up to 8 devices: 1, 2, 4"),
    ({"tp": 0}, "tp=0 must be a whole number from 1"),
    ({"cp": 3}, "cp=3 needs sequences of a multiple of 6 tokens, but seq_len=64"),
    ({"pp": 9}, "pp=9 is more stages than the 8 layers of 'tiny'"),
    ({"dp_shard": 5}, "does not divide the global batch of 12; legal: 1, 2, 3, 4, 6"),
    ({"ep": 2}, "'tiny' has no experts; both must be 1"),
    ({"dp_replicate": 2}, "the degrees need 16 devices"),
    ({"zero": 4}, "zero=4 is no stage"),
    ({"zero": 0}, "zero=0 shards nothing, but dp_shard=2"),
    ({"dp_shard": 1, "zero": 2}, "zero=2 shards over dp_shard x cp = 1 device"),
    ({"micro_batches": 5}, "micro_batch 1 x micro_batches 5 x dp 2 = 10 sequences, but the global batch is 12"),
    ({"place": {"tp": (1, 1)}}, "placement of tp multiplies to 1"),
    ({"place": {"edp": (2, 2)}}, "4 dense but 2 expert ranks"),
    ({"place": {"pp": (2, 1)}}, "level 'scale-up' holds 8 members of a group, but has room for 4"),
    ({"place": {"pp": (1, 2, 1)}}, "one whole number from 1 for each of scale-up, scale-out"),
    ({"place": {"sp": (1, 1)}}, "placement has the axes"),
    ({"stages": stages(8)}, "there are 1 stages, but pp 2 x virtual_stages 1 asks for 2"),
    ({"stages": stages(4, 3)}, "the stages hold 7 layers, but 'tiny' has 8"),
    ({"stages": (Stage(()), *stages(8))}, "stage 0 has an empty run"),
    ({"stages": (Stage((LayerRun(4, LayerChoice("some")),)), *stages(4))}, "stage 0 recomputes ['some']"),
    (
        {"stages": (Stage((LayerRun(2), LayerRun(2, LayerChoice("full")))), *stages(4))},
        "full, then selective, then none",
    ),
    ({"kind": "interleaved"}, "schedule 'interleaved' with virtual_stages=1"),
    ({"kind": "1f1b", **INTERLEAVED}, "schedule '1f1b' with virtual_stages=2"),
    ({"micro_batches": 3, "micro_batch": 2, **INTERLEAVED}, "micro_batches=3 is not a multiple of pp=2"),
    ({"virtual_stages": 2, "stages": stages(1, 3, 3, 1)}, "are uneven"),
    (
        {"virtual_stages": 2, "stages": (Stage((LayerRun(2, LayerChoice("full")),)), *stages(2, 2, 2))},
        "the virtual stages of pipeline rank 0 recompute differently",
    ),
]


@pytest.mark.parametrize(("changes", "words"), BROKEN, ids=[words[:30] for _, words in BROKEN])
def test_every_broken_rule_is_named(changes, words):
    complaints = check_strategy(MODEL, CLUSTER, WORKLOAD, make(**changes))

    assert any(words in complaint for complaint in complaints), complaints
    with pytest.raises(BadInput, match="not a legal strategy"):
        require_legal(MODEL, CLUSTER, WORKLOAD, make(**changes))


def test_experts_and_hosts():
    def first(**changes):
        return "; ".join(check_strategy(EXPERTS, CLUSTER, WORKLOAD, make(stages=stages(2, 2), **changes)))

    assert "ep=2 does not divide 3 experts; legal: 1, 3" in first(ep=2)
    assert "etp=5 does not divide 192 expert feed-forward width" in first(etp=5)
    assert "ep x etp = 3 does not divide the 4 devices of a stage" in first(ep=3)
    shared = small_cluster(6, 1, hosts_inside=2)
    one = dict.fromkeys(make().placement, (1,))
    placement = {**one, "dp_shard": (4,), "edp": (4,)}
    odd = Strategy(ParallelDegrees(dp_shard=4), 1, TrainingSchedule(micro_batches=3), stages(8), placement)
    assert "4 ranks in a scale-up domain leave hosts of 3 devices unequally used" in "; ".join(
        check_strategy(MODEL, shared, WORKLOAD, odd)
    )


def test_limits():
    small = with_memory(CLUSTER, 1e9)
    assert "pipeline rank 0 needs" in check_strategy(MODEL, small, WORKLOAD, make())[0]
    assert "headroom 0.99" in check_strategy(MODEL, CLUSTER, WORKLOAD, make(), headroom=0.99)[0]
    idle = check_strategy(MODEL, CLUSTER, WORKLOAD, make(), power_cap_w=10.0)
    assert len(idle) == 1
    assert "a power cap of 10 W is not above" in idle[0]


@examples(40)
@given(instances())
def test_what_the_search_chooses_is_legal(it):
    search = search_of(it)
    if search is None:
        return
    result = search.run()
    if result.best is not None:
        complaints = check_strategy(
            it.model, it.cluster, it.workload, search.strategy(result.best),
            headroom=it.headroom, power_cap_w=it.power_cap_w, fits=it.fits,
        )  # fmt: skip
        assert complaints == []


def test_other_schedules_are_refused():
    from cost_models.strategy import ServingSchedule

    serving = dataclasses.replace(make(), schedule=ServingSchedule())
    assert "only training schedules" in check_strategy(MODEL, CLUSTER, WORKLOAD, serving)[0]
