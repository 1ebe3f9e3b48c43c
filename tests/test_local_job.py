"""Jobs of several processes here: what a failed one says, that none of it is left, ports, and torch that is missing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from planner.errors import BadInput, JobFailed, Unsupported
from planner.machine import local_job
from planner.machine.local_job import Launch, check_port, free_port, run_job


@dataclass(frozen=True)
class Script(Launch):
    """A launcher that is a few lines of Python."""

    text: str = ""

    def words(self) -> list[str]:
        return [sys.executable, "-c", self.text]


def script(text: str) -> Script:
    return Script("", (), 1, text=text)


def gone(pid: int) -> bool:
    """Whether a process ends within two seconds."""
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().split(")")[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_lines_are_heard_while_it_runs():
    heard = []
    run_job([script("print('measuring products'); print('measuring sends')")], 20.0, heard.append)

    assert heard == ["measuring products", "measuring sends"]


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("rank 3 failed: ValueError('of course')", "rank 3 of the job: ValueError('of course')"),
        ("rank 1: tp = 3 does not divide 4", "rank 1 of the job: tp = 3 does not divide 4"),
        ("  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 77)", "rank 1 of the job ended by signal SIGKILL"),
        (
            "  rank      : 0 (local_rank: 0)\n  exitcode  : -15 (pid: 76)\nRoot Cause (first observed failure):\n"
            "  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 77)",
            "rank 1 of the job ended by signal SIGKILL",
        ),
        ("nothing of use", "code 1: nothing of use"),
    ],
)
def test_a_job_that_fails_names_the_rank_and_its_error(printed, said):
    with pytest.raises(JobFailed) as failed:
        run_job([script(f"import sys; print({printed!r}); sys.exit(1)")], 20.0)

    assert said in str(failed.value)


def test_one_that_fails_ends_the_others_and_their_children(tmp_path):
    children = tmp_path / "child"
    other = script(
        "import subprocess, sys, time; from planner.machine.die_with_parent import die_with_parent\n"
        "code = 'from planner.machine.die_with_parent import *; die_with_parent(); import time; time.sleep(60)'\n"
        f"child = subprocess.Popen([sys.executable, '-c', code]); open({str(children)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    bad = script(
        f"import os, time\nwhile not os.path.exists({str(children)!r}): time.sleep(0.05)\ntime.sleep(0.5); 1 / 0"
    )
    with pytest.raises(JobFailed, match="ZeroDivisionError"):
        run_job([other, bad], 20.0)

    assert gone(int(children.read_text()))


def test_a_job_that_hangs_is_ended_at_its_limit():
    began = time.monotonic()
    with pytest.raises(JobFailed, match="did not end within 1 s"):
        run_job([script("import time; time.sleep(60)")], 1.0)

    assert time.monotonic() - began < 8.0


def test_a_port_in_use_is_said():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {port} of this host cannot be listened on"):
            check_port(port)
    check_port(free_port())


def test_without_torch_the_way_out_is_said(monkeypatch):
    monkeypatch.setattr(local_job.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"pip install 'meshwright\[torch\]'"):
        local_job.need_torch("calibrate")


def test_the_command_has_no_shell_and_every_word_for_itself():
    words = Launch(
        "m", ("--plan", "a b; c"), 2, hosts=3, rank=1, address="10.0.0.1", port=7, prefix=("ip", "x")
    ).words()

    assert words[:2] == ["ip", "x"] and words[-3:] == ["m", "--plan", "a b; c"]
    assert words[words.index("--node-rank") + 1] == "1" and words[words.index("--nnodes") + 1] == "3"
    assert os.fspath(sys.executable) in words


@pytest.mark.parametrize(("parent", "code"), [(1, 0), (2, 1)])
def test_a_parent_that_is_process_one_is_no_dead_one(parent, code):
    """The launcher's parent is 1 where this command is a container's first process; another's means that it died."""
    words = (
        "import os, sys; from planner.machine import local_job; os.getppid = lambda: 1\n"
        f"os.getpid = lambda: {parent}; local_job.Launch.words = lambda self: [sys.executable, '-c', '']\n"
        "local_job.run_job([local_job.Launch('m', (), 1)], 20.0)"
    )
    ended = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)

    assert ended.returncode == code
    assert ("JobFailed" in ended.stderr) == bool(code)
