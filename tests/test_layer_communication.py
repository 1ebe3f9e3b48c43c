"""What a layer sends, in bytes: links carry one byte a second and nothing overlaps unless the test says so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import OPERATIONS, byte_cluster, expert_layer, make_rows, plain_fits, small_layer, small_model
from hypothesis import given
from hypothesis import strategies as st

from cost_models.calibration import Collective, calibrate
from cost_models.communication import collective_s
from cost_models.compute import layer_compute
from cost_models.layer_communication import Talk, layer_communication
from cost_models.rows import Rows
from cost_models.stack import Stack
from cost_models.workload import Training
from topologies.ready import read_cluster

CLUSTER = byte_cluster()
FITS = plain_fits(CLUSTER)
MODEL = small_model((0, 1))
WORK = Training(seq_len=70, global_batch=1)
DENSE, EXPERTS = small_layer(), expert_layer()
HEADS = small_layer(heads=8, kv_heads=8)
"""As wide, with a head of keys and values for every rank."""


def talk(layer, rows, *, cluster=CLUSTER, fits=FITS, relaxed=False, work=WORK):
    compute = layer_compute(layer, rows, cluster, work, fits)
    return layer_communication(layer, Talk(MODEL, rows, cluster, work, fits), compute, relaxed=relaxed)


def numbers(found):
    return tuple(float(x[0]) for x in (found.forward.seconds, found.backward.seconds, found.reduce_s, found.gather_s))


def test_alone_a_device_sends_nothing():
    for layer in (DENSE, EXPERTS, MODEL.embedding, MODEL.head):
        assert numbers(talk(layer, make_rows(zero=3))) == (0, 0, 0, 0)


def test_tensor_parallelism_gathers_and_scatters_at_every_boundary():
    """V = 3 * 70 / 7 tokens of 16 in bf16; 2 boundaries, a gather and a scatter each, 4/5 of V moved; cp is inside."""
    hidden = 3 * 70 / 7 * 16 * 2
    found = talk(HEADS, make_rows(tp=5, cp=7, micro_batch=3))

    assert found.parts["tensor parallel"][0] == pytest.approx(2 * (2 * 2 * hidden * 4 / 5))
    assert found.repeated.seconds[0] == found.forward.seconds[0]


@pytest.mark.parametrize(("queries", "gathered"), [(False, 2 * (4 + 4)), (True, 2 * (4 + 4) + 4 * 4)])
def test_ranks_beyond_the_key_value_heads_gather_them(queries, gathered):
    """70 tokens of 2 KV heads, 4 + 4 wide, and of 4 heads of queries; forward, and backward their gradients.

    2 ranks have a head each; recomputing everything gathers once more, selective recompute keeps what was gathered.
    """
    work = WORK.model_copy(update={"stack": Stack(gathers_queries=queries)})
    few, many = (talk(DENSE, make_rows(tp=tp), work=work) for tp in (2, 4))
    hidden = 2 * 2 * 2 * 70 * 16 * 2
    volume = 70 * gathered * 2 * 3 / 4

    assert few.parts["tensor parallel"][0] == pytest.approx(hidden * 1 / 2)
    assert many.parts["tensor parallel"][0] == pytest.approx(hidden * 3 / 4 + 2 * volume)
    assert many.repeated.seconds[0] == pytest.approx(hidden * 3 / 8 + volume)
    assert many.repeated_selective.seconds[0] == 0


def test_latents_and_scans_share_no_heads():
    """Their keys come from no product of columns of their own."""
    renamed = [dataclasses.replace(op, name="kv_b" if op.name == "qkv" else op.name) for op in DENSE.operators]
    latent = dataclasses.replace(DENSE, operators=tuple(renamed))
    hidden = 2 * 2 * 2 * 70 * 16 * 2

    assert talk(latent, make_rows(tp=4)).parts["tensor parallel"][0] == pytest.approx(hidden * 3 / 4)


@pytest.mark.parametrize(("precision", "gathered"), [("bf16", 2), ("fp8", 1), ("fp4", 0.5625)])
def test_inputs_are_gathered_as_products_multiply_them(precision, gathered):
    """70 tokens of 16, 2 boundaries and 2 passes; what is scattered has 2 bytes; the head gathers 2 as well."""
    work = Training(seq_len=70, global_batch=1, precision=precision)
    layer, head = (talk(kind, make_rows(tp=5), work=work).parts["tensor parallel"][0] for kind in (HEADS, MODEL.head))

    assert layer == pytest.approx(2 * 2 * 70 * 16 * (gathered + 2) * 4 / 5)
    assert head == pytest.approx(2 * 0.5 * 70 * 16 * 4 * 4 / 5)


@pytest.mark.parametrize("layer", [MODEL.embedding, MODEL.head], ids=lambda layer: layer.kind)
def test_embedding_and_head_pass_half_a_boundary(layer):
    found = talk(layer, make_rows(tp=5))

    assert found.forward.seconds[0] == found.backward.seconds[0] == pytest.approx(70 * 32 * 4 / 5)


@pytest.mark.parametrize(("tp", "heads"), [(1, 2), (2, 1), (4, 1)])
def test_context_parallelism_gathers_keys_and_values(tp, heads):
    """70 tokens of 2 heads, 4 + 4 wide, which tp divides down to one; backward also scatters their gradients."""
    found = talk(DENSE, make_rows(tp=tp, cp=7))
    volume = 70 * heads * (4 + 4) * 2

    assert found.parts["context parallel"][0] == pytest.approx(3 * volume * 6 / 7)


def test_layers_without_attention_have_no_context_to_share():
    slow = dataclasses.replace(FITS, scale_up=calibrate(CLUSTER).scale_up)

    assert talk(MODEL.embedding, make_rows(cp=7), fits=slow).parts["context parallel"][0] == 0


def test_expert_parallelism_sends_each_token_to_its_experts_and_back():
    """V / tp bytes of 2 copies, dispatched and combined, forward and backward, 4/5 of them to others."""
    fits = dataclasses.replace(FITS, expert_imbalance=1.25)
    found = talk(EXPERTS, make_rows(tp=2, dp_shard=5, ep=5), fits=fits)

    assert found.parts["expert parallel"][0] == pytest.approx(4 * 70 * 32 / 2 * 2 * 1.25 * 4 / 5)
    assert talk(DENSE, make_rows(tp=2, dp_shard=5, ep=5)).parts["expert parallel"][0] == 0


def test_experts_dealt_out_in_their_order_send_a_token_to_fewer_ranks():
    """8 experts on 4 ranks, 2 a token: those of a token are on one rank; drawn evenly, on 4 (1 - (3 / 4)^2)."""
    found = {}
    for in_order in (True, False):
        work = WORK.model_copy(update={"stack": Stack(dispatcher="deepep", consecutive_experts=in_order)})
        found[in_order] = talk(EXPERTS, make_rows(dp_shard=4, ep=4), work=work).parts["expert parallel"][0]

    assert found[False] == pytest.approx(1.75 * found[True]) and found[True] > 0


def test_experts_in_groups_send_a_token_to_fewer_ranks():
    """8 experts on 4 ranks, 2 a token: both in one of 4 groups are on one rank; an all-to-all sends both copies."""
    grouped = dataclasses.replace(EXPERTS, expert_groups=(4, 1))

    def sent(layer, dispatcher):
        work = WORK.model_copy(update={"stack": Stack(dispatcher=dispatcher)})
        return talk(layer, make_rows(dp_shard=4, ep=4), work=work).parts["expert parallel"][0]

    assert sent(EXPERTS, "deepep") == pytest.approx(1.75 * sent(grouped, "deepep"))
    assert sent(EXPERTS, "alltoall") == sent(grouped, "alltoall") > 0


@pytest.mark.parametrize("idle", [0.0, 1e-9, 1e3])
def test_what_a_device_idles_for_its_host_holds_the_experts_exchange(idle):
    """First tensor parallelism's collectives take the idle time, then the exchange takes what is left."""
    layer, rows = expert_layer(), make_rows(tp=2, dp_shard=4, ep=8)
    plain = talk(layer, rows)
    compute = dataclasses.replace(layer_compute(layer, rows, CLUSTER, WORK, FITS), waiting=(np.array([idle]),) * 2)
    found = layer_communication(layer, Talk(MODEL, rows, CLUSTER, WORK, FITS), compute, relaxed=False)
    busy = plain.parts["tensor parallel"] + plain.parts["expert parallel"]

    assert found.forward.seconds[0] + found.backward.seconds[0] == pytest.approx(
        plain.forward.seconds[0] + plain.backward.seconds[0] - min(2 * idle, busy[0]), rel=1e-9
    )
    assert found.forward.joules[0] == plain.forward.joules[0]


@pytest.mark.parametrize(("micro_batches", "hidden"), [(1, 0.0), (2, 1 / 4), (5, 2 / 5)])
def test_exchange_hides_beside_another_micro_batch(micro_batches, hidden):
    """Half of it, but for the first forward and the last backward pass: nothing runs beside those."""
    rows, half = make_rows(ep=2, dp_shard=2, micro_batches=micro_batches), {**FITS.overlap, "ep": 0.5}
    plain, found = (
        talk(EXPERTS, rows, fits=dataclasses.replace(FITS, overlap=overlap)).parts["expert parallel"][0]
        for overlap in (FITS.overlap, half)
    )

    assert EXPERTS.attends and found == pytest.approx((1 - hidden) * plain) and plain > 0


def test_expert_tensor_parallelism_gathers_the_routed_tokens():
    """Among 3 ranks, each with V / 3 of 2 copies: gathered and scattered, forward and backward."""
    found = talk(EXPERTS, make_rows(tp=3, etp=3))

    assert found.parts["expert parallel"][0] == pytest.approx(4 * 70 * 32 * 2 * 2 / 3)


P = DENSE.parameters
SHARD, REPLICAS = 2 * 5, 3
IN, BETWEEN = (SHARD - 1) / SHARD, 2 * 4 * P / SHARD * (REPLICAS - 1) / REPLICAS
# zero: forward, backward, reduce, gather. Weights are 2 bytes, gradients 4; cp 2 and dp_shard 5 shard, 3 replicas.
VOLUMES = {
    0: (0, 0, 2 * 4 * P * 29 / 30, 0),
    1: (0, 0, 4 * P * IN + BETWEEN, 2 * P * IN),
    2: (0, 4 * P * IN, BETWEEN, 2 * P * IN),
    3: (2 * P * IN, (2 + 4) * P * IN, BETWEEN, 0),
}


@pytest.mark.parametrize("zero", VOLUMES)
def test_zero_volumes_by_hand(zero):
    found = talk(DENSE, make_rows(cp=2, dp_shard=5, dp_replicate=3, zero=zero))
    forward, backward, reduce, gather = numbers(found)
    context = found.parts["context parallel"][0]

    assert found.parts["sharded data parallel"][0] == pytest.approx(sum(VOLUMES[zero][:2]))
    assert (forward - context / 3, backward - context * 2 / 3) == pytest.approx(VOLUMES[zero][:2])
    assert (reduce, gather) == pytest.approx(VOLUMES[zero][2:])


@pytest.mark.parametrize(("zero", "gathers"), [(0, False), (1, True), (2, True)])
def test_waiting_in_data_parallelism_lengthens_the_step_and_no_micro_batch(zero, gathers):
    """Buckets one after the other: reduction and gathering at the step's end take so many times as long."""
    rows = make_rows(zero=zero, dp_shard=3, dp_replicate=2, tp=5)
    plain, slow = (numbers(talk(DENSE, rows, fits=dataclasses.replace(FITS, dp_wait=wait))) for wait in (1.0, 2.5))

    assert slow[2:] == pytest.approx((2.5 * plain[2], 2.5 * plain[3])) and plain[2] > 0
    assert slow[:2] == plain[:2] and (plain[3] > 0) == gathers


@pytest.mark.parametrize("zero", VOLUMES)
def test_experts_are_reduced_among_their_own_copies(zero):
    """dp_shard 6, ep 3: experts have 2 copies with a third of the experts each, all else 6 copies."""
    dense, experts = EXPERTS.column_parameters + EXPERTS.whole_parameters, EXPERTS.expert_parameters / 3
    moved = dense * 5 / 6 + experts / 2
    found = talk(EXPERTS, make_rows(dp_shard=6, ep=3, zero=zero))
    expected = {0: (0, 8, 0), 1: (0, 4, 2), 2: (4, 0, 2), 3: (2 + 6, 0, 0)}[zero]

    sharded = found.parts["sharded data parallel"][0]
    assert (sharded, found.reduce_s[0], found.gather_s[0]) == pytest.approx(tuple(moved * e for e in expected))


def test_dense_layers_do_not_reduce_absent_experts():
    """With real latencies too: one all-reduce over 8 ranks, not a second one of nothing."""
    fits = calibrate(CLUSTER)
    once = collective_s("all_reduce", 4 * P, np.array([[8, 1]]), CLUSTER.levels, fits)[0]

    assert talk(DENSE, make_rows(dp_shard=8), fits=fits).reduce_s[0] == once > 0


def test_without_sequence_parallelism_hidden_states_are_all_reduced():
    """2 boundaries, twice 4/5 of V each way: as many bytes as a gather and a scatter, in half as many messages."""
    plain = WORK.model_copy(update={"stack": Stack(sequence_parallel=False)})
    started = dataclasses.replace(FITS, scale_up=dict.fromkeys(OPERATIONS, Collective(1.0, 0.0, 0.0, 1.0, 0.0)))

    for fits, parallel, reduced in ((FITS, 0, 0), (started, 8, 4)):
        moved = 2 * (2 * 2 * 70 * 32 * 4 / 5)
        split, whole = (
            talk(HEADS, make_rows(tp=5), fits=fits, work=w).parts["tensor parallel"][0] for w in (WORK, plain)
        )
        assert (split, whole) == (pytest.approx(moved + parallel), pytest.approx(moved + reduced))


@pytest.mark.parametrize(
    ("selective", "gathers", "exchanges"),
    [("pointwise", 0, 0), ("network", 0.5, 1), ("alternate", 0.5, 0), ("behind_qkv", 1, 1)],
)
def test_what_selective_recompute_sends_again(selective, gathers, exchanges):
    """The network's of two boundaries and its experts' exchange, gathers but no scatters, all of both, or nothing."""
    work = Training(seq_len=70, global_batch=1, stack=Stack(selective=selective))
    found = talk(EXPERTS, make_rows(tp=2, dp_shard=2, ep=2), work=work)
    tensor, expert = (found.parts[f"{name} parallel"][0] / 2 for name in ("tensor", "expert"))

    assert tensor > 0 and expert > 0
    assert found.repeated_selective.seconds[0] == pytest.approx(gathers * tensor + exchanges * expert)


def test_what_is_all_reduced_is_kept_where_every_second_product_is_repeated():
    work = WORK.model_copy(update={"stack": Stack(selective="alternate", sequence_parallel=False)})

    assert talk(HEADS, make_rows(tp=2), work=work).repeated_selective.seconds[0] == 0


@pytest.mark.parametrize(("parallel", "sent"), [(True, 3 / 4), (False, 1 / 2)])
def test_full_recompute_that_stops_early_leaves_the_last_reduction_out(parallel, sent):
    """Of two gathers and two scatters one scatter, of two all-reduces one; nothing where experts are combined last."""
    work = WORK.model_copy(update={"stack": Stack(early_stop=True, sequence_parallel=parallel)})
    dense, experts = (talk(layer, make_rows(tp=2), work=work) for layer in (HEADS, EXPERTS))

    assert dense.repeated.seconds[0] == pytest.approx(sent * dense.forward.seconds[0])
    assert dense.repeated.joules[0] == pytest.approx(sent * dense.forward.joules[0])
    assert experts.repeated.seconds[0] == experts.forward.seconds[0] > 0


@pytest.mark.parametrize(("parallel", "sent"), [(True, 1 / 2), (False, 0)])
def test_narrow_layers_leave_out_no_more_than_their_reductions(parallel, sent):
    """A traced encoder a tenth as wide as the model has a fifth of a boundary: what it repeats is never less than 0."""
    work = WORK.model_copy(update={"stack": Stack(early_stop=True, sequence_parallel=parallel)})
    found = talk(dataclasses.replace(HEADS, boundaries=0.2), make_rows(tp=2), work=work)

    assert found.repeated.seconds[0] == pytest.approx(sent * found.forward.seconds[0])


@pytest.mark.parametrize("on", [True, False])
def test_the_overlap_of_tensor_parallelism_needs_its_switch(on):
    fits = dataclasses.replace(FITS, overlap=FITS.overlap | {"tp": 0.75})
    work = WORK.model_copy(update={"stack": Stack(tp_overlap=on)})
    bare, hidden = (talk(HEADS, make_rows(tp=5), fits=f, work=work).forward.seconds[0] for f in (FITS, fits))

    assert hidden == pytest.approx(bare * (0.25 if on else 1.0))


@pytest.mark.parametrize("on", [True, False])
def test_the_overlap_of_data_parallelism_needs_its_switch(on):
    """Compute that lasts for ever hides all that it can."""
    fits, rows = dataclasses.replace(FITS, overlap=FITS.overlap | {"dp": 1.0}), make_rows(dp_shard=5, zero=3)
    work = WORK.model_copy(update={"stack": Stack(dp_overlap=on)})
    compute = layer_compute(DENSE, rows, CLUSTER, work, fits)
    endless = dataclasses.replace(compute, forward=compute.forward * 1e30, backward=compute.backward * 1e30)
    found = layer_communication(DENSE, Talk(MODEL, rows, CLUSTER, work, fits), endless, relaxed=False)

    assert found.forward.seconds[0] == (0 if on else pytest.approx(2 * P * 4 / 5))


def test_bytes_on_the_wire_are_those_of_the_stack():
    """Gradients in 2 bytes, weights in 1: half as much to scatter, half as much to gather."""
    work = WORK.model_copy(update={"stack": Stack(reduce_bytes=2.0, gather_bytes=1.0)})
    usual, given = (numbers(talk(DENSE, make_rows(dp_shard=5, zero=1), work=w)) for w in (WORK, work))

    assert given[2:] == (pytest.approx(usual[2] / 2), pytest.approx(usual[3] / 2))
    assert given[2:] == (pytest.approx(2 * P * 4 / 5), pytest.approx(1 * P * 4 / 5))


def test_the_inner_part_of_a_shard_group_divides_the_outer_traffic():
    found = talk(DENSE, make_rows("dp_shard", cp=2, dp_shard=3, zero=1))

    assert found.gather_s[0] == pytest.approx(2 * P / 2 + 2 * P / 2 * 2 / 3)


@pytest.mark.parametrize("part", [0.0, 1e-30, 1e30])
def test_what_hides_behind_compute_slows_it_down(part):
    """overlap 0.5 of the layer's own forward; interference 0.25 of what is hidden."""
    fits = dataclasses.replace(FITS, overlap=FITS.overlap | {"dp": 0.5}, interference=0.25)
    rows = make_rows(dp_shard=5, zero=3)
    compute = layer_compute(DENSE, rows, CLUSTER, WORK, FITS)
    compute = dataclasses.replace(compute, forward=compute.forward * part)
    found = layer_communication(DENSE, Talk(MODEL, rows, CLUSTER, WORK, fits), compute, relaxed=False)
    sent, window = 2 * P * 4 / 5, 0.5 * compute.forward.seconds[0]

    assert found.forward.seconds[0] == pytest.approx(max(sent - window, 0) + 0.25 * min(sent, window))


def test_joules_count_hidden_communication_too():
    fits = dataclasses.replace(FITS, overlap=FITS.overlap | {"dp": 1.0, "tp": 1.0})
    figures = CLUSTER.accelerator.figures
    watts = fits.power_fraction["communication"] * (figures.board_power.value - figures.idle_power.value)
    found = talk(DENSE, make_rows(tp=2, dp_shard=5, zero=3), fits=fits)
    local = DENSE.column_parameters / 2 + DENSE.whole_parameters
    hidden, weights = 2 * 2 * 70 * 32 / 2, 2 * local * 4 / 5

    assert found.forward.joules[0] == pytest.approx((hidden + weights) * watts)


ROWS = st.builds(
    make_rows, st.sampled_from(["", "dp_shard", "tp dp_shard"]), zero=st.integers(0, 3), tp=st.sampled_from([1, 2, 4]),
    cp=st.sampled_from([1, 2]), dp_shard=st.sampled_from([4, 8]), dp_replicate=st.sampled_from([1, 2]),
    ep=st.sampled_from([1, 2, 4]), micro_batch=st.integers(1, 4),
)  # fmt: skip


@given(ROWS, st.sampled_from([DENSE, EXPERTS, MODEL.embedding, MODEL.head]))
def test_the_relaxed_price_never_exceeds_the_full_one(rows, layer):
    cluster = read_cluster("dgx-h100:8")
    full, least = (talk(layer, rows, cluster=cluster, fits=calibrate(cluster), relaxed=r) for r in (False, True))

    assert all(a <= b for a, b in zip(numbers(least), numbers(full), strict=True))
    for name in ("forward", "backward", "repeated"):
        assert getattr(least, name).joules[0] <= getattr(full, name).joules[0]
    assert numbers(least)[2:] == (0, 0) and least.step_j[0] == 0


@given(ROWS, st.sampled_from([DENSE, EXPERTS]))
def test_the_parts_are_forward_and_backward(rows, layer):
    found = talk(layer, rows)

    assert sum(found.parts.values())[0] == pytest.approx(float((found.forward.seconds + found.backward.seconds)[0]))


def test_rows_priced_together_are_those_priced_alone():
    rows = Rows.concat([make_rows(tp=t, cp=c, dp_shard=4, zero=z) for t in (1, 2) for c in (1, 2) for z in range(4)])
    together = talk(EXPERTS, rows)

    for i in range(len(rows)):
        alone = talk(EXPERTS, rows.take(np.array([i])))
        assert numbers(alone) == (together.forward.seconds[i], together.backward.seconds[i],
                                  together.reduce_s[i], together.gather_s[i])  # fmt: skip
