"""Intervals: the spread of a stack, kind and family, else of wider classes; on files made up for the test."""

from __future__ import annotations

import math
import tomllib

import pytest
from costs import expert_layer, small_layer, small_model

from cost_models import intervals
from cost_models.calibration import FOLDER
from cost_models.intervals import at_most, interval, kind_of, told_apart_log
from cost_models.workload import Training

SPREADS = """
[seen]
time = ["h100-sxm"]
memory = ["h100-sxm"]
[time."megatron-core dense hopper"]
log_ratio = [-0.02, 0.03]
[time."megatron-core dense hopper on one host"]
log_ratio = [-0.01, 0.02]
[time."megatron-core dense"]
log_ratio = [-0.1, 0.2]
[time."dense"]
log_ratio = [-0.3, 0.4]
[time."all"]
log_ratio = [-0.5, 0.6]
[time."unseen accelerator dense"]
log_ratio = [-0.6, 0.01]
[time."unseen source"]
log_ratio = [-0.8, 0.65]
[time."by size dense"]
log_ratio = [0.0, 0.7]
[memory."all"]
log_ratio = [-0.05, 0.05]
[memory."unseen source"]
log_ratio = [-0.9, 0.7]
[memory."unseen accelerator dense"]
log_ratio = [-0.2, 0.01]
[pairs]
log_difference = 0.125
"""


@pytest.fixture
def spreads(tmp_path, monkeypatch):
    """Puts a text in the place of ``intervals.toml``, or nothing."""

    def put(text):
        if text:
            (tmp_path / "intervals.toml").write_text(text, encoding="utf-8")
        monkeypatch.setattr(intervals, "FOLDER", tmp_path)
        intervals._tables.cache_clear()

    yield put
    intervals._tables.cache_clear()


@pytest.mark.parametrize(
    ("quantity", "stack", "kind", "family", "low", "high"),
    [
        ("time", "megatron-core", "dense", "hopper", -0.02, 0.03), ("time", "torchtitan", "dense", "hopper", -0.3, 0.4),
        ("time", "megatron-core", "dense", "ampere", -0.1, 0.2),
        ("time", "megatron-core", "moe", "hopper", -0.5, 0.6), ("memory", "megatron-core", "dense", "x", -0.05, 0.05),
    ],
)  # fmt: skip
def test_the_narrowest_class_that_has_a_spread(spreads, quantity, stack, kind, family, low, high):
    spreads(SPREADS)

    assert interval(quantity, 8.0, stack, kind, family, "h100-sxm") == (
        pytest.approx(8 * math.exp(low)),
        pytest.approx(8 * math.exp(high)),
    )


@pytest.mark.parametrize(
    ("accelerator", "by_size", "low", "high"),
    [("h100-sxm", False, -0.02, 0.03), ("abacus", False, -0.6, 0.03), ("h100-sxm", True, -0.02, 0.7),
     ("abacus", True, -0.6, 0.7)],
)  # fmt: skip
def test_what_no_run_has_shown_is_as_wide_as_what_was_left_out_like_it(spreads, accelerator, by_size, low, high):
    """An accelerator, a model's shape: each end the farther one."""
    spreads(SPREADS)
    of = ("megatron-core", "dense", "hopper", accelerator, by_size)

    assert interval("time", 8.0, *of) == (pytest.approx(8 * math.exp(low)), pytest.approx(8 * math.exp(high)))


@pytest.mark.parametrize(
    ("accelerator", "by_size", "low", "high"),
    [("h100-sxm", False, -0.05, 0.05), ("abacus", False, -0.2, 0.05), ("h100-sxm", True, -0.3, 0.3)],
)
def test_memory_that_no_run_has_shown_is_wider_too(spreads, accelerator, by_size, low, high):
    """A model by its size alone, which the made-up file has no range for: as assumed."""
    spreads(SPREADS)
    found = interval("memory", 8.0, "megatron-core", "dense", "hopper", accelerator, by_size)

    assert found == (pytest.approx(8 * math.exp(low)), pytest.approx(8 * math.exp(high)))


@pytest.mark.parametrize(
    ("quantity", "ends"), [("time", (-0.8, 0.65)), ("memory", (-0.9, 0.7)), ("power", (-0.3, 0.3))]
)
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_what_a_source_in_no_table_measured_is_as_wide_as_whole_sources_left_out(spreads, quantity, ends, kind):
    """Whatever the work; power, which no source was left out for, as assumed."""
    spreads(SPREADS)
    found = interval(quantity, 8.0, "", kind, "hopper", "h100-sxm")

    assert found == pytest.approx([8 * math.exp(end) for end in ends])


@pytest.mark.parametrize(("hosts", "high"), [(0, 0.03), (1, 0.02), (2, 0.03)])
def test_one_host_and_several_are_classes_where_they_have_rows(spreads, hosts, high):
    spreads(SPREADS)
    found = interval("time", 8.0, "megatron-core", "dense", "hopper", "h100-sxm", hosts=hosts)

    assert found[1] == pytest.approx(8 * math.exp(high))


@pytest.mark.parametrize("text", ["", SPREADS])
def test_a_quantity_without_spreads_is_within_a_third(spreads, text):
    spreads(text)

    of = ("megatron-core", "dense", "hopper")

    assert interval("power", 100.0, *of) == (pytest.approx(74.08, abs=0.01), pytest.approx(134.99, abs=0.01))


def test_pairs_are_told_apart_by_what_the_file_says(spreads):
    spreads(SPREADS)
    assert told_apart_log() == 0.125


@pytest.mark.parametrize(
    ("fields", "experts", "kind"),
    [
        ({}, False, "dense"), ({}, True, "moe"), ({"tuning": "lora"}, False, "fine-tuning"),
        ({"tuning": "lora"}, True, "fine-tuning"), ({"packed_len": 100.0}, False, "fine-tuning"),
    ],
)  # fmt: skip
def test_kinds_of_work(fields, experts, kind):
    model = small_model((0,), kinds=(expert_layer() if experts else small_layer(),))

    assert kind_of(model, Training(seq_len=512, global_batch=1, **fields)) == kind


def test_the_checked_in_spreads_are_possible():
    """Each has rows behind it and its ends in order; a class that is none of those asked for is never read."""
    path = FOLDER / "intervals.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for quantity, classes in tables.items():
        if quantity == "pairs":
            assert 0 < classes["log_difference"] < 0.5
            continue
        if quantity == "seen":
            assert all("h100-sxm" in classes[measured] for measured in ("time", "memory", "power"))
            continue
        assert quantity in ("time", "memory", "power") and "all" in classes
        for name, spread in classes.items():
            low, high = spread["log_ratio"]
            assert -2 < low <= 0 <= high < 2 and low < high and spread["rows"] >= 1, (quantity, name)
            assert name in ("all", "unseen source") or {"dense", "moe", "fine-tuning"} & set(name.split())


def test_what_a_share_of_runs_is_at_most(spreads):
    """Half are at most what is predicted, 95 of 100 at most the interval's end, 84 at most 1/1.645 of the way."""
    spreads(SPREADS)
    of = ("megatron-core", "dense", "hopper", "h100-sxm")
    found = [math.log(at_most("memory", share, *of)) for share in (0.5, 0.8413, 0.95)]

    assert found == pytest.approx([0.0, 0.05 / 1.645, 0.05], abs=1e-4)


@pytest.mark.parametrize(("full", "high"), [(True, 0.05), (False, 0.02)])
def test_steps_with_full_recompute_are_a_class_where_they_have_rows(spreads, full, high):
    spreads(
        SPREADS + '[time."megatron-core dense hopper on one host with full recompute"]\nlog_ratio = [-0.04, 0.05]\n'
    )
    found = interval("time", 8.0, "megatron-core", "dense", "hopper", "h100-sxm", hosts=1, full_recompute=full)

    assert found[1] == pytest.approx(8 * math.exp(high))
