"""What this machine says of itself: the tools that are there, what they print, and /sys where there is nothing else.

Every tool is called without a shell, for at most 30 seconds, and nothing of what it prints is trusted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from topologies.errors import BadInput
from topologies.readers import read_seen
from topologies.readers.bounded import MOST_BYTES, text_of
from topologies.readers.seen import Seen
from topologies.readers.sysfs import read_sys

LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool and the calls whose outputs are read as one text."""

    name: str
    calls: tuple[tuple[str, ...], ...]


TOOLS = (
    Tool("nvidia-smi", (("nvidia-smi", "-L"), ("nvidia-smi", "topo", "-m"))),
    Tool(
        "rocm-smi",
        (("rocm-smi", "--showproductname", "--showcomputepartition", "--showmemorypartition", "--showtopo"),),
    ),
    Tool("amd-smi", (("amd-smi",), ("amd-smi", "topology"))),
    Tool("lstopo", (("lstopo-no-graphics", "--of", "xml"),)),
    Tool("scontrol", (("scontrol", "show", "topology"),)),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a tool is there, and what came of it in a few words."""

    tool: str
    there: bool
    words: str


def detect(sys_root: Path = Path("/sys")) -> tuple[list[Seen], list[Answer]]:
    """What tools and /sys show of this machine, and how each fared. A tool that fails is said and left out."""
    seen, answers = [], []
    for tool in TOOLS:
        found, answer = _ask(tool)
        answers.append(answer)
        if found is not None:
            seen.append(found)
    here = read_sys(sys_root)
    (host,) = here.hosts
    words = f"{len(host.devices)} accelerators, {len(host.nics or ())} RDMA ports, {len(host.memories)} memories"
    return [*seen, here], [*answers, Answer("/sys", bool(host.devices or host.memories), words)]


def _ask(tool: Tool) -> tuple[Seen | None, Answer]:
    missing = next((call[0] for call in tool.calls if shutil.which(call[0]) is None), None)
    if missing is not None:
        return None, Answer(tool.name, False, "not installed")
    try:
        text = "\n".join(_output(call) for call in tool.calls)
        found = read_seen(text, " ".join(tool.calls[-1]))
    except BadInput as error:
        return None, Answer(tool.name, True, str(error)[:200])
    told = f"{sum(len(host.devices) for host in found.hosts)} accelerators, {len(found.groups)} groups of hosts"
    return found, Answer(tool.name, True, told)


def _output(call: tuple[str, ...]) -> str:
    """What the call prints. Raises ``BadInput`` where it fails, takes too long, or prints too much or nothing."""
    said = " ".join(call)
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(
                call, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, timeout=LIMIT_S,
                env={**os.environ, "LC_ALL": "C"}, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BadInput(f"{said!r} printed nothing for {LIMIT_S:g} s") from error
        except OSError as error:
            raise BadInput(f"{said!r} cannot be run: {error.strerror}") from error
        if done.returncode != 0:
            raise BadInput(f"{said!r} ended with code {done.returncode}")
        if out.tell() > MOST_BYTES:
            raise BadInput(f"{said!r} printed {out.tell()} bytes; the limit is {MOST_BYTES}")
        out.seek(0)
        return text_of(out.read(), f"{said!r}")
