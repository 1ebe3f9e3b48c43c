"""clocks.sh: what it sets on which device, run by bash against a driver that writes down what it is told."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from plans import make_plan

from planner.errors import Unsupported
from planner.export import export
from planner.export.clocks import percent_by_rank

BASH = shutil.which("bash")
SMI = """#!/bin/sh
case "$*" in *clocks.max.sm*) echo 1980 ;; *) echo "$*" >> "$SMI_LOG" ;; esac
"""


def pipeline(clocks=(1.0, 0.9), accelerator="h100-sxm", pp_outside=True):
    """Two stages of two devices on two hosts: a stage a host, or half of each."""
    placement = {axis: [1, 1] for axis in ("cp", "dp_shard", "dp_replicate", "tp", "pp")}
    placement |= {"tp": [2, 1], "pp": [1, 2]} if pp_outside else {"tp": [1, 2], "pp": [2, 1]}
    return make_plan(tp=2, pp=2, placement=placement, clocks=list(clocks), accelerator=accelerator)


def test_ranks_have_the_clocks_of_their_stages():
    assert percent_by_rank(pipeline()) == [100, 100, 90, 90]
    assert percent_by_rank(pipeline(pp_outside=False)) == [100, 90, 100, 90]


@pytest.mark.skipif(BASH is None, reason="clocks.sh is a bash script, and there is no bash here")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["0"], ["--id=0 --reset-gpu-clocks", "--id=1 --lock-gpu-clocks=0,1683"]),
        (["1"], ["--id=0 --reset-gpu-clocks", "--id=1 --lock-gpu-clocks=0,1683"]),
        (["reset"], ["--reset-gpu-clocks"]),
    ],
)
def test_what_the_driver_is_told(words, told, tmp_path):
    assert run(pipeline((1.0, 0.85), pp_outside=False), words, tmp_path) == (0, "", told)


@pytest.mark.skipif(BASH is None, reason="clocks.sh is a bash script, and there is no bash here")
@pytest.mark.parametrize("word", ["2", "x", "-1"])
def test_a_host_the_plan_does_not_have(word, tmp_path):
    code, text, told = run(pipeline(), [word], tmp_path)

    assert code == 2
    assert "numbered 0 to 1" in text
    assert told == []


def run(plan, words, folder):
    """Exit code, complaints and the driver's log of ``clocks.sh``."""
    text, mode = export(plan, ("torchrun",))["clocks.sh"]
    for name, content in (("clocks.sh", text), ("nvidia-smi", SMI)):
        (folder / name).write_text(content)
        (folder / name).chmod(mode)
    log = folder / "log"
    path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SMI_LOG": str(log)}
    done = subprocess.run(
        [BASH, str(folder / "clocks.sh"), *words], env=path, capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stderr, log.read_text().splitlines() if log.exists() else []


def test_full_clocks_need_no_file():
    assert "clocks.sh" not in export(pipeline(()), ("torchrun",))


def test_devices_whose_clocks_cannot_be_set_are_refused_by_name():
    with pytest.raises(Unsupported, match=r"mi300x at 0[.]9"):
        export(pipeline(accelerator="mi300x"), ("torchrun",))
