"""Facts about launch targets: complete, with sources, and strict."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from golden_plans import rewritten
from plans import make_plan

from planner.errors import PlannerBug, Unsupported
from planner.export import CARRIERS, EXPORTERS, export
from planner.export.facts import FOLDER, checked, flat, target
from planner.export.refusals import has_experts
from planner.strategy_record import OffloadRecord

ROOT = Path(__file__).parent.parent
OWN = {"torchrun", "slurm"}
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


def test_every_exporter_has_its_facts():
    assert set(NAMES) == set(EXPORTERS) - OWN


@pytest.mark.parametrize("name", EXPORTERS)
def test_the_folders_page_says_what_every_target_can(name):
    page = (ROOT / "planner" / "export" / "README.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("| `")]
    row = [line for line in table if f"`{name}`" in line.split("|")[1]]

    assert len(row) == 1
    number = re.search(r"v?[0-9]+[.][0-9.]+[0-9]", target(name).version)[0] if name in NAMES else "2.13"
    assert number in row[0].split("|")[2]


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(CARRIERS)))
def test_every_framework_refuses_offloaded_tensors(name):
    """No file says which share of the optimiser lives in the host's memory, so none is written without it."""
    offload = OffloadRecord(tensors="optimizer", tier="dram", share=0.5)
    plan = make_plan(dp_shard=4, zero=3, precision="bf16", recompute="full" if name == "maxtext" else "none")
    export(plan, (name,))

    with pytest.raises(Unsupported, match="offloading: the plan keeps 50% of optimizer in dram; plan without --tiers"):
        export(rewritten(plan, offloads=[offload]), (name,))


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(CARRIERS)))
def test_what_is_no_decoder_is_refused_where_programs_build_decoders(name):
    """Trainers of any module take an encoder; Megatron's pretrain_gpt.py would train another model than was planned."""
    plan = make_plan(dp_shard=4, zero=3, precision="bf16", recompute="full" if name == "maxtext" else "none")
    encoder = plan.model_copy(update={"model": plan.model.model_copy(update={"is_decoder": False})})
    if name in {"deepspeed", "accelerate", "lightning"}:
        assert export(encoder, (name,))
        return

    with pytest.raises(Unsupported, match=r"its programs build decoders, .*; --target torchrun runs it"):
        export(encoder, (name,))


def test_experts_are_seen_without_a_config():
    plan = make_plan(config=None)
    fewer = plan.model.model_copy(update={"active_parameters": plan.model.parameters - 1})

    assert not has_experts(plan)
    assert has_experts(plan.model_copy(update={"model": fewer}))
    assert has_experts(rewritten(plan, ep=2))


@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_a_source_that_is_listed(name):
    facts = target(name)

    assert facts.version and facts.title
    assert {key.source for key in facts.keys.values()} <= set(facts.sources)
    for key, what in facts.keys.items():
        assert what.least is None or what.most is None or what.least <= what.most, key
        assert not (what.of and what.kind not in ("word", "words")), key
    assert tomllib.loads((FOLDER / f"{name}.toml").read_text())["version"] == facts.version


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"train_batch_sise": 1}, "DeepSpeed 0.19.8 has no setting 'train_batch_sise', .* wrote as 1"),
        ({"zero_optimization.stage": 4}, "must lie between 0.0 and 3.0"),
        ({"zero_optimization.stage": True}, "is no whole"),
        ({"zero_optimization.stage": "1"}, "is no whole"),
        ({"communication_data_type": "fp8"}, "'fp8' is none of fp32, fp16, bf16"),
        ({"bf16.enabled": 1}, "is no yes"),
    ],
)
def test_what_is_not_written(values, text):
    with pytest.raises(PlannerBug, match=text):
        checked("deepspeed", values)


def test_null_and_patterns():
    assert checked("megatron-bridge", {"comm_overlap": None}) == {"comm_overlap": None}
    with pytest.raises(PlannerBug, match="is no whole"):
        checked("megatron-bridge", {"model.num_layers": None})
    with pytest.raises(PlannerBug, match="must be"):
        checked("trainjob", {"metadata.name": "Capitals"})
    assert checked("trainjob", {"data.launch.sh": "x"}) == {"data.launch.sh": "x"}


def test_flat():
    nested = {"a": 1, "b": {"c": [1], "d": {}}, "e": [{"f": 2}, {"g": 3}], "h": None}
    assert flat(nested) == {"a": 1, "b.c": [1], "e[].f": 2, "e[].g": 3, "h": None}
