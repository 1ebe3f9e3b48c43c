"""What a memory tier is worth: the arithmetic by hand, and the answer of whole plans."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from command import refused

from planner.errors import BadInput
from planner.infrastructure.break_even import BreakEven, Way, break_even, price_per_gb_hour
from planner.infrastructure.break_even_command import answer_text, as_record, energy_text
from topologies.ready import read_cluster

SMALL = {"seq_len": 2048, "global_batch": 32, "pins": "cp=1,micro_batch=1"}


def way(name: str, devices: int, tokens_per_s: float, price: float = 3.6) -> Way:
    """A way that makes so many tokens a second: a step of 1,000 tokens."""
    plan = SimpleNamespace(workload=SimpleNamespace(tokens=1000), step_s=1000 / tokens_per_s)
    return Way(name, plan, devices, price)


def test_by_hand():
    """8 devices at 3.6 USD an hour cost 8 mUSD/s; as they are they make 100 tokens/s, with the tier 120.

    80 uUSD a token times 120 tokens/s is 9.6 mUSD/s, 1.6 more than the rent: 0.2 a device, over 50 GB 4 uUSD/s, which
    is 0.0144 USD a GB and hour. Sixteen devices at 150 tokens/s are dearer a token and do not count.
    """
    found = BreakEven(
        "cxl", way("with", 8, 120), (way("as it is", 8, 100), way("2 hosts", 16, 150)), (), 50.0, None, None
    )

    assert found.best_without.name == "as it is"
    assert found.best_without.usd_per_token == pytest.approx(80e-6)
    assert price_per_gb_hour(found) == pytest.approx(0.0144)


def test_nothing_else_fits_or_nothing_is_used():
    alone = Way("as it is", None, 8, 3.6)
    found = BreakEven("cxl", way("with", 8, 120), (alone,), (), 50.0, None, None)

    assert price_per_gb_hour(found) is None
    assert "pays at any price" in answer_text(found)
    assert price_per_gb_hour(dataclasses.replace(found, without=(way("as it is", 8, 120),), gb_per_device=0.0)) is None


def test_a_model_that_needs_the_tier():
    """1B on one 16 GB device: with the host's memory it trains; the price is that of two devices' work."""
    cluster = read_cluster("jean-zay-v100-16gb:1")
    host = cluster.host.model_copy(update={"devices": 1, "scale_up_devices": 1, "nics": 1})
    level = dataclasses.replace(cluster.levels[0], fanout=1)
    cluster = dataclasses.replace(
        cluster, host=host, levels=(level,), price_usd_per_device_hour=1.0, name="one"
    )  # fmt: skip
    found = break_even("llama-3.2-1b", cluster, "dram", precision="fp16", **SMALL)

    assert found.without[0].plan is None
    assert found.with_tier.plan is not None
    assert found.gb_per_device == pytest.approx(sum(max(it.need_bytes) for it in found.with_tier.plan.tiers) / 1e9)
    fitting = next(it for it in found.without if it.plan is not None)
    spare = fitting.usd_per_token * found.with_tier.tokens_per_s - found.with_tier.usd_per_s
    assert found.usd_per_gb_hour == pytest.approx(spare * 3600 / found.gb_per_device)
    record = json.loads(json.dumps(as_record(found)))
    assert record["without"][0]["step_s"] is None
    told = energy_text(found)
    dram = next(it for it in found.with_tier.plan.moved if it.level == "dram")
    each = dram.joules / found.with_tier.plan.workload.tokens
    assert record["with"][0]["tier_joules_per_token"] == pytest.approx(each) and each > 0
    assert record["with"][0]["joules_per_token"] == found.with_tier.plan.joules_per_token > each
    assert f"takes {found.with_tier.joules_per_token:.3g} J at the meter, {each:.2g} of them" in told
    assert f"{found.best_without.name}: {found.best_without.joules_per_token:.3g}" in told


def test_bad_input():
    cluster = dataclasses.replace(read_cluster("dgx-h100:1"), price_usd_per_device_hour=None)
    with pytest.raises(BadInput, match="price_usd_per_device_hour"):
        break_even("llama-3.2-1b", cluster, "dram")
    assert "cxl-pool" in refused("break-even", "llama-3.2-1b", "--cluster", "dgx-h100:1", "--tier", "cxl-pol")


@pytest.mark.parametrize("tier", ["", " ", "dram,nvme"])
def test_no_tier_and_several_are_refused(tier):
    complaint = refused("break-even", "llama-3.2-1b", "--cluster", "dgx-h100:1", "--tier", tier)
    assert "a break-even is that of one memory tier" in complaint
