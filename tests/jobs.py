"""Starting processes of a job on this machine and seeing them end."""

from __future__ import annotations

import socket
import subprocess
import time


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for_all(processes: list[subprocess.Popen], limit_s: float) -> list[int]:
    """Return codes, once all have ended, one has failed, or time is up; none is left running."""
    end = time.monotonic() + limit_s
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    return [process.wait() for process in processes]
