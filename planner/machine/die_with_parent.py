"""Ends a process of a job when the one that started it ends, however that ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
INIT = 1
"""The process that inherits those whose parent has ended."""


def die_with_parent(by: signal.Signals = signal.SIGKILL, parent: int | None = None) -> None:
    """Asks the kernel for ``by`` at the parent's death, and ends at once where it is dead already; only on Linux.

    ``parent`` is its process id, taken before the fork. Where that is not known, a parent that is ``INIT`` counts as
    dead: so it is for ranks, whose launcher was started by another process. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(by), 0, 0, 0)
        dead = os.getppid() == INIT if parent is None else os.getppid() != parent
        if dead:
            os._exit(1)
