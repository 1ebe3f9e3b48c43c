"""``meshwright sweep``: what the words mean, and what is left when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import meshwright, refused
from test_sweep import rows_of

from planner.sweeps import command as sweep_command
from planner.sweeps.sweep import Swept

ROOT = Path(__file__).parent.parent
ONE = ("--model", "llama-3.2-1b", "--cluster", "dgx-h100:1")


@pytest.fixture
def cases(monkeypatch):
    """What the command hands to ``sweep``, which is not run."""
    found: list = []

    def instead(cases, executor, out, resume, **how):
        found.extend(cases)
        return Swept(out, len(cases), 0, {})

    monkeypatch.setattr("planner.sweeps.sweep.sweep", instead)
    return found


def test_words_make_every_combination(cases):
    words = ("--model", "a,b", "--model", "c", "--cluster", "x:{1,2},y:3,4", "--global-batch", "256,512",
             "--objective", "time,money", "--pin", "tp=4,pp=2", "--pin", "tp=8")  # fmt: skip
    assert meshwright("sweep", *words).code == 0

    assert {case.model for case in cases} == {"a", "b", "c"}
    assert {case.cluster for case in cases} == {"x:1", "x:2", "y:3", "y:4"}
    assert {case.options["pins"] for case in cases} == {"tp=4,pp=2", "tp=8"}
    assert {case.options["global_batch"] for case in cases} == {256, 512}
    assert len(cases) == 3 * 4 * 2 * 2 * 2


def test_limits_hold_in_every_case_and_tokens_are_alternatives(cases):
    words = ("--model", "a,b", "--cluster", "x", "--limit", "host-power=8 kW", "--limit", "money=2 MUSD",
             "--tokens", "1T,2T")  # fmt: skip
    assert meshwright("sweep", *words).code == 0

    assert [case.options["limits"] for case in cases] == [["host-power=8 kW", "money=2 MUSD"]] * 4
    assert {case.options["tokens"] for case in cases} == {"1T", "2T"}


def test_tiers_are_alternatives_and_clocks_hold_in_every_case(cases):
    words = ("--model", "a", "--cluster", "x", "--tiers", "dram,nvme", "--tiers", "all", "--clocks")
    assert meshwright("sweep", *words).code == 0

    assert [case.options["tiers"] for case in cases] == ["dram,nvme", "all"]
    assert [case.options["clocks"] for case in cases] == [True, True]


def test_a_file_of_cases(cases, tmp_path):
    (tmp_path / "s.toml").write_text('model = ["a", "b"]\ncluster = "c"\n')
    assert meshwright("sweep", str(tmp_path / "s.toml")).code == 0

    assert [case.model for case in cases] == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--model and --cluster missing"),
        (("--model", "a"), "--cluster missing"),
        ((*ONE, "--global-batch", "256,many"), "'many' is not a whole number"),
        ((*ONE, "--headroom", "some"), "--headroom"),
        (("dgx-h100:2", *ONE), "quote braces"),
        (("s.toml", "--time-limit", "5"), "so do --time-limit"),
        ((*ONE, "--dask", "tcp://127.0.0.1:1", "--workers", "2"), "leave one out"),
        ((*ONE, "--out", "rows.parquet"), "must end in .csv"),
    ],
)
def test_wrong_words_are_refused(words, says):
    assert says in refused("sweep", *words)


def test_one_line_tells_what_happened(tmp_path):
    found = Swept(tmp_path / "s.csv", 1200, 1000, {"optimal": 150, "infeasible": 50})

    assert sweep_command._told(found) == (
        f"1,200 cases: 50 infeasible, 150 optimal; 1,000 were there before; {tmp_path / 's.csv'}"
    )


def test_interrupted_it_leaves_a_valid_file_and_goes_on(tmp_path):
    """Ctrl-C in the middle: exit 130, whole rows, no worker left waiting, and the same words finish it."""
    out = tmp_path / "s.csv"
    command = [sys.executable, "-c", "from planner.cli import main; main()", "sweep", *ONE, "--workers", "1",
               "--global-batch", "8,16,32,64", "--pin", "cp=1,tp=1,pp=1", "--out", str(out)]  # fmt: skip
    run = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while run.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)

    assert run.returncode == 130, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    before = len(rows_of(out))
    assert 1 <= before < 4
    assert out.read_bytes().endswith(b"\n")
    answer = meshwright(*command[3:])
    assert f"{before} were there before" in answer.out
    assert sorted(int(row["global_batch"]) for row in rows_of(out)) == [8, 16, 32, 64]
