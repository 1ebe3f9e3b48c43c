"""Launch files from plans. An exporter is a function: a plan in, ``{file name: (text, mode)}`` out.

``torchrun``, ``slurm``, ``trainjob`` and ``skypilot`` start processes; the others set a framework up.

Every text is made before the first is written, and each file appears whole: a refused target or a full
disk leaves no half of a launch behind.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from planner.errors import UnknownName
from planner.export.accelerate import accelerate
from planner.export.bridge import bridge
from planner.export.clocks import clocks
from planner.export.deepspeed import deepspeed
from planner.export.hosts import check_order
from planner.export.lightning import lightning
from planner.export.maxtext import maxtext
from planner.export.megatron import megatron
from planner.export.render import DOCUMENT, Files
from planner.export.schedules import check_schedule
from planner.export.skypilot import skypilot
from planner.export.slurm import slurm
from planner.export.torchrun import torchrun
from planner.export.torchtitan import torchtitan
from planner.export.trainjob import trainjob
from planner.export.vocabulary import check_vocabulary
from planner.result import Plan
from planner.whole_files import write_whole

EXPORTERS: dict[str, Callable[..., Files]] = {
    "torchrun": torchrun,
    "slurm": slurm,
    "megatron": megatron,
    "megatron-bridge": bridge,
    "torchtitan": torchtitan,
    "deepspeed": deepspeed,
    "accelerate": accelerate,
    "lightning": lightning,
    "maxtext": maxtext,
    "trainjob": trainjob,
    "skypilot": skypilot,
}
CARRIERS = ("trainjob", "skypilot")
"""Targets that carry the files of the others to the hosts; they come last and are given them."""

__all__ = ["EXPORTERS", "export", "write"]


def export(plan: Plan, targets: tuple[str, ...]) -> Files:
    """The files of all ``targets`` and ``plan.json``, not yet written.

    Raises ``UnknownName`` for a target that does not exist, ``Unsupported`` for one that cannot express the plan.
    """
    exporters = {name: _exporter(name) for name in targets}
    check_order(plan, targets)
    check_schedule(plan, targets)
    check_vocabulary(plan, targets)
    files: Files = {"plan.json": (plan.to_json() + "\n", DOCUMENT), **clocks(plan)}
    for name in sorted(exporters, key=lambda name: name in CARRIERS):
        files |= exporters[name](plan, files) if name in CARRIERS else exporters[name](plan)
    return files


def write(plan: Plan, directory: Path, targets: tuple[str, ...]) -> list[Path]:
    """Write ``plan.json`` and the files of every target; returns their paths.

    Raises ``BadInput`` when ``directory`` cannot be made or written, else as :func:`export`.
    """
    return write_files(export(plan, targets), directory)


def write_files(files: Files, directory: Path) -> list[Path]:
    """Write files whole; returns their paths. Raises ``BadInput`` when ``directory`` cannot be made or written."""
    contents, modes = ({name: it[k] for name, it in files.items()} for k in (0, 1))
    return write_whole(directory, contents, modes, "the launch files")


def _exporter(name: str) -> Callable[[Plan], Files]:
    if name not in EXPORTERS:
        nearest = difflib.get_close_matches(name, EXPORTERS, n=1, cutoff=0.0)[0]
        raise UnknownName(f"no export target {name!r}; nearest: {nearest}; there are: {', '.join(EXPORTERS)}")
    return EXPORTERS[name]
