"""Fits: every file's numbers are possible and sourced, every family loads, stacks and changes reach their constants."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest
from costs import OPERATIONS, PRODUCTS, two_hosts
from steady import HOST_US, moved_fit, steady_prices

from cost_models.calibration import FOLDER, OVERLAPS, calibrate
from cost_models.stack import Stack
from topologies.catalogue import load, names
from topologies.ready import cluster_names, read_cluster
from topologies.units import parse_quantity

FILES = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.toml")}
FILES.pop("intervals", None)  # Written from predictions: see test_intervals.py.
COUNTS = ("backward_length", "half_length", "occupancy", "quantise_bytes", "ramp", "softness", "waste")


def entries(table, path=""):
    """Every fit of a file with its path: the tables that name a source."""
    for key, value in table.items():
        if isinstance(value, dict) and key != "sources":
            if "source" in value:
                yield f"{path}{key}", value
            else:
                yield from entries(value, f"{path}{key}.")


FITS = [(f"{file}: {path}", file, entry) for file, table in FILES.items() for path, entry in entries(table)]


def test_each_constant_of_a_collective_is_its_own():
    """What a device's own share counts for comes from the table; larger groups crowd only where that was measured."""
    told, found = FILES["collectives"]["scale_up"]["hopper"], calibrate(read_cluster("dgx-h100:2")).scale_up
    for operation, row in told.items():
        own, multicast = row.get("own", 0.0), row.get("multicast", 0.0)
        assert (found[operation].own, found[operation].multicast, found[operation].crowding) == (own, multicast, 0.0)

    assert any(row.get("own", 0.0) for row in told.values())


def test_every_file_has_fits():
    names = {"collectives", "compute", "kernels", "memory", "power", "stacks"}
    assert {file for _, file, _ in FITS} == set(FILES) == names
    assert len(FITS) > 150


@pytest.mark.parametrize(("file", "fit"), [fit[1:] for fit in FITS], ids=[fit[0] for fit in FITS])
def test_a_fit_is_sourced_and_possible(file, fit):
    assert fit["source"] in FILES[file]["sources"]
    for name, value in fit.items():
        if name.endswith("fraction"):
            assert 0 < value <= (1 if not name.startswith("backward") else 1.05)
        if name.endswith("_us") or name in COUNTS:
            assert value >= 0
    if file != "memory":
        assert 0 <= fit["residual"] < 1
    if "range" in fit:
        low, high = fit["range"]
        assert low <= float(str(fit["value"]).split()[0]) <= high
    if isinstance(fit.get("value"), str):
        assert parse_quantity(fit["value"], "B") >= 0


@pytest.mark.parametrize(
    "fit", [fit for _, _, fit in FITS if fit.get("fit")], ids=[f for f, _, e in FITS if e.get("fit")]
)
def test_what_is_fitted_has_a_prior_inside_its_range(fit):
    (mean, deviation), (low, high) = fit["prior"], fit["range"]

    assert low <= mean <= high and 0 < deviation <= high - low


def test_no_source_is_idle():
    for file, table in FILES.items():
        used = {fit["source"] for _, of, fit in FITS if of == file}
        assert used == set(table["sources"])


@pytest.mark.parametrize("name", cluster_names())
def test_every_cluster_has_a_calibration(name):
    fits = calibrate(read_cluster(name))

    for kernel in (*fits.gemm.values(), fits.moving):
        assert 0 < kernel.memory_fraction <= 1 and kernel.launch_s >= 0
    for kernel in (*fits.gemm.values(), fits.flash):
        assert 0 < kernel.compute_fraction <= 1
    assert set(fits.gemm) >= {"bf16", "fp16", "fp32"} and set(fits.overlap) == set(OVERLAPS)
    assert fits.gemm["fp16"] == fits.gemm["fp32"] == fits.gemm["bf16"]
    assert 0.5 <= fits.sustained <= 1.05 and fits.host_s >= 0 and fits.slowest >= 0 and fits.pointwise > 0
    assert set(fits.scale_up) == set(fits.scale_out) == set(OPERATIONS)
    assert fits.expert_imbalance >= 1 and 0 < fits.p2p_fraction <= 1


def test_every_family_of_the_files_exists():
    families = {load("accelerators", name).family for name in names("accelerators")}
    fabrics = {load("fabrics", name).kind for name in names("fabrics")}

    known = families | set(names("accelerators")) | {"default"}
    kernels = FILES["kernels"]
    for kind in ("gemm", "attention", "moving", "machine"):
        assert set(kernels[kind]) <= known, kind
    assert set(FILES["compute"]["sustained"]) <= known
    assert set(FILES["collectives"]["scale_up"]) - {"default", "pcie"} <= families
    assert set(FILES["collectives"]["scale_out"]) - {"default"} <= families | fabrics


def test_values_are_those_of_the_accelerator():
    gemm, moving = FILES["kernels"]["gemm"]["h100-sxm"]["bf16"], FILES["kernels"]["moving"]["h100-sxm"]
    fits = calibrate(two_hosts())

    assert fits.gemm["bf16"].compute_fraction == gemm["compute_fraction"]
    assert fits.gemm["bf16"].launch_s == pytest.approx(gemm["launch_us"] * 1e-6)
    assert fits.moving.memory_fraction == moving["memory_fraction"]
    assert fits.sustained == FILES["compute"]["sustained"]["hopper"]["value"]


@pytest.mark.parametrize(("kind", "other"), [("flash1", "flash1_triton"), ("flash1_triton", "flash1")])
def test_each_first_flash_attention_runs_at_the_rate_that_its_steps_show(kind, other):
    """Its forward reaches a table's 40 % of A100's peak times that rate, whatever that of the other implementation."""
    cluster, changes = read_cluster("dgx-a100:1"), {f"compute.{kind}.default": 0.5}
    rate = FILES["compute"][kind]["default"]["value"]

    first, second = Stack(attention_kernel=kind), Stack(attention_kernel=other)

    assert calibrate(cluster, first).flash.compute_fraction == pytest.approx(0.4 * rate)
    assert calibrate(cluster, first, changes).flash.compute_fraction == pytest.approx(0.2)
    assert calibrate(cluster, second, changes) == calibrate(cluster, second)


def test_the_second_flash_attention_runs_at_the_rate_of_its_table():
    flash2 = calibrate(read_cluster("dgx-a100:1"), Stack(attention_kernel="flash2")).flash

    assert flash2.compute_fraction == FILES["kernels"]["attention"]["ampere"]["flash2"]["compute_fraction"]


@pytest.mark.parametrize(
    ("cluster", "table"),
    [("dgx-h100:1", "hopper"), ("dgx-a100:1", "ampere"), ("gb200-nvl72:1", "gb200"), ("dgx-b200:1", "blackwell")],
)
def test_sustained_clocks_are_the_accelerators_else_its_familys(cluster, table):
    path = f"compute.sustained.{table}"
    assert calibrate(read_cluster(cluster), changes={path: 0.625}).sustained == 0.625


@pytest.mark.parametrize(
    ("cluster", "table"),
    [("dgx-h200:1", "hopper"), ("gb200-nvl72:1", "blackwell"), ("dgx-a100:1", "default"), ("mi300x:1", "default")],
)
def test_grouped_products_are_those_of_a_familys_kernels(cluster, table):
    assert calibrate(read_cluster(cluster), changes={f"compute.grouped.{table}": 0.625}).grouped_fraction == 0.625


@pytest.mark.parametrize(
    ("cluster", "device", "found"), [("dgx-h100:1", 1.5, 0.375), ("dgx-h100:1", 5.0, 1.0), ("dgx-a100:1", 1.5, 0.25)]
)
def test_interference_is_a_stacks_times_its_devices_and_at_most_all(cluster, device, found):
    changes = {"stacks.default.interference": 0.25, "compute.interference.hopper": device}
    fits = calibrate(read_cluster(cluster), Stack(name="a stack nobody fitted"), changes)

    assert fits.interference == found


@pytest.mark.parametrize("axis", OVERLAPS)
def test_a_stack_has_its_own_overlaps_else_the_defaults(axis):
    tables = FILES["stacks"]
    for name in ("megatron-core", "a stack nobody fitted"):
        expected = tables.get(name, {}).get(f"overlap_{axis}", tables["default"][f"overlap_{axis}"])["value"]
        assert calibrate(two_hosts(), Stack(name=name, release="of no table")).overlap[axis] == expected


@pytest.mark.parametrize(
    ("release", "graphs", "experts", "table"),
    [
        ("26.06", True, True, "from 26.06"),
        ("26.06", True, False, ""),
        ("26.06", False, True, ""),
        ("26.04", True, True, ""),
    ],
)
def test_tokens_travel_beside_compute_where_experts_run_from_a_graph(release, graphs, experts, table):
    name = f"megatron-core {table}".strip()
    expected = FILES["stacks"][name]["overlap_ep_graphed" if table else "overlap_ep"]["value"]
    stack = Stack(release=release, cuda_graphs=graphs, expert_graphs=experts)

    assert calibrate(two_hosts(), stack).overlap["ep"] == expected


def test_changes_reach_the_constant_that_they_name_and_no_other():
    """A path of another stack, or of the default where the stack has its own value, changes nothing."""
    cluster, stack = two_hosts(), Stack()
    plain = calibrate(cluster, stack)

    assert calibrate(cluster, stack, {"stacks.megatron-core.host_us": 7.0}).host_s == pytest.approx(7e-6)
    assert calibrate(cluster, stack, {"compute.shared.quantise_share": 0.25}).quantise_share == 0.25
    assert calibrate(cluster, stack, {"stacks.default.host_us": 7.0}) == plain
    assert calibrate(cluster, stack, {"stacks.llm-foundry.host_us": 7.0}) == plain
    other = Stack(name="a stack nobody fitted")
    moved = calibrate(cluster, other, {"stacks.default.host_us": 7.0})
    assert moved == dataclasses.replace(calibrate(cluster, other), host_s=pytest.approx(7e-6))


def test_every_fitted_constant_moves_some_calibration():
    """Every path that the fit may change is read for some accelerator under some stack and release."""
    tables = FILES["stacks"].items()
    stacks = [Stack(attention_kernel=kind) for kind in ("flash1", "flash1_triton")]
    stacks += [Stack(name=name) for name, table in tables if "stack" not in table]
    stacks += [Stack(name=table["stack"], release=table["releases"][0].replace("[1-8]", "4"), cuda_graphs=True)
               for _, table in tables if "stack" in table]  # fmt: skip
    machines = {cluster.accelerator.family: cluster for cluster in map(read_cluster, cluster_names())}
    machines |= {cluster.accelerator.name: cluster for cluster in map(read_cluster, cluster_names())
                 if cluster.accelerator.name in FILES["compute"]["sustained"]}  # fmt: skip
    pairs = [(machine, stack) for machine in machines.values() for stack in stacks]
    plain = [calibrate(*pair) for pair in pairs]
    for path, file, fit in FITS:
        if fit.get("fit"):
            change = {f"{file}.{path.split(': ')[1]}": fit["value"] * 0.9 + 0.01}
            assert any(calibrate(*pair, change) != old for pair, old in zip(pairs, plain, strict=True)), path


def test_level_0_is_the_scale_up_domain():
    fits = calibrate(two_hosts())
    inner, outer = (FILES["collectives"][side] for side in ("scale_up", "scale_out"))

    assert fits.collective("all_gather", 0).alpha_s == pytest.approx(inner["hopper"]["all_gather"]["alpha_us"] * 1e-6)
    start_s = outer["default"]["all_gather"]["t0_us"] * 1e-6
    assert fits.collective("all_gather", 1).t0_s == fits.collective("all_gather", 2).t0_s == pytest.approx(start_s)


@pytest.mark.parametrize(("cluster", "fabric"), [("p5:2", "efa"), ("dgx-h100:2", "default"), ("a3-mega:2", "ethernet")])
def test_fabrics_have_their_own_fits(cluster, fabric):
    table = FILES["collectives"]["scale_out"][fabric]["all_reduce"]
    found = calibrate(read_cluster(cluster)).scale_out["all_reduce"]

    assert (found.t0_s, found.bandwidth_fraction) == (pytest.approx(table["t0_us"] * 1e-6), table["bandwidth_fraction"])


def test_a_faster_twin_has_shorter_latencies_and_the_same_fractions():
    cluster = two_hosts()
    plain, fast = calibrate(cluster), calibrate(cluster.scaled(4))

    for dtype in PRODUCTS[:4]:
        slow = plain.gemm[dtype]
        starts = {name: getattr(slow, name) / 4 for name in ("launch_s", "split_s", "quantise_launch_s")}
        assert fast.gemm[dtype] == dataclasses.replace(slow, **starts)
    assert fast.flash == dataclasses.replace(plain.flash, launch_s=plain.flash.launch_s / 4)
    moving = {name: getattr(plain.moving, name) / 4 for name in ("launch_s", "root_s")}
    assert fast.moving == dataclasses.replace(plain.moving, **moving)
    assert (fast.host_s, fast.step_s) == (plain.host_s / 4, plain.step_s / 4)
    assert (fast.sustained, fast.slowest, fast.pointwise) == (plain.sustained, plain.slowest, plain.pointwise)
    assert fast.p2p_launch_s == plain.p2p_launch_s / 4
    gather = plain.scale_out["all_gather"]
    assert fast.scale_out["all_gather"] == dataclasses.replace(
        gather, t0_s=gather.t0_s / 4, alpha_s=gather.alpha_s / 4, sqrt_s=gather.sqrt_s / 4
    )


def test_digest_changes_with_any_constant():
    fits = calibrate(two_hosts())
    kernel = dataclasses.replace(fits.gemm["bf16"], launch_s=1.0)
    other = [
        dataclasses.replace(fits, logit_bytes=9.0),
        dataclasses.replace(fits, gemm=fits.gemm | {"bf16": kernel}),
        dataclasses.replace(fits, overlap=fits.overlap | {"dp": 0.5}),
        dataclasses.replace(fits, power_fraction=fits.power_fraction | {"matmul": 0.5}),
    ]

    assert fits.digest == calibrate(two_hosts()).digest
    assert len({fits.digest, *(o.digest for o in other)}) == 5


@pytest.mark.parametrize(("release", "table"), [("25.09", "megatron-core before 25.11"), ("26.02", "default")])
def test_casts_of_experts_take_longer_before_permutations_wrote_them(release, table):
    share, casts = FILES["compute"]["shared"]["expert_quantise_share"], FILES["stacks"][table]["expert_casts"]
    found = calibrate(two_hosts(), Stack(release=release)).expert_quantise_share

    assert found == pytest.approx(share["value"] * casts["value"]) and casts["value"] >= 1


def test_steady_prices_are_the_same_after_any_fit(tmp_path):
    """Every constant that steps are fitted to at the end of its range: other prices, and the same steady ones."""
    cluster, stacks = read_cluster("dgx-h100:2"), [Stack(), Stack(name="torchtitan"), Stack(release="24.05")]
    now, (one, other, moved) = calibrate(cluster), (tmp_path / name for name in ("one", "other", "moved"))

    def steady(folder):
        with steady_prices(folder):
            return [calibrate(cluster, stack) for stack in stacks]

    wanted = steady(one)
    with moved_fit(moved):
        assert calibrate(cluster).digest != now.digest
        assert steady(other) == wanted
    assert [it.host_s for it in wanted] == [HOST_US * 1e-6] * 3
    assert calibrate(cluster) == now
