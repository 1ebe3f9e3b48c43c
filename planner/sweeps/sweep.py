"""Many planning questions through any ``concurrent.futures.Executor``, their answers in a file as they come.

    from planner.sweeps.sweep import sweep
    from planner.sweeps.cases import every_case
    sweep(every_case({"model": ["llama-3.1-8b"], "cluster": ["dgx-h100:{1,2}"]}), out="sweep.csv")

Only ``submit`` of the executor is used, and of its futures ``add_done_callback``, ``result`` and ``cancel``: Dask's
and Ray's do. A case is known by the digest of its whole question; the ones that a file holds are not asked again.
"""

from __future__ import annotations

import json
import queue
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner import __version__
from planner.errors import BadInput, InfeasiblePlan, PlannerBug, PlannerError, SearchGaveUp
from planner.sweeps.cases import Asked, Case, asked
from planner.sweeps.executors import process_pool, read_workers
from planner.sweeps.rows import named_as_asked, plan_row
from planner.sweeps.table import Row, Table, opened
from planner.whole_files import write_whole

PLAIN_OBJECTIVES = ("time", "energy", "money", "goodput")
"""Those that ``objective_name`` says all about; of others a plan's row has what was minimised last there."""
ALONE_BEFORE_GIVING_UP = 3
"""Workers that die one after the other over one case each, with nothing ever solved: then it is not the cases."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One row, and the plan behind it as JSON where it is to be kept."""

    row: Row
    plan_json: str | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """Where the rows are, how many cases were asked, found finished, and answered now by status."""

    path: Path
    cases: int
    finished_before: int
    statuses: dict[str, int]


def sweep(
    cases: Iterable[Case | Mapping[str, Any]],
    executor: Executor | None = None,
    out: str | Path = "sweep.csv",
    resume: bool = True,
    *,
    workers: int | None = None,
    plans: str | Path | None = None,
    progress: Callable[[int, int, Row], None] = lambda done, cases, row: None,
) -> Swept:
    """Plan every case and append a row for each to ``out`` (``.csv``, or ``.jsonl``) as soon as it is known.

    A case is a mapping of ``model``, ``cluster`` and whatever else :func:`planner.plan` takes. Without an
    ``executor``, ``workers`` processes are spawned (every usable core), so a script needs the guard
    ``if __name__ == "__main__":``. With ``resume`` the cases that ``out`` holds are skipped; without, it is written
    anew. ``plans`` is a directory to keep each plan in, as ``CASE.json``. A case that has no plan, that is wrong or
    that fails is a row too. Interrupted, the file holds every row so far, and the same call goes on from there.

    Raises ``BadInput`` for names that are no options, and for a file that cannot be written or is no sweep's.
    """
    questions, kept = asked(cases), _directory(plans)
    with opened(Path(out), resume=resume) as table:
        waiting = [question for question in questions if question.digest not in table.finished]
        statuses: Counter[str] = Counter()
        done = before = len(questions) - len(waiting)
        with closing(answers(waiting, executor, workers=workers, keep_plans=kept is not None)) as found:
            for answer in found:
                _record(answer, table, kept)
                statuses[answer.row["status"]] += 1
                done += 1
                progress(done, len(questions), answer.row)
    return Swept(Path(out), len(questions), before, dict(statuses))


def _record(answer: Answer, table: Table, kept: Path | None) -> None:
    """Write the plan first, so that a row in the table has its plan."""
    if kept is not None and answer.plan_json is not None:
        write_whole(kept, {f"{answer.row['case']}.json": answer.plan_json})
    table.append(answer.row)


def answers(
    questions: list[Asked], executor: Executor | None = None, *, workers: int | None = None, keep_plans: bool = False
) -> Iterator[Answer]:
    """The answers as they come, in any order; closed early, what waits is cancelled."""
    yield from (_unread(question) for question in questions if question.error)
    readable = [question for question in questions if not question.error]
    if executor is None:
        yield from _pooled(readable, read_workers(workers), keep_plans)
        return
    with closing(_submitted(executor, readable, keep_plans, len(readable))) as found:
        for question, future in found:
            yield _answer_of(question, future)


def _pooled(questions: list[Asked], workers: int, keep_plans: bool) -> Iterator[Answer]:
    """Answers from worker processes. When one dies, the cases that ran then are tried again one at a time."""
    waiting, suspects, lonely_deaths = deque(questions), deque(), 0
    while waiting or suspects:
        source, width = (suspects, 1) if suspects else (waiting, 2 * workers)
        lost: list[Asked] = []
        with (
            process_pool(min(workers, width, len(source))) as pool,
            closing(_submitted(pool, source, keep_plans, width)) as found,
        ):
            for question, future in found:
                if _worker_died(future):
                    lost.append(question)
                    continue
                lonely_deaths = -len(questions)
                yield _answer_of(question, future)
        if width > 1:
            suspects.extend(lost)
            continue
        lonely_deaths += len(lost)
        if lonely_deaths >= ALONE_BEFORE_GIVING_UP:
            raise PlannerError(
                f"{lonely_deaths} workers in a row ended before they solved anything; a script that calls sweep() "
                "needs the guard if __name__ == '__main__', and a worker some 500 MB of memory"
            )
        yield from (_failed(question, "its worker process died, twice: out of memory?") for question in lost)


def _submitted(
    executor: Executor, questions: Iterable[Asked], keep_plans: bool, width: int
) -> Iterator[tuple[Asked, Future]]:
    """Questions with their finished futures, at most ``width`` on their way; none is handed to a broken pool.

    A ``deque`` of questions is emptied as they are handed out.
    """
    ready: queue.SimpleQueue[Future] = queue.SimpleQueue()
    going: dict[Future, Asked] = {}
    source = _popped(questions) if isinstance(questions, deque) else iter(questions)
    broken = False
    try:
        while True:
            while not broken and len(going) < width and (question := next(source, None)) is not None:
                future = _handed(executor, question, keep_plans)
                going[future] = question
                future.add_done_callback(ready.put)
            if not going:
                return
            future = ready.get()
            broken = broken or _worker_died(future)
            yield going.pop(future), future
    finally:
        for future in going:
            future.cancel()


def _handed(executor: Executor, question: Asked, keep_plans: bool) -> Future:
    """The question's future; one that failed already where the executor takes nothing any more."""
    try:
        return executor.submit(solve, question, keep_plans)
    except Exception as error:
        future: Future = Future()
        future.set_exception(error)
        return future


def _worker_died(future: Future) -> bool:
    """Whether a finished future failed because its pool did."""
    try:
        future.result()
    except BrokenExecutor:
        return True
    except Exception:
        return False
    return False


def _popped(questions: deque[Asked]) -> Iterator[Asked]:
    while questions:
        yield questions.popleft()


def _answer_of(question: Asked, future: Future) -> Answer:
    """A future's answer; a row that says so where the executor lost it."""
    try:
        return future.result()
    except Exception as error:
        return _failed(question, f"the executor lost it: {type(error).__name__}: {error}")


def solve(question: Asked, keep_plan: bool = False) -> Answer:
    """The answer to one question, whatever happens: this is what runs in a worker."""
    from planner.api import plan

    options = {"alternatives": 0, **question.case.options}
    try:
        found = plan(question.model, question.cluster, **options)
    except InfeasiblePlan as error:
        return Answer({**_asked_row(question), "status": "infeasible", "reason": str(error)})
    except SearchGaveUp as error:
        return Answer({**_asked_row(question), "status": "gave-up", "reason": str(error)})
    except PlannerBug as error:
        return _failed(question, f"a bug of the planner: {error}")
    except PlannerError as error:
        return Answer({**_asked_row(question), "status": "bad-input", "error": str(error)})
    except Exception as error:
        return _failed(question, f"{type(error).__name__}: {error}")
    found = named_as_asked(found, _named(question)[1])
    return Answer({**_asked_row(question), **plan_row(found)}, found.to_json() if keep_plan else None)


def _unread(question: Asked) -> Answer:
    return Answer({**_asked_row(question), "status": "bad-input", "error": question.error})


def _failed(question: Asked, why: str) -> Answer:
    return Answer({**_asked_row(question), "status": "error", "error": why})


def _asked_row(question: Asked) -> Row:
    """The columns that the question fills."""
    options = dict(question.case.options)
    named = {name: options.pop(name, None) for name in ("seq_len", "global_batch", "precision")}
    objective = options.get("objective", "time")
    if objective in PLAIN_OBJECTIVES:
        options.pop("objective", None)
    model, cluster = _named(question)
    return {
        "case": question.digest, "model": model, "cluster": cluster, **named,
        "optimizer": options.pop("optimizer", "adam"), "objective_name": objective,
        "options": json.dumps(options, sort_keys=True, default=str) if options else "",
        "meshwright_version": __version__,
    }  # fmt: skip


def _named(question: Asked) -> tuple[str, str]:
    """How model and cluster were called; by their own names where they were handed over as objects."""
    model, cluster = question.case.model, question.case.cluster
    return (
        str(model) if isinstance(model, str | Path) else getattr(question.model, "name", "model"),
        str(cluster) if isinstance(cluster, str | Path) else getattr(question.cluster, "name", "cluster"),
    )


def _directory(plans: str | Path | None) -> Path | None:
    if plans is None:
        return None
    path = Path(plans)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{path} cannot be a directory for plans: {error.strerror}") from error
    return path
