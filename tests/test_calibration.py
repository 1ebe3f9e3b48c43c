"""Fits: every file's numbers are possible and sourced, every family loads, draws are a distribution."""

from __future__ import annotations

import dataclasses
import tomllib

import numpy as np
import pytest
from costs import OPERATIONS, two_hosts

from cost_models.calibration import FOLDER, calibrate, draws
from topologies.catalogue import load, names
from topologies.ready import cluster_names, read_cluster
from topologies.units import parse_quantity

FILES = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.toml")}


def entries(table, path=""):
    """Every fit of a file with its path: the tables that hold numbers."""
    for key, value in table.items():
        if isinstance(value, dict) and key != "sources":
            if any(not isinstance(part, dict) for part in value.values()):
                yield f"{path}{key}", value
            else:
                yield from entries(value, f"{path}{key}.")


FITS = [(f"{file}: {path}", file, entry) for file, table in FILES.items() for path, entry in entries(table)]


def test_every_file_has_fits():
    assert {file for _, file, _ in FITS} == set(FILES) == {"collectives", "compute", "memory", "power"}
    assert len(FITS) > 60


@pytest.mark.parametrize(("file", "fit"), [fit[1:] for fit in FITS], ids=[fit[0] for fit in FITS])
def test_a_fit_is_sourced_and_possible(file, fit):
    assert fit["source"] in FILES[file]["sources"]
    for name, value in fit.items():
        if name.endswith("fraction"):
            assert 0 < value <= 1
        if name.endswith("_us"):
            assert value >= 0
    if file != "memory":
        assert 0 < fit["residual"] < 1
    if "range" in fit:
        low, high = fit["range"]
        assert low <= fit["value"] <= high
    if isinstance(fit.get("value"), str):
        assert parse_quantity(fit["value"], "B") > 0


def test_no_source_is_idle():
    for file, table in FILES.items():
        used = {fit["source"] for _, of, fit in FITS if of == file}
        assert used == set(table["sources"])


@pytest.mark.parametrize("name", cluster_names())
def test_every_cluster_has_a_calibration(name):
    fits = calibrate(read_cluster(name))

    for kernel in (*fits.matmul.values(), fits.attention):
        assert 0 < kernel.compute_fraction <= 1 and 0 < kernel.memory_fraction <= 1 and kernel.launch_s >= 0
    assert set(fits.matmul) == {"bf16", "fp8"}
    assert set(fits.scale_up) == set(fits.scale_out) == set(OPERATIONS)
    assert fits.expert_imbalance >= 1 and 0 < fits.p2p_fraction <= 1


def test_every_family_of_the_files_exists():
    families = {load("accelerators", name).family for name in names("accelerators")}
    fabrics = {load("fabrics", name).kind for name in names("fabrics")}

    assert set(FILES["compute"]["family"]) - {"default"} <= families
    assert set(FILES["collectives"]["scale_up"]) - {"default"} <= families
    assert set(FILES["collectives"]["scale_out"]) - {"default"} <= families | fabrics


def test_values_are_those_of_the_accelerators_family():
    hopper = FILES["compute"]["family"]["hopper"]
    fits = calibrate(two_hosts())

    assert fits.matmul["bf16"].compute_fraction == hopper["bf16"]["compute_fraction"]
    assert fits.matmul["bf16"].launch_s == pytest.approx(hopper["bf16"]["launch_us"] * 1e-6)
    assert fits.attention.compute_fraction == hopper["attention"]["compute_fraction"]
    assert fits.attention.memory_fraction == hopper["bf16"]["memory_fraction"]


def test_level_0_is_the_scale_up_domain():
    fits = calibrate(two_hosts())
    inner, outer = (FILES["collectives"][side] for side in ("scale_up", "scale_out"))

    assert fits.collective("all_gather", 0).alpha_s == pytest.approx(inner["hopper"]["all_gather"]["alpha_us"] * 1e-6)
    start_s = outer["default"]["all_gather"]["t0_us"] * 1e-6
    assert fits.collective("all_gather", 1).t0_s == fits.collective("all_gather", 2).t0_s == pytest.approx(start_s)


def test_efa_has_its_own_fits():
    assert calibrate(read_cluster("p5:2")).scale_out["all_reduce"].t0_s == pytest.approx(197e-6)


def test_a_faster_twin_has_shorter_latencies_and_the_same_fractions():
    cluster = two_hosts()
    plain, fast = calibrate(cluster), calibrate(cluster.scaled(4))

    assert fast.matmul["bf16"] == dataclasses.replace(plain.matmul["bf16"], launch_s=plain.matmul["bf16"].launch_s / 4)
    assert fast.p2p_launch_s == plain.p2p_launch_s / 4
    gather = plain.scale_out["all_gather"]
    assert fast.scale_out["all_gather"] == dataclasses.replace(
        gather, t0_s=gather.t0_s / 4, alpha_s=gather.alpha_s / 4, sqrt_s=gather.sqrt_s / 4
    )


def test_digest_changes_with_any_constant():
    fits = calibrate(two_hosts())
    kernel = dataclasses.replace(fits.matmul["bf16"], launch_s=1.0)
    other = [
        dataclasses.replace(fits, logit_bytes=9.0),
        dataclasses.replace(fits, matmul=fits.matmul | {"bf16": kernel}),
        dataclasses.replace(fits, overlap=fits.overlap | {"dp": 0.5}),
        dataclasses.replace(fits, power_fraction=fits.power_fraction | {"matmul": 0.5}),
    ]

    assert fits.digest == calibrate(two_hosts()).digest
    assert len({fits.digest, *(o.digest for o in other)}) == 5


def test_draws_follow_their_seed():
    fits = calibrate(two_hosts())

    assert draws(fits, 3, seed=1) == draws(fits, 3, seed=1)
    assert draws(fits, 3, seed=1) != draws(fits, 3, seed=2)
    assert draws(fits, 5)[:3] == draws(fits, 3)
    assert len({d.digest for d in draws(fits, 5)}) == 5


MOVED = {
    "matmul": (lambda fits: fits.matmul["bf16"].compute_fraction, 0.076),
    "attention": (lambda fits: fits.attention.compute_fraction, 0.139),
    "inside": (lambda fits: fits.scale_up["all_to_all"].bandwidth_fraction, 0.119),
    "interference": (lambda fits: fits.interference, 0.05),
    "p2p": (lambda fits: fits.p2p_fraction, 0.2),
    "grouped": (lambda fits: fits.grouped_fraction, 0.2),
    "imbalance": (lambda fits: fits.expert_imbalance, 0.2),
}


@pytest.mark.parametrize("name", MOVED)
def test_draws_lie_around_the_central_value_as_wide_as_the_residual(name):
    """Half of a log-normal lies below its centre, and its mean absolute log is the residual; cuts lie above it."""
    of, residual = MOVED[name]
    fits = calibrate(two_hosts())
    logs = np.log([of(draw) / of(fits) for draw in draws(fits, 800)])
    kept, sign = (logs[logs > 0], 1) if name == "imbalance" else (logs[logs < 0], -1)

    assert abs(np.median(logs)) < 0.1 * residual
    assert sign * kept.mean() == pytest.approx(residual, rel=0.12)


def test_draws_stay_possible_and_leave_sizes_alone():
    fits = calibrate(two_hosts())
    for draw in draws(fits, 100):
        assert all(part <= 1 for part in (draw.p2p_fraction, draw.grouped_fraction, *draw.overlap.values()))
        assert draw.expert_imbalance >= 1
        assert (draw.context_bytes, draw.logit_bytes) == (fits.context_bytes, fits.logit_bytes)
