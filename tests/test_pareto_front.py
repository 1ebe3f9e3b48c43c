"""``pareto()`` end to end: its ends, what it claims, JSON, table, picture, command, bad input."""

from __future__ import annotations

import json

import matplotlib
import pytest
from command import meshwright, refused

from planner import BadInput, InfeasiblePlan, pareto, plan
from planner.fronts.pareto import Front
from planner.fronts.plot import by_devices

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def front() -> Front:
    return pareto("llama-3.1-8b", "dgx-h100:2", tokens="1T")


def test_ends_of_the_front_are_the_plans_for_one_objective(front):
    """To within the tolerance the fastest, the cheapest and the leanest of all plans are there, never better."""
    best = {objective: plan("llama-3.1-8b", "dgx-h100:2", objective=objective, alternatives=0) for objective in
            ("time", "money", "energy")}  # fmt: skip
    ends = {
        "time": min(it.step_s for it in front.points),
        "money": min(it.usd_per_step for it in front.points),
        "energy": min(it.joules_per_step for it in front.points),
    }
    for objective, it in best.items():
        assert it.objective * (1 - 1e-9) <= ends[objective] <= it.objective * 1.01
    assert front.proved and front.tolerance == 0.01
    assert {it.devices for it in front.points} <= {8, 16}


def test_no_point_is_as_good_as_another(front):
    vectors = [(it.step_s, it.joules_per_step, it.devices) for it in front.points]
    for k, one in enumerate(vectors):
        others = vectors[:k] + vectors[k + 1 :]
        assert not any(all(a <= b for a, b in zip(other, one, strict=True)) for other in others)


def test_a_limit_on_energy_cuts_the_front(front):
    most = sorted(it.joules_per_step for it in front.points)[0] * 1.001
    cut = pareto("llama-3.1-8b", "dgx-h100:2", limits={"step-energy": most})
    assert max(it.joules_per_step for it in cut.points) <= most * (1 + 1e-9)
    assert len(cut.points) < len(front.points) or len(front.points) == 1


def test_json_keeps_everything(front):
    assert Front.from_json(front.to_json()) == front
    for text in ("{", "[]", '{"schema_version": 2}', front.to_json().replace('"points"', '"poinst"')):
        with pytest.raises(BadInput, match="not a front"):
            Front.from_json(text)


def test_the_table_says_what_is_proved(front):
    text = " ".join(front.summary().split())
    assert "every plan of the space has a point here that takes at most 1.000% more time, money and energy" in text
    assert text.count("H100") == 0 and "dgx-h100:2" in text and "training" in text
    assert front._repr_html_().startswith("<pre>")


def test_the_picture_has_a_line_for_every_number_of_devices(front):
    axes = front.plot()
    assert len(axes.lines) == len(by_devices(front))
    drawn = sorted(x for line in axes.lines for x in line.get_xdata())
    assert drawn == pytest.approx(sorted(it.step_s for it in front.points))


def test_the_command_writes_table_json_and_picture(tmp_path):
    picture = tmp_path / "front.png"
    answer = meshwright("pareto", "tiny-llama", "-c", "cpu-local:2", "--plot", str(picture), "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["points"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "proved" in meshwright("pareto", "tiny-llama", "-c", "cpu-local:2", "--tokens", "1B").out


def test_clocks_are_points_and_stand_in_the_table_and_the_space():
    """A front without a cap takes lower clocks for their joules; every point is what the estimate says of it."""
    asked = {"global_batch": 32, "pins": {"tp": 1, "cp": 1, "micro_batch": 1}, "tolerance": 0.05}
    plain, found = (pareto("llama-3.2-1b", "dgx-h100:1", clocks=clocks, **asked) for clocks in (False, True))

    assert found.proved
    assert found.space["axes"]["clock"] and "clock" not in plain.space["axes"]
    assert min(it.joules_per_step for it in found.points) < 0.97 * min(it.joules_per_step for it in plain.points)
    assert min(it.step_s for it in found.points) <= 1.05 * min(it.step_s for it in plain.points)
    assert "of the full clock" in " ".join(found.summary().split())


def test_clocks_of_a_front_of_several_kinds_are_refused():
    said = refused("pareto", "llama-3.1-8b", "-c", "dgx-h100:1+dgx-a100:1", "--clocks")
    assert "clocks" in said and "no lower clock is quicker or rents for less" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tolerance", "0"), "tolerance=0"), (("--plot", "front.txt"), "front.txt"),
        (("--plot", "/no-such-place/front.png"), "no-such-place"), (("--limit", "money=1 USD"), "--tokens"),
        (("--limit", "power=1 kW"), "nearest"),
    ],
)  # fmt: skip
def test_bad_words_are_refused(words, said):
    assert said in refused("pareto", "tiny-llama", "-c", "cpu-local", *words)


def test_nothing_within_the_limits_is_infeasible():
    with pytest.raises(InfeasiblePlan, match="the least step-time of any plan"):
        pareto("tiny-llama", "cpu-local", limits={"step-time": 1e-9})


def test_plan_takes_limits_and_objectives_from_the_command():
    words = ("plan", "tiny-llama", "-c", "cpu-local:2", "--objective", "time,energy", "--slack", "5%", "--tokens", "1B",
             "--limit", "step-time=1 h", "--limit", "money=1 MUSD", "--json")  # fmt: skip
    answer = meshwright(*words)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["options"]["limits"] == {"step-time": 3600.0, "money": 1e6}
    assert [stage["objective"] for stage in found["proof"]["stages"]] == ["time", "energy"]
    assert found["training_run"]["tokens"] == 1e9
