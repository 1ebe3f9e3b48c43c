"""Embedding and head divided over other ranks than the layers: by hand, against enumeration, and refused by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import byte_cluster, make_rows, plain_fits, small_model
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance
from searching import rederiving_agrees, search_agrees
from strategies import coarse_ticks, examples, instances, small_cluster
from test_search_clocks import clocked
from test_search_tiers import tiered

from cost_models.calibration import calibrate
from cost_models.compute import layer_compute
from cost_models.layer_communication import Talk, layer_communication
from cost_models.memory import buffer_bytes, logit_bytes, saved_bytes, state_bytes
from cost_models.rows import Rows
from cost_models.stack import Stack
from cost_models.ticks import Ticks
from cost_models.vocabulary import may_split, rows_of_ends
from cost_models.workload import Training
from planner import BadInput, Plan, plan
from planner.checks.rederive import Problem, rederive
from planner.checks.verify import options_of, verify
from planner.errors import Unsupported
from planner.explanations.mine import inputs_of
from planner.export import export
from planner.expressible import vocab_tp_of
from planner.runtime.limits import check_plan
from topologies.ready import read_cluster

CLUSTER = byte_cluster()
FITS = plain_fits(CLUSTER)
WORK = Training(seq_len=840, global_batch=64)
LLAMA = "llama-3.1-8b"
ONE_RANK = make_rows(cp=6, micro_batch=3)


def divided(rows: Rows, vocab_tp: int) -> Rows:
    return dataclasses.replace(rows, vocab_tp=vocab_tp)


ENDS = st.sampled_from([1, 2, 2, 3, 4])


@st.composite
def divided_instances(draw: st.DrawFn, problems: st.SearchStrategy[Instance]) -> Instance:
    """A whole problem with vocab_tp pinned, beside other pins."""
    it, ends = draw(problems), draw(ENDS)
    return dataclasses.replace(it, pins=(*it.pins, ("vocab_tp", ends)))


@st.composite
def spread_out(draw: st.DrawFn) -> Instance:
    """Two levels, either of which may be slow to start or narrow, so that groups are quicker inside or across."""
    it = draw(instances(most_layers=3, most_devices=4))
    flat = small_cluster(*draw(st.sampled_from([(2, 2), (2, 3), (4, 2), (3, 2), (1, 4)])), base="dgx-h100")
    narrower, slower = st.sampled_from([1.0, 1.0, 1e-2, 1e-4]), st.sampled_from([1.0, 1.0, 1e2, 1e4])
    levels = tuple(
        dataclasses.replace(
            level, bandwidth_bytes_per_s=draw(narrower) * level.bandwidth_bytes_per_s,
            latency_s=draw(slower) * level.latency_s,
        )
        for level in flat.levels
    )  # fmt: skip
    cluster, work = dataclasses.replace(flat, levels=levels), it.workload.model_copy(update={"seq_len": 1024})
    fits = dataclasses.replace(calibrate(cluster, work.stack), context_bytes=0.0, communicator_bytes=1e4)
    pins = {name: value for name, value in it.pins if name in ("cp", "ep", "pp", "recompute")} | {"virtual_stages": 1}
    return dataclasses.replace(
        it, cluster=cluster, workload=work, fits=fits, ticks=coarse_ticks(it.model, cluster, work),
        pins=tuple(pins.items()), power_cap_w=None,
    )  # fmt: skip


@examples(64)
@given(divided_instances(instances()))
def test_the_search_agrees_with_enumeration(it):
    search_agrees(it)


@examples(24)
@given(divided_instances(instances(most_layers=4, most_devices=4)), st.sampled_from([0.9, 1.0, 1.1]))
def test_rederiving_agrees_with_enumeration(it, factor):
    rederiving_agrees(it, factor)


@examples(8)
@given(divided_instances(clocked(most_layers=3)))
def test_the_search_agrees_with_enumeration_with_clocks(it):
    search_agrees(it)


@examples(8)
@given(divided_instances(tiered(most_layers=2, most_devices=4)))
def test_the_search_agrees_with_enumeration_with_tiers(it):
    search_agrees(it)


@examples(8)
@given(divided_instances(spread_out()))
def test_the_search_agrees_with_enumeration_where_ranks_are_quicker_spread_out(it):
    search_agrees(it)


def test_ranks_of_ends_by_hand():
    """tp 2 x cp 6 with vocab_tp 6: cp 2 are left; the nearest ranks divide the vocabulary, on whichever axis."""
    factors = {axis: np.array([[1, 1]]) for axis in make_rows().factors}
    rows = dataclasses.replace(
        make_rows(tp=2, cp=6), factors={**factors, "tp": np.array([[1, 2]]), "cp": np.array([[3, 2]])}
    )

    ends = rows_of_ends(divided(rows, 6))

    assert (ends.tp, ends.cp) == (6, 2)
    assert ends.factors["tp"].tolist() == [[3, 2]] and ends.factors["cp"].tolist() == [[1, 2]]
    assert rows_of_ends(ends) is not rows and rows_of_ends(ends).factors["tp"].tolist() == [[3, 2]]
    assert rows_of_ends(rows) is rows


def test_what_may_be_divided():
    tp, cp = np.array([1, 2, 2, 4, 3]), np.array([4, 2, 1, 1, 4])

    assert may_split(tp, cp, 4).tolist() == [True, True, False, True, False]
    assert may_split(tp, cp, 0).all()


def test_states_and_logits_are_divided_and_layers_left_alone():
    """States of the ends by vocab_tp and not by tp; ZeRO has fewer ranks to divide them over; logits stay as many."""
    model, rows = small_model(), make_rows(tp=2, cp=6, dp_shard=5, zero=1, micro_batch=3)
    other = divided(rows, 6)
    for end in (model.embedding, model.head):
        before, after = (state_bytes(end, it, WORK) for it in (rows, other))
        columns, whole = end.column_parameters, end.whole_parameters
        assert after["weights"] / before["weights"] == pytest.approx((columns / 6 + whole) / (columns / 2 + whole))
        assert after["optimizer"] / before["optimizer"] == pytest.approx(
            (columns / 6 + whole) / (columns / 2 + whole) * (5 * 6) / (5 * 2)
        )
    for kind in model.kinds:
        assert state_bytes(kind, rows, WORK) == state_bytes(kind, other, WORK)
        assert saved_bytes(kind, model.hidden, rows, WORK, FITS) == saved_bytes(kind, model.hidden, other, WORK, FITS)
    assert logit_bytes(model, rows, WORK, FITS) == pytest.approx(logit_bytes(model, other, WORK, FITS))


def test_logits_that_several_ranks_share_take_what_tp_makes_them_take():
    """A loss that is not fused makes 8 bytes of a logit on one rank, 10 where ranks divide the vocabulary."""
    work = WORK.model_copy(update={"stack": Stack(fused_loss=False)})
    fits = plain_fits(CLUSTER, logit_bytes=8.0, split_logit_bytes=10.0)

    alone, shared = (logit_bytes(small_model(), it, work, fits)[0] for it in (ONE_RANK, divided(ONE_RANK, 6)))

    assert shared == pytest.approx(1.25 * alone)


def test_buffers_hold_what_the_ends_gather_and_their_communicator():
    """Two hidden states of a third of the cp ranks' tokens each are three times those that tp gathers."""
    model, fits = small_model(), plain_fits(CLUSTER, communicator_bytes=1000.0)
    rows = make_rows(tp=2, cp=6, micro_batch=3)

    before, after = (buffer_bytes(model, it, WORK, fits)[0] for it in (rows, divided(rows, 6)))

    hidden = 2 * 3 * 840 / 6 * model.hidden * 2
    largest = [max(_held(kind, it) for kind in (*model.kinds, model.embedding, model.head)) for it in (2, 6)]
    assert largest[0] >= largest[1]
    assert after - before == pytest.approx(2 * hidden + 1000.0)


def test_the_ends_gather_and_scatter_among_their_own_ranks():
    """Half a pair a pass: a gather and a scatter of 3 * 840 / 2 tokens of 16 in bf16, of which 5/6 move."""
    model, rows = small_model(), divided(make_rows(tp=2, cp=6, micro_batch=3), 6)
    moved = (3 * 840 / 2 * 16 * 2) * 5 / 6

    def found(layer, it, relaxed=False):
        compute = layer_compute(layer, it, CLUSTER, WORK, FITS)
        return layer_communication(layer, Talk(model, it, CLUSTER, WORK, FITS), compute, relaxed=relaxed)

    for end in (model.embedding, model.head):
        assert found(end, rows).parts["tensor parallel"][0] == pytest.approx(2 * 0.5 * 2 * moved)
        assert found(end, rows, relaxed=True).forward.seconds[0] == 0
    plain = found(model.kinds[0], divided(rows, 0))
    assert found(model.kinds[0], rows).forward.seconds == plain.forward.seconds


def test_the_ends_do_as_much_work_on_every_rank():
    """Three times the tokens and a third of the columns."""
    model, rows = small_model(), make_rows(tp=2, cp=6, micro_batch=3)

    before, after = (layer_compute(model.head, it, CLUSTER, WORK, FITS) for it in (rows, divided(rows, 6)))

    assert after.forward.seconds == pytest.approx(before.forward.seconds, rel=0.2)


def _held(layer, tp: int) -> float:
    return layer.column_parameters / tp + layer.whole_parameters


@pytest.fixture(scope="module")
def proved() -> Plan:
    return plan(LLAMA, "rtx-4090-host:2", global_batch=64, alternatives=0, vocab_tp="all")


def test_it_pays_where_memory_is_short_and_is_proved(proved):
    alone = plan(LLAMA, "rtx-4090-host:2", global_batch=64, alternatives=0)

    assert proved.status == "optimal" and proved.step_s < alone.step_s
    assert proved.proof.space["axes"]["vocab_tp"] == [proved.strategy.vocab_tp]
    assert "embedding and head tp" in proved.summary() and "advisory" in proved.summary()
    assert verify(proved, *inputs_of(proved)).ok
    assert Plan.from_json(proved.to_json()) == proved


def test_rederiving_finds_the_plan_itself(proved):
    """Just above its objective the plan is a counter-example, priced with its own division of the ends."""
    model, cluster = inputs_of(proved)
    fits, ticks = calibrate(cluster, proved.workload.stack), Ticks.of(model, cluster, proved.workload)
    problem = Problem(model, cluster, proved.workload, options_of(proved), fits, ticks)

    assert rederive(problem, proved.objective * 1.0001).counter_example_value == pytest.approx(proved.objective)


def test_a_plan_that_says_another_number_is_refused(proved):
    other = proved.strategy.model_copy(update={"vocab_tp": 0})

    assert not verify(proved.model_copy(update={"strategy": other}), *inputs_of(proved)).ok


def test_nothing_launches_it(proved):
    with pytest.raises(Unsupported, match="torchrun cannot express this plan: embedding and head are divided over"):
        export(proved, ("torchrun",))
    with pytest.raises(Unsupported, match="embedding and head are divided over vocab_tp"):
        check_plan(proved)
    assert "plan.json" in export(proved, ())


@pytest.mark.parametrize(
    ("pins", "says"),
    [
        ({"vocab_tp": 3, "tp": 2}, "vocab_tp=3 is not a multiple of tp=2"),
        ({"vocab_tp": 8, "tp": 2, "cp": 2}, r"vocab_tp=8 does not divide tp\*cp = 2\*2 = 4; legal: 2, 4"),
        ({"vocab_tp": 0}, "vocab_tp=0 must be a whole number from 1"),
    ],
)  # fmt: skip
def test_pins_that_cannot_hold_are_refused(pins, says):
    with pytest.raises(BadInput, match=says):
        plan(LLAMA, "dgx-h100:1", pins=pins)


def test_a_start_of_another_space_is_not_taken(proved):
    after = plan(LLAMA, "rtx-4090-host:2", global_batch=64, alternatives=0, start=proved)

    assert after.strategy.vocab_tp == 0 and after.objective > proved.objective
    assert any("the strategy has vocab_tp=" in note for note in after.notes)


def test_words_are_read():
    cluster = read_cluster("dgx-h100:1")

    assert vocab_tp_of("", cluster) == ()
    assert vocab_tp_of("4,2", cluster) == vocab_tp_of((2, 4), cluster) == (0, 2, 4)
    assert vocab_tp_of("all", cluster) == (0, 1, 2, 4, 8)
    with pytest.raises(BadInput, match="'x' is no number of ranks"):
        vocab_tp_of("2,x", cluster)
