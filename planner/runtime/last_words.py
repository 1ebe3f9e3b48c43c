"""What a rank says when it ends by an error: one line that names it, after the traceback where that tells more.

an error of the planner's     rank 2: dp_replicate*dp_shard*cp*tp*pp = 4, but the job has 2 processes; ...
any other of the script's     the traceback, and then: rank 1 failed: ValueError: bad sample 17
the others' silence           rank 0: another rank ended ..., or after the timeout: rank 0: rank 1 has not come ...
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from types import TracebackType

from topologies.errors import PlannerError

_CLOSED = re.compile(r"(Connection closed by peer|Connection reset by peer|Broken pipe)( [^\s]*\d)?")
_SILENT = re.compile(
    r"[Tt]imed out waiting( \d+ms)?|Wait timeout|wait timeout|Watchdog caught collective operation timeout"
)
GATHER_S = 3.0
"""How long a rank that waited in vain looks which others did: those that did not are what all waited for."""


def name_this_rank() -> None:
    """From here on an error that ends this process of a job is told by rank; nothing outside a job."""
    if "RANK" in os.environ and sys.excepthook is not _say:
        sys.excepthook = _say
        logging.getLogger("torch.distributed.pipelining.schedules").setLevel(logging.CRITICAL)


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    rank, text = os.environ["RANK"], str(error).strip()
    causes = "\n".join(str(it) for it in _causes(error) if isinstance(it, RuntimeError))
    if isinstance(error, PlannerError):
        said = f"rank {rank}: {text}"
    elif found := _SILENT.search(causes):
        said = f"rank {rank}: {_absent(rank)} ({found[0]})"
    elif found := _CLOSED.search(causes):
        said = f"rank {rank}: another rank ended, which says why or was killed ({found[0]})"
    else:
        first = text.splitlines()[0][:500] if text else ""
        sys.__excepthook__(kind, error, trace)
        said = f"rank {rank} failed: {kind.__name__}: {first}"
    with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads any more
        print(said, file=sys.stderr, flush=True)
        sys.stdout.flush()
    if not isinstance(error, KeyboardInterrupt):
        os._exit(1)  # tearing down what waits for other ranks may take as long as they do


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, each once; not what a script left out by ``raise ... from None``."""
    found, seen = error, set[int]()
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _absent(rank: str) -> str:
    """Who has not come to what the others waited for, as far as the store still answers: it ends with its rank."""
    try:
        absent = _not_waiting(rank)
    except RuntimeError:
        absent = None
    if absent is None:
        return "another rank has not come"
    if not absent:
        return "ranks waited for each other, in different exchanges"
    return f"rank {', '.join(absent)} has not come: it hangs in its own code, or does not call what all ranks have to"


def _not_waiting(rank: str) -> list[str] | None:
    """The ranks that do not wait in vain as this one does; ``None`` outside a job. Raises what its store raises."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return None
    store = dist.distributed_c10d._get_default_store()
    store.set(f"meshwright/waited/{rank}", "1")
    time.sleep(GATHER_S)
    return [str(r) for r in range(int(os.environ["WORLD_SIZE"])) if not store.check([f"meshwright/waited/{r}"])]
