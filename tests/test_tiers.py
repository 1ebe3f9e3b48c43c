"""What moving tensors to memory tiers takes: arithmetic by hand, the panel's pool, published shapes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.estimate import estimate
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.strategy import OFFLOADED, Offload
from cost_models.ticks import Ticks
from cost_models.tiers import LayerBytes, TierRates, kept_share, layer_tiers, tier_rates
from cost_models.workload import Training
from planner.defaults import default_workload
from planner.named import named_strategy
from planner.read_model import read_model
from topologies.errors import BadInput, UnknownName
from topologies.ready import read_cluster
from topologies.resized import resized
from topologies.tiers import Tier, read_tiers, with_tiers

ONE = np.ones(1)


def rates(**changed: float) -> TierRates:
    """One tier: link 10 B/s a direction, port 4 B/s read and 2 B/s written, no pool, nothing beside it."""
    figures = {
        "link": 0.1, "read": 0.25, "write": 0.5, "pool": 0.0, "near": np.inf, "attend": np.inf,
        "latency_s": 0.0, "joules": 0.0, "link_joules": 0.0, "room_bytes": 1e9,
    }  # fmt: skip
    return TierRates(**{name: np.full((1, 1), value) for name, value in (figures | changed).items()})


def sizes(**changed: float) -> LayerBytes:
    plain = {
        "optimizer": 12.0,
        "gradients": 4.0,
        "weights": 2.0,
        "saved": 6.0,
        "checkpoint": 1.0,
        "updated": 4.0,
        "weights_back": 2.0,
    } | changed
    return LayerBytes(**{name: np.array([value]) for name, value in plain.items()})


def shares(**given: float) -> np.ndarray:
    found = np.zeros((1, len(OFFLOADED), 1))
    for name, share in given.items():
        found[0, OFFLOADED.index(name), 0] = share
    return found


def priced(share: np.ndarray, at: TierRates, forward_s: float = 0.0, backward_s: float = 0.0, update_s: float = 0.0):
    return layer_tiers(sizes(), share, at, forward_s * ONE, backward_s * ONE, update_s * ONE, spread=ONE == 0)


def test_the_slowest_part_of_the_way_decides():
    assert rates().seconds(np.array([[8.0]]), np.array([[0.0]])) == 2.0
    assert rates().seconds(np.array([[8.0]]), np.array([[8.0]])) == 6.0
    assert rates(read=0.01, write=0.01).seconds(np.array([[8.0]]), np.array([[5.0]])) == pytest.approx(0.8)
    assert rates(pool=1.0).seconds(np.array([[8.0]]), np.array([[5.0]])) == 13.0
    assert rates(latency_s=3.0).seconds(np.array([[0.0]]), np.array([[0.0]])) == 0.0


def test_activations_hide_behind_their_own_layer():
    cost = priced(shares(activations=0.5), rates(), forward_s=1.0, backward_s=5.0)

    assert cost.forward_s == 3.0 * 0.5 - 1.0
    assert cost.backward_s == 0.0
    assert (cost.forward_left_s, cost.backward_left_s) == (0.0, 5.0 - 3.0 * 0.25)
    assert cost.saved == 3.0
    assert cost.states == 0.0


def test_two_passes_beside_each_other_take_no_less_than_their_traffic():
    """DualPipe's exchange hides in work that a tier's link leaves free; where the link is slower it hides nowhere."""
    model, cluster = read_model("deepseek-v3"), with_tiers(read_cluster("dgx-h100:64"), ("dram",))
    work = Training(seq_len=4096, global_batch=4096)
    degrees = {"pp": 8, "dp": 64, "ep": 64, "micro_batch": 1, "zero": 1, "schedule": "dualpipev"}
    plain = named_strategy(model, cluster, work, degrees)
    moved = dataclasses.replace(plain, offloads=tuple(Offload(it, "dram") for it in ("weights", "activations")))
    found = [
        price(model, cluster, work, Rows.of(it), calibrate(cluster), Ticks.of(model, cluster, work))
        for it in (plain, moved)
    ]
    hidden = [sum(prices.hidden[name] for name in ("forward", "backward")) for prices in found]

    assert (hidden[0][:, 1] > 0).all()
    assert (found[1].forward > found[0].forward)[:, 1].all()
    assert (found[1].hidden["forward"][:, 1] == 0).all()
    assert (hidden[1] <= hidden[0]).all()


def test_checkpoints_are_less_than_activations():
    cost = priced(shares(checkpoints=1.0), rates())

    assert (cost.forward_s, cost.backward_s, cost.saved) == (0.5, 0.25, 1.0)


def test_gradients_are_read_and_written_every_micro_batch_and_weights_read_twice():
    cost = priced(shares(optimizer=1.0, gradients=1.0, weights=1.0), rates())

    assert cost.forward_s == 2.0 * 0.25
    assert cost.backward_s == (2.0 + 4.0) * 0.25 + 4.0 * 0.5
    assert cost.states == 18.0


def test_states_stream_through_the_device_or_are_updated_beside_the_tier():
    streamed = 12.0 * 0.25 + 12.0 * 0.5
    assert priced(shares(optimizer=1.0), rates(), update_s=1.0).update_s == streamed - 1.0
    near = rates(near=0.01)
    assert priced(shares(optimizer=1.0), near).update_s == pytest.approx(4.0 * 0.5 + 2.0 * 0.25)
    assert priced(shares(optimizer=1.0), rates(near=0.2)).update_s == pytest.approx((24.0 + 4.0 + 2.0) * 0.2)


def test_a_shard_of_the_states_takes_a_shard_of_the_gradients():
    """A quarter of 4 B of gradients goes to the processor, and the weights that come of it back."""
    cost = layer_tiers(
        sizes(optimizer=3.0, updated=1.0, weights_back=0.5), shares(optimizer=1.0), rates(near=0.01), *[0.0 * ONE] * 3,
        spread=ONE == 0,
    )
    assert cost.update_s == pytest.approx(1.0 * 0.5 + 0.5 * 0.25)


def test_kept_share():
    assert kept_share(shares(optimizer=0.75), "optimizer") == 0.25
    assert kept_share(shares(optimizer=0.75), "weights") == 1.0


def llama_70b(cluster, *offloads: Offload):
    """70B on 16 H100 hosts with ZeRO-1 over all devices of a stage, and those tensors offloaded."""
    model = read_model("llama-3.1-70b")
    workload, _ = default_workload(model, cluster, seq_len=8192, global_batch=64, precision="bf16", optimizer="adam")
    strategy = named_strategy(model, cluster, workload, {"tp": 8, "pp": 2, "dp": 8, "zero": 1, "micro_batch": 1})
    return estimate(model, cluster, workload, dataclasses.replace(strategy, offloads=offloads))


def tier_s(found) -> float:
    return dict(found.time).get("memory tiers", 0.0) + dict(found.time)["optimizer"]


@pytest.mark.parametrize(("pools", "seconds"), [(1, 6.6), (2, 3.3)])
def test_a_pool_is_one_pipe(pools, seconds):
    """840 GB of Adam's states read and written once a step at 256 GB/s for all hosts together, not at 60 GB/s each."""
    cluster = with_tiers(read_cluster("dgx-h100:16"), (f"cxl-pool:{pools}",))
    found = llama_70b(cluster, Offload("optimizer", "cxl-pool"))

    assert tier_s(found) == pytest.approx(seconds, rel=0.03)


def test_an_optimizer_step_beside_its_memory_takes_the_memory_s_own_bandwidth():
    """30 B a parameter at 8 x 1.1 TB/s a host; 4 B of gradients out and 2 B of weights back stream beside it."""
    cluster = with_tiers(read_cluster("dgx-h100:16"), ("cxl-pnm:8",))
    near = llama_70b(cluster, Offload("optimizer", "cxl-pnm"))
    parameters = 70.55e9 / 16
    inside_s, ways_s = 30 * parameters / 8.8e12, 4 * parameters / 480e9 + 2 * parameters / 480e9
    slow = tuple(dataclasses.replace(tier, update_bytes_per_s=1e12) for tier in cluster.tiers)

    assert tier_s(near) == pytest.approx(max(inside_s, ways_s), rel=0.1)
    inside = llama_70b(dataclasses.replace(cluster, tiers=slow), Offload("optimizer", "cxl-pnm"))
    assert tier_s(inside) == pytest.approx(30 * parameters / 1e12, rel=0.1)


def test_ports_alone_would_take_a_quarter_of_that():
    cluster = with_tiers(read_cluster("dgx-h100:16"), ("cxl-pool",))
    ports = tuple(dataclasses.replace(tier, pool_bytes_per_s=1e15) for tier in cluster.tiers)
    found = llama_70b(dataclasses.replace(cluster, tiers=ports), Offload("optimizer", "cxl-pool"))

    assert tier_s(found) == pytest.approx(1.75, rel=0.03)


@pytest.mark.parametrize("tier", ["nvme", "nvme-pcie5:8", "nvme-remote"])
def test_drives_spend_joules_on_what_they_read_and_write(tier):
    """Adam's 12 B a parameter in and out once a step, at 206 pJ a bit and the facility's PUE."""
    cluster, offload = with_tiers(read_cluster("dgx-h100:16"), (tier,)), Offload("optimizer", tier.partition(":")[0])
    free = tuple(dataclasses.replace(it, joules_per_byte=0.0) for it in cluster.tiers)
    spent, for_nothing = (llama_70b(c, offload) for c in (cluster, dataclasses.replace(cluster, tiers=free)))

    moved_bits = 2 * 12 * 70.55e9 * 8
    pue = cluster.facility.figures.pue.value
    assert spent.joules - for_nothing.joules == pytest.approx(pue * moved_bits * 206e-12, rel=0.01)


def fine_tuning_host(**rates_of: float) -> tuple[Tier, ...]:
    """DRAM and CXL modules of a host with one device, as of arXiv:2507.03305, which calls it a mainstream client.

    Its DRAM is taken as four channels of DDR5-4800 at 79 % of their peak; the paper's figures are not known here.
    """
    dram, cxl = 0.79 * 153.6e9, rates_of.get("cxl", 36e9)
    return (
        Tier("dram", "dram", 1e12, 55e9, dram, dram, 1e-5, update_bytes_per_s=dram),
        Tier("cxl", "cxl", 1e12, 55e9, cxl, cxl, 1e-5, update_bytes_per_s=cxl),
    )


def fine_tuned(cxl: float, *offloads: Offload):
    """A 7B model on one device that recomputes in full, sequences of 4,096, batch 16."""
    model, cluster = read_model("llama-2-7b"), read_cluster("dgx-h100:1")
    cluster = dataclasses.replace(cluster, tiers=fine_tuning_host(cxl=cxl))
    workload, _ = default_workload(model, cluster, seq_len=4096, global_batch=16, precision="bf16", optimizer="adam")
    words = {"tp": 1, "pp": 1, "dp": 1, "micro_batch": 4, "recompute": "full"}
    strategy = named_strategy(model, cluster, workload, words)
    return estimate(model, cluster, workload, dataclasses.replace(strategy, offloads=offloads))


def everything(**tier_of: str) -> tuple[Offload, ...]:
    return tuple(Offload(tensors, tier) for tensors, tier in tier_of.items())


def test_the_optimiser_step_slows_about_four_times_on_cxl():
    """arXiv:2507.03305: about 4 times where states lie naively on CXL."""
    on_cxl, in_dram = (tier_s(fine_tuned(36e9, Offload("optimizer", tier))) for tier in ("cxl", "dram"))

    assert on_cxl / in_dram == pytest.approx(4.0, rel=0.25)


@pytest.mark.parametrize(("modules", "least", "most"), [(1, 0.93, 1.0), (2, 0.97, 1.0)])
def test_placed_by_class_training_keeps_its_speed(modules, least, most):
    """arXiv:2507.03305: 97 to 99 % of the speed of DRAM alone with one card, about 100 % with two."""
    in_dram = fine_tuned(36e9, *everything(optimizer="dram", checkpoints="dram"))
    by_class = fine_tuned(modules * 36e9, *everything(optimizer="dram", checkpoints="cxl"))

    assert least <= in_dram.step_s / by_class.step_s <= most


def test_words_for_tiers():
    cluster = read_cluster("dgx-h100:2")
    assert [tier.name for tier in with_tiers(cluster, ("all",)).tiers] == ["dram", "nvme"]
    assert with_tiers(cluster, ()).tiers == ()
    assert with_tiers(cluster, ("cxl-expander:4",)).tiers[0].capacity_bytes == 4 * 256e9
    with pytest.raises(UnknownName, match=r"no memory tier 'cxl-pol'.*cxl-pool"):
        with_tiers(cluster, ("cxl-pol",))
    with pytest.raises(BadInput, match="given twice"):
        with_tiers(cluster, ("dram", "dram"))
    with pytest.raises(BadInput, match="from 1 to 4096; got '0'"):
        with_tiers(cluster, ("cxl-pool:0",))
    with pytest.raises(BadInput, match="device_link"):
        with_tiers(read_cluster("tpu-v5p-host:2"), ("cxl-pool",))
    with pytest.raises(BadInput, match="no memory tier is known"):
        with_tiers(read_cluster("tpu-v5p-host:2"), ("all",))
    with pytest.raises(BadInput, match="gives a count"):
        read_tiers(("dram:2",), cluster.present_tiers, cluster.host)


def test_devices_of_a_host_and_hosts_of_a_pool_share():
    cluster = with_tiers(read_cluster("dgx-h100:16"), ("dram", "cxl-pool:2"))
    model = read_model("llama-3.1-70b")
    workload, _ = default_workload(model, cluster, seq_len=8192, global_batch=64, precision="bf16", optimizer="adam")
    from cost_models.rows import Rows

    rows = Rows.of(named_strategy(model, cluster, workload, {"tp": 8, "pp": 2, "dp": 8}))
    found = tier_rates(rows.offloading(np.zeros((1, 5, 2)), ("dram", "cxl-pool")), cluster)

    assert found.room_bytes.tolist() == [[2e12 / 8, 2 * 16e12 / 64]]
    assert found.read.tolist() == [[8 / 487e9, 8 / 60e9]]
    assert found.pool.tolist() == [[0.0, 64 / 256e9]]


def test_a_machine_twice_as_fast_has_tiers_twice_as_fast_and_keeps_them_when_it_grows():
    cluster = with_tiers(read_cluster("dgx-h100:2"), ("dram",))
    twice = resized(cluster.scaled(2.0), 4)

    assert twice.tiers[0].read_bytes_per_s == 2 * cluster.tiers[0].read_bytes_per_s
    assert twice.present_tiers[0].latency_s == cluster.present_tiers[0].latency_s / 2


def test_a_cluster_that_is_read_offers_its_tiers_and_uses_none():
    cluster = read_cluster("dgx-h100:2")

    assert [tier.name for tier in cluster.present_tiers] == ["dram", "nvme"]
    assert cluster.tiers == ()


def test_a_tied_head_s_copy_is_updated_wherever_its_states_lie():
    """The last stage of a model with tied ends reduces, updates and gathers a copy of the embedding."""
    cluster, work = with_tiers(read_cluster("dgx-h100:1"), ("dram",)), Training(seq_len=1024, global_batch=16)
    model = read_model("gpt2")
    named = named_strategy(model, cluster, work, {"pp": 2, "dp": 4, "tp": 1, "zero": 1})
    ends = np.array([model.layers - 1]), np.array([model.layers])

    def updated(*tensors: str) -> float:
        offloads = tuple(Offload(name, "dram") for name in tensors)
        rows = Rows.of(dataclasses.replace(named, offloads=offloads))
        prices = price(model, cluster, work, rows, calibrate(cluster), Ticks.of(model, cluster, work))
        chain = Chain(model, prices, 0)
        own = prices.reduce[0, model.order[-1]] + prices.reduce[0, -1]
        assert chain.tail_parts(*ends)["reduce"][0] == own + prices.reduce[0, -2], "layer, head and copy"
        return float(chain.tail_parts(*ends)["update"][0])

    assert updated() < updated("optimizer") <= updated("optimizer", "gradients", "weights")
