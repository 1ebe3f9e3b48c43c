"""A job of several processes on this host, started by torchrun, watched, and ended as a whole whatever happens.

The launcher and every rank die with the process that started them (prctl), and a job that fails is reported by the
first rank that did and what it said.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.errors import BadInput, JobFailed, Unsupported

POLL_S = 0.1
GRACE_S = 5.0
"""Seconds that the launcher has to end its ranks before it is killed, and they with it."""
_FAILED = re.compile(r"^(?:\[[^\]]*\]:?\s*)?rank (\d+)(?: failed)?: ?(.*)$", re.M)
_ROOT_CAUSE = re.compile(r"rank\s*:\s*(\d+)[^\n]*\n\s*exitcode\s*:\s*(-?\d+)")


@dataclass(frozen=True)
class Launch:
    """A module with its arguments, started ``processes`` times here, as host ``rank`` of ``hosts``.

    ``prefix`` are words before the launcher's, such as those that enter a network namespace; ``environment`` is added.
    """

    module: str
    arguments: tuple[str, ...]
    processes: int
    hosts: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    prefix: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def words(self) -> list[str]:
        """The command, word by word; no shell reads it."""
        return [
            *self.prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes", str(self.hosts),
            "--nproc-per-node", str(self.processes), "--node-rank", str(self.rank), "--rdzv-backend", "static",
            "--master-addr", self.address, "--master-port", str(self.port), "-m", self.module, *self.arguments,
        ]  # fmt: skip


def need_torch(what: str) -> None:
    """Raises ``Unsupported`` where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise Unsupported(
            f"{what} runs torch, which is not installed; install it with: pip install 'meshwright[torch]'"
        )


def free_port() -> int:
    """A TCP port on which nobody listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def check_port(port: int) -> None:
    """Raises ``BadInput`` for a port that somebody listens on."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
        except OSError as error:
            raise BadInput(
                f"port {port} of this host cannot be listened on ({error.strerror}); choose another with --port, or "
                "leave it out to take a free one"
            ) from error


def run_job(launches: Sequence[Launch], limit_s: float, heard: Callable[[str], None] = lambda line: None) -> None:
    """Starts the launches together and waits until all have ended; ``heard`` is given what they print, line by line.

    Raises ``JobFailed`` naming the first rank that failed and its error, or the limit; nothing is left running then.
    """
    with tempfile.TemporaryDirectory(prefix="meshwright-job-") as folder:
        logs = [Path(folder) / f"host-{k}.log" for k in range(len(launches))]
        running = []
        try:
            for launch, log in zip(launches, logs, strict=True):
                running.append(_started(launch, log))
            _wait(running, logs, limit_s, heard)
        except BaseException:
            _end(running)
            raise
        if any(process.returncode for process in running):
            raise JobFailed(_reason([log.read_text("utf-8", "replace") for log in logs], running))


def _started(launch: Launch, log: Path) -> subprocess.Popen:
    environment = {
        **os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONUNBUFFERED": "1",
        "TORCH_DISTRIBUTED_DEBUG": "OFF", **dict(launch.environment),
    }  # fmt: skip
    words = launch.words()
    if shutil.which(words[0]) is None:
        raise BadInput(f"{words[0]!r} cannot be run: it is not installed")
    with log.open("wb") as out:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, preexec_fn=functools.partial(_die_too, os.getpid()),
        )  # fmt: skip


def _die_too(parent: int) -> None:
    """In the launcher, before it starts: it is asked to end, and to end its ranks, when ``parent`` ends."""
    from planner.machine.die_with_parent import die_with_parent

    die_with_parent(signal.SIGTERM, parent)


def _wait(running: list[subprocess.Popen], logs: list[Path], limit_s: float, heard: Callable[[str], None]) -> None:
    end, read = time.monotonic() + limit_s, [0] * len(logs)
    while True:
        codes = [process.poll() for process in running]
        for k, log in enumerate(logs):
            read[k] = _tell(log, read[k], heard)
        if all(code == 0 for code in codes):
            return
        if any(codes):
            _end(running)
            return
        if time.monotonic() > end:
            raise JobFailed(f"the job did not end within {limit_s:.0f} s and was ended; a rank may hang")
        time.sleep(POLL_S)


def _tell(log: Path, position: int, heard: Callable[[str], None]) -> int:
    """Gives ``heard`` the whole lines behind ``position`` and returns where they end."""
    with log.open("rb") as lines:
        lines.seek(position)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            heard(line.decode("utf-8", "replace").rstrip())
    return position


def _end(running: list[subprocess.Popen]) -> None:
    """Asks every launcher to end its ranks, and kills those that do not; ranks die with their launcher."""
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    end = time.monotonic() + GRACE_S
    while any(process.poll() is None for process in running) and time.monotonic() < end:
        time.sleep(POLL_S)
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


def _reason(texts: list[str], running: list[subprocess.Popen]) -> str:
    """The first rank that failed and its error, out of what the launchers printed."""
    text = "\n".join(texts)
    said = [(rank, words) for rank, words in _FAILED.findall(text) if words and "Connection closed" not in words]
    if said:
        return f"rank {said[0][0]} of the job: {said[0][1][:800]}"
    cause = _ROOT_CAUSE.search(text.rpartition("Root Cause")[2])
    error = _last_error(text)
    if cause is None:
        codes = ", ".join(str(process.returncode) for process in running)
        return f"the launcher ended with code {codes}: {error or text.strip()[-400:]}"
    return f"rank {cause[1]} of the job ended {_how(int(cause[2]))}{': ' + error if error else ''}"


def _how(code: int) -> str:
    if code >= 0:
        return f"with code {code}"
    try:
        return f"by signal {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


def _last_error(text: str) -> str:
    """The last line of the first traceback."""
    after = text.partition("Traceback (most recent call last)")[2].splitlines()
    lines = [
        line.strip()
        for line in after
        if re.match(r"^(?:\[[^\]]*\]:?\s*)?[A-Za-z_.]*(?:Error|Exception)\b", line.strip())
    ]
    return lines[0][:400] if lines and "ChildFailedError" not in lines[0] else ""
