"""The pictures' data against the plan's own numbers, and that what is drawn is that data."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from io import BytesIO
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from plans import make_plan

from planner.api import plan
from planner.errors import BadInput, Unsupported
from planner.plots import CLASSES, LIMIT_COLOUR
from planner.read_model import read_config, read_model
from planner.result import Plan, Term

PINS = {
    "1f1b": {"pp": 4, "virtual_stages": 1},
    "interleaved": {"pp": 4, "virtual_stages": 2},
    "one rank": {"pp": 1},
}
PINNED = "pp=2,cp=1,micro_batch=1,zero=1,virtual_stages=1"
ULTRA_SCALE_ORDER = ["weights", "gradients", "optimizer", "activations"]


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    return {name: plan("llama-3.1-8b", "dgx-h100:1", global_batch=16, pins=pins) for name, pins in PINS.items()}


@pytest.fixture(params=PINS)
def it(request, plans) -> Plan:
    return plans[request.param]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


def by_rank(work):
    rows = defaultdict(list)
    for piece in work:
        rows[piece["rank"]].append(piece)
    return rows


def bubble_s(plan_: Plan) -> float:
    return sum(term.seconds for term in plan_.time if term.name == "pipeline bubble")


def capped(plan_: Plan, waits_s: float) -> Plan:
    """The same plan when a power cap makes it wait."""
    term = Term(name="power cap", seconds=waits_s)
    return plan_.model_copy(update={"step_s": plan_.step_s + waits_s, "time": [*plan_.time, term]})


def test_memory_data_sums_to_the_plan(it):
    rows = it.plot.memory_data()

    assert [row["rank"] for row in rows] == list(range(it.strategy.pp))
    assert sum(row["layers"] for row in rows) == it.model.layers
    for row, stage in zip(rows, it.memory, strict=True):
        assert sum(row[name] for name in CLASSES) == pytest.approx(stage.need_bytes, rel=1e-12)
        assert {name: row[name] for name in stage.classes} == stage.classes
        assert (row["need_bytes"], row["limit_bytes"]) == (stage.need_bytes, stage.limit_bytes)


def test_memory_draws_every_class_of_every_rank_in_order(it):
    ax = it.plot.memory()
    rows, drawn = it.plot.memory_data(), [bars.get_label() for bars in ax.containers]

    assert drawn[:4] == ULTRA_SCALE_ORDER == list(CLASSES[:4])
    assert drawn == [name for name in CLASSES if any(row[name] for row in rows)]
    assert len(ax.patches) == len(drawn) * it.strategy.pp
    for row, top in zip(rows, ax.containers[-1], strict=True):
        assert top.get_y() + top.get_height() == pytest.approx(row["need_bytes"] / 1e9)


def test_memory_has_its_limit_its_unit_and_a_legend(it):
    ax = it.plot.memory()
    limits = [line for line in ax.lines if to_rgba(line.get_color()) == to_rgba(LIMIT_COLOUR)]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]

    assert [line.get_ydata()[0] for line in limits] == [pytest.approx(it.memory[0].limit_bytes / 1e9)]
    assert "GB" in ax.get_ylabel()
    assert legend[0].startswith(f"limit {it.memory[0].limit_bytes / 1e9:.1f} GB")
    assert legend[:0:-1] == [bars.get_label() for bars in ax.containers]


def test_a_class_that_is_not_known_is_shown_too(plans):
    stage = plans["one rank"].memory[0]
    other = stage.model_copy(update={"classes": {**stage.classes, "new": 1e9}, "need_bytes": stage.need_bytes + 1e9})
    ax = plans["one rank"].model_copy(update={"memory": [other]}).plot.memory()

    assert ax.containers[-1].get_label() == "new"


def test_timeline_data_is_the_whole_schedule(it):
    """Every forward and backward once, one at a time on each rank, each after the work whose result it needs."""
    strategy = it.strategy
    stages, batches = strategy.pp * strategy.virtual_stages, strategy.micro_batches
    work = it.plot.timeline_data(micro_batches=batches)
    passes = {(w["pass"], w["virtual_stage"], w["micro_batch"]): w for w in work if w["micro_batch"] is not None}

    assert Counter(w["pass"] for w in work) == {
        "forward": stages * batches, "backward": stages * batches, "tail": strategy.pp,
    }  # fmt: skip
    assert len(passes) == 2 * stages * batches
    for row in by_rank(work).values():
        for before, after in pairwise(row):
            assert before["end_s"] <= after["start_s"] + 1e-12
    for (name, stage, batch), piece in passes.items():
        source = ("forward", stage - 1, batch) if name == "forward" else ("backward", stage + 1, batch)
        needs = passes.get(source) or (passes["forward", stage, batch] if name == "backward" else None)
        assert piece["rank"] == stage % strategy.pp
        assert needs is None or needs["end_s"] <= piece["start_s"] + 1e-12


def test_timeline_agrees_with_the_plans_step_and_bubble(it):
    work = it.plot.timeline_data(micro_batches=it.strategy.micro_batches)
    busy = {rank: sum(w["end_s"] - w["start_s"] for w in row) for rank, row in by_rank(work).items()}

    assert max(w["end_s"] for w in work) == pytest.approx(it.step_s, rel=1e-9)
    assert it.step_s - max(busy.values()) == pytest.approx(bubble_s(it), rel=1e-9, abs=1e-9 * it.step_s)


def test_timeline_draws_its_data(it):
    """A box for every piece of work, at its place; its rank's row says how long that rank idles."""
    whole = it.strategy.micro_batches
    ax, work = it.plot.timeline(micro_batches=whole), it.plot.timeline_data(micro_batches=whole)
    boxes = sorted(
        tuple(round(float(edge), 6) for edge in (path.vertices[:, 0].min(), path.vertices[:, 0].max()))
        for collection in ax.collections
        for path in collection.get_paths()
    )
    unit_s = 1.0 if "[s]" in ax.get_xlabel() else 1e-3

    assert boxes == sorted((round(w["start_s"] / unit_s, 6), round(w["end_s"] / unit_s, 6)) for w in work)
    assert ax.get_xlim()[1] == pytest.approx(it.step_s / unit_s)
    assert f"bubble {bubble_s(it) / it.step_s:.1%}" in ax.get_title(loc="left")
    assert "whole step" in ax.get_title(loc="left")
    assert len([text for text in ax.texts if text.get_text().endswith(" idle")]) == it.strategy.pp
    assert [label.get_text() for label in ax.get_yticklabels()] == [str(rank) for rank in range(it.strategy.pp)]


def test_virtual_stages_differ_in_shade_and_tails_are_hatched(plans):
    ax = plans["interleaved"].plot.timeline(micro_batches=16)
    faces = {tuple(c.get_facecolor()[0]) for c in ax.collections if not c.get_hatch()}
    legend = [text.get_text() for text in ax.get_legend().get_texts()]

    assert len(faces) == 4
    assert len([c for c in ax.collections if c.get_hatch()]) == 4
    assert "forward, first of 2 virtual stages" in legend
    assert legend[-1] == "tail"


def test_a_long_step_is_shown_from_its_start(plans):
    """Until the first micro-batches are through, with the others' work in between."""
    it = plans["1f1b"]
    work, ax = it.plot.timeline_data(micro_batches=3), it.plot.timeline(micro_batches=3)
    until_s = max(w["end_s"] for w in work if w["micro_batch"] is not None and w["micro_batch"] < 3)

    assert f"first 3 of {it.strategy.micro_batches} micro-batches" in ax.get_title(loc="left")
    assert all(w["start_s"] < until_s for w in work)
    assert max(w["micro_batch"] for w in work) >= 3
    whole = it.plot.timeline_data(micro_batches=it.strategy.micro_batches)
    assert work == [w for w in whole if w["start_s"] < until_s]


def test_only_steps_that_are_readable_are_shown_whole(plans):
    pins = {"pp": 4, "virtual_stages": 1, "dp": 1, "micro_batch": 1}
    long = plan("llama-3.1-8b", "dgx-h100:1", global_batch=256, pins=pins)

    assert "first 8 of 256" in long.plot.timeline().get_title(loc="left")
    assert "whole step" in plans["1f1b"].plot.timeline().get_title(loc="left")


def test_waiting_for_a_power_cap_is_shown_apart_from_the_bubble(plans):
    it = capped(plans["1f1b"], 0.5)
    waits = [w for w in it.plot.timeline_data(micro_batches=16) if w["pass"] == "power cap"]
    title = it.plot.timeline(micro_batches=16).get_title(loc="left")

    assert [(w["end_s"] - w["start_s"], w["end_s"]) for w in waits] == [(pytest.approx(0.5), it.step_s)] * 4
    assert "0.5 s wait for the power cap" in title
    assert f"bubble {bubble_s(it) / it.step_s:.1%}" in title


def test_both_draw_into_given_axes(plans):
    figure, axes = pyplot.subplots(2)

    assert plans["1f1b"].plot.memory(ax=axes[0]) is axes[0]
    assert plans["1f1b"].plot.timeline(ax=axes[1]) is axes[1]
    figure.savefig(BytesIO(), format="png")
    assert pyplot.get_fignums() == [figure.number]


def test_a_plan_read_back_draws_the_same(plans):
    again = Plan.from_json(plans["interleaved"].to_json())

    assert again.plot.timeline_data() == plans["interleaved"].plot.timeline_data()
    assert again.plot.memory_data() == plans["interleaved"].plot.memory_data()


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "8"])
def test_micro_batches_must_be_a_count(plans, wrong):
    with pytest.raises(BadInput, match=r"micro_batches=.* whole number from 1"):
        plans["1f1b"].plot.timeline_data(micro_batches=wrong)


def test_a_preset_needs_no_config(plans):
    model = plans["1f1b"].model.model_copy(update={"config": None})

    assert plans["1f1b"].model_copy(update={"model": model}).plot.timeline_data()


@pytest.mark.parametrize(
    ("cluster", "asked"),
    [
        ("dgx-h100:2", {"limits": "host-replicas=1", "pins": PINNED + ",dp_replicate=2,tp=2"}),
        ("dgx-h100:2", {"jobs": 2, "tiers": "dram", "pins": PINNED + ",tp=1"}),
    ],
)
def test_the_timeline_is_of_the_cluster_as_it_was_searched(cluster, asked):
    """Hosts numbered for replicas apart, one job's part of it, memory tiers in use."""
    it = plan("llama-3.2-1b", cluster, global_batch=16, seq_len=2048, alternatives=0, **asked)

    assert max(piece["end_s"] for piece in it.plot.timeline_data()) == pytest.approx(it.step_s)


def test_refuses_a_model_it_cannot_read_again():
    with pytest.raises(Unsupported, match="no config of its model 'mine'"):
        make_plan(config=None, name="mine").plot.timeline()


def test_refuses_a_cluster_it_cannot_read_again(plans):
    cluster = plans["1f1b"].cluster.model_copy(update={"source": "gone.toml"})

    with pytest.raises(Unsupported, match=r"cluster 'gone.toml' cannot be read here"):
        plans["1f1b"].model_copy(update={"cluster": cluster}).plot.timeline()


@pytest.mark.parametrize("part", ["model", "cluster", "proof"])
def test_refuses_what_has_changed_since(plans, part):
    field = "cost_model_digest" if part == "proof" else "digest"
    record = getattr(plans["1f1b"], part).model_copy(update={field: "0" * 16})

    with pytest.raises(BadInput, match="has changed since it was planned: digest 0000000000000000, now "):
        plans["1f1b"].model_copy(update={part: record}).plot.timeline_data()


def test_refuses_a_step_that_the_strategy_does_not_come_to(plans):
    with pytest.raises(BadInput, match="but its strategy comes to"):
        plans["1f1b"].model_copy(update={"step_s": plans["1f1b"].step_s * 1.01}).plot.timeline_data()


def test_data_needs_no_matplotlib_and_pictures_say_what_they_need(plans, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert plans["1f1b"].plot.memory_data()
    assert plans["1f1b"].plot.timeline_data()
    for draw in (plans["1f1b"].plot.memory, plans["1f1b"].plot.timeline):
        with pytest.raises(Unsupported, match=r'pip install "meshwright\[plots\]"'):
            draw()


def test_a_plan_of_a_graph_from_a_config_draws_under_its_own_name():
    graph = read_config(read_model("llama-3.1-8b").config, "my-model")

    it = plan(graph, "dgx-h100:1", global_batch=16, pins=PINS["1f1b"])

    assert "my-model" in it.plot.timeline().get_title(loc="left")
