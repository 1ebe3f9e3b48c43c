"""Limits and Ctrl-C: never late, the best plan so far with a bound that holds, or none and no claim."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from planner import InfeasiblePlan, Plan, SearchGaveUp, plan
from planner.options import read_options
from planner.stopping import gave_up

LATE_S = 2.0
MID = ("llama-3.1-70b", "dgx-h100:16")
"""Proved in 0.2 units of work: a plan after 0.07, then a gap that closes."""


@pytest.fixture(scope="module")
def proved() -> Plan:
    return plan(*MID, alternatives=0)


@pytest.mark.parametrize(
    ("model", "cluster", "limit_s", "more"),
    [
        ("deepseek-v3", "dgx-h100:256", 0.5, {}), ("llama-3.1-8b", "dgx-h100:4", 0.5, {"global_batch": 131072}),
        ("llama-3.1-405b", "dgx-h100:128", 0.5, {}), ("mixtral-8x22b", "dgx-h100:2", 0.3, {}),
        ("llama-3.1-8b", "dgx-h100", 0.2, {"headroom": 0.9}),
    ],
)  # fmt: skip
def test_a_time_limit_holds_whatever_is_being_done(model: str, cluster: str, limit_s: float, more: dict):
    """Tables, schedules, CP-SAT, repairs: all of them end. The processor's time is looked at, as tests share it."""
    began = time.thread_time()
    try:
        it = plan(model, cluster, time_limit_s=limit_s, **more)
    except (SearchGaveUp, InfeasiblePlan):
        it = None

    assert time.thread_time() - began < limit_s + LATE_S
    assert it is None or it.bound <= it.objective


def test_what_is_left_out_of_time_is_true(proved: Plan):
    it = plan(*MID, deterministic_limit=0.1, alternatives=0)

    assert it.status == "feasible"
    assert it.bound <= proved.objective <= it.objective
    assert it.gap == pytest.approx(1 - it.bound / it.objective, abs=1e-12)
    assert any(note.startswith("ended by the deterministic limit") for note in it.notes)


def test_units_of_work_end_at_the_same_place():
    first, second = (plan(*MID, deterministic_limit=0.1, alternatives=0) for _ in range(2))

    assert first.model_dump(exclude={"search_s", "notes"}) == second.model_dump(exclude={"search_s", "notes"})
    assert first.status == "feasible"


def test_more_units_know_more(proved: Plan):
    bounds = [plan(*MID, deterministic_limit=units, alternatives=0).bound for units in (0.1, 0.11)]

    assert bounds == sorted(bounds)
    assert bounds[-1] <= proved.bound


def test_too_few_units_give_up_and_say_so():
    with pytest.raises(SearchGaveUp, match=r"0.01 units of work .* raise the deterministic limit"):
        plan(*MID, deterministic_limit=0.01)


def test_ctrl_c_gives_the_plan_so_far(proved: Plan):
    def stop(stage: str, best: float, bound: float) -> None:
        if best < float("inf"):
            raise KeyboardInterrupt

    it = plan(*MID, progress=stop)

    assert it.status == "feasible"
    assert it.bound <= proved.objective <= it.objective
    assert any(note.startswith("ended by the interrupt") for note in it.notes)


def test_ctrl_c_before_a_plan_passes_through():
    def stop(stage: str, best: float, bound: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan("llama-3.1-405b", "dgx-h100:64", progress=stop)


def test_a_signal_reaches_the_search_wherever_it_is(proved: Plan):
    """Sent once there is a plan, from another thread, to the process itself."""
    sent = threading.Event()

    def later(stage: str, best: float, bound: float) -> None:
        if best < float("inf") and not sent.is_set():
            sent.set()
            sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
            sender.start()
            sender.join()

    it = plan(*MID, progress=later, alternatives=0)
    assert it.objective >= proved.objective * (1 - 1e-12)
    assert it.bound <= proved.objective


def test_the_bound_moves_and_what_is_open_is_told(proved: Plan):
    heard: list[tuple[str, float, float]] = []
    plan(*MID, progress=lambda *said: heard.append(said), alternatives=0)

    bounds = [bound for _, _, bound in heard]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0]
    assert all(bound <= proved.objective * (1 + 1e-12) <= best * (1 + 1e-9) for _, best, bound in heard)
    assert {stage.split()[0] for stage, _, _ in heard} == {"bounding", "proving"}
    assert all("open row" in stage for stage, _, _ in heard)


CHILD = """
import os, signal, sys
from planner import cli
import planner.search.engine as engine
report = engine.Search.report
def stop(self, *said):
    report(self, *said)
    if self.value < float("inf") or {at_once}:
        os.kill(os.getpid(), signal.SIGINT)
engine.Search.report = stop
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["meshwright", "plan", "llama-3.1-70b", "-c", "dgx-h100:16", "--json"]
cli.main()
"""


@pytest.mark.parametrize(("at_once", "code"), [(False, 0), (True, 130)])
def test_the_command_prints_the_plan_so_far_or_ends_with_130(at_once: bool, code: int):
    run = subprocess.run(
        [sys.executable, "-c", CHILD.format(at_once=at_once)], capture_output=True, text=True, timeout=60, check=False
    )

    said = run.stderr.strip().splitlines()
    assert run.returncode == code, run.stderr
    assert len(said) == at_once
    assert not at_once or (said[0].startswith("meshwright: interrupted after") and "no plan was found yet" in said[0])
    assert not at_once or "open rows" in said[0]
    assert (Plan.from_json(run.stdout).status == "feasible") if code == 0 else run.stdout == ""


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "5 degree tuples, which had 0.4 s of it after"), (8.0, "tuples;")])
def test_a_search_that_had_little_of_the_time_says_so(seconds: float, said: str):
    """Reading counts against the limit too: of a model that transformers builds it takes seconds."""
    search = SimpleNamespace(counts={"degrees": 5}, options=read_options(time_limit_s=10.0))
    found = SimpleNamespace(stopped="time limit", seconds=seconds)

    assert said in str(gave_up(search, found))
