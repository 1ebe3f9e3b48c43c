"""Fits of one machine's benchmarks: made-up machines are found again; records become files that plan."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from datetime import date

import numpy as np
import pytest

pytest.importorskip("scipy")

from cost_models.calibration import Collective, calibrate
from cost_models.communication import collective_s
from cost_models.fitting import machine as fitting
from cost_models.fitting.kernels import gemm_kernel
from cost_models.kernels import MovingKernel, moving_s, product_s
from cost_models.measured import OPERATIONS, read_measured
from cost_models.stack import runtime_stack
from planner.machine import fits as machine_fits
from planner.machine.points import Measurement, cluster_tables
from topologies.cluster import Level
from topologies.errors import BadInput
from topologies.readers.tables import cluster_of_text

PEAK, BANDWIDTH = 60e9, 15e9
GEMM = {"launch_us": 4.0, "compute_fraction": 0.7, "memory_fraction": 0.5, "sharpness": 3.0, "waste": 0.05,
        "softness": 0.7, "ramp": 20.0, "split_us": 20.0, "units": 1.0, "grain": 0.125}  # fmt: skip


def repeats(seconds: float, noise: float = 0.0, seed: int = 0) -> list[float]:
    """Three times of one point."""
    return [seconds * float(np.exp(noise * z)) for z in np.random.default_rng(seed).normal(size=3)]


def products(noise: float = 0.0) -> list[fitting.Point]:
    kernel = gemm_kernel(GEMM, 1.0)
    return [
        {"m": m, "n": n, "k": k, "dtype": "float32",
         "seconds": repeats(float(product_s(m, n, k, 4, 4, 4, kernel, PEAK, BANDWIDTH)), noise, seed)}
        for seed, (m, n, k) in enumerate(itertools.product((16, 128, 1024), (64, 512), (64, 512)))
    ]  # fmt: skip


def test_a_made_up_machines_products_are_found_again():
    found = fitting.fit_products(products(), PEAK, BANDWIDTH, 4.0, 1.0)
    noisy = fitting.fit_products(products(noise=0.3), PEAK, BANDWIDTH, 4.0, 1.0)

    assert found.values["compute_fraction"] == pytest.approx(GEMM["compute_fraction"], rel=0.1)
    assert found.values["launch_us"] == pytest.approx(GEMM["launch_us"], rel=0.2)
    assert found.residual < 0.02 < noisy.residual
    assert noisy.spreads["compute_fraction"] > found.spreads["compute_fraction"] > 0


def test_every_constant_stands_with_its_spread_and_residual():
    rows = fitting.fit_products(products(), PEAK, BANDWIDTH, 4.0, 1.0).rows()

    assert set(rows) == set(GEMM)
    assert all(set(row) == {"value", "spread", "residual", "source"} for row in rows.values())


LEVEL = Level("", 4, 1e9, 1e-6, "")
WIRE = {"t0_us": 200.0, "alpha_us": 80.0, "sqrt_us": 0.0, "bandwidth_fraction": 0.6, "crowding": 0.8}


def collectives(members: tuple[int, ...]) -> list[fitting.Point]:
    """An all-gather whose bytes are dearer in larger groups."""
    made = Collective(200e-6, 80e-6, 0.0, 0.6, 0.0, crowding=0.8)
    fits = fitting._Fits((made,))
    return [
        {"operation": "all_gather", "factors": [n], "bytes": size,
         "seconds": repeats(float(collective_s("all_gather", size, np.array([n]), (LEVEL,), fits)))}
        for n in members
        for size in (2**10, 2**15, 2**20, 2**24)
    ]  # fmt: skip


def test_collectives_are_fitted_through_the_code_that_prices_them():
    found = fitting.fit_collective(collectives((2, 4)), (LEVEL,), None)
    alone = fitting.fit_collective(collectives((2,)), (LEVEL,), None)

    assert found.residual < 0.03
    assert found.values["crowding"] == pytest.approx(0.8, rel=0.15)
    assert found.values["bandwidth_fraction"] == pytest.approx(0.6, rel=0.1)
    assert "crowding" not in alone.values


def record() -> Measurement:
    """What a calibration job of two ranks on a made-up machine would have written."""
    moved = MovingKernel(3e-6, 0.0, 0.8, 0.0)
    layers = [
        {"hidden": 64, "tokens": 128, "width": 64, "tp": tp, "pass": name, "seconds": repeats(seconds)}
        for tp, scale in ((1, 1.0), (2, 6.0))
        for name, seconds in (("forward", 2e-3 * scale), ("backward", 4e-3 * scale))
    ]
    points = {
        "products": products(),
        "transfers": [{"bytes": b, "seconds": repeats(float(moving_s(b, moved, BANDWIDTH)))}
                      for b in (2**12, 2**20, 2**26)],
        "attentions": [{"heads": 2, "length": s, "size": 64, "pass": name, "seconds": repeats(s * s * cost)}
                       for s in (64, 256) for name, cost in (("forward", 1e-8), ("backward", 3e-8))],
        "layers": layers[:2], "split layers": layers[2:],
        "recomputed layers": [
            {"hidden": 64, "tokens": 128, "width": 64, "tp": 1, "recompute": kind, "whole_s": 6e-3, "forward_s": 2e-3,
             "seconds": repeats(seconds)}
            for kind, seconds in (("full", 6e-3 + 2e-3 + 10 * 3e-4), ("selective", 6e-3 + 10 * 8e-4))
        ],
        "updates": [{"split": split, "tensors": n, "elements": n, "seconds": repeats(n * each)}
                    for split, each in ((False, 1e-4), (True, 7e-4)) for n in (4, 16)],
        "collectives": [point | {"operation": name} for name in OPERATIONS
                        for point in collectives((2,))],
        "sends": [{"operation": "send", "factors": [2], "bytes": b, "seconds": repeats(2e-4 + b / 5e8)}
                  for b in (2**10, 2**22)],
    }  # fmt: skip
    facts = {"device": "made up", "cores": 2, "threads": 1, "torch": "2.13.0", "backend": "gloo", "device_type": "cpu",
             "memory_bytes": 8e9}  # fmt: skip
    return Measurement(points, facts, 1, 2, 12.0, {"idle_w": 10.0, "busy_w": 50.0}, date(2026, 11, 26))


def test_a_record_becomes_a_cluster_and_its_calibration():
    found = record()
    cluster_text = cluster_tables(found, "made-up")
    text = machine_fits.calibration_text(found, cluster_text)
    cluster = machine_fits.bare_cluster(cluster_text)
    measured = read_measured(text)

    assert (cluster.devices, cluster.accelerator.family) == (2, "cpu")
    assert cluster.memory_bytes == pytest.approx(0.9 * 8e9 / 2, rel=1e-3)
    assert cluster.accelerator.figures.board_power.value == 25.0
    assert cluster.peak_flop_per_s("fp32") == pytest.approx(fitting.best_flop_per_s(found.points["products"]), rel=1e-3)
    assert tomllib.loads(cluster_text)["calibration"] == "calibration.toml"
    assert measured.machine.rates["fp32"] == cluster.peak_flop_per_s("fp32")
    assert measured.stack["tensor_us"].value == pytest.approx(100.0, rel=0.05)
    assert measured.stack["split_tensor_us"].value == pytest.approx(700.0, rel=0.05)
    assert measured.stack["overlap_dp"].value == 0.0
    # Ten operators: full recompute takes 300 us of each beside both passes and the forward again; of 800 us of
    # selective, a part is what it repeats.
    assert measured.stack["repeat_full_us"].value == pytest.approx(300.0, rel=0.03)
    assert 500.0 < measured.stack["repeat_selective_us"].value < 800.0
    # Layers split over two ranks take six times as long: DTensors' dispatch, which the host is charged for.
    assert measured.stack["host_scatter"].value > 1.0
    assert cluster_of_text(cluster_text.replace('calibration = "calibration.toml"\n', ""), "a test") == cluster
    assert len(machine_fits.summary(text)) == text.count("spread = ")


def test_the_measured_layer_is_the_priced_one():
    """What the fit of layers leaves is what pricing the same layer with the file says."""
    found = record()
    cluster_text = cluster_tables(found, "made-up")
    text = machine_fits.calibration_text(found, cluster_text)
    cluster = dataclasses.replace(machine_fits.bare_cluster(cluster_text), calibration=text)
    layers = machine_fits._Layers(found.points["layers"], cluster, calibrate(cluster, runtime_stack("cpu")))
    residual = float(np.abs(layers.predicted_s({}) / layers.measured_s - 1).mean())
    assert residual == pytest.approx(read_measured(text).stack["host_us"].residual, abs=0.02)


def test_no_calibration_is_made_for_several_levels_in_a_domain(monkeypatch):
    text = cluster_tables(record(), "made-up")
    cluster = machine_fits.bare_cluster(text)
    parts = dataclasses.replace(cluster, accelerator=cluster.accelerator.model_copy(update={"partitions": 2}))
    monkeypatch.setattr(machine_fits, "bare_cluster", lambda text: parts)
    with pytest.raises(BadInput, match="the cluster 'made-up' has"):
        machine_fits.calibration_text(record(), text)
