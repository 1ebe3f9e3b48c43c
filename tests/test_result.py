"""The saved plan: out and in without loss; anything changed in it is refused, or still the same plan."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import make_plan
from pydantic import TypeAdapter

from planner.api import plan
from planner.checks.verify import verify
from planner.errors import BadInput, UnknownName
from planner.explanations.mine import inputs_of
from planner.plan_text import LARGEST_FILE_BYTES
from planner.result import Plan, StrategyRecord

PLAN = plan("tiny-llama", "cpu-local", alternatives=2)
DATA = json.loads(PLAN.to_json())
MODEL, CLUSTER = inputs_of(PLAN)


def paths(value: Any, at: tuple = ()) -> list[tuple]:
    """Every place inside a JSON value."""
    if isinstance(value, dict):
        return [at, *(p for key in value for p in paths(value[key], (*at, key)))]
    if isinstance(value, list):
        return [at, *(p for k, item in enumerate(value) for p in paths(item, (*at, k)))]
    return [at]


PLACES = [path for path in paths(DATA) if path]


def changed(path: tuple, new: Any) -> dict[str, Any]:
    data = copy.deepcopy(DATA)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return data


def test_a_plan_survives_json():
    assert Plan.from_json(PLAN.to_json()) == PLAN
    assert Plan.from_json(PLAN.to_json()).to_json() == PLAN.to_json()


def test_a_plan_survives_a_file(tmp_path):
    PLAN.write(tmp_path)

    assert Plan.load(tmp_path / "plan.json") == PLAN


def test_the_strategy_survives_its_record():
    strategy = PLAN.strategy.strategy()

    assert StrategyRecord.of(strategy) == PLAN.strategy
    assert StrategyRecord.of(strategy).strategy() == strategy


@settings(deadline=None)
@given(st.sampled_from(PLACES), st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.just(10**40),
))  # fmt: skip
def test_a_plan_with_one_value_changed_is_read_as_changed_or_refused(path: tuple, new: Any):
    data = changed(path, new)
    try:
        read = Plan.from_json(json.dumps(data))
    except BadInput as error:
        assert len(str(error)) < 2000
        return
    again = json.loads(read.to_json())
    assert Plan.from_json(read.to_json()) == read
    assert _same_but_for_types(data, again)


def _same_but_for_types(data: Any, again: Any) -> bool:
    """Whether two values agree where ``True``, ``1``, ``1.0``, ``"1"`` and words that pydantic reads so are one."""
    if isinstance(data, dict) and isinstance(again, dict):
        return set(again) >= set(data) and all(_same_but_for_types(data[k], again[k]) for k in data)
    if isinstance(data, list) and isinstance(again, list):
        return len(data) == len(again) and all(map(_same_but_for_types, data, again))
    try:
        if isinstance(again, bool):
            return TypeAdapter(bool).validate_python(data) is again
        return data == again or float(data) == float(again)
    except (TypeError, ValueError):
        return False


NUMBERS = [
    ("objective",), ("bound",), ("gap",), ("step_s",), ("tokens_per_s_per_device",), ("model_flop_utilisation",),
    ("memory_headroom_fraction",), ("memory", 0, "need_bytes"), ("memory", 0, "classes", "weights"),
    ("time", 0, "seconds"),
    ("watts", "facility"), ("joules_per_step",), ("joules_per_token",), ("usd_per_step",), ("cluster", "devices_used"),
    ("cluster", "hosts_used"), ("strategy", "dp_shard"), ("strategy", "zero"), ("strategy", "micro_batch"),
    ("strategy", "micro_batches"), ("strategy", "tp"), ("strategy", "edp"), ("strategy", "layers_per_stage", 0),
    ("strategy", "placement", "tp", 0), ("workload", "global_batch"), ("workload", "seq_len"),
]  # fmt: skip


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
@settings(deadline=None)
@given(factor=st.sampled_from([0.5, 0.99, 1.01, 2, 3]))
def test_a_claim_that_is_changed_does_not_verify(path: tuple, factor: float):
    old = DATA
    for key in path:
        old = old[key]
    new = old * factor if isinstance(old, float) else int(old * factor) + (factor < 1)
    if new == old:
        new = old + 1
    try:
        tampered = Plan.from_json(json.dumps(changed(path, new)))
    except BadInput:
        return
    report = verify(tampered, MODEL, CLUSTER, time_limit_s=10)
    assert not report.ok, (path, old, new)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"), ("{", "not JSON"), ("[" * 100_000, "not JSON"), ("1" * 5000, "not JSON"), ("NaN", "NaN"),
        ("null", "schema_version is None"), ("{}", "schema_version is None"), ('{"schema_version": 2}', "is 2"),
        ('{"schema_version": true}', "True"), ('{"schema_version": 1}', "Field required"),
        ('{"schema_version": 1, "space": {}, "proof": []}', "Field required"),
    ],
)  # fmt: skip
def test_text_that_is_no_plan_is_refused(text: str, says: str):
    with pytest.raises(BadInput, match=says):
        Plan.from_json(text)


def test_an_unknown_field_and_another_space_are_refused():
    with pytest.raises(BadInput, match="colour"):
        Plan.from_json(json.dumps({**DATA, "colour": 1}))
    with pytest.raises(BadInput, match=r"proof\.space"):
        Plan.from_json(json.dumps({**DATA, "space": {"axes": {}}}))
    without = {key: value for key, value in DATA.items() if key != "space"}
    assert Plan.from_json(json.dumps(without)) == PLAN


@pytest.mark.parametrize("name", ["hosts", "devices_per_host", "hosts_used", "devices_used"])
@pytest.mark.parametrize("count", [0, -1])
def test_a_plan_on_no_hosts_or_devices_is_refused(name: str, count: int):
    """Exporters divide by them."""
    with pytest.raises(BadInput, match=f"cluster.{name}"):
        Plan.from_json(json.dumps(changed(("cluster", name), count)))


def test_a_file_that_cannot_be_a_plan_is_not_read(tmp_path):
    huge, binary = tmp_path / "huge.json", tmp_path / "binary.json"
    with huge.open("wb") as file:
        file.truncate(LARGEST_FILE_BYTES + 1)
    binary.write_bytes(b"\x80\x81")

    for path, says in [(tmp_path, "not a file"), ("/dev/zero", "not a file"), (huge, "at most"), (binary, "UTF-8")]:
        with pytest.raises(BadInput, match=says):
            Plan.load(path)


def test_a_target_may_stand_alone_and_an_unknown_one_writes_nothing(tmp_path):
    assert [path.name for path in PLAN.write(tmp_path / "one", "torchrun")] == ["plan.json", "launch.sh"]
    with pytest.raises(UnknownName, match="torchrun"):
        PLAN.write(tmp_path / "none", "torch-run")
    assert not (tmp_path / "none").exists()


def test_a_plan_of_another_models_graph_says_that_it_cannot_be_read_again():
    with pytest.raises(BadInput, match="ModelGraph"):
        inputs_of(make_plan(config=None))


def test_a_plan_is_shown_in_a_notebook_as_escaped_text():
    named = PLAN.model_copy(update={"notes": ["<script>"]})

    assert named._repr_html_().startswith("<pre>")
    assert "<script>" not in named._repr_html_()
