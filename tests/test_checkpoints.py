"""Checkpoints by hand: bytes, seconds into a store, how often."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import small_model
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.checkpoints import Checkpoint, best_steps, checkpoint, checkpoint_bytes, learnt_parameters
from cost_models.reliability import goodput_fraction
from cost_models.workload import Training
from topologies.catalogue import load
from topologies.ready import read_cluster

MODEL = small_model()
WORK = Training(seq_len=64, global_batch=8)


def stored(cluster, store):
    return dataclasses.replace(read_cluster(cluster), store=load("stores", store))


@pytest.mark.parametrize(
    ("precision", "optimizer", "bytes_each"),
    [("bf16", "adam", 2 + 4 + 8), ("bf16", "sgd", 2 + 4), ("fp32", "adam", 4 + 8)],
)
def test_bytes_a_parameter(precision, optimizer, bytes_each):
    work = Training(seq_len=64, global_batch=8, precision=precision, optimizer=optimizer)

    assert checkpoint_bytes(MODEL, work) == bytes_each * MODEL.parameters


def test_adapters_alone_are_written():
    """Four layers, rank 3: qkv is [32, 16] and output [16, 16]: 3 (48 + 32) each."""
    work = Training(seq_len=64, global_batch=8, tuning="lora", lora_rank=3)

    assert learnt_parameters(MODEL, work) == 4 * 3 * (48 + 32)
    assert checkpoint_bytes(MODEL, work) == 14 * 4 * 3 * 80


def test_a_shared_store_grows_by_units_of_32_hosts():
    """4 GB/s a host written, 20 GB/s a unit: 3 hosts write 12, all 33 of two units 40; twice that is read."""
    size = checkpoint_bytes(MODEL, WORK)
    few = checkpoint(MODEL, stored("dgx-h100:33", "superpod"), WORK, 24, 3, asynchronous=False)
    all_of = checkpoint(MODEL, stored("dgx-h100:33", "superpod"), WORK, 264, 33, asynchronous=False)

    assert few.write_s == pytest.approx(size / 12e9)
    assert all_of.write_s == pytest.approx(size / 40e9)
    assert all_of.read_s == pytest.approx(size / 80e9)
    assert (few.blocked_s, few.behind_s) == (few.write_s, 0)


def test_a_store_of_one_size_and_the_hosts_own_drives():
    """2 TB/s for everybody; two copies at 34 GB/s a host, one read at 55."""
    size = checkpoint_bytes(MODEL, WORK)
    shared = checkpoint(MODEL, stored("dgx-h100:1000", "tectonic"), WORK, 8000, 1000, asynchronous=False)
    local = checkpoint(MODEL, stored("dgx-h100:5", "local-nvme"), WORK, 40, 5, asynchronous=False)

    assert shared.write_s == pytest.approx(size / 2e12)
    assert local.write_s == pytest.approx(2 * size / (5 * 34e9))
    assert local.read_s == pytest.approx(size / (5 * 55e9))


def test_written_behind_the_steps():
    """Each of 24 devices copies its share at 51 GB/s; then a restart needs the one before until it is written."""
    each = checkpoint(MODEL, stored("dgx-h100:33", "superpod"), WORK, 24, 3, asynchronous=True)

    assert each.blocked_s == pytest.approx(checkpoint_bytes(MODEL, WORK) / 24 / 51e9)
    assert each.behind_s == each.write_s > each.blocked_s


def test_the_next_one_waits_until_one_is_written():
    """100 s to write, of which the step waits 10: 90 s of steps of 7 s are 13."""
    each = Checkpoint(1.0, write_s=100.0, read_s=0.0, blocked_s=10.0, behind_s=100.0)

    assert each.least_steps(7.0) == 13
    assert each.least_steps(45.0) == 2
    assert dataclasses.replace(each, blocked_s=100.0).least_steps(7.0) == 1
    assert best_steps(each, 7.0, 60.0, 200.0) == 13


@examples(100)
@given(st.floats(0.1, 100), st.floats(1e-3, 50), st.floats(1, 5), st.floats(0, 1e3), st.floats(100, 1e5), st.booleans())
def test_no_other_number_of_steps_keeps_more(step_s, blocked, slower, restart, mtbf, behind):
    """Against every number of steps up to three times the best and more."""
    write = blocked * slower if behind else blocked
    each = Checkpoint(1.0, write, 0.0, blocked, write if behind else 0.0)
    steps = best_steps(each, step_s, restart, mtbf)
    every = np.arange(each.least_steps(step_s), 3 * steps + 20)

    def kept(n):
        return goodput_fraction(n * step_s, each.blocked_s, each.behind_s, restart, mtbf)

    assert steps >= each.least_steps(step_s)
    assert kept(steps) >= kept(every).max() * (1 - 1e-9)
