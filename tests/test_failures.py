"""``meshwright goodput`` and ``plan.under_failures``: one plan under other stores, intervals, spares, fleets."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from command import meshwright, refused
from mixed_cases import ALONE, planned
from mixed_cases import CLUSTER as MIXED
from mixed_cases import MODEL as MIXED_MODEL

from planner import BadInput, Plan, UnknownName, plan, read_cluster
from planner.checks.verify import verify
from planner.failures.goodput_record import GoodputRecord
from planner.failures.under_failures import under_failures
from topologies.catalogue import load

pytestmark = pytest.mark.usefixtures("steady")


@pytest.fixture(scope="module")
def found() -> Plan:
    return plan("llama-3.1-8b", "dgx-h100:2", seq_len=4096, global_batch=64, alternatives=0)


@pytest.fixture(scope="module")
def saved(found: Plan, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(found.to_json())
    return str(path)


def test_a_plan_carries_its_goodput_through_json(found):
    assert Plan.from_json(found.to_json()) == found
    it = found.goodput
    assert it.fraction + math.fsum(it.lost.values()) == pytest.approx(1)
    assert it.effective_tokens_per_s == pytest.approx(
        it.fraction * found.tokens_per_s_per_device * found.cluster.devices_used
    )
    for part in ("goodput  ", "failures  ", "checkpoint  ", "kept  ", "as in llama-3"):
        assert part in found.summary()


def test_plans_from_before_goodput_still_load(found):
    older = json.loads(found.to_json())
    del older["goodput"]
    read = Plan.from_json(json.dumps(older))

    assert read.goodput is None
    assert "failures" not in read.summary()
    assert read.under_failures().goodput == found.under_failures().goodput


@pytest.mark.parametrize(
    ("field", "value"), [("fraction", 0.5), ("interval_steps", 7), ("store", "tectonic"), ("spares", 0)]
)
def test_verify_refuses_another_goodput(found, field, value):
    changed = found.model_copy(update={"goodput": found.goodput.model_copy(update={field: value})})
    report = verify(changed, *inputs(), time_limit_s=5)

    assert report.verdict == "refused"
    assert any(f"goodput.{field} is {value}" in reason for reason in report.reasons)


def inputs():
    from planner.read_model import read_model

    return read_model("llama-3.1-8b"), read_cluster("dgx-h100:2")


def test_records_differ_where_any_number_does(found):
    it = found.goodput
    other = it.model_copy(update={"lost": {**it.lost, "restarts": 0.5}, "range": (0.1, 0.2)})

    assert it.differs_from(it, 1e-9) == []
    assert it.differs_from(other, 1e-9) == ["range", "lost"]
    fewer = GoodputRecord.model_validate({**it.model_dump(), "blasts": it.model_dump()["blasts"][:1]})
    assert it.differs_from(fewer, 1e-9) == ["blasts"]


def test_an_explanation_holds_it():
    it = plan("tiny-llama", "cpu-local", alternatives=0).explain(time_limit_s=5)

    assert it.as_json()["goodput"] == it.plan.goodput.model_dump(mode="json")
    assert "what failures leave" in it.summary() and "as in llama-3" in it.summary()


def test_as_it_is_planned_it_is_reported(found):
    it = found.under_failures()

    assert it.goodput == found.goodput
    assert it.run.seconds == pytest.approx(1e12 / found.goodput.effective_tokens_per_s)
    assert it.run.ideal_s == pytest.approx(it.run.seconds * found.goodput.fraction)
    steps = it.run.seconds / found.step_s
    assert it.run.joules == pytest.approx(steps * found.joules_per_step)
    assert it.run.usd == pytest.approx(steps * found.usd_per_step)
    quick, slow = it.run.seconds_range
    assert it.run.ideal_s <= quick <= it.run.seconds <= slow


def test_each_of_the_others_is_at_its_best(found):
    """Six ways, this one among them; where an interval was asked for, this store's best as well."""
    it, asked = found.under_failures(), found.under_failures(interval_steps=100_000)

    ways = {(one.store, one.asynchronous) for one in (it.goodput, *it.others)}
    assert ways == {(s, a) for s in ("local-nvme", "superpod", "tectonic") for a in (True, False)}
    assert len(it.others) == 5 and len(asked.others) == 6
    assert asked.goodput.interval_steps == 100_000
    assert asked.goodput.fraction < it.goodput.fraction
    waiting = found.under_failures(asynchronous=False).goodput
    assert [one for one in it.others if one.store == "superpod"] == [waiting]


def test_another_fleet_and_store(found):
    it = found.under_failures(fleet="rsc-1", store="local-nvme").goodput

    assert (it.fleet, it.store) == ("rsc-1", "local-nvme")
    assert it.mtbf_s == pytest.approx(86400 / (6.5e-3 * 2), rel=1e-3)
    with pytest.raises(UnknownName, match="no fleet 'llama'"):
        found.under_failures(fleet="llama")
    with pytest.raises(UnknownName, match="no store 'tape'"):
        found.under_failures(store="tape")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval_steps": 0}, "interval_steps=0 is a whole number from 1"),
        ({"spares": -1}, "spares=-1 is a whole number from 0"),
        ({"tokens": 0}, "tokens=0 is a number above 0"),
        ({"tokens": math.nan}, "tokens=nan"),
    ],
)
def test_numbers_out_of_range(found, options, message):
    with pytest.raises(BadInput, match=message):
        found.under_failures(**options)


def test_a_checkpoint_that_is_not_written_when_the_next_begins(found):
    """A store a million times slower: one takes days."""
    slow = load("stores", "superpod").figures
    figures = slow.model_copy(
        update={"host_write_bandwidth": slow.host_write_bandwidth.model_copy(update={"value": 4e3})}
    )
    store = load("stores", "superpod").model_copy(update={"figures": figures, "name": "tape"})
    cluster = dataclasses.replace(read_cluster("dgx-h100:2"), store=store)
    onto_tape = plan("llama-3.1-8b", cluster, seq_len=4096, global_batch=64, alternatives=0)

    with pytest.raises(BadInput, match=r"every 1 steps begins before the last one is written: .* d to 'tape'"):
        onto_tape.under_failures(cluster=cluster, interval_steps=1)
    assert onto_tape.under_failures(cluster=cluster, interval_steps=1, asynchronous=False).goodput.fraction < 0.01


def test_the_command_of_a_saved_plan_and_of_a_model(saved):
    answer = meshwright("goodput", saved, "--tokens", "15T", "--store", "tectonic", "--wait", "--every", "500")

    assert answer.code == 0, answer.err
    for part in ("15 T tokens", "lost to", "what one failure takes", "every 500 steps", "the steps wait"):
        assert part in answer.out
    found = meshwright("goodput", "tiny-llama", "-c", "cpu-local", "--json", "--spares", "0")
    assert found.json["run"]["tokens"] == 1e12
    assert found.json["goodput"]["spares"] == 0


def test_the_command_refuses_what_it_cannot_read(saved):
    assert "tokens='many' is not a number of tokens" in refused("goodput", saved, "--tokens", "many")
    assert "there are: local-nvme, superpod, tectonic" in refused("goodput", saved, "--store", "tectonics")
    assert "leave out --pin" in refused("goodput", saved, "--pin", "tp=4")


def test_mixed_plans_are_taken_where_one_kind_runs_them():
    """The plan on one part alone is that part's; of a pipeline over two kinds the refusal says what to do."""
    alone = planned(**ALONE)
    found = under_failures(alone, model=MIXED_MODEL, cluster=MIXED.parts[1])

    assert found.plan == alone.alone
    with pytest.raises(BadInput, match="plan one of its parts alone"):
        under_failures(planned(), model=MIXED_MODEL, cluster=MIXED)
