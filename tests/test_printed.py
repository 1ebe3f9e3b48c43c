"""What an answer shows when it is printed, stands at the end of a notebook's cell, or inside a list."""

from __future__ import annotations

import pytest

from planner import estimate, pareto, plan

ASKED = ("tiny-llama", "cpu-local:1")


@pytest.fixture(scope="module")
def tiny():
    """A small plan."""
    return plan(*ASKED, global_batch=8, seq_len=128)


def test_printed_plans_are_their_summaries(tiny):
    assert str(tiny) == tiny.summary()
    assert tiny._repr_html_().startswith("<pre>tiny-llama")
    assert str(tiny.why_not("tp=2")) == tiny.why_not("tp=2").summary()


def test_plans_in_a_list_take_a_line_each(tiny):
    assert repr([tiny, tiny]).count("<Plan of tiny-llama on cpu-local:1:") == 2
    assert "\n" not in repr(tiny)
    assert f"step {tiny.step_s:.4g} s, optimal" in repr(tiny)


def test_html_is_escaped(tiny):
    named = tiny.model_copy(update={"model": tiny.model.model_copy(update={"name": "<b>"})})
    assert "<b>" not in named._repr_html_()


def test_fronts_print_their_points():
    front = pareto(*ASKED, global_batch=8, seq_len=128)
    assert str(front) == front.summary()


def test_printed_estimates_say_what_does_not_fit():
    tight = estimate("llama-3.1-70b", "dgx-h100:1", "tp=8")
    lines = str(tight).splitlines()

    assert lines[0].startswith(f"step {tight.step_s:.4g} s")
    assert lines[-2].endswith("on the fullest rank: does not fit")
    terms = [line.split() for line in lines if line.startswith("  ")]
    assert sum(float(words[-3]) for words in terms) == pytest.approx(tight.step_s, rel=1e-3)
    assert "does not fit" not in str(estimate("llama-3.1-8b", "dgx-h100:1", "tp=8"))
