"""Schedules that split the backward pass: by hand where stages are alike, and against each other."""

import numpy as np
import pytest

from cost_models.zero_bubble import KINDS, OFFSETS, held_bytes, split_step_ticks


def alike(kind, pp=8, micro_batches=32, unit=1000):
    """A step whose stages take ``unit`` ticks for each of forward, input gradient and weight gradient."""
    stages = pp if kind == "zb-h1" else 2 * pp
    once = np.full(stages, unit * pp // stages)
    return split_step_ticks(kind, pp, micro_batches, once, 2 * once, once, 0, np.zeros(pp, dtype=np.int64))


def test_zb_h1_by_hand():
    """(p - 1)(F + B - W) is idle: 96 units of work and 7 of waiting."""
    assert alike("zb-h1") == 103_000


@pytest.mark.parametrize("kind", KINDS)
def test_between_no_bubble_and_1f1b(kind):
    """32 micro-batches of 3 units; 1F1B adds 7 times 3."""
    assert 96_000 <= alike(kind) <= 117_000


def test_less_memory_costs_time():
    kept = np.full(16, 10)
    held = {kind: held_bytes(kind, 8, 64, kept).max() for kind in OFFSETS}
    steps = {kind: alike(kind) for kind in OFFSETS}

    assert held["v-min"] < held["v-half"] < held["zbv"]
    assert steps["v-min"] >= steps["v-half"] >= steps["zbv"]


@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("pp", [2, 3, 4, 6, 16])
def test_every_number_of_stages_runs(kind, pp):
    assert alike(kind, pp=pp, micro_batches=4) > 0
