"""Constants measured on a machine: read, converted to a cluster's own figures, in place of those that come along."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cost_models.calibration import calibrate
from cost_models.communication import collective_s
from cost_models.compute import layer_compute
from cost_models.kernels import product_s
from cost_models.measured import OPERATIONS
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.stack import Stack, runtime_stack
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner import plan
from planner.cli import app
from planner.errors import BadInput
from planner.named import named_strategy
from planner.read_model import read_model
from planner.result import Plan
from topologies.cluster import Level
from topologies.ready import read_cluster


def rows(**values: float) -> str:
    """A table's lines, every constant with the same spread and residual."""
    return "\n".join(
        f'{name} = {{ value = {value}, spread = 0.1, residual = 0.07, source = "here" }}'
        for name, value in values.items()
    )


GEMM = {"launch_us": 3.0, "compute_fraction": 0.5, "memory_fraction": 0.25, "sharpness": 3.0, "waste": 0.0,
        "softness": 1.0, "ramp": 0.0, "split_us": 20.0, "units": 1.0, "grain": 0.125}  # fmt: skip
COLLECTIVE = {"t0_us": 300.0, "alpha_us": 20.0, "sqrt_us": 0.0, "bandwidth_fraction": 0.5}
PARTS = [
    ("sources", 'here = "a test"'),
    ("machine", 'accelerator = "cpu"\nprocesses = 2\nhosts = 1\nbackend = "gloo"\nmeasured_on = 2026-11-26\n'
     "took_s = 1.0\nrates = { fp32 = 100e9, memory = 20e9, scale_up = 5e9 }"),
    ("gemm.fp32", rows(**GEMM)),
    ("moving", rows(launch_us=2.0, root_us=0.0, memory_fraction=0.5)),
    *((f"scale_up.{name}", rows(**COLLECTIVE)) for name in OPERATIONS),
    ("p2p", rows(p2p_launch_us=100.0, p2p_fraction=0.5)),
    ("stack", rows(host_us=50.0, pointwise=2.0, tensor_us=100.0, overlap_dp=0.25)),
]  # fmt: skip
TEXT = "\n".join(f"[{name}]\n{body}" for name, body in PARTS)
CLUSTER = dataclasses.replace(read_cluster("cpu-local"), calibration=TEXT)
"""``cpu-local`` says 50 GFLOP/s, 10 GB/s of memory and 10 GB/s between ranks."""

WORK = Training(seq_len=64, global_batch=8, precision="fp32", stack=runtime_stack("cpu"))


def test_fractions_are_converted_to_the_clusters_own_figures():
    fits = calibrate(CLUSTER)

    assert fits.gemm["fp32"].compute_fraction == pytest.approx(0.5 * 100 / 50)
    assert fits.gemm["fp32"].memory_fraction == pytest.approx(0.25 * 20 / 10)
    assert fits.moving.memory_fraction == pytest.approx(0.5 * 20 / 10)
    assert fits.scale_up["all_reduce"].bandwidth_fraction == pytest.approx(0.5 * 5 / 10)
    assert fits.p2p_fraction == pytest.approx(0.5 * 5 / 10)
    assert (fits.gemm["fp32"].launch_s, fits.gemm["fp32"].residual) == (pytest.approx(3e-6), 0.07)
    assert fits.sustained == 1.0


def test_the_runtimes_constants_hold_for_its_stack_alone():
    mine, other = calibrate(CLUSTER, runtime_stack("cpu")), calibrate(CLUSTER, Stack())

    assert (mine.host_s, mine.tensor_s, mine.pointwise) == (pytest.approx(5e-5), pytest.approx(1e-4), 2.0)
    assert mine.overlap["dp"] == 0.25 and other.overlap["dp"] != 0.25
    assert other.tensor_s == 0.0 and other.host_s != mine.host_s


def test_a_faster_twin_divides_what_was_measured_too():
    plain, fast = (calibrate(cluster, runtime_stack("cpu")) for cluster in (CLUSTER, CLUSTER.scaled(4)))

    assert fast.gemm["fp32"].compute_fraction == pytest.approx(plain.gemm["fp32"].compute_fraction)
    assert fast.scale_up["all_gather"].bandwidth_fraction == plain.scale_up["all_gather"].bandwidth_fraction
    for name in ("host_s", "tensor_s", "p2p_launch_s"):
        assert getattr(fast, name) == pytest.approx(getattr(plain, name) / 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('accelerator = "cpu"', 'accelerator = "h100-sxm"'), "measured on 'h100-sxm'"),
        (("launch_us = { value = 3.0", "lunch_us = { value = 3.0"), "lunch"),
        (("compute_fraction = { value = 0.5", "compute_fraction = { value = nan"), "compute_fraction"),
        (("[scale_up.all_to_all]", "[scale_up.all_to_none]"), "all_to_none"),
        (("[machine]", "[machine"), "no TOML"),
        (
            ("[moving]", "[attention.other]\n" + rows(launch_us=1.0) + "\n[moving]"),
            "has other, but may only have fused",
        ),
        (("p2p_launch_us", "p2p_lunch_us"), "has p2p_lunch_us"),
        (("[stack]", "[stack]\n" + rows(clock=1.0)), "has clock"),
        (("overlap_dp", "overlap_xp"), "has overlap_xp"),
        (("[gemm.fp32]", "[gemm.fp31]"), "has fp31"),
        (("[gemm.fp32]", "[gemm.bf16]\n[gemm.fp32]"), "gemm.bf16"),
        (("[moving]", "[moving]\n[power]"), "moving"),
        (("rates = { ", "rates = { foo = 1.0, "), "rates. has foo"),
        (("launch_us = { value = 3.0", "launch_us = { value = -3.0"), "launch_us"),
        (("p2p_fraction = { value = 0.5", "p2p_fraction = { value = 0.0"), "p2p_fraction = 0"),
        (("sharpness = { value = 3.0", "sharpness = { value = 0.0"), "sharpness = 0"),
    ],
)
def test_a_calibration_that_is_none_is_refused(change, said):
    assert change[0] in TEXT
    with pytest.raises(BadInput, match=said):
        calibrate(dataclasses.replace(CLUSTER, calibration=TEXT.replace(*change, 1)))


def test_another_accelerator_is_said_before_its_rates_are_looked_for():
    other = TEXT.replace('accelerator = "cpu"', 'accelerator = "cpu-b"').replace("scale_up = 5e9", "scale_out = 5e9")
    with pytest.raises(BadInput, match="measured on 'cpu-b'"):
        calibrate(dataclasses.replace(CLUSTER, calibration=other))


def test_several_levels_inside_a_domain_are_refused_by_name():
    parts = CLUSTER.accelerator.model_copy(update={"partitions": 2})
    with pytest.raises(BadInput, match=f"one level inside a scale-up domain, but the cluster {CLUSTER.name!r} has "):
        calibrate(dataclasses.replace(CLUSTER, accelerator=parts))


def test_crowding_makes_bytes_dearer_in_larger_groups_only():
    """Four members: log2(4 / 2) = 1, so a byte takes 1 + c times as long; two: as long as before."""
    crowded = TEXT.replace("[scale_up.all_gather]", "[scale_up.all_gather]\n" + rows(crowding=0.75))
    plain, slow = (calibrate(dataclasses.replace(CLUSTER, calibration=text)) for text in (TEXT, crowded))
    level = (Level("", 4, 10e9, 0.0, ""),)

    def per_byte(fits, members):
        sizes = np.array([1e9, 2e9])
        times = [float(collective_s("all_gather", size, np.array([members]), level, fits)) for size in sizes]
        return times[1] - times[0]

    assert per_byte(slow, 4) == pytest.approx(1.75 * per_byte(plain, 4))
    assert per_byte(slow, 2) == pytest.approx(per_byte(plain, 2))


def test_grain_is_the_size_of_a_tile():
    """8 x 16 tiles: a product of one tile takes 1/64 of what one of 64 x 128 takes, once a device has one unit."""
    fine, coarse = (dataclasses.replace(calibrate(CLUSTER).gemm["fp32"], launch_s=0.0, grain=g) for g in (0.125, 1.0))
    small, large = (float(product_s(8, 16, 4096, 4, 4, 4, kernel, 1e9, 1e15)) for kernel in (fine, coarse))

    assert large == pytest.approx(64 * small)


def test_launches_add_to_what_they_launch_where_host_and_device_are_one():
    """Ten operators of a layer at 50 us each, over and above the kernels; the optimiser's 100 us a tensor."""
    model = read_model("tiny-llama")
    rows_of = Rows.of(named_strategy(model, CLUSTER, WORK, {"dp": 1}))
    fits = calibrate(CLUSTER, WORK.stack)
    free = dataclasses.replace(fits, host_s=0.0)
    dear, cheap = (layer_compute(model.kinds[0], rows_of, CLUSTER, WORK, it) for it in (fits, free))

    assert dear.forward.seconds - cheap.forward.seconds == pytest.approx(len(model.kinds[0].operators) * 50e-6)
    assert not any(idle.any() for idle in dear.waiting)
    ticks = Ticks(2.0**-50)
    slow, quick = (
        price(model, CLUSTER, WORK, rows_of, it, ticks).update[0, 0] * ticks.second
        for it in (fits, dataclasses.replace(fits, tensor_s=0.0))
    )
    assert slow - quick == pytest.approx(9 * 100e-6)


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_recompute_takes_its_host_time_for_every_operator(kind):
    """Ten operators at 300 us a layer, in what recompute adds to a backward pass and nowhere else."""
    model, name = read_model("tiny-llama"), f"repeat_{kind}_s"
    rows_of = Rows.of(named_strategy(model, CLUSTER, WORK, {"dp": 1}))
    fits, ticks = calibrate(CLUSTER, WORK.stack), Ticks(2.0**-50)
    free, dear = (
        price(model, CLUSTER, WORK, rows_of, dataclasses.replace(fits, **{name: each}), ticks) for each in (0.0, 3e-4)
    )
    more = {each: int(dear.extra[each][0, 0] - free.extra[each][0, 0]) * ticks.second for each in dear.extra}

    assert more.pop(kind) == pytest.approx(10 * 3e-4)
    assert not any(more.values()) and (dear.backward == free.backward).all()


def test_a_cluster_file_names_its_calibration_and_plans_are_of_the_runtime(tmp_path, capsys):
    (tmp_path / "c.toml").write_text(TEXT)
    (tmp_path / "cluster.toml").write_text(
        'name = "mine"\nhost = "cpu-host"\nfabric = "loopback"\nfacility = "air-average"\ncalibration = "c.toml"\n'
    )
    found = plan("tiny-llama", tmp_path / "cluster.toml", seq_len=64, global_batch=8, alternatives=0)
    given = plan(
        "tiny-llama", "cpu-local:1", seq_len=64, global_batch=8, alternatives=0, calibration=tmp_path / "c.toml"
    )

    assert found.workload.stack == given.workload.stack == runtime_stack("cpu")
    assert found.step_s == pytest.approx(given.step_s)
    assert plan("tiny-llama", "cpu-local:1", seq_len=64, global_batch=8, alternatives=0).workload.stack == Stack()
    (tmp_path / "plan.json").write_text(given.to_json())
    app(["verify", str(tmp_path / "plan.json")], standalone_mode=False)
    assert capsys.readouterr().out.startswith("verified")
    assert Plan.load(tmp_path / "plan.json").options["calibration"] == str(tmp_path / "c.toml")


def test_a_calibration_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(BadInput, match=r"none\.toml cannot be read"):
        plan("tiny-llama", "cpu-local:1", calibration=tmp_path / "none.toml")
