"""Where the cases of a sweep run: processes of this machine, or a Dask cluster. Both are ``concurrent.futures``.

Worker processes are spawned, not forked, so that a caller's threads and locks are not copied. They leave Ctrl-C to
the parent, and end as soon as the parent closes its end of a pipe or dies: a sweep that is cut short leaves none.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING

from planner.errors import BadInput

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MOST_WORKERS = 1024
DASK_CONNECT_S = 10


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned workers. Left by an exception (Ctrl-C is one) it ends what runs instead of waiting for it."""
    context = get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_stand_by, initargs=(watched,))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        held.close()
        raise
    finally:
        pool.shutdown(wait=True)
        held.close()
        watched.close()


def _stand_by(watched: Connection) -> None:
    """What a worker does first: leave Ctrl-C to the parent, and watch the pipe that the parent holds open."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, args=(watched,), daemon=True).start()


def _end_with_the_parent(watched: Connection) -> None:
    """Nothing is ever sent: the pipe becomes readable when its other end is closed."""
    watched.poll(None)
    os._exit(1)


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """The executor of a running Dask scheduler (``tcp://host:8786``), whose workers have this version installed.

    Raises ``BadInput`` where ``distributed`` is missing or nobody answers at ``address``.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise BadInput("--dask needs the package distributed: pip install 'meshwright[dask]'") from error
    try:
        client = Client(address, timeout=DASK_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            f"no Dask scheduler answers at {address[:200]!r} ({str(error)[:120]}); "
            "give the address that `dask scheduler` prints, such as tcp://host:8786"
        ) from error
    with client, client.get_executor(pure=False) as executor:
        yield executor


def read_workers(workers: int | None) -> int:
    """How many processes to start; every usable core by default. Raises ``BadInput`` for less than one."""
    if workers is None:
        return usable_cores()
    if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= MOST_WORKERS:
        raise BadInput(f"workers={workers!r} must be a whole number from 1 to {MOST_WORKERS}")
    return workers
