"""Sites by hand: hosts, racks and fans under each cooling; and what is planned on them."""

from __future__ import annotations

import dataclasses

import pytest
from command import meshwright, refused
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.power import static_power
from cost_models.site import at_site, host_peak_w, most_hosts_per_rack, sized
from planner import BadInput, plan
from planner.infrastructure.site import site
from topologies.catalogue import load
from topologies.ready import cluster_names, read_cluster


def in_hall(name, facility, **changes):
    return dataclasses.replace(read_cluster(name), facility=load("facilities", facility), **changes)


AIR, LIQUID = in_hall("dgx-h100", "air"), in_hall("dgx-h100", "liquid")


def test_a_host_at_its_peak_by_hand():
    """8 x 700 W, 2.4 kW of its own of which cold plates save 1.17, 8 ports of 100 W."""
    assert host_peak_w(AIR) == pytest.approx(5600 + 2400 + 800)
    assert host_peak_w(LIQUID) == pytest.approx(5600 + 2400 - 1170 + 800)


def test_fans_are_counted_once():
    """PUE multiplies a host that turns its fans in air, and one without them on cold plates."""
    rows_hosts = [static_power(one_host(), cluster).hosts[0] for cluster in (AIR, LIQUID)]

    assert rows_hosts == [2400, 1230]
    assert in_hall("dgx-h100", "immersion").host_power_w == 2400
    assert in_hall("dgx-a100", "liquid").host_power_w == read_cluster("dgx-a100").host_power_w


def one_host():
    from costs import make_rows

    return make_rows(tp=8)


def test_twenty_megawatts_by_hand():
    """20 MW / (1.7 x 8.8 kW) = 1,336.9; 20 MW / (1.2 x 7.63 kW) = 2,184.4; racks of 5 and 18 by their power."""
    air, liquid = sized(AIR, 20e6), sized(LIQUID, 20e6)

    assert (air.hosts, air.hosts_per_rack, air.racks) == (1336, 5, 268)
    assert (liquid.hosts, liquid.hosts_per_rack, liquid.racks) == (2184, 18, 122)
    assert air.site_peak_w == pytest.approx(1.7 * 1336 * 8800)
    assert air.rack_peak_w == 5 * 8800 <= 50e3


def test_counted_by_another_draw():
    assert sized(AIR, 1e6, 10e3).hosts == 100
    assert sized(AIR, 999_999, 10e3).hosts == 99


def test_a_rack_scale_domain_is_not_cut():
    """18 trays of 4 x 1,200 + 1,870 + 4 x 100 W are 127 kW: nothing in air, whole racks on cold plates."""
    tray = 4 * 1200 + 1870 + 400
    air, liquid = (sized(in_hall("gb200-nvl72", hall), 1e6) for hall in ("air", "liquid"))

    assert air.hosts == air.racks == 0
    assert (liquid.hosts, liquid.racks, liquid.hosts_per_rack) == (int(1e6 / (1.2 * tray)) // 18 * 18, 6, 18)
    assert sized(in_hall("gb200-nvl72", "liquid"), 150e3).hosts == 0


@pytest.mark.parametrize(
    ("name", "facility", "per_rack", "most"),
    [
        ("dgx-h100", "air", None, 5),
        ("dgx-h100", "air", 4, 4),
        ("dgx-h100", "air", 8, 5),
        ("dgx-h100", "immersion", None, 1),
        ("dgx-h100", "immersion", 4, 4),
        ("gb200-nvl72", "liquid", 36, 18),
        ("gb200-nvl72", "air", 9, 7),
    ],
)
def test_hosts_of_a_rack(name, facility, per_rack, most):
    """What the hall cools, what the cluster puts there, whole domains unless the cluster cuts them itself."""
    assert most_hosts_per_rack(in_hall(name, facility, hosts_per_rack=per_rack)) == most


def test_an_open_rack_carries_three_hosts_of_eight_modules():
    """Open Rack v3, 30 kW: 8 OAM x 750 W + 2.4 kW + 8 x 100 W are 9.2 kW a host; Meta puts two in a rack."""
    cluster = read_cluster("grand-teton-mi300x:8")

    assert host_peak_w(cluster) == pytest.approx(8 * 750 + 2400 + 800)
    assert most_hosts_per_rack(cluster) == cluster.hosts_per_rack == 2
    assert most_hosts_per_rack(dataclasses.replace(cluster, hosts_per_rack=4)) == 3
    assert sized(cluster, 1e6).rack_peak_w == pytest.approx(18.4e3)


def test_an_open_rack_planned_to_its_watts():
    """Four racks that may draw 16 kW each: the plan waits until their mean is that; left alone they draw 17.3."""
    free, held = (
        plan("llama-3.1-70b", "grand-teton-mi300x:8", alternatives=0, power_cap=cap) for cap in (None, 1.15 * 4 * 16e3)
    )

    assert rack_w(free, 2) == pytest.approx(17.3e3, rel=0.02)
    assert rack_w(held, 2) == pytest.approx(16e3)
    assert {term.name: term.seconds for term in held.time}["power cap"] > 0
    assert held.step_s > free.step_s


def test_catalinas_racks_draw_what_they_are_said_to():
    """A pod of 72 GPUs is 120 kW in two racks; at its limit the host's trays are 60 kW a rack, its ports beside."""
    cluster = read_cluster("catalina:2")
    found = plan("llama-3.1-70b", cluster, alternatives=0)

    assert (cluster.hosts, cluster.group_capacity, most_hosts_per_rack(cluster)) == (36, (72, 2), 9)
    assert sized(cluster, 1e6).rack_peak_w == pytest.approx(60e3 + 9 * 4 * 100, rel=0.001)
    assert 0.75 * 60e3 < rack_w(found, 9) - 9 * 4 * 100 < 60e3 < cluster.facility.figures.rack_power.value


def rack_w(found, hosts):
    """Mean watts of a full rack of a plan, without PUE."""
    return (found.watts["facility"] - found.watts["cooling"]) / found.cluster.hosts_used * hosts


@examples(120)
@given(
    st.sampled_from(sorted(cluster_names())), st.floats(1e3, 5e7), st.floats(1, 4), st.sampled_from(["air", "liquid"])
)
def test_sites_never_draw_more_than_they_have(name, power_w, more, hall):
    cluster = in_hall(name, hall)
    small, large = sized(cluster, power_w), sized(cluster, power_w * more)

    assert small.hosts <= large.hosts
    assert small.site_peak_w <= power_w * (1 + 1e-9)
    assert small.hosts % max(1, cluster.host.scale_up_devices // cluster.devices_per_host) == 0


def test_a_cluster_of_that_many_hosts():
    it = at_site(LIQUID, 7)

    assert (it.hosts, it.name) == (7, "7 x dgx-h100, liquid")
    assert it.group_capacity == (8, 7)


@pytest.fixture(scope="module")
def small():
    """100 kW: 6 hosts in air, 10 on cold plates, over which 96 sequences do not spread evenly."""
    return site("llama-3.2-1b", "dgx-h100,gb200-nvl72", "100 kW", seq_len=2048, global_batch=96)


def test_plans_change_with_the_cooling(small):
    air, liquid = small.cases[:2]

    assert [case.sized.hosts for case in (air, liquid)] == [6, 10]
    assert air.plan.cluster.hosts_used <= 6 and liquid.plan.cluster.hosts_used <= 10
    assert air.plan.strategy != liquid.plan.strategy
    assert small.best is liquid
    assert "16 of 80 devices stay idle" in small.summary()


def test_all_cases_have_the_same_work(small):
    works = {case.plan.workload for case in small.cases if case.plan is not None}

    assert len(works) == 1
    assert {work.global_batch for work in works} == {96}


def test_what_a_trillion_tokens_take(small):
    case = small.cases[0]
    plan, seconds = case.plan, case.days_per_trillion * 86400

    assert case.tokens_per_s == plan.goodput.effective_tokens_per_s
    assert seconds == pytest.approx(1e12 / case.tokens_per_s)
    assert case.joules_per_trillion == pytest.approx(seconds * plan.watts["facility"])
    assert case.electricity_usd_per_trillion == pytest.approx(case.joules_per_trillion / 3.6e6 * 0.127)
    assert case.rent_usd_per_trillion == pytest.approx(seconds / 3600 * plan.cluster.hosts_used * 8 * 2.95)


def test_what_does_not_fit_says_why(small):
    air, liquid = small.cases[2:]

    assert air.plan is None and liquid.plan is None
    assert "draws 127 kW in its rack, and air cools 50.0 kW" in air.reason
    assert "draws 153 kW at the meter, more than the site's 100 kW" in liquid.reason
    assert air.reason in " ".join(small.summary().split())
    nothing = site("llama-3.1-405b", "dgx-h100", "50 kW", cooling="air")
    assert nothing.best is None and "no plan fits" in nothing.cases[0].reason


def test_by_the_mean_more_hosts_run_under_the_same_watts(small):
    mean = site("llama-3.2-1b", "dgx-h100", "100 kW", cooling=["air"], sized_by="mean", seq_len=2048, global_batch=96)

    assert mean.cases[0].sized.hosts > small.cases[0].sized.hosts
    assert mean.cases[0].plan.watts["facility"] <= 100e3 * (1 + 1e-9)
    assert mean.cases[0].plan.options["power_cap_w"] == 100e3


def test_a_number_of_hosts_in_a_name_is_said_to_be_left_aside():
    found = site("tiny-llama", "dgx-h100:4,dgx-a100", "100 kW", cooling="air", global_batch=96)

    assert found.cases[0].sized.hosts == 6
    assert [it for it in found.notes if "--cluster" in it] == [
        "'dgx-h100:4': the site's power says how many hosts there are, not ':4'; for that many: "
        "meshwright plan --cluster dgx-h100:4"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": "20 m"}, "power: '20 m' is in 'm'; expected 'W'.*'20 MW'"),
        ({"power": -1.0}, "power=-1.0 is watts above 0"),
        ({"power": "0 W"}, "power='0 W' is watts above 0"),
        ({"cooling": "fans"}, "no facility 'fans'"),
        ({"cooling": ""}, "cooling='' names nothing"),
        ({"hosts": []}, r"hosts='\[\]' names nothing"),
        ({"sized_by": "guess"}, "sized_by='guess' is neither"),
        ({"power_cap": "1 MW"}, "power_cap is the site's power here"),
        ({"power": 9e11}, "is absurd; the limit is"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises((BadInput, LookupError), match=message):
        site(**{"model": "llama-3.2-1b", "hosts": "dgx-h100", "power": "1 MW", **options})


def test_the_command():
    words = ("site", "tiny-llama", "dgx-h100", "--power", "100 kW", "--cooling", "air", "--global-batch", "96")
    answer, record = meshwright(*words), meshwright(*words, "--json").json

    assert answer.code == 0, answer.err
    for part in ("tiny-llama on a site of 100 kW", "hosts in use", "a trillion tokens", "electricity", "rent"):
        assert part in answer.out
    assert record["cases"][0]["sized"]["hosts"] == 6
    assert record["cases"][0]["plan"]["cluster"]["hosts"] == 6
    assert "--sized-by 'guess' is neither" in refused(*words, "--sized-by", "guess")
    assert "power: '20' is not a quantity" in refused("site", "tiny-llama", "dgx-h100", "--power", "20")
