"""``meshwright sweep``: cases from options or from a file, progress on stderr, rows in a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.errors import BadInput

if TYPE_CHECKING:
    from planner.sweeps.cases import Case
    from planner.sweeps.sweep import Swept

Words = list[str] | None
_WHOLE = re.compile(r"[0-9]{1,11}")
_COMMA_OUTSIDE_BRACES = re.compile(r",(?![^{}]*\})")

File = Annotated[
    Path | None, typer.Argument(help="TOML or YAML: model, cluster and options, lists being alternatives.")
]
Models = Annotated[Words, typer.Option("--model", "-m", help="Preset or config.json; repeat, or use commas.")]
Clusters = Annotated[
    Words, typer.Option("--cluster", "-c", help="Repeat, or write 'dgx-h100:{1,2,4}' in quotes, or dgx-h100:1,2,4.")
]
SeqLens = Annotated[Words, typer.Option("--seq-len", help="Tokens a sequence: 4096,8192.")]
Batches = Annotated[Words, typer.Option("--global-batch", help="Sequences a step: 256,512.")]
Precisions = Annotated[Words, typer.Option("--precision", help="bf16,fp8")]
Optimizers = Annotated[Words, typer.Option("--optimizer", help="adam,sgd")]
Objectives = Annotated[Words, typer.Option("--objective", help="time,money: a case for each; in order: in a file.")]
Tokens = Annotated[Words, typer.Option("--tokens", help="Tokens to train on: 1T,15T.")]
Limits = Annotated[Words, typer.Option("--limit", help="Held in every case: host-power='8 kW'; repeat for more.")]
PowerCaps = Annotated[Words, typer.Option("--power-cap", help="With its unit: '500 kW,700 kW'.")]
Clocks = Annotated[bool, typer.Option("--clocks", help="Choose each stage's clock, in every case.")]
Tiers = Annotated[Words, typer.Option("--tiers", help="Memory tiers, dram,nvme or all; repeat for alternatives.")]
Headrooms = Annotated[Words, typer.Option("--headroom", help="0.05,0.1")]
Pins = Annotated[Words, typer.Option("--pin", help="A set of pins, tp=4,zero=1; repeat for alternatives.")]
TimeLimit = Annotated[
    float | None, typer.Option("--time-limit", min=0.01, help="Seconds a case searches at most. Default: 60.")
]
Out = Annotated[Path, typer.Option("--out", help="Rows: .csv, or .jsonl for JSON lines.")]
Plans = Annotated[Path | None, typer.Option("--plans", help="Directory to keep each plan in, as CASE.json.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes. Default: every core.")]
Dask = Annotated[str | None, typer.Option("--dask", help="A Dask scheduler instead: tcp://host:8786.")]
Resume = Annotated[bool, typer.Option("--resume/--afresh", help="Skip the cases that --out holds, or write it anew.")]


def sweep(
    file: File = None, model: Models = None, cluster: Clusters = None, seq_len: SeqLens = None,
    global_batch: Batches = None, precision: Precisions = None, optimizer: Optimizers = None,
    objective: Objectives = None, tokens: Tokens = None, limit: Limits = None, power_cap: PowerCaps = None,
    clocks: Clocks = False, tiers: Tiers = None, headroom: Headrooms = None, pin: Pins = None,
    time_limit: TimeLimit = None, out: Out = Path("sweep.csv"), plans: Plans = None, workers: Workers = None,
    dask: Dask = None, resume: Resume = True,
) -> None:  # fmt: skip
    """Plan many models on many clusters, a row each; go on where an earlier run was cut short."""
    from planner.sweeps.executors import dask_executor
    from planner.sweeps.sweep import sweep as run

    words = {
        "precision": precision, "optimizer": optimizer, "objective": objective, "tokens": tokens, "power_cap": power_cap
    }  # fmt: skip
    lists = {
        "model": _split(model), "cluster": _clusters(cluster), "seq_len": _numbers("--seq-len", seq_len),
        "global_batch": _numbers("--global-batch", global_batch), "headroom": _floats("--headroom", headroom),
        **{name: _split(given) for name, given in words.items()},
        "pins": pin, "tiers": tiers, "clocks": [True] if clocks else [], "limits": [limit] if limit else [],
        "time_limit_s": [] if time_limit is None else [time_limit],
    }  # fmt: skip
    cases = _cases(file, {name: values for name, values in lists.items() if values})
    if dask is not None and workers is not None:
        raise BadInput("--workers counts processes of this machine; a --dask scheduler has its own: leave one out")
    with nullcontext() if dask is None else dask_executor(dask) as executor, _counted(out) as report:
        found = run(cases, executor, out, resume, workers=workers, plans=plans, progress=report)
    typer.echo(_told(found))
    if found.statuses.get("error"):
        raise typer.Exit(3)


def _cases(file: Path | None, given: dict[str, Any]) -> list[Case]:
    """The cases of a file, or of the options. Raises ``BadInput`` for both at once, or for neither whole."""
    from planner.sweeps.cases import cases_in, every_case

    if file is not None and given:
        raise BadInput(
            f"{str(file)[:200]!r} lists cases, and so do --{', --'.join(name.replace('_', '-') for name in given)}; "
            "give one of them, and quote braces: a shell makes several words of dgx-h100:{1,2}"
        )
    if file is not None:
        return cases_in(file)
    if missing := [f"--{name}" for name in ("model", "cluster") if name not in given]:
        raise BadInput(f"{' and '.join(missing)} missing: give a file of cases, or at least one model and one cluster")
    return every_case(given)


def _split(words: Words) -> list[str]:
    """Words cut at commas that stand in no braces."""
    parts = (part.strip() for word in words or () for part in _COMMA_OUTSIDE_BRACES.split(word))
    return [part for part in parts if part]


def _clusters(words: Words) -> list[str]:
    """Cluster names; a bare number after a comma is another count of the name before it."""
    found: list[str] = []
    for part in _split(words):
        counted = _WHOLE.fullmatch(part) and found and ":" in found[-1]
        found.append(f"{found[-1].rpartition(':')[0]}:{part}" if counted else part)
    return found


def _numbers(option: str, words: Words) -> list[int]:
    parts = _split(words)
    if wrong := [part for part in parts if not _WHOLE.fullmatch(part)]:
        raise BadInput(f"{option} {wrong[0][:40]!r} is not a whole number; for example {option} 256,512")
    return [int(part) for part in parts]


def _floats(option: str, words: Words) -> list[float]:
    try:
        return [float(part) for part in _split(words)]
    except ValueError as error:
        raise BadInput(f"{option}: {str(error)[:80]}; for example {option} 0.05,0.1") from error


def _told(found: Swept) -> str:
    """One line: how many cases, with what end, where."""
    now = ", ".join(f"{count:,} {status}" for status, count in sorted(found.statuses.items())) or "nothing left to do"
    before = f"; {found.finished_before:,} were there before" if found.finished_before else ""
    return f"{found.cases:,} cases: {now}{before}; {found.path}"


@contextmanager
def _counted(out: Path) -> Iterator[Callable[[int, int, dict[str, Any]], None]]:
    """A bar on stderr where that is a terminal; and how to go on, should the sweep be interrupted."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, last = bar.add_task("starting", total=None), [0, 0]

        def report(done: int, cases: int, row: dict[str, Any]) -> None:
            last[:] = done, cases
            text = f"{row['status']}: {row['model']} on {row['cluster']}"
            bar.update(task, completed=done, total=cases, description=text)

        try:
            yield report
        except KeyboardInterrupt:
            how_far = f"{last[0]} of {last[1] or '?'} cases"
            print(f"meshwright: interrupted; {out} holds {how_far}, and the same command goes on", file=sys.stderr)
            raise
