"""``<framework>.sh``: on every host, the plan's ``launch.sh`` with a framework's program and its arguments.

``launch.sh`` numbers hosts, checks and meets; here a framework adds what its own command line has to say, and the
number under which it wants each host, where that is not the plan's.
"""

from __future__ import annotations

from planner.export.facts import target
from planner.export.render import SCRIPT, Files, render
from planner.export.torchrun import torchrun
from planner.result import Plan


def framework_files(
    plan: Plan, name: str, words: list[str], *, hosts: list[int], about: tuple[str, ...] = (),
    environment: dict[str, str] | None = None, program: str | None = None, beside: bool = False,
    files: dict[str, str] | None = None,
) -> Files:  # fmt: skip
    """``<name>.sh`` and ``launch.sh``.

    ``words`` go before the user's arguments; ``hosts`` holds the framework's number of each host of the plan;
    ``program`` what torchrun starts, the user's ``MESHWRIGHT_PROGRAM`` where it is ``None``; ``beside`` says that
    Python has to find modules beside the script; ``files`` are flags with the file beside the script that they name.
    """
    text = render(
        "framework.sh.j2", plan=plan, name=name, target=target(name), words=words, program=program, beside=beside,
        files=files or {}, numbers=[] if hosts == sorted(hosts) else hosts, hosts=len(hosts), about=about,
        environment=environment or {},
    )  # fmt: skip
    return torchrun(plan) | {f"{name}.sh": (text, SCRIPT)}
