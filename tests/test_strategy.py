"""Degrees, their two meshes, stages and placements."""

from __future__ import annotations

import dataclasses

import pytest
from costs import make_strategy

from cost_models.rows import AXIS_FACTORS
from cost_models.strategy import (
    AXES,
    DENSE_ORDER,
    EXPERT_ORDER,
    RECOMPUTE,
    LayerChoice,
    LayerRun,
    ParallelDegrees,
    Stage,
    level_ranks,
)

# Expert degrees divide 2 * 3 * 5 * 7 = 210.
DEGREES = ParallelDegrees(dp_replicate=2, dp_shard=3, cp=5, tp=7, pp=11, ep=15, etp=7)


def test_products_of_primes():
    assert DEGREES.dp == 6
    assert DEGREES.stage_size == 210
    assert DEGREES.world_size == 2310
    assert DEGREES.edp == 2


def test_both_meshes_have_the_same_devices():
    assert DEGREES.edp * DEGREES.ep * DEGREES.etp == DEGREES.dp * DEGREES.cp * DEGREES.tp


def test_every_axis_has_a_degree_a_mesh_and_a_factor():
    names = [axis.name for axis in AXES]

    assert names == list(AXIS_FACTORS) and len(set(names)) == len(names)
    assert all(hasattr(DEGREES, name) for name in names)
    assert [a.name for a in AXES if a.mesh in ("dense", "both")] == list(DENSE_ORDER)
    assert sorted(a.name for a in AXES if a.mesh in ("expert", "both")) == sorted(EXPERT_ORDER)
    taken = {"vocab_tp"}  # ranks of tp and cp, no axis of the mesh
    assert {f.name for f in dataclasses.fields(ParallelDegrees)} == set(names) - {"edp"} | taken


def test_a_stage_counts_its_layers_by_choice():
    stage = Stage((LayerRun(2, LayerChoice("full")), LayerRun(3, LayerChoice("selective")), LayerRun(5)))

    assert stage.layers == 10
    assert [stage.recomputed(kind) for kind in RECOMPUTE] == [5, 3, 2]


def test_layers_per_stage_in_model_order():
    assert make_strategy((3, 1, 2, 4), pp=2).layers_per_stage == (3, 1, 2, 4)


@pytest.mark.parametrize(("level", "ranks"), [(0, 2 * 5), (1, 3 * 7)])
def test_ranks_of_a_level(level, ranks):
    placement = {"tp": (2, 3), "cp": (5, 7), "pp": (11, 13)}

    assert level_ranks(placement, ("tp", "cp"), level) == ranks


@pytest.mark.parametrize(("full", "whole"), [(0, False), (3, False), (4, True), (6, True)])
def test_most_layers_recomputed_whole(full, whole):
    """Of six layers in two stages."""
    counts = (min(full, 3), max(full - 3, 0))
    stages = tuple(Stage((LayerRun(n, LayerChoice("full")), LayerRun(3 - n, LayerChoice("none")))) for n in counts)
    plan = dataclasses.replace(make_strategy((3, 3), pp=2, micro_batch=1, micro_batches=2), stages=stages)

    assert plan.recomputes_whole_layers is whole
