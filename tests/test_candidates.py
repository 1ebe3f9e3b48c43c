"""The space: legal values by definition, pins, degrees and placements by counting."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import space_of
from strategies import examples, instances, small_cluster, tiny_config

from cost_models.workload import Training
from planner.candidates import degree_table, divisors, innermost, legal_space, placements
from planner.errors import BadInput
from planner.read_model import read_config, read_model
from topologies.host_shape import HostShape
from topologies.ready import read_cluster


@given(st.integers(1, 5000))
def test_divisors(number):
    assert divisors(number) == tuple(d for d in range(1, number + 1) if number % d == 0)


def test_legal_values_of_llama_70b():
    """64 heads, 8 KV heads, width 28672 = 2^12 x 7: the odd factor of one does not divide the other."""
    workload = Training(seq_len=24, global_batch=6)
    space = legal_space(read_model("llama-3.1-70b"), read_cluster("dgx-h100:4"), workload, {})

    assert space.tp == (1, 2, 4, 8, 16, 32)
    assert space.cp == (1, 2, 3, 4, 6, 12)
    assert space.pp == tuple(range(1, 33))
    assert space.dp == (1, 2, 3, 6)
    assert (space.ep, space.etp, space.zero) == ((1,), (1,), (0, 1, 2, 3))
    assert space.described()["axes"]["pp"] == "1 to 32, all"


def test_odd_numbers_of_experts_and_heads():
    config = tiny_config(num_attention_heads=6, num_key_value_heads=3, hidden_size=96, intermediate_size=36)
    config |= {"model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2}
    space = legal_space(read_config(config, "moe"), small_cluster(8), Training(seq_len=64, global_batch=8), {})

    assert space.tp == (1, 3, 6)
    assert space.ep == (1, 2, 3, 6)
    assert space.etp == (1, 2, 3, 4, 6)


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        ({"tp": 3}, "tp=3 is not legal.*8 KV heads; legal on this cluster: 1, 2, 4, 8"),
        ({"cp": 5}, "cp=5 is not legal: 2\\*cp must divide the sequence of 64"),
        ({"pp": 33}, "pp=33 is not legal: one stage a layer"),
        ({"dp": 5}, "dp=5 is not legal: dp must divide the global batch of 8"),
        ({"ep": 2}, "ep=2 is not legal"),
    ],
)
def test_illegal_pins_are_refused_with_the_legal_values(pins, words):
    with pytest.raises(BadInput, match=words):
        legal_space(read_model("llama-3.1-8b"), read_cluster("dgx-h100:1"), Training(seq_len=64, global_batch=8), pins)


@examples(60)
@given(instances(most_devices=8))
def test_degree_table_by_counting(it):
    space = space_of(it)
    if space is None:
        return
    table = degree_table(space)
    found = set(zip(*(getattr(table, n).tolist() for n in ("tp", "cp", "pp", "dp", "micro_batch")), strict=True))
    batch = it.workload.global_batch
    wanted = {
        (tp, cp, pp, dp, micro)
        for tp, cp, pp, dp in itertools.product(space.tp, space.cp, space.pp, space.dp)
        for micro in range(1, batch + 1)
        if tp * cp * pp * dp <= it.cluster.devices and batch % (dp * micro) == 0
        if it.pinned("micro_batch", micro) and it.pinned("devices", tp * cp * pp * dp)
    }

    assert found == wanted
    assert len(table) == len(wanted)


@given(
    st.tuples(*[st.sampled_from([1, 2, 3, 4, 6])] * 3),
    st.sampled_from([(8, 4), (6, 3), (4,), (4, 2, 2)]),
    st.sampled_from([2, 4, 8]),
)
def test_placements_by_counting(degrees, capacity, host):
    """Exactly the factorings with room on every level whose hosts are whole or equally used."""
    wanted = set()
    for way in itertools.product(*(factorings(degree, len(capacity)) for degree in degrees)):
        used = [math.prod(axis[k] for axis in way) for k in range(len(capacity))]
        whole = used[0] <= host or used[0] % host == 0
        if whole and all(u <= c for u, c in zip(used, capacity, strict=True)):
            wanted.add(way)
    found = placements(degrees, capacity, HostShape.of(host, capacity, 1))

    assert set(found) == wanted
    assert len(found) == len(wanted)


def factorings(degree, levels):
    every = itertools.product(range(1, degree + 1), repeat=levels)
    return [f for f in every if math.prod(f) == degree]


def test_innermost_goes_as_deep_as_it_fits():
    assert innermost(np.array([1, 6, 8, 12, 32]), (8, 4)).tolist() == [[1, 1], [6, 1], [8, 1], [6, 2], [8, 4]]
